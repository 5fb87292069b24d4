"""The figures of ablations: which are drawn, and that what they show are the numbers."""

import math

import fake_grids
import numpy as np
import pytest
from fake_grids import lane

from mtl_jax.analysis import plotting
from mtl_jax.analysis.ablation import results
from mtl_jax.analysis.ablation.figures import draw as figures

LOG = plotting.Scale("strength  (penalties.l2.strength)", True, (0.01, 0.1, 1.0))


def draw(grid, folder):
    drawn = figures.draw(grid, results.summarise(grid), folder)
    for picture in drawn:
        assert picture.file.read_bytes().startswith(b"\x89PNG") and picture.caption.endswith(".")
    return [picture.file.name for picture in drawn]


def panel(grid, task=None):
    """The axes of one panel of scores against λ, and the summary."""
    summary = results.summarise(grid)
    figure, axes = plotting.panels(1, 1)
    figures._score_panel(axes[0, 0], grid, summary, summary["combinations"], "strength", task)
    figure.canvas.draw()
    return axes[0, 0], summary["combinations"][0]


def test_a_log_axis_has_places_beyond_its_values_and_for_zero():
    assert LOG.beyond(-1) < 0.01 and LOG.beyond(1) > 1.0 and LOG.beyond(2) > LOG.beyond(1)
    assert LOG.place(0.1) == 0.1 and LOG.place(0.0) == LOG.beyond(-1)
    assert LOG.place(None) == LOG.place(math.inf) == LOG.beyond(1)
    linear = plotting.Scale("dropout", False, (0.0, 0.5))
    assert linear.place(0.0) == 0.0 and linear.beyond(-1) < 0.0 and linear.beyond(1) > 0.5
    one = plotting.Scale("x", True, (0.3,))
    assert one.beyond(-1) < 0.3 < one.beyond(1)


def test_colours_differ_and_numbers_are_along_a_ramp():
    for names in (["a", "b", "c"], ["50", "100", "200"], [str(i) + "x" for i in range(20)]):
        assert len({tuple(np.atleast_1d(c)) for c in plotting.colours_by_name(names)}) == len(names)
    assert plotting.as_numbers(["50", "0.3"]) == [50.0, 0.3]
    assert plotting.as_numbers(["50", "all"]) is None and plotting.as_numbers(["nan"]) is None


def test_a_panel_shows_means_bands_ends_references_and_what_was_lost():
    rng = np.random.default_rng(0)
    table = {x: rng.normal(0.7, 0.02, 4) for x in (0.01, 0.1, 1.0)}
    lanes = [lane(float(s), seed=i, values={"strength": x}) for x in table for i, s in enumerate(table[x])]
    lanes[8] = lanes[8]._replace(status="frozen: not finite")
    lanes[9] = lanes[9]._replace(status="dropped")
    single = rng.normal(0.6, 0.02, 4)
    lanes += [lane(float(s), "single", i, {"learning_rate": 1.0}) for i, s in enumerate(single)]
    optimum = {"label": "exact optimum", "choices": {}}
    references = [
        optimum | {"values": {"strength": x}, "scores": {"pos": {"dev": {"accuracy": y}}}}
        for x, y in ((1.0, 0.9), (0.01, 0.8))
    ]
    axes, combination = panel(fake_grids.grid(lanes, references=references))
    drawn = {line.get_label(): line for line in axes.lines}
    x, y = drawn["soft sharing"].get_data()
    assert list(x) == [0.01, 0.1, 1.0]
    assert np.allclose(y, [table[0.01].mean(), table[0.1].mean(), table[1.0][2:].mean()], rtol=1e-12)
    assert np.allclose(drawn[plotting.END_NAMES["single"]].get_ydata(), single.mean(), rtol=1e-12)
    assert [list(v) for v in drawn["exact optimum"].get_data()] == [[0.01, 1.0], [0.8, 0.9]]
    assert drawn["exact optimum"].get_linestyle() == "--"
    for label in ("lanes frozen (not finite)", "lanes dropped (halving)", "some seeds missing"):
        assert list(drawn[label].get_xdata()) == [1.0]
    point = combination["points"][combination["chosen"]]
    assert [drawn["chosen on dev"].get_xdata()[0], drawn["chosen on dev"].get_ydata()[0]] == [
        point["values"]["strength"],
        point["score"]["mean"],
    ]
    band = axes.collections[0].get_paths()[0].vertices
    low, high = combination["points"][1]["score"]["low"], combination["points"][1]["score"]["high"]
    at = np.isclose(band[:, 0], 0.1)
    assert np.isclose(band[at, 1].min(), low) and np.isclose(band[at, 1].max(), high)
    assert axes.get_xlabel() and axes.get_ylabel() == "mean score (dev)"
    assert "0" in [text.get_text() for text in axes.get_xticklabels()]


