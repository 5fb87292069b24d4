"""Adapted models as folders of runs: they predict, evaluate and export as any other run, and others begin there."""

from __future__ import annotations

import copy
import pathlib
import time
from typing import NamedTuple

import jax
import numpy as np

from mtl_jax.analysis.adaptation.lanes import Learner
from mtl_jax.analysis.adaptation.sources import Source, task_config
from mtl_jax.config.sections import Config
from mtl_jax.evaluation.inference import placement_over_devices
from mtl_jax.evaluation.scores import make_evaluator, mean_by_split, metric_ceilings, score_splits
from mtl_jax.runs.write_run import write_run
from mtl_jax.runtime import distributed
from mtl_jax.storage import run_warnings
from mtl_jax.storage import workdir as folders
from mtl_jax.storage.summary import Summary


class Adapted(NamedTuple):
    """What was adapted to what: a source, a new task, k, and the rate and number of steps that dev chose."""

    source: Source
    task: str
    shots: int
    rate: float
    steps: int

    def config(self) -> Config:
        """The config of the adapted model, which says how it came about."""
        config = copy.deepcopy(task_config(self.source.config, self.task))
        with config.unlocked():
            adaptation = config.adaptation
            adaptation.shots, adaptation.learning_rates, adaptation.steps = (self.shots,), (self.rate,), (self.steps,)
        return config


def save_run(folder: pathlib.Path, adapted: Adapted, learner: Learner, support: np.ndarray, draw: int) -> pathlib.Path:
    """Adapts to one support and writes the model as the folder of a run; it is left alone where it is complete.

    Args:
      folder: of the run.
      adapted: what is adapted.
      learner: of the task.
      support: int32[examples], rows of train.
      draw: its number.
    """
    config = adapted.config()
    folders.require_unclaimed(folder, config)
    if (folder / "summary.json").exists():
        return folder
    began = time.monotonic()
    source, experiment = adapted.source, learner.experiment
    params = learner.adapted(source.layers, support, draw, adapted.rate, adapted.steps)
    placement = placement_over_devices(experiment)
    placed = placement.replicated(placement.put_state(distributed.to_host(params)))
    scored = score_splits(make_evaluator(experiment, placement), experiment, placed)
    text = f"learned from {len(support)} examples alone, from {config.init_from.run}"
    summary: Summary = {
        "tasks": scored.scores,
        "means": mean_by_split(scored.scores),
        "examples": scored.sizes,
        "ceilings": metric_ceilings(experiment, scored.scores),
        "step": adapted.steps,
        "seconds": time.monotonic() - began,
        "distances": {},
        "parameters": sum(int(leaf.size) for leaf in jax.tree.leaves(params)),
        "skipped": dict.fromkeys([*experiment.tasks, "shared"], 0),
        "steps": {"made": adapted.steps, "left_out": 0},
        "warnings": run_warnings.by_severity(
            [
                run_warnings.warning(run_warnings.RUNS, text),
                *run_warnings.prediction_warnings(scored.remarks),
                *run_warnings.data_warnings(experiment.corpus),
            ]
        ),
    }
    write_run(folder, config, experiment, placed, summary)
    return folder
