"""Tables and pictures of finished runs."""

import json

import pytest

from mtl_jax.analysis import report, tables
from mtl_jax.config import default
from mtl_jax.config.plain import to_plain
from mtl_jax.errors import UserError
from mtl_jax.evaluation.scores import mean_by_split
from mtl_jax.storage import workdir
from mtl_jax.storage.metrics_log import MetricsLog, read_metrics


def make_run(folder, accuracy, tasks=("topic", "ner")):
    folder.mkdir()
    by_split = {"dev": {"accuracy": accuracy, "loss": None}, "test": {"accuracy": accuracy}}
    scores = dict.fromkeys(tasks, by_split)
    sizes = {task: {"dev": {"scored": 10, "total": 10}, "test": {"scored": 10, "total": 70}} for task in tasks}
    pairs = {"topic | ner": {"distance": 2.0, "relative": 0.1}} if len(tasks) > 1 else {}
    summary = {"tasks": scores, "examples": sizes, "distances": pairs, "step": 4, "seconds": 3.2, "parameters": 7}
    workdir.write_json(folder / "summary.json", summary)
    workdir.write_json(folder / "config.json", to_plain(default.get_config()))
    return summary


def test_tables_and_curves_of_a_run(tmp_path):
    summary = make_run(tmp_path / "a", 0.5)
    with MetricsLog(tmp_path / "a", 0) as log:
        for step in (1, 2):
            log.write(step, "train", {"loss": {"topic": 1.0 / step, "ner": float("nan") if step == 1 else None}})
        log.write(2, "dev", {"tasks": {"topic": {"accuracy": 0.5}}, "score": 0.5})
    text = report.training_report(tmp_path / "a", summary)
    rows = [line.split() for line in text.splitlines()]
    assert ["topic", "accuracy", "0.5000", "10", "0.5000", "10", "of", "70"] in rows
    assert ["(all)", "mean:", "accuracy", "0.5000", "2", "tasks", "0.5000", "2", "tasks"] in rows
    assert any(row[:3] == ["topic", "loss", "–"] for row in rows) and "topic | ner     2.0000" in text
    assert (tmp_path / "a" / "figures" / "curves.png").read_bytes().startswith(b"\x89PNG")
    with MetricsLog(tmp_path / "a", 1):
        pass
    assert [line["step"] for line in read_metrics(tmp_path / "a")] == [1]


def test_means_over_tasks_name_their_metrics_and_take_common_tasks(tmp_path):
    scores = {
        "a": {"dev": {"accuracy": 0.4, "loss": 9.0}, "test": {"accuracy": 0.5}},
        "b": {"dev": {"entity_f1": 0.8}, "test": {}},
        "c": {"dev": {"accuracy": 0.9}, "test": {"accuracy": None}},
    }
    actual = mean_by_split(scores)
    assert actual["dev"]["mean"] == pytest.approx(0.7) and actual["dev"]["metrics"] == ["accuracy", "entity_f1"]
    assert actual["test"] == {"mean": None, "tasks": ["a", "c"], "metrics": ["accuracy"]}
    assert mean_by_split({"a": scores["a"]}) == {}
    other = {task: {"dev": {"accuracy": 0.1}} for task in "abc"}
    compared = tables.comparison_means({"x": {"tasks": scores}, "y": {"tasks": other}})
    assert list(compared) == ["dev"] and compared["dev"]["tasks"] == ["a", "c"]  # b is scored by another metric
    assert compared["dev"]["values"] == {"x": pytest.approx(0.65), "y": pytest.approx(0.1)}
    assert tables.comparison_means({"x": {"tasks": scores}, "y": {"tasks": {}}}) == {}


def test_balance_of_a_run(tmp_path):
    summary = make_run(tmp_path / "a", 0.5)
    notes = {"weights": {"topic": 0.4, "ner": None}, "task_norms": {"topic": 1.0, "ner": 2.0}}
    with MetricsLog(tmp_path / "a", 0) as log:
        for step in (1, 2):
            alpha = {"topic": 1.0, "ner": 1.0}
            log.write(step, "train", {"loss": alpha, "alpha": alpha})
    assert "balance.png" not in report.training_report(tmp_path / "a", summary)  # nothing moved
    with MetricsLog(tmp_path / "a", 2) as log:
        log.write(3, "train", {"loss": alpha, "alpha": {"topic": 1.0, "ner": 2.0}})
    assert "balance.png" in report.training_report(tmp_path / "a", summary)
    with MetricsLog(tmp_path / "a", 0) as log:
        for step in (1, 2):
            log.write(step, "train", {"loss": alpha, "alpha": alpha, **notes})
    (tmp_path / "a" / "figures" / "balance.png").unlink()
    assert "balance.png" in report.training_report(tmp_path / "a", summary)
    assert (tmp_path / "a" / "figures" / "balance.png").read_bytes().startswith(b"\x89PNG")


def test_runs_side_by_side(tmp_path):
    make_run(tmp_path / "single", 0.5, tasks=("topic",))
    make_run(tmp_path / "soft", 0.75)
    text = report.comparison_report([tmp_path / "single", tmp_path / "soft"], tmp_path / "out")
    rows = [line.split() for line in text.splitlines()]
    assert ["topic", "test", "accuracy", "0.5000", "0.7500"] in rows
    assert ["ner", "test", "accuracy", "–", "0.7500"] in rows
    assert not any("mean" in row for row in rows)  # there is one common task alone
    compared = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert compared["tasks"]["topic"]["dev"]["accuracy"] == {"single": 0.5, "soft": 0.75}
    assert (tmp_path / "out" / "figures" / "compare.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "soft" / "summary.json").write_text('{"tasks": {"to')
    with pytest.raises(UserError, match=r"summary.json: not complete JSON"):
        report.comparison_report([tmp_path / "single", tmp_path / "soft"], tmp_path / "out")
    (tmp_path / "soft" / "summary.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        report.comparison_report([tmp_path / "single", tmp_path / "soft"], tmp_path / "out")
