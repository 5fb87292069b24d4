"""--mode=relate: evidence against other code for the same, gains and correlations against scipy, the whole mode."""

import csv
import itertools
import json

import fake_grids
import jax
import numpy as np
import pytest
from scipy import stats

from mtl_jax import checks
from mtl_jax.analysis import report
from mtl_jax.analysis.relatedness import measure_inputs, transfer
from mtl_jax.analysis.relatedness import relate as modes
from mtl_jax.analysis.relatedness.figures import clustered
from mtl_jax.analysis.relatedness.registry import MEASURES
from mtl_jax.analysis.relatedness.validation import correlation
from mtl_jax.config import default
from mtl_jax.errors import UserError
from mtl_jax.models import activation_sharding
from mtl_jax.runs.build import build
from mtl_jax.training.step import train_step

pytestmark = pytest.mark.usefixtures("standard_promotion")


def check(config):
    checks.check(config, "relate")


def quick(tiny, **changes):
    return tiny(
        **{
            "model__num_layers": 0,
            "model__dropout": 0.1,
            "training__steps": 3,
            "relatedness__num_seeds": 2,
            "relatedness__measure_every": 2,
            "relatedness__num_inputs": 20,
            "data__rows_per_block": 4,
            **changes,
        }
    )


def test_lanes_are_all_tasks_and_all_pairs(tiny):
    config = quick(tiny)
    config.tasks.tags.weight = 0.5
    planned = transfer.transfer_plan(config, tuple(config.tasks))
    actual = [tuple(s.fields[f"tasks.{t}.weight"] for t in config.tasks) for s in planned.programs[0].settings]
    assert actual == [(1, 0, 0), (0, 0.5, 0), (0, 0, 1), (1, 0.5, 0), (1, 0, 1), (0, 0.5, 1)]
    assert planned.seeds == (0, 1) and planned.lane_steps == 6 * 2 * 3
    assert planned.programs[0].config.evaluation.checkpoint == "last"


def test_gains_are_paired_differences(differs):
    rng = np.random.default_rng(0)
    tasks, lanes, table = ("a", "b", "c"), [], {}
    for first, last in [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]:
        for seed in range(4):
            table[first, last, seed] = rng.uniform(0.5, 0.9, 3)
            values = {"first": first, "last": last}
            scores = {t: {"dev": {"accuracy": float(s)}} for t, s in zip(tasks, table[first, last, seed], strict=True)}
            lanes.append(fake_grids.lane(0.5, seed=seed, values=values)._replace(scores=scores))
    actual = transfer.transfer_gains(fake_grids.grid(lanes, {}, tasks=tasks), "dev")
    for i, j in itertools.permutations(range(3), 2):
        pair = [table[min(i, j), max(i, j), s][j] for s in range(4)]
        alone = [table[j, j, s][j] for s in range(4)]
        differs("gain of a pair", actual["gain"][i][j]["mean"], np.mean(np.subtract(pair, alone)), 1e-12)
        differs("its p", actual["gain"][i][j]["p"], stats.ttest_rel(pair, alone).pvalue, 1e-9)
    assert actual["gain"][1][1] is None and actual["alone"]["b"]["n"] == 4


def test_correlations_over_pairs(differs):
    rng = np.random.default_rng(1)
    gains, measure = rng.normal(size=(5, 5)), rng.normal(size=(5, 5))
    off = ~np.eye(5, dtype=bool)
    actual = correlation(measure, gains)
    differs("Spearman against scipy", actual.rho, stats.spearmanr(measure[off], gains[off]).statistic, 1e-12)
    same = correlation(gains, gains)
    assert same.rho == pytest.approx(1.0) and same.p == pytest.approx(1 / 120) and same.low == pytest.approx(1.0)
    assert actual.low < actual.rho < actual.high and actual.pairs == 20
    without = [np.delete(np.arange(5), k) for k in range(5)]
    z = [
        np.arctanh(stats.spearmanr(*(m[np.ix_(w, w)][~np.eye(4, dtype=bool)] for m in (measure, gains))).statistic)
        for w in without
    ]
    half = stats.t.ppf(0.975, 4) * np.sqrt(4 / 5) * np.linalg.norm(np.asarray(z) - np.mean(z))
    differs("jackknife", [actual.low, actual.high], np.tanh(np.arctanh(actual.rho) + np.asarray([-half, half])), 1e-12)
    many = rng.normal(size=(9, 9))
    assert correlation(many, many).p < 1e-3
    constant = correlation(np.ones((5, 5)), gains)
    assert constant.rho is None and constant.p is None
    holes = np.where(rng.random((5, 5)) < 0.3, np.nan, measure)
    known = off & np.isfinite(holes)
    differs(
        "of what is known", correlation(holes, gains).rho, stats.spearmanr(holes[known], gains[known]).statistic, 1e-12
    )


