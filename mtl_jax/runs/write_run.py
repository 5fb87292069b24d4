"""A run folder of parameters that were trained elsewhere, such as a lane of an ablation: all modes begin from it."""

from __future__ import annotations

import pathlib

import jax

from mtl_jax.config.sections import Config
from mtl_jax.experiment.assemble import Experiment
from mtl_jax.runtime import distributed
from mtl_jax.storage import artifacts
from mtl_jax.storage import workdir as folders
from mtl_jax.storage.checkpoint import Checkpoints
from mtl_jax.storage.data_identity import data_metadata
from mtl_jax.storage.summary import Summary
from mtl_jax.training.objective import Params


def write_run(workdir: pathlib.Path, config: Config, experiment: Experiment, params: Params, summary: Summary) -> None:
    """Writes config.json, model/, the parameters and summary.json, which comes last: with it the run is finished.

    Args:
      workdir: of the run, created.
      config: of the run; `evaluation.checkpoint` says as which checkpoint the parameters are stored.
      experiment: of a config with the same model and data.
      params: on the devices or the host, leaves of one model; the same on all processes.
      summary: with `step` of the parameters.
    """
    if distributed.is_first():
        workdir.mkdir(parents=True, exist_ok=True)
        folders.claim(workdir, config)
        artifacts.save(workdir, experiment.corpus, experiment.model.architecture)
    distributed.wait_for_all("folder of a run")
    groups = experiment.spec.objective.groups
    with Checkpoints(workdir, 1, groups) as checkpoints:
        checkpoints.save_params(
            summary["step"],
            jax.tree.map(jax.numpy.asarray, params),
            data_metadata(experiment.corpus),
            best=config.evaluation.checkpoint == "best",
        )
    if distributed.is_first():
        folders.write_json(workdir / "summary.json", summary)
