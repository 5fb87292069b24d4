"""Trouble that is counted is repeated where results are reported; nothing trained is an error; ties and NaN."""

import json
import math
from types import SimpleNamespace

import fake_grids
import numpy as np
import pytest

from mtl_jax.analysis import report
from mtl_jax.analysis.ablation import lane_batch, results, runner
from mtl_jax.analysis.ablation.lane_warnings import lane_warnings
from mtl_jax.config import default
from mtl_jax.data.notices import INFORMATION, LENGTH, Notice, notice
from mtl_jax.errors import UserError
from mtl_jax.evaluation.metric_inputs import constant_remark
from mtl_jax.evaluation.ranking import is_defined, rank
from mtl_jax.evaluation.scores import Scored
from mtl_jax.runs import train, training_loop
from mtl_jax.runs.evaluate import evaluate
from mtl_jax.storage import run_warnings
from mtl_jax.storage import workdir as folders
from mtl_jax.storage.metrics_log import read_metrics
from mtl_jax.tasks.text_metrics import GeneratedTexts

pytestmark = pytest.mark.usefixtures("standard_promotion")


def make_config(folder, **changes):
    """Two tasks on one data set with a text that is too long and a dev label that train lacks."""
    words = ["red", "blue"]
    records = [{"text": f"{words[n % 2]} w{n % 5}", "label": words[n % 2], "sets": [words[n % 2]]} for n in range(16)]
    records[3]["text"] += " long" * 20
    for split, part in (("train", records), ("dev", [*records[:8], {"text": "x", "label": "green", "sets": []}])):
        (folder / f"d.{split}.jsonl").write_text("\n".join(map(json.dumps, part)) + "\n")
    config = default.get_config()
    config.tokenizer.kind, config.model.layer_type, config.model.num_layers, config.model.hidden_size = (
        "words",
        "cnn",
        1,
        8,
    )
    config.data.row_length, config.data.rows_per_block, config.data.max_unseen_labels, config.data.packing = (
        16,
        8,
        1.0,
        False,
    )
    config.training.steps, config.training.eval_every, config.training.log_every = 4, 2, 1
    config.evaluation.rows_per_batch = 8
    splits = {split: f"d.{split}.jsonl" for split in ("train", "dev")}
    default.add_dataset(config, "d", reader="jsonl", path=str(folder), text=("text",), splits=splits)
    default.add_task(config, "c", kind="classification", dataset="d", label="label")
    default.add_task(config, "c2", kind="classification", dataset="d", label="label")
    config.sharing.trunk, config.model.column_init = "none", "independent"
    for field, value in changes.items():
        *path, last = field.split("__")
        node = config
        for key in path:
            node = node[key]
        node[last] = value
    return config


@pytest.fixture(scope="module")
def partly(tmp_path_factory):
    """A run of which the first step alone is finite: λ rises from 0 to 1e30. (config, folder, summary)"""
    import jax

    folder = tmp_path_factory.mktemp("partly")
    config = make_config(folder)
    default.add_penalty(config, "l2", kind="l2_to_mean", strength=1e30, schedule="rise")
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setenv("MTL_JAX_CACHE", str(folder / "cache"))
        return config, folder / "run", train.train(config, folders.prepare(folder / "run"))


def test_steps_left_out_lost_words_and_unseen_labels_are_in_the_summary(partly):
    _, workdir, summary = partly
    assert summary["steps"] == {"made": 4, "left_out": 3} and folders.read_summary(workdir) == summary
    by_kind = {kind: [w for w in summary["warnings"] if w["kind"] == kind] for kind in run_warnings.SEVERITY}
    (steps,) = by_kind["steps"]
    assert steps["text"].startswith("3 of 4 steps were skipped") and (steps["count"], steps["total"]) == (3, 4)
    assert [(w["count"], w["total"]) for w in by_kind["length"]] == [(1, 9), (1, 16)]  # the larger share first
    assert {(w["count"], w["total"]) for w in by_kind["labels"]} == {(1, 9)}
    assert not any("real tokens" in w["text"] for w in summary["warnings"])  # that is information
    assert summary["warnings"][0]["kind"] == "steps"


def test_they_are_told_under_the_last_table_in_reports_and_by_evaluate(partly, tmp_path):
    config, workdir, summary = partly
    text = report.training_report(workdir, summary)
    table, _, rest = text.partition("\nWarnings\n")
    assert "3 of 4 steps were skipped" in rest and "do not occur in train" in rest and "accuracy" in table
    assert "3 of 4 steps" in (report.report_page([workdir], tmp_path)).read_text()
    compared = report.comparison_report([workdir, workdir], tmp_path / "compare")
    assert "3 of 4 steps" in compared
    assert json.loads((tmp_path / "compare" / "compare.json").read_text())["warnings"][0]["count"] == 3
    again = evaluate(config, workdir, "best")
    assert again["warnings"] == summary["warnings"]


