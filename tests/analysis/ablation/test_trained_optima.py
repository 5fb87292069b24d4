"""Training linear bags of words ends at their exact optimum; tasks without head parameters go through whole runs."""

import json

import jax
import numpy as np
import pytest
from linear_tasks import linear_config

from mtl_jax import checks
from mtl_jax.analysis.ablation.exact_optima import REFERENCES
from mtl_jax.evaluation.scores import make_evaluator, placement_from_config, restore_params
from mtl_jax.runs.build import build
from mtl_jax.runs.evaluate import evaluate
from mtl_jax.runs.train import train
from mtl_jax.training.step import train_step


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch, standard_promotion):
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path))


@pytest.mark.parametrize(
    ("kind", "strength"),
    [("l2_to_mean", 0.0), ("l2_to_mean", 0.02), ("l2_to_mean", 50.0), ("tied", 0.0), ("trace_norm", 0.05)],
)
def test_training_ends_at_the_exact_optimum(kind, strength, differs):
    config = linear_config("l2_to_mean" if kind == "tied" else kind, strength)
    config.sharing.tied = kind == "tied"
    checks.check(config)
    experiment = build(config)
    batch = jax.tree.map(lambda leaf: leaf[None], experiment.batches(0).batch(0))  # every batch holds all examples

    @jax.jit
    def run(state):
        def body(state, _):
            return train_step(experiment.spec, state, batch, experiment.hyper)[0], None

        return jax.lax.scan(body, state, None, length=2000)[0]

    params = run(experiment.init(0)).params
    exact = REFERENCES["linear"](config, experiment.corpus, kind, strength)
    words = slice(4, None)  # special tokens are in no text: they stay where they began, or go to the mean
    actual = np.asarray(params["embed"]["word"]["embedding"])[:, words, 0]
    differs("weights of linear tasks, trained against exact", actual, exact.weights[:, words], 1e-4)
    evaluator = make_evaluator(experiment, placement_from_config(experiment))
    scores = evaluator.score(params, "dev")
    for task, metrics in exact.scores.items():
        for metric, value in metrics["dev"].items():
            differs("scores of linear tasks, trained against exact", scores[task][metric], value, 1e-4)


def test_a_task_without_head_parameters_goes_through_a_whole_run(tmp_path):
    config = linear_config()
    config.training.steps = 4
    config.training.checkpoint_every = 2
    train(config, tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert set(summary["tasks"]) == {"t0", "t1", "t2"}
    again = evaluate(config, tmp_path / "run", "best")
    assert again["tasks"] == summary["tasks"]
    experiment = build(config)
    saved = restore_params(experiment, placement_from_config(experiment), tmp_path / "run", "last").params
    assert saved["heads"] == {"t0 + 2": {}}
