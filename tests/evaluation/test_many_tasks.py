"""What is shown of many tasks; of few everything is."""

import json
import math

import pytest

from mtl_jax.analysis import html, run_figures
from mtl_jax.analysis.report import distances_table, results_table
from mtl_jax.evaluation.many_tasks import LISTED_TASKS, TABLE_ROWS, nonzero, summarized, summarized_curves


def test_few_are_listed_and_of_many_the_mean_and_the_worst():
    few = {f"t{i}": float(i) for i in range(LISTED_TASKS)}
    assert summarized(few, lambda x: x) == few and nonzero(dict.fromkeys(few, 0)) == dict.fromkeys(few, 0)
    many = {f"t{i}": float(i) for i in range(101)} | {"broken": math.nan}
    shown = summarized(many, lambda x: x)
    assert list(shown) == ["mean of 102", "broken", "t100", "t99"] and shown["mean of 102"] == 50.0
    assert list(summarized(many, lambda x: -x))[2:] == ["t0", "t1"]
    assert nonzero({**dict.fromkeys(many, 0), "t7": 2}) == {"t7": 2}


def test_curves_are_their_mean_where_there_are_values():
    curves = {f"t{i}": [(step, float(i * step)) for step in (1, 2)] for i in range(21)} | {
        "late": [(2, 100.0)],
        "no": [],
    }
    shown = summarized_curves(curves, lambda x: x)
    assert list(shown) == ["mean of 22", "late", "t20", "t19"]
    assert shown["mean of 22"] == [(1, 10.0), (2, pytest.approx((420 + 100) / 22))]


def test_tables_of_256_tasks(tmp_path):
    tasks = {f"t{i:03d}": {"test": {"accuracy": i / 256, "macro_f1": 0.5}} for i in range(256)}
    lines = results_table({"tasks": tasks}).splitlines()
    assert len(lines) < TABLE_ROWS + 6 and lines[2].startswith("t000") and "… 216 more" in "\n".join(lines)
    assert lines[-1].startswith("(all)") and "255" in lines[-2] and "256 tasks" in lines[-1]
    pairs = {f"a{i}, b{i}": {"distance": float(i), "relative": 0.1} for i in range(5000)}
    assert len(distances_table(pairs).splitlines()) < TABLE_ROWS + 6
    assert "<details>" in html.table(["task"], [[task] for task in tasks])
    assert "<details>" not in html.table(["task"], [[task] for task in list(tasks)[:5]])

    (tmp_path / "metrics.jsonl").write_text(
        "".join(
            json.dumps({"kind": "train", "step": step, "loss": dict.fromkeys(tasks, 1.0 / step)}) + "\n"
            for step in (1, 2)
        )
    )
    assert run_figures.draw_curves(tmp_path).is_file()
    result = {task: {"test": {"accuracy": {"one": 0.1, "two": float(task[1:])}}} for task in tasks}
    run_figures.draw_comparison(result, ("one", "two"), tmp_path / "compared.png")
    assert next(iter(run_figures._most_different(result, ("one", "two")))) == "t255"