def test_a_run_in_which_no_step_was_taken_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    config = make_config(tmp_path)
    default.add_penalty(config, "l2", kind="l2_to_mean", strength=1e30)
    with pytest.raises(UserError, match=r"nothing was trained: 4 of 4 steps were skipped"):
        train.train(config, folders.prepare(tmp_path / "run"))
    assert not (tmp_path / "run" / "summary.json").exists()
    with pytest.raises(UserError, match=r"nothing was trained: 4 of 4 steps were skipped"):
        train.train(config, tmp_path / "run")  # started again


def test_the_order_of_warnings_and_how_they_are_folded():
    cut = [run_warnings.warning(LENGTH, f"{n} cut", n, 100) for n in range(1, 8)]
    steps = run_warnings.warning(run_warnings.STEPS, "1 of 9 steps", 1, 9)
    actual = run_warnings.by_severity([*cut, run_warnings.warning("other", "plain"), steps, cut[0]])
    assert [w["text"] for w in actual] == ["1 of 9 steps", *(f"{n} cut" for n in range(7, 0, -1)), "plain"]
    assert run_warnings.format_lines(actual, "x.json") == [
        "1 of 9 steps",
        "7 cut",
        "6 cut",
        "5 cut",
        "… and 4 more of this kind in x.json",
        "plain",
    ]
    several = run_warnings.combine_runs({"a": {"warnings": [steps, cut[0]]}, "b": {"warnings": [cut[0]]}, "c": {}})
    assert [w["text"] for w in several] == ["a: 1 of 9 steps", "a, b: 1 cut"]
    corpus = SimpleNamespace(notes=[Notice("fine", INFORMATION), "plain", notice("odd").prefixed("d")])
    assert [w["text"] for w in run_warnings.data_warnings(corpus)] == ["plain", "d: odd"]


@pytest.mark.parametrize(
    ("gold", "predicted", "text"),
    [
        (np.array([0, 1, 1]), np.array([1, 1, 1]), "only 'b' was predicted, 3 times"),
        (np.array([0, 1, 1]), np.array([-1, -1, -1]), "only nothing was predicted, 3 times"),
        (np.array([1, 1, 1]), np.array([1, 1, 1]), ""),  # as the labels are
        (np.array([0, 1, 1]), np.array([0, 1, 1]), ""),
        (np.array([[0, 1], [1, 1]]), np.zeros((2, 2), int), "no label was predicted for all 2 records"),
        (np.array([[0, 1, 0], [1, 1, 1]]), np.ones((2, 2), int), "the same labels were predicted for all 2 records"),
        ([np.array([0, 1]), np.array([0])], [np.array([0, 0]), np.array([0])], "only 'a' was predicted, 3 times"),
        (np.array([0.5, 1.0]), np.array([0.7, 0.7]), "the same number was predicted for all 2 records"),
        (np.array([0.5, 1.0]), np.array([0.7, np.nan]), "1 of 2 predicted numbers are not finite"),
        (["x", "y"], GeneratedTexts(["", ""]), "an empty answer was predicted for all 2 records"),
        (["x", "y"], GeneratedTexts(["u", "u"]), "the same text was predicted for all 2 records"),
        ([["x"], ["y"]], ["", ""], "an empty answer was predicted for all 2 records"),
        ([[(0, 1)], [(2,)]], [(), ()], "an empty answer was predicted for all 2 records"),
        (np.array([3, 4]), np.array([[1.0, -0.5], [1.0, -0.7]]), "only 'b' was predicted, 2 times"),
        (np.array([], int), np.array([], int), ""),
    ],
)
def test_predictions_that_are_all_alike_are_remarked(gold, predicted, text):
    assert constant_remark(gold, predicted, ("a", "b")) == text


def test_ties_go_to_the_lower_loss_and_what_is_not_finite_never_wins():
    worst_to_best = [(None, None), (0.0, math.nan), (0.0, 2.0), (0.0, 1.0), (0.1, 9.0)]
    ranks = [rank(*pair) for pair in worst_to_best]
    assert ranks == sorted(ranks) and rank(math.nan, 0.0) < ranks[1] and rank(math.inf, 0.0) < ranks[1]
    assert is_defined(-3.0) and not is_defined(math.nan) and not is_defined(None)


SCRIPT = [(0.0, 2.0), (0.0, 1.5), (math.nan, 0.1), (0.0, 1.0), (0.0, 1.0), (0.0, 3.0)]  # dev score and loss by step