def test_cosines_are_those_of_the_balanced_step(tiny, differs):
    """The probe's K backward passes against the step's one pass, on the same batch, parameters and dropout."""
    experiment = build(quick(tiny))
    joint = measure_inputs.JointRun(experiment, 2, measure_inputs.Lookahead(1e-3), None)(0, lambda: False)
    assert joint.steps == [0, 2] and joint.cosines.shape == joint.affinities.shape == (2, 3, 3)
    balanced = build(quick(tiny, aggregation__method="mean"))
    batch = jax.tree.map(lambda leaf: np.asarray(leaf)[None], balanced.batches(0).batch(0))
    _, metrics = jax.jit(lambda s, b, h: train_step(balanced.spec, s, b, h))(balanced.init(0), batch, balanced.hyper)
    differs("cosines along a run", joint.cosines[0], metrics["balanced"]["cosine"], 1e-5)
    # to first order TAG is η g_i·g_j / L_j
    norms, losses = np.asarray(metrics["balanced"]["task_norms"]), np.asarray(metrics["losses"])
    table = experiment.init(0).params["embed"]["word"]["embedding"]
    rate = 1e-3 * np.linalg.norm(table) / norms.mean()
    first = rate * joint.cosines[0] * np.outer(norms, norms) / losses[None]
    differs("TAG to first order", joint.affinities[0], first, 0.02 * np.abs(first).max())


def test_measures_of_split_parameters_are_the_same(tiny, differs, monkeypatch):
    monkeypatch.setattr(activation_sharding, "LARGE_LEAF", 64)
    joints, columns = [], []
    for devices in (1, 2):
        mesh = {"data": -1, "fsdp": devices, "task": 1, "sequence": 1, "model": 1}
        shared, alone = (build(quick(tiny, training__mesh=mesh, sharing__trunk=trunk)) for trunk in ("all", "none"))
        joints.append(measure_inputs.JointRun(shared, 2, measure_inputs.Lookahead(1e-3), None)(0, lambda: False))
        columns.append(measure_inputs.SeparateColumns(alone, shared, 20)(0, lambda: False))
    differs("cosines, parameters on two devices", joints[1].cosines, joints[0].cosines, 1e-5)
    for path, leaf in columns[0].end.items():
        differs("columns, parameters on two devices", columns[1].end[path], leaf, 2e-6)
    differs("texts by them", columns[1].representations, columns[0].representations, 1e-5)


def test_columns_are_runs_of_each_task_alone(tiny, differs):
    config = quick(tiny, sharing__trunk="none")
    alone, trunk = build(config), build(quick(tiny))
    actual = measure_inputs.SeparateColumns(alone, trunk, 20)(0, lambda: False)
    assert actual.representations.shape == (3, 20, 8)
    single = build(quick(tiny, sharing__trunk="none", train_tasks=("long",)))
    state = single.init(0)
    for step in range(3):
        batch = jax.tree.map(lambda leaf: np.asarray(leaf)[None], single.batches(0).batch(step))
        state, _ = train_step(single.spec, state, batch, single.hyper)
    path = "embed/word/embedding"
    differs("a column and its task alone", actual.end[path][2], state.params["embed"]["word"]["embedding"][0], 2e-6)
    # a bag of words: the mean over the tokens is the mean of their vectors
    rows = trunk.corpus.rows["texts"]["dev"]
    tokens = rows.tokens[0][rows.segment[0] == 1]
    wanted = np.asarray(actual.end[path])[:, tokens].mean(axis=1)
    differs("a text by each column", actual.representations[:, 0], wanted, 1e-6)


def test_the_whole_mode(tiny, tmp_path, capsys):
    config, folder = quick(tiny), tmp_path / "run"
    folder.mkdir()
    actual = modes.relate(config, folder, check)
    assert set(actual["measures"]) <= set(MEASURES) and {"gradient_cosine", "cka", "fisher"} <= set(actual["measures"])
    assert actual["tasks"] == ["color", "tags", "long"] and len(actual["looks"]["steps"]) == 2
    assert any("KL of labels" in note for note in actual["notes"])  # no two tasks have the same classes
    assert {task for group in actual["groups"]["groups"] for task in group} == set(actual["tasks"])
    before = {file: file.stat().st_mtime_ns for file in (folder / "measures").iterdir()}
    again = modes.relate(config, folder, check)  # goes on where it stands: nothing is left to train
    assert again == actual and before == {file: file.stat().st_mtime_ns for file in (folder / "measures").iterdir()}
    rows = list(csv.DictReader((folder / "relatedness.csv").open()))
    assert len(rows) == 6 and float(rows[0]["gain"]) == pytest.approx(actual["gain"][0][1]["mean"])
    text = report.relatedness_report(folder)
    assert "groups to train together" in text and "Spearman" in text
    drawn = {file.name for file in (folder / "figures").iterdir()}
    assert drawn == {"gains.png", "graph.png", "measures.png", "scatters.png", "cosines.png"}
    assert report.report_page([folder], tmp_path / "out").exists()
    (folder / "relatedness.json").write_text(json.dumps(actual)[:50])
    with pytest.raises(UserError, match=r"relatedness\.json: not complete JSON"):
        report.relatedness_report(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_tasks": ("color",)}, "1 task; how tasks relate"),
        ({"sharing__trunk": "none"}, "config.sharing.trunk: 'none' shares nothing"),
        ({"relatedness__num_pairs": 0}, "config.relatedness.predictor='grad_tag'"),
        ({"relatedness__predictor": "tag", "relatedness__measures": ("cka",)}, "'tag' is not one of"),
        ({"relatedness__measures": ("ckka",)}, "did you mean 'cka'"),
        ({"relatedness__transfer_split": "tset"}, "relatedness.transfer_split.*did you mean 'test'"),
    ],
)
def test_bad_input(tiny, tmp_path, changes, message):
    config = quick(tiny, **changes)
    with pytest.raises(UserError, match=message):
        check(config)
        modes.relate(config, tmp_path, check)
    unread = {"relatedness__num_inputs": 500}
    config = quick(tiny, sharing__trunk="none", relatedness__measures=("tag",), **unread)
    default.add_penalty(config, "l2", strength=0.1)
    with pytest.raises(UserError, match=r"config\.relatedness\.measures: no shared parameter"):
        modes.relate(config, tmp_path, check)


