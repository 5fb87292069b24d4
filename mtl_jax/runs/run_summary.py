"""summary.json: the final scores of a run, and what the training did."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import numpy as np

from mtl_jax.errors import UserError
from mtl_jax.evaluation.scores import mean_by_split, metric_ceilings, restore_params, score_splits
from mtl_jax.evaluation.task_distances import task_distances
from mtl_jax.experiment.assemble import Experiment
from mtl_jax.runs import init_from
from mtl_jax.runs.train_metrics import by_owner
from mtl_jax.runs.training_loop import TrainingLoop
from mtl_jax.runtime import distributed
from mtl_jax.storage import run_warnings
from mtl_jax.storage.metrics_log import read_metrics
from mtl_jax.storage.summary import Summary
from mtl_jax.storage.workdir import write_json
from mtl_jax.training import penalty_effect
from mtl_jax.training.parameter_paths import flatten
from mtl_jax.training.placement import Placement
from mtl_jax.training.state import TrainState


def summarize(loop: TrainingLoop, workdir: pathlib.Path, state: TrainState) -> Summary:
    """Scores the best or the last parameters of a finished loop, and writes summary.json.

    Raises:
      UserError: no step changed anything.
    """
    experiment = loop.experiment
    full = loop.placement.replicated(state)
    params, step, steps, left_out = full.params, int(full.step), int(full.step), int(full.left_out)
    skipped = by_owner(np.asarray(full.skipped), list(experiment.tasks))
    if 0 < steps == left_out:
        raise UserError(
            f"{workdir}: nothing was trained: {left_out} of {steps} steps were skipped, because a loss or gradient was "
            f"not finite (by owner: {skipped}). Lower config.optimizer.learning_rate or the λ of a penalty, and take "
            "another --workdir"
        )
    best = loop.progress.best_step
    if loop.config.evaluation.checkpoint == "best" and best not in (None, step):
        params, step, _ = restore_params(experiment, loop.placement, workdir, str(best))
    scored = score_splits(loop.evaluator, experiment, params, {"dev": loop.scores_by_step.get(step)})
    effects = _penalty_effects(experiment, loop.placement, workdir, params)
    summary: Summary = {
        "tasks": scored.scores,
        "means": mean_by_split(scored.scores),
        "examples": scored.sizes,
        "ceilings": metric_ceilings(experiment, scored.scores),
        "step": step,
        "seconds": loop.seconds,
        "distances": task_distances(experiment, params),
        "parameters": sum(int(leaf.size) for leaf in jax.tree.leaves(params)),
        "penalties": {name: effect._asdict() for name, effect in effects.items()},
        "skipped": skipped,
        "steps": {"made": steps, "left_out": left_out},
        **init_from.starting_point(workdir),
        "warnings": run_warnings.by_severity(
            [
                *run_warnings.step_warnings(left_out, steps, skipped),
                *run_warnings.score_warnings(loop.progress.undefined, loop.progress.evaluations),
                *run_warnings.prediction_warnings(scored.remarks),
                *run_warnings.penalty_warnings(effects),
                *run_warnings.data_warnings(experiment.corpus),
            ]
        ),
    }
    if distributed.is_first():
        write_json(workdir / "summary.json", summary)
    return summary


def _penalty_effects(
    experiment: Experiment, placement: Placement, workdir: pathlib.Path, params: Any
) -> dict[str, penalty_effect.Effect]:
    """{penalty: its effect} over all steps that were logged."""
    penalties = experiment.spec.objective.penalties
    if not penalties:
        return {}
    initial = placement.replicated(placement.put_state(experiment.init_params(experiment.config.seed)))

    def all_distances(*trees):
        flat = [flatten(tree) for tree in trees]
        return {name: penalty_effect.distances(*map(penalty.stacks, flat)) for name, penalty in penalties.items()}

    distances_by_penalty = distributed.to_host(jax.jit(all_distances)(params, initial))
    ratios = [line["penalty_ratio"] for line in read_metrics(workdir) if line["kind"] == "train"]
    return {
        name: penalty_effect.Effect(
            penalty_effect.mean_ratio(line.get(name) for line in ratios),
            float(experiment.hyper.strength[name]),
            *distances_by_penalty[name].tolist(),
        )
        for name in penalties
    }
