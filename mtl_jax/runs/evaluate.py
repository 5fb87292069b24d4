"""--mode=evaluate: scores of a checkpoint."""

from __future__ import annotations

import pathlib
from typing import Any

from mtl_jax.evaluation.scores import abstract_params, ceilings, make_evaluator, means, placement_of, score_splits
from mtl_jax.runs.build import build
from mtl_jax.storage import run_warnings
from mtl_jax.storage.checkpoint import load_params, require_checkpoint, require_same_data
from mtl_jax.training.placement import require_platform


def evaluate(config: Any, workdir: pathlib.Path, which: str) -> dict[str, Any]:
    """Scores the splits in `config.evaluation.splits` with saved parameters.

    Returns:
      {"tasks": {task: {split: {metric: value}}}, "means": see `means`, "examples": see `score_splits`,
      "ceilings": see `ceilings`, "step": of the checkpoint, "warnings": see `run_warnings`}

    Raises:
      UserError: no such checkpoint; one of another model or other data.
    """
    require_platform(config.training.platform)
    require_checkpoint(workdir, which)
    experiment = build(config, taught=False)
    placement = placement_of(experiment)
    saved = load_params(workdir, which, abstract_params(experiment, placement))
    require_same_data(saved.metadata, experiment.corpus, saved.step)
    scores, sizes, remarks = score_splits(make_evaluator(experiment, placement), experiment, saved.params)
    warnings = [*run_warnings.of_training(workdir), *run_warnings.of_predictions(remarks)]
    return {
        "tasks": scores,
        "means": means(scores),
        "examples": sizes,
        "ceilings": ceilings(experiment, scores),
        "step": saved.step,
        "warnings": run_warnings.ordered([*warnings, *run_warnings.of_data(experiment.corpus)]),
    }