def test_groups_are_trained_alone_where_a_weight_of_zero_is_not_absence(tiny, tmp_path):
    """Two tasks, a penalty, a weighting: each group is a run of its tasks, and equals it."""
    unread = {"relatedness__num_inputs": 500, "relatedness__measure_every": 20}
    config = quick(tiny, sharing__trunk="none", train_tasks=("color", "long"), **unread)
    config.relatedness.measures = ("mtrl",)
    config.loss_weights.method, config.loss_weights.options = "fixed", {"weights": (1.0, 2.0)}
    default.add_penalty(config, "l2", strength=0.5)
    planned = transfer.transfer_plan(config, config.train_tasks)
    assert [p.config.train_tasks for p in planned.programs] == [("color",), ("long",), ("color", "long")]
    assert [len(p.config.penalties) for p in planned.programs] == [0, 0, 1]
    assert [tuple(p.config.loss_weights.options.get("weights", ())) for p in planned.programs] == [(), (), (1.0, 2.0)]
    actual = modes.relate(config, tmp_path, check)
    assert actual["tasks"] == ["color", "long"] and actual["gain"][0][1]["n"] == 2
    assert report.relatedness_report(tmp_path)


def test_losses_meet_in_a_mixer(tiny):
    """Columns have no common owner, but a mixer carries them to all tasks: their gradients are compared."""
    mixed = build(quick(tiny, sharing__trunk="embed", model__num_layers=1, sharing__mixer="cross_stitch"))
    joint = measure_inputs.JointRun(mixed, 2, measure_inputs.Lookahead(1e-3), None)(0, lambda: False)
    assert np.isfinite(joint.cosines).all() and np.abs(joint.cosines[0][0, 1]) > 1e-4
    assert any(path.startswith("mixer_") for path in joint.fisher)


def test_more_steps_of_tag_are_plain_descent(tiny, differs):
    experiment = build(quick(tiny, model__dropout=0.0))
    one, two = (
        measure_inputs.JointRun(experiment, 3, measure_inputs.Lookahead(1e-2, steps), None)(0, lambda: False)
        for steps in (1, 2)
    )
    ratio = np.diagonal(two.affinities[0]) / np.diagonal(one.affinities[0])
    assert (ratio > 1.5).all() and (ratio < 2.2).all()


def test_a_budget_trains_no_pair(tiny, tmp_path):
    unread = {"relatedness__num_inputs": 500, "relatedness__measure_every": 20}
    config = quick(tiny, relatedness__num_pairs=0, relatedness__predictor="grad_tag", **unread)
    config.relatedness.measures = ("grad_tag",)
    actual = modes.relate(config, tmp_path, check)
    assert not (tmp_path / "transfer").exists() and actual["groups"]["by"] == "grad_tag"
    assert np.isfinite(actual["measures"]["grad_tag"]["matrix"]).all()
    assert "by Grad-TAG" in report.relatedness_report(tmp_path)
    config.relatedness.num_pairs = 1
    assert len(transfer.transfer_plan(config, tuple(config.tasks)).programs[0].settings) == 4


def test_clustered_order_puts_close_tasks_side_by_side():
    near = np.asarray([[0, 0, 9, 0], [0, 0, 0, 9], [9, 0, 0, 0], [0, 9, 0, 0]], float)
    order = clustered(near)
    assert {frozenset(order[:2]), frozenset(order[2:])} == {frozenset((0, 2)), frozenset((1, 3))}
    assert clustered(np.full((3, 3), np.nan)) and clustered(np.zeros((2, 2))) == [0, 1]