def test_the_best_of_a_run_is_chosen_by_score_then_loss_then_time(tmp_path, monkeypatch):
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    script = iter(SCRIPT)

    def scripted(evaluator, params, split, listen=None):
        score, loss = next(script)
        remarks = {"c": "only 'red' was predicted, 9 times"}
        return Scored({task: {"accuracy": score, "loss": loss} for task in ("c", "c2")}, remarks)

    monkeypatch.setattr(training_loop, "score_split", scripted)
    config = make_config(tmp_path, training__steps=9, training__eval_every=1, training__early_stopping_patience=2)
    summary = train.train(config, folders.prepare(tmp_path / "run"))
    assert summary["step"] == 5 and len(read_metrics(tmp_path / "run")) == 2 * 6  # 5, 6: no progress
    texts = [w["text"] for w in summary["warnings"]]
    assert "the mean dev score was not a finite number at 1 of 6 evaluations" in texts
    assert "task c, dev: only 'red' was predicted, 9 times" in texts


def test_the_best_of_a_lane_is_chosen_likewise():
    one, remaining = lane_batch.LaneBatch.__new__(lane_batch.LaneBatch), []
    experiment = SimpleNamespace(tasks={"c": SimpleNamespace(metrics=("accuracy",))}, config=default.get_config())
    training = SimpleNamespace(early_stopping_patience=2, steps=99, eval_every=1)
    one.config = SimpleNamespace(training=training, evaluation=SimpleNamespace(checkpoint="best"))
    one.seeds, one.settings, one.logs = [0], [0], {(0, 0): lane_batch.LaneLog()}
    scores = SimpleNamespace(score=lambda params, split, listen: [[{"c": {"accuracy": now[0], "loss": now[1]}}]])
    one.engine = SimpleNamespace(
        built=SimpleNamespace(experiment=experiment),
        scores=scores,
        shape=SimpleNamespace(seeds=1, lanes=1),
        put=lambda better: better,
        select=lambda better, new, old: remaining.append(one.step),
    )
    one.states, one.best = SimpleNamespace(params=None, balance=SimpleNamespace(scores=None)), None
    one._extend_curves = lambda scores: None
    bar = SimpleNamespace(set_postfix_str=lambda *_, **__: None)
    for one.step, now in enumerate(SCRIPT, 1):  # noqa: B007 (read by `scores`)
        one._evaluate(bar, SimpleNamespace(raise_if_stopped=None))
    log = one.logs[0, 0]
    assert remaining == [1, 2, 4, 5] and log.best_step == 5 and log.status == "stopped early"


def test_lanes_that_froze_lost_steps_or_predict_one_class_are_counted(tmp_path):
    alike = {"pos": {"dev": "only 'a' was predicted, 9 times"}}
    lanes = [
        fake_grids.lane(0.5, seed=0, values={"strength": 0.1}, remarks=alike),
        fake_grids.lane(0.6, seed=1, values={"strength": 0.1}, left_out=3),
        fake_grids.lane(None, seed=0, values={"strength": 9.0}, status="frozen: not finite", left_out=10),
        fake_grids.lane(0.4, seed=1, values={"strength": 9.0}, status="dropped"),
    ]
    actual = run_warnings.by_severity(lane_warnings(lanes))
    assert [(w["kind"], w["count"], w["total"]) for w in actual] == [("steps", 1, 4)] * 3 + [("predictions", 1, 4)]
    texts = "\n".join(w["text"] for w in actual)
    assert "1 of 4 lanes: frozen: not finite" in texts and "at most 3 of 10" in texts and "only 'a'" in texts
    grid = fake_grids.grid(lanes)._replace(warnings=actual)
    runner._require_training(tmp_path, grid)
    (combination,) = results.summarise(grid)["combinations"]
    assert any("in 1 of 4 lanes; most at strength 0.1 (seed 1): 3 of 10" in text for text in combination["warnings"])
    assert any("task pos, dev: only 'a' was predicted" in text for text in combination["warnings"])
    results.write_grid(tmp_path, grid)
    shown = report.ablation_report(tmp_path)
    assert "1 of 4 lanes: frozen: not finite; they are in no mean" in shown
    assert "they are in no mean" in (tmp_path / "report.html").read_text()
    nothing = [lane._replace(left_out=lane.steps, status="frozen: not finite") for lane in lanes]
    with pytest.raises(UserError, match="nothing was trained: every step of all 4 lanes"):
        runner._require_training(tmp_path, fake_grids.grid(nothing))


def test_of_settings_with_equal_scores_that_of_the_lower_loss_is_chosen():
    def lane(strength, loss):
        scores = {"pos": {"dev": {"accuracy": 0.0, "loss": loss}}}
        return fake_grids.lane(0.0, values={"strength": strength})._replace(scores=scores)

    grid = fake_grids.grid([lane(0.1, 2.0), lane(1.0, 0.5), lane(10.0, math.nan), lane(100.0, 1.0)])
    (combination,) = results.summarise(grid)["combinations"]
    assert combination["points"][combination["chosen"]]["values"] == {"strength": 1.0}