def test_which_figures_are_drawn(tmp_path):
    one = fake_grids.realistic(tasks=3, points=3, seeds=2)
    assert draw(one, tmp_path / "a") == ["tasks_strength_0.png", "distance_strength.png", "curves_strength_0.png"]
    choices = {"sentences": ["50", "100"], "penalty": ["l2", "trace"]}
    several = fake_grids.realistic(tasks=1, points=3, seeds=2, choices=choices)
    assert draw(several, tmp_path / "b") == [
        "average_strength.png",
        "tasks_strength_0.png",
        "tasks_strength_1.png",
        "choice_sentences_0.png",
        "choice_penalty_0.png",
        "distance_strength.png",
        "curves_strength_0.png",
    ]
    assert "surface.png" in draw(fake_grids.realistic(tasks=1, points=3, seeds=1, second=True), tmp_path / "c")


def random_settings():
    values = [{"strength": float(x), "dropout": float(y)} for x, y in np.random.default_rng(0).random((6, 2))]
    lanes = [lane(0.5 + 0.01 * i, values=v) for i, v in enumerate(values)]
    lanes.append(lane(None, values={"strength": 0.5, "dropout": 0.5}, status="frozen: not finite"))
    sweeps = {
        "strength": {"field": "penalties.l2.strength", "scale": "log", "values": []},
        "dropout": {"field": "model.dropout", "scale": "linear", "values": []},
    }
    return fake_grids.grid(lanes, sweeps)


def choices_alone():
    curve = [{"step": 5, "loss": {"pos": 1.0}}, {"step": 10, "loss": {"pos": None}, "dev": {"pos": {"accuracy": 0.5}}}]
    lanes = [lane(0.5, choices={"layer": c}, seed=s, curve=curve) for c in ("cnn", "$rnn") for s in (0, 1)]
    return fake_grids.grid(lanes, {}, {"layer": ["cnn", "$rnn"]})


def a_combination_without_the_sweep():
    lanes = [lane(0.5, values={"strength": x}, choices={"penalty": "l2"}) for x in (0.0, 0.1, 1.0)]
    return fake_grids.grid([*lanes, lane(0.6, choices={"penalty": "none"})], choices={"penalty": ["l2", "none"]})


def learned():
    lanes = [lane(0.5, seed=s, values={"strength": x}) for s, x in ((0, 0.1), (1, 0.2), (0, 1.0), (1, 3.0))]
    return fake_grids.grid(lanes, method="hypergradient")


def all_frozen():
    lanes = [lane(None, values={"strength": x}, status="frozen: not finite", distance=None) for x in (0.1, 1.0)]
    return fake_grids.grid([x._replace(scores={}, effective_rank=None) for x in lanes])


@pytest.mark.parametrize("make", [random_settings, choices_alone, a_combination_without_the_sweep, learned, all_frozen])
def test_odd_ablations_are_drawn(make, tmp_path):
    assert draw(make(), tmp_path)


def test_a_task_named_like_mathematics_is_drawn(tmp_path):
    lanes = [lane(0.5, values={"strength": x}, tasks=("$a_{", "b$")) for x in (0.1, 1.0)]
    assert draw(fake_grids.grid(lanes, tasks=("$a_{", "b$")), tmp_path)


def test_nothing_to_draw(tmp_path):
    assert draw(fake_grids.grid([]), tmp_path) == []


def test_baselines_are_drawn_and_many_alternatives_kept_readable(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"m{i}" for i in range(12)]
    lanes = [
        lane(0.5 + 0.01 * i + 0.01 * rng.normal(), seed=s, choices={"method": m}, values={"rate": r}, tasks=("a", "b"))
        for i, m in enumerate(names)
        for s in range(3)
        for r in (0.1, 0.2, 0.4)
    ]
    sweeps = {"rate": {"field": "optimizer.learning_rate", "scale": "log", "values": [0.1, 0.2, 0.4]}}
    grid = fake_grids.grid(lanes, sweeps, {"method": names}, ("a", "b"), baselines={"method": ["m0", "m1"]})
    drawn = draw(grid, tmp_path)
    assert drawn[:2] == ["baseline_method_0.png", "baseline_method_1.png"] and "choice_method_0.png" not in drawn
    summary = results.summarise(grid)
    remaining = figures._best(summary["combinations"])
    assert [c["choices"]["method"] for c in remaining] == names[4:]
