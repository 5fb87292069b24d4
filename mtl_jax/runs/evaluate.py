"""--mode=evaluate: scores of a checkpoint."""

from __future__ import annotations

import pathlib

from mtl_jax.config.sections import Config
from mtl_jax.evaluation.scores import (
    make_evaluator,
    mean_by_split,
    metric_ceilings,
    placement_from_config,
    restore_params,
    score_splits,
)
from mtl_jax.runs.build import build
from mtl_jax.storage import run_warnings
from mtl_jax.storage.checkpoint import require_checkpoint
from mtl_jax.storage.data_identity import require_same_data
from mtl_jax.storage.summary import Evaluation
from mtl_jax.training.placement import require_platform


def evaluate(config: Config, workdir: pathlib.Path, which: str) -> Evaluation:
    """Scores the splits in `config.evaluation.splits` with saved parameters.

    Raises:
      UserError: no such checkpoint; one of another model or other data.
    """
    require_platform(config.training.platform)
    require_checkpoint(workdir, which)
    experiment = build(config, soft_labels=False, finished=workdir)
    placement = placement_from_config(experiment)
    saved = restore_params(experiment, placement, workdir, which)
    require_same_data(saved.metadata, experiment.corpus, saved.step)
    scored = score_splits(make_evaluator(experiment, placement), experiment, saved.params)
    return {
        "tasks": scored.scores,
        "means": mean_by_split(scored.scores),
        "examples": scored.sizes,
        "ceilings": metric_ceilings(experiment, scored.scores),
        "step": saved.step,
        "warnings": run_warnings.by_severity(
            [
                *run_warnings.training_warnings(workdir),
                *run_warnings.prediction_warnings(scored.remarks),
                *run_warnings.data_warnings(experiment.corpus),
            ]
        ),
    }
