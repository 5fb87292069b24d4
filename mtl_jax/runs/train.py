"""--mode=train: a run from its first step, or from its newest checkpoint, to its summary."""

from __future__ import annotations

import contextlib
import gc
import pathlib
import time
from collections.abc import Callable

import jax

from mtl_jax.config.plain import to_plain
from mtl_jax.config.sections import Config
from mtl_jax.errors import UserError
from mtl_jax.evaluation.scores import abstract_arrays, placement_from_config
from mtl_jax.experiment.assemble import Experiment
from mtl_jax.experiment.task_gradients import describe
from mtl_jax.runs import init_from
from mtl_jax.runs.build import build
from mtl_jax.runs.run_summary import summarize
from mtl_jax.runs.training_loop import TrainingLoop, TrainingProgress
from mtl_jax.runtime import distributed
from mtl_jax.runtime.stop_signals import StopSignals
from mtl_jax.storage import artifacts, tracking
from mtl_jax.storage import workdir as folders
from mtl_jax.storage.checkpoint import Checkpoints
from mtl_jax.storage.data_identity import require_same_data
from mtl_jax.storage.metrics_log import MetricsLog
from mtl_jax.storage.summary import Summary
from mtl_jax.storage.trackers import TrackedRun
from mtl_jax.storage.workdir import write_json
from mtl_jax.training.placement import Placement, require_platform
from mtl_jax.training.state import TrainState
from mtl_jax.training.step import train_step

Reporter = Callable[[pathlib.Path, Summary], None]


def train(config: Config, workdir: pathlib.Path, report: Reporter | None = None) -> Summary | None:
    """Trains, evaluates and writes summary.json; resumes from the newest checkpoint in the workdir.

    Args:
      config: checked.
      workdir: prepared.
      report: called at the end, in the first process; trackers show the figures that it draws.

    Returns:
      the summary; None where SIGTERM or Ctrl-C stopped the run after a checkpoint.

    Raises:
      UserError: see `runs.build.build`; a workdir of another run; a tracker without login; too many steps that are not
        finite, or only such.
    """
    require_platform(config.training.platform)
    if folders.is_ablation(workdir):
        raise UserError(f"{workdir} is the folder of an ablation; take another --workdir for a single run")
    folders.require_unclaimed(workdir, config)
    if (workdir / "summary.json").exists():
        print(f"{workdir}: this run is complete; delete the folder to train anew.\n")
        summary = folders.read_summary(workdir)
        if report and distributed.is_first():
            report(workdir, summary)
        return summary
    tracking.require_ready(config)
    began = time.monotonic()
    # records and programs are many long-lived objects, which the collector would traverse again and again
    gc.disable()
    try:
        with contextlib.ExitStack() as trackers:
            return _train_or_resume(config, workdir, began, report, trackers)
    finally:
        gc.enable()


def _train_or_resume(
    config: Config, workdir: pathlib.Path, began: float, report: Reporter | None, stack: contextlib.ExitStack
) -> Summary | None:
    """As `train`, of a run that is not complete; `stack` closes its trackers."""
    experiment = build(config, finished=workdir)
    cost = describe(experiment.spec.data_gradient, experiment.corpus.layout)
    for note in [*experiment.corpus.notes, *[cost] * bool(cost)]:
        print(f"  {note}")
    placement = placement_from_config(experiment)
    step_function = placement.train(
        lambda state, batch, hyper, axis: train_step(experiment.spec, state, batch, hyper, axis)
    )
    groups = experiment.spec.objective.groups
    with StopSignals() as stop, Checkpoints(workdir, config.training.max_to_keep, groups) as checkpoints:
        state, progress = _first_state(experiment, placement, checkpoints)
        distributed.wait_for_all("checkpoint read")
        if distributed.is_first():
            folders.claim(workdir, config)
            artifacts.save(workdir, experiment.corpus, experiment.model.architecture)
        start = int(placement.replicated(state).step)
        run = TrackedRun(workdir, workdir.absolute().name, to_plain(config), start)
        trackers = stack.enter_context(tracking.tracked(config, run))
        with MetricsLog(workdir, start, progress.unscored, trackers) as log:
            loop = TrainingLoop(experiment, placement, checkpoints, log, progress, began)
            state = loop.run(step_function, state, start, stop)
        checkpoints.wait()
    if stop.asked:
        trackers.interrupted = True
        step = int(placement.replicated(state).step)
        print(f"{workdir}: stopped by a signal at step {step}, saved; the same command resumes from there")
        return None
    summary = summarize(loop, workdir, state)
    if report and distributed.is_first():
        report(workdir, summary)
    trackers.result(summary["step"], "final", summary["tasks"])
    trackers.files(workdir, "config.json", "summary.json", "metrics.jsonl", "figures/*.png")
    return summary


def _write_beginning(experiment: Experiment, workdir: pathlib.Path) -> None:
    """Says what is taken from another run, and writes it for the summary."""
    start = experiment.beginning.describe()
    if distributed.is_first():
        write_json(workdir / init_from.FILE, start)
    for line in init_from.lines(start):
        print(f"  {line}")


def _first_state(
    experiment: Experiment, placement: Placement, checkpoints: Checkpoints
) -> tuple[TrainState, TrainingProgress]:
    """The state to begin with: that of the newest intact checkpoint, or the initial one."""
    seed = experiment.config.seed

    def read(step: int):
        metadata = checkpoints.metadata(step)
        require_same_data(metadata, experiment.corpus, step)
        state = checkpoints.restore(step, abstract_arrays(jax.eval_shape(lambda: experiment.init(seed)), placement))
        return step, metadata, state

    newest = checkpoints.restore_newest(read)
    if newest is None:
        if experiment.beginning is not None:
            _write_beginning(experiment, checkpoints.folder)
        return placement.put_state(experiment.init(seed)), TrainingProgress()
    step, metadata, state = newest
    progress = TrainingProgress.from_metadata(metadata["progress"])
    if progress.best_step == step and checkpoints.best_step != step:  # stopped between the two writes
        checkpoints.save_best(state, metadata)
    print(f"  resuming from step {step} of {experiment.config.training.steps}")
    return placement.put_state(state), progress
