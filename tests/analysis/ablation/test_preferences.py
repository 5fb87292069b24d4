"""Preference vectors and Pareto fronts: against brute force; an ablation over preferences."""

import numpy as np
import pytest

from mtl_jax import checks
from mtl_jax.analysis import report
from mtl_jax.analysis.ablation import preferences, results, summary
from mtl_jax.analysis.ablation.plan import make_plan
from mtl_jax.analysis.ablation.runner import ablate
from mtl_jax.analysis.single_task_changes import single_task_changes


def check(config):
    return checks.check(config, "ablate")


def test_the_front_is_what_nothing_beats():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, size=(40, 3)).astype(float)
    scores[5, 1] = np.nan

    def beaten(i):
        if not np.isfinite(scores[i]).all():
            return True
        return any(
            all(scores[j][k] >= scores[i][k] for k in range(3)) and any(scores[j][k] > scores[i][k] for k in range(3))
            for j in range(40)
            if np.isfinite(scores[j]).all()
        )

    assert preferences.pareto_front(scores) == [not beaten(i) for i in range(40)]
    assert preferences.pareto_front([]) == []


def test_vectors_are_on_the_simplex():
    assert preferences.preference_vectors(2, 3, 0)[:, 0].tolist() == [0.25, 0.5, 0.75]
    drawn = preferences.preference_vectors(4, 50, 0)
    assert drawn.shape == (50, 4) and np.allclose(drawn.sum(axis=1), 1) and (drawn >= 0).all()
    assert (drawn[0] == 0.25).all() and not np.array_equal(drawn, preferences.preference_vectors(4, 50, 1))


@pytest.mark.usefixtures("standard_promotion")
def test_an_ablation_over_preferences(tiny, tmp_path):
    config = tiny(model__num_layers=0, training__steps=6, train_tasks=("color", "tags"))
    config.tasks.tags.options.crf = False
    config.ablation.preferences, config.ablation.num_seeds, config.ablation.intervals = 3, 1, False
    (program,) = make_plan(config, check).programs
    weights = [[s.fields[f"tasks.{task}.weight"] for task in ("color", "tags")] for s in program.settings]
    assert weights == [[0.5, 1.5], [1.0, 1.0], [1.5, 0.5]]
    ablate(config, tmp_path, check)
    assert report.report_page([tmp_path], tmp_path / "out").exists()
    grid = results.read_grid(tmp_path)
    (combination,) = summary.summarise(grid)["combinations"]
    scores = [
        [p["tasks"]["color"]["dev"]["accuracy"]["mean"], p["tasks"]["tags"]["dev"][grid.tasks["tags"][0]]["mean"]]
        for p in combination["points"]
    ]
    assert [p["front"] for p in combination["points"]] == preferences.pareto_front(scores)
    assert list((tmp_path / "out").rglob("pareto_0.png"))


def test_changes_against_single_task_runs():
    def run(**scores):
        return {"tasks": {task: {"dev": {"accuracy": value}} for task, value in scores.items()}}

    runs = {
        "both": run(a=0.6, b=0.9),
        "a": run(a=0.5),
        "worse a": run(a=0.1),
        "b": run(b=1.0),
        "three": run(a=1, b=1, c=1),
    }
    assert single_task_changes(runs) == {"dev": {"both": pytest.approx((0.2 - 0.1) / 2)}}
