"""The length of a run in epochs, tokens and minutes, and the range test."""

import json
import math

import numpy as np
import pytest

import mtl_jax
from mtl_jax import checks
from mtl_jax.analysis import range_test
from mtl_jax.errors import UserError
from mtl_jax.runs import train
from mtl_jax.runs.build import build

pytestmark = pytest.mark.usefixtures("standard_promotion")


def rows_of(experiment):
    return {name: rows["train"] for name, rows in experiment.corpus.rows.items()}


@pytest.mark.parametrize("mixing", ["all", "size"])
def test_epochs_and_tokens_are_steps(tiny, mixing):
    changes = {"datasets__texts__max_examples": {"train": 30}, "data__mixing": mixing, "training__grad_accum_steps": 2}
    epochs, tokens = build(tiny(training__epochs=2.5, **changes)), build(tiny(training__tokens=3000.0, **changes))
    sampler, rows = epochs.batches(0), rows_of(epochs)
    seen, real, step, needed = {name: 0 for name in rows}, 0, 0, None
    while needed is None or real < 3000:  # replay the batches and count
        for part in range(2):
            dataset, row = sampler.indices(2 * step + part)
            for d, chosen in zip(dataset, row, strict=True):
                name = sampler.datasets[d]
                seen[name] += len(chosen)
                real += int((rows[name].segment[chosen] > 0).sum())
        step += 1
        if needed is None and min(seen[name] / len(rows[name].tokens) for name in rows) >= 2.5 - 1e-9:
            needed = step
        if real >= 3000 and needed:
            break
    assert abs(epochs.config.training.steps - needed) <= (0 if mixing == "all" else 2)
    assert epochs.spec.optimizer.schedule.steps == epochs.config.training.steps
    mean = real / step
    assert tokens.config.training.steps == pytest.approx(3000 / mean, abs=1.5)


def test_a_run_of_epochs_trains_so_long_and_resumes(tiny, tmp_path):
    config = tiny(training__epochs=1.0, training__steps=1000, train_tasks=("color",))
    run = mtl_jax.train(config, tmp_path / "run")
    steps = math.ceil(len(rows_of(build(config))["texts"].tokens) / 8)
    assert run.summary["steps"]["made"] == steps == 5 and run.config.training.epochs == 1.0
    assert run.evaluate("last")["step"] == steps


def test_the_limit_of_minutes_ends_the_run_and_no_start_goes_on(tiny, tmp_path, monkeypatch, capsys):
    config = tiny(training__minutes=1.0, train_tasks=("color",))
    report = train.TrainingLoop._report_step

    def reporting(loop, step, metrics, bar):
        report(loop, step, metrics, bar)
        if step == 3:
            loop._began -= 60

    monkeypatch.setattr(train.TrainingLoop, "_report_step", reporting)
    summary = train.train(config, tmp_path)
    made = summary["steps"]["made"]
    assert 3 <= made <= 5 and "1 minutes are over" in capsys.readouterr().out
    (tmp_path / "summary.json").unlink()
    assert train.train(config, tmp_path)["steps"]["made"] == made
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["kind"] == "dev" and lines[-1]["step"] == made


@pytest.mark.parametrize(
    "changes, mode, message",
    [
        ({"training__epochs": 1.0, "training__tokens": 5.0}, "train", "training.tokens"),
        ({"training__epochs": 1.0, "training__steps": 7}, "train", "training.steps"),
        ({"training__minutes": 1.0}, "ablate", "equal numbers of steps"),
        ({"training__epochs": -1.0}, "train", "training.epochs"),
    ],
)
def test_mistakes(tiny, changes, mode, message):
    config = tiny(**{"training__steps": 1000, **changes})
    with pytest.raises(UserError, match=message):
        idle = checks.check(config, mode)
        raise UserError("\n".join(filter(None, idle.values())))


def test_the_range_test_finds_where_the_loss_falls(tiny, monkeypatch):
    rates = np.geomspace(1e-4, 10, 60)
    x = np.log10(rates)
    losses = 2 - 1 / (1 + np.exp(-4 * (x + 1))) + np.where(x > 0.3, 5 * (x - 0.3) ** 2, 0.0)  # steepest at 0.1
    assert range_test.steepest(rates, losses) == pytest.approx(0.1, rel=0.2)
    assert range_test.steepest(rates, np.linspace(1, 2, 60)) is None
    np.testing.assert_allclose(range_test.smoothed([3.0, 3.0, 3.0]), 3.0)
    monkeypatch.setattr(range_test, "STEPS", 40)
    result = range_test.range_test(tiny(train_tasks=("color",), model__dropout=0.0))
    assert result.memory > 0 and 1e-4 < result.suggestion < 10 and result.losses.min() < result.losses[0]
    assert "suggestion  config.optimizer.learning_rate" in range_test.describe(result)
