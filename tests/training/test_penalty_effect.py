"""How strongly penalties act: in every step against float64 numpy, wherever it is placed; at the end, in words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_steps import placed, steps

from mtl_jax import checks
from mtl_jax.analysis import report, tables
from mtl_jax.analysis.ablation import results
from mtl_jax.analysis.ablation.runner import ablate
from mtl_jax.config import default
from mtl_jax.runs import train
from mtl_jax.runs.build import build
from mtl_jax.storage import workdir as folders
from mtl_jax.storage.metrics_log import read_metrics
from mtl_jax.training import penalty_effect
from mtl_jax.training.parameter_paths import flatten
from mtl_jax.training.penalty_effect import Effect

pytestmark = pytest.mark.usefixtures("standard_promotion")

PLAIN = {
    "sharing__trunk": "none",
    "model__column_init": "independent",
    "model__layer_type": "cnn",
    "optimizer__name": "sgd",
    "optimizer__weight_decay": 0.0,
    "optimizer__warmup_ratio": 0.0,
    "optimizer__clip_norm": 0.0,
    "optimizer__learning_rate": 1.0,
    "model__dropout": 0.0,
}


def columns(flat, start):
    """float64 [K, n] of the leaves whose paths start so."""
    leaves = [np.asarray(leaf, np.float64) for path, leaf in sorted(flat.items()) if path.startswith(start)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def test_ratio_and_distance_of_a_step_are_those_of_numpy_on_any_placement(tiny, differs):
    strength, config = {"gradient": 0.3, "operator": 0.02}, tiny(**PLAIN)
    before = build(config)
    start = flatten(jax.device_get(before.init(0).params))
    after, _ = steps(before, 1)
    step = {path: leaf - start[path] for path, leaf in flatten(after.params).items()}  # −∇L, as the rate is 1
    default.add_penalty(config, "gradient", kind="l2_to_mean", strength=0.3, params="^layer_00/")
    default.add_penalty(config, "operator", kind="l2_to_mean", strength=0.02, params="^embed/", proximal=True)
    experiment = build(config)
    state, metrics = steps(experiment, 1)

    def deviations(x):
        return x - x.mean(axis=0)

    x, u = columns(start, "layer_00/"), columns(step, "layer_00/")
    wanted = {"gradient": strength["gradient"] * np.linalg.norm(2 * deviations(x)) / np.linalg.norm(u)}
    distance = {"gradient": np.sqrt((deviations(x) ** 2).sum() / 3) / np.linalg.norm(x.mean(axis=0))}
    x, u = columns(start, "embed/"), columns(step, "embed/")
    remaining = 1 / (1 + 2 * strength["operator"])
    wanted["operator"] = np.linalg.norm((1 - remaining) * deviations(x + u)) / np.linalg.norm(u)
    distance["operator"] = np.sqrt((deviations(x) ** 2).sum() / 3) / np.linalg.norm(x.mean(axis=0))
    for name in wanted:
        differs(f"penalty_ratio, {name}, relative", metrics["penalty_ratio"][name] / wanted[name], 1.0, 1e-4)
        differs(f"column_distance, {name}", metrics["column_distance"][name] / distance[name], 1.0, 1e-5)
    # what the penalties do to the parameters is what it was
    moved = columns(start, "embed/") + columns(step, "embed/")
    actual = columns(flatten(state.params), "embed/")
    differs("behind the operator", actual, moved - (1 - remaining) * deviations(moved), 1e-5)
    for placement in (placed(experiment), placed(experiment, "pmap")):
        _, again = steps(experiment, 1, placement)
        for field in ("penalty_ratio", "column_distance"):
            for name in wanted:
                differs(f"{field} on 8 devices", again[field][name] / metrics[field][name], 1.0, 1e-4)


def test_columns_that_are_equal_have_ratio_and_distance_0_and_nothing_is_nan():
    equal = {"x": jnp.ones((3, 4)), "y": jnp.zeros((3, 2))}
    assert float(penalty_effect.column_distance(equal)) == 0.0
    assert float(penalty_effect.column_distance({"x": jnp.zeros((3, 4))})) == 0.0
    assert float(penalty_effect.column_distance({"x": jnp.asarray([[1.0], [-1.0]])})) == np.inf  # Θ̄ = 0
    zero, one = jnp.float32(0.0), jnp.float32(1.0)
    assert [
        float(penalty_effect.safe_ratio(*pair)) for pair in ((zero, zero), (one, zero), (zero, one), (one, one))
    ] == [
        0.0,
        np.inf,
        0.0,
        1.0,
    ]
    gradient = jax.grad(lambda x: penalty_effect.tree_norm([x]))(jnp.zeros(3))
    np.testing.assert_array_equal(gradient, 0.0)
    assert penalty_effect.mean_ratio([0.5, None, float("nan"), float("inf"), 1.5]) == 1.0
    assert penalty_effect.mean_ratio([None]) is None
    first, last = np.asarray([[1.0, 2.0], [3.0, 5.0]]), np.asarray([[1.5, 2.0], [1.5, 4.0]])
    actual = penalty_effect.distances({"x": jnp.asarray(last)}, {"x": jnp.asarray(first)})

    def rms(x):
        return np.sqrt((x**2).sum() / 2)

    np.testing.assert_allclose(
        actual, [rms(last - last.mean(0)), rms(first - first.mean(0)), rms(last - first)], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("effect", "text"),
    [
        (Effect(0.02, 0.1, 39.5, 43.8, 30.0), "λ = 0.1 hardly acted"),  # proximal, 16 tasks
        (Effect(0.005, 0.1, 0.6, 0.0, 1.0), "λ = 0.1 hardly acted"),  # one start, apart as if each moved for itself
        (Effect(0.0005, 0.1, 0.5, 0.0, 1.0), "λ = 0.1 hardly acted"),
        (Effect(0.0082, 0.01, 2.09, 0.0, 6.62), ""),  # the quickstart, whose distance is 0.4 of that without a penalty
        (Effect(0.05, 0.1, 0.5, 0.0, 1.0), ""),
        (Effect(0.5, 1.0, 39.5, 43.8, 30.0), ""),
        (Effect(0.05, 1.0, 20.0, 43.8, 30.0), ""),
        (Effect(9.0, 1e4, 0.05, 43.8, 30.0), "λ = 10000 tied everything"),
        (Effect(9.0, 1e4, 0.001, 0.0, 1.0), "λ = 10000 tied everything"),
        (Effect(0.0, 0.0, 40.0, 43.8, 30.0), ""),  # λ = 0 is meant so
        (Effect(None, 0.1, 40.0, 43.8, 30.0), ""),
        (Effect(0.5, 0.1, 0.0, 0.0, 0.0), ""),  # nothing moved at all
    ],
)
def test_what_is_said_at_the_end(effect, text):
    assert penalty_effect.describe(effect).startswith(text) and bool(penalty_effect.describe(effect)) == bool(text)


def test_lanes_and_runs_say_which_strengths_hardly_act_or_tie_everything(tiny, tmp_path, differs):
    config = tiny(sharing__trunk="none", model__column_init="independent", model__layer_type="cnn", training__steps=6)
    default.add_penalty(config, "l2", kind="l2_to_mean", strength=1e-6, proximal=True)
    folder = folders.prepare(tmp_path / "grid")
    alone = train.train(config, folders.prepare(tmp_path / "run"))
    assert any("penalty l2: λ = 1e-06 hardly acted" in entry["text"] for entry in alone["warnings"])
    lines = [line for line in read_metrics(tmp_path / "run") if line["kind"] == "train"]
    assert all(0 < line["penalty_ratio"]["l2"] < 1e-3 < line["column_distance"]["l2"] for line in lines)
    default.add_sweep(config, "strength", field="penalties.l2.strength", points=(1e-6, 1e6))
    config.ablation.num_seeds, config.ablation.limits, config.ablation.intervals = 1, False, False
    grid = ablate(config, folder, lambda c: checks.check(c, "ablate"))
    weak, strong = grid.lanes
    for field, value in alone["penalties"]["l2"].items():
        # u' − u of so small a λ is near the rounding of the parameters
        differs(f"a lane's {field} against the run alone", weak.effects["l2"][field] / value, 1.0, 5e-3)
    assert penalty_effect.ties_columns(Effect(**strong.effects["l2"]))
    summary = results.summarise(grid)
    header, rows = tables.points_rows(summary["combinations"][0], summary["scores"])
    acts = header.index("penalty / losses")
    assert "hardly acted" in rows[0][acts] and "tied everything" in rows[1][acts]
    warnings = summary["combinations"][0]["warnings"]
    assert "penalty l2 hardly acted at strength 1e-06" in warnings
    assert "penalty l2 tied everything at strength 1e+06" in warnings
    assert "tied everything" in report.ablation_report(folder)
