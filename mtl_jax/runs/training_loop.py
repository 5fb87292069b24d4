"""The steps of one run, and what happens between them: log lines, evaluations, checkpoints, early stop, signals."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from mtl_jax.data.batch import Batch
from mtl_jax.errors import Stopped, UserError
from mtl_jax.evaluation import many_tasks
from mtl_jax.evaluation.ranking import is_defined, rank
from mtl_jax.evaluation.scores import Scored, make_evaluator, mean_loss, score_split, selection_score, task_scores
from mtl_jax.experiment.assemble import Experiment
from mtl_jax.runs.train_metrics import StepMetrics, by_owner, task_losses, train_line
from mtl_jax.runtime import distributed
from mtl_jax.runtime.progress import progress_bar
from mtl_jax.runtime.stop_signals import StopSignals
from mtl_jax.storage.checkpoint import Checkpoints
from mtl_jax.storage.data_identity import data_metadata
from mtl_jax.storage.metrics_log import MetricsLog
from mtl_jax.training.hyperparameters import Hyperparameters
from mtl_jax.training.placement import Placement
from mtl_jax.training.state import TrainState

STEPS_TO_AGREE = 10  # of several processes, between two questions whether the time is over

StepFunction = Callable[[TrainState, Batch, Hyperparameters], tuple[TrainState, StepMetrics]]


class TrainingProgress(NamedTuple):
    """What the host remembers between evaluations; part of every checkpoint.

    best_score, best_step  highest mean dev score so far and its step, see `ranking.rank`; None before the first
    best_loss              mean dev loss at that step
    best_scores            `Scored` of dev at that step
    stale                  evaluations since the last higher score, or lower loss at the same score
    evaluations            number of evaluations
    undefined              number of evaluations whose score was not a finite number
    unscored               True where a signal interrupted the evaluation of this step: the next start repeats it
    seconds                wall-clock time of the run so far, compilation and evaluation included
    """

    best_score: float | None = None
    best_step: int | None = None
    best_loss: float | None = None
    best_scores: Scored | None = None
    stale: int = 0
    evaluations: int = 0
    undefined: int = 0
    unscored: bool = False
    seconds: float = 0.0

    @classmethod
    def from_metadata(cls, fields: dict[str, Any]) -> TrainingProgress:
        """The progress in the metadata of a checkpoint; JSON has made lists of its tuples."""
        progress = cls(**fields)
        return (
            progress if progress.best_scores is None else progress._replace(best_scores=Scored(*progress.best_scores))
        )

    def after_evaluation(self, step: int, score: float, loss: float | None, scored: Scored) -> TrainingProgress:
        """The progress after an evaluation; of equal scores and losses the later step is the best."""
        current, best = rank(score, loss), rank(self.best_score, self.best_loss)
        counted = self._replace(
            evaluations=self.evaluations + 1,
            undefined=self.undefined + (not is_defined(score)),
            stale=0 if current > best else self.stale + 1,
        )
        if current < best or not is_defined(score):
            return counted
        return counted._replace(best_score=score, best_loss=loss, best_step=step, best_scores=scored)


class TrainingLoop:
    """Runs the steps. `progress` and `scores_by_step` are up to date after each evaluation."""

    def __init__(
        self,
        experiment: Experiment,
        placement: Placement,
        checkpoints: Checkpoints,
        log: MetricsLog,
        progress: TrainingProgress,
        began: float,
    ):
        """`began`: `time.monotonic()` when this start of the run began."""
        self.experiment, self.placement, self.progress = experiment, placement, progress
        self.config = experiment.config
        self.evaluator = make_evaluator(experiment, placement)
        self.scores_by_step = {progress.best_step: progress.best_scores}  # of dev, so that nothing is scored twice
        self._checkpoints, self._log = checkpoints, log
        self._began = began - progress.seconds
        self._batches = experiment.batches(self.config.seed)
        self._last_losses: dict[str, float] = {}  # the last known loss of each task

    @property
    def seconds(self) -> float:
        """Wall-clock time of the run over all its starts."""
        return time.monotonic() - self._began

    def run(self, step_function: StepFunction, state: TrainState, start: int, stop: StopSignals) -> TrainState:
        """Runs from step `start` to the end, an early stop or a signal, and returns the last state, which is saved."""
        training = self.config.training
        over = self._is_over(start)
        pending, done = None, start  # metrics are read a step late, so that the device never waits for the host
        with progress_bar("compiling", "step", training.steps, initial=start) as bar:
            if self.progress.unscored:
                state = self._repeat_evaluation(state, start, stop, bar)
            for step in range(start, training.steps):
                if self._is_stale() or stop.asked or over:
                    break
                batch = self.placement.put_batch(self._batch(step))
                state, metrics = step_function(state, batch, self.experiment.hyper)
                if pending is not None:
                    self._report_step(step, pending, bar)
                pending, done = metrics, step + 1
                stop.defer()
                self._checkpoints.check()
                if step == start:  # its losses are shown at once: compilation is over
                    gc.freeze()
                    gc.enable()
                    bar.set_description("training", refresh=False)
                    self._report_step(done, pending, bar)
                    pending = None
                bar.update()
                over = self._is_over(done)
                evaluating = done == training.steps or over or _is_due(done, training.eval_every)
                stopping = stop.should_stop()
                if evaluating or stopping or _is_due(done, training.checkpoint_every):
                    if pending is not None:
                        self._report_step(done, pending, bar)
                        pending = None
                    is_best = evaluating and self._evaluate(state, done, stop, bar)
                    state = self._with_scores(state, done)
                    self._save(state, is_best)
                if stopping or stop.asked:
                    break
            if done < training.steps and over and not stop.asked:
                bar.write(f"stopped at step {done} of {training.steps}: {training.minutes:g} minutes are over")
            elif done < training.steps and self._is_stale():
                bar.write(f"early stop at step {done}: no better dev score in {self.progress.stale} evaluations")
        return state

    def _is_over(self, step: int) -> bool:
        """Whether config.training.minutes are over; of several processes the first decides, in some of the steps."""
        limit = 60 * self.config.training.minutes
        if not limit or (jax.process_count() > 1 and step % STEPS_TO_AGREE):
            return False
        return distributed.from_first(lambda: self.seconds >= limit)

    def _is_stale(self) -> bool:
        limit = self.config.training.early_stopping_patience
        return bool(limit) and self.progress.stale >= limit

    def _batch(self, step: int) -> Batch:
        """The micro-batches of a step, leaves [A, B, R, ...]."""
        count = self.config.training.grad_accum_steps
        parts = [self._batches.batch(step * count + i, jax.process_index(), jax.process_count()) for i in range(count)]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *parts)

    def _report_step(self, step: int, device_metrics: StepMetrics, bar: tqdm) -> None:
        """Shows, logs and checks the metrics of the step that raised the count of steps to `step`.

        Raises:
          UserError: too many steps in a row were skipped.
        """
        metrics = distributed.to_host(device_metrics)
        tasks = list(self.experiment.tasks)
        losses = task_losses(metrics, tasks)
        self._last_losses |= {task: loss for task, loss in losses.items() if loss is not None}
        known = {task: self._last_losses[task] for task in tasks if task in self._last_losses}
        shown = " ".join(f"{task} {loss:.3f}" for task, loss in many_tasks.summarized(known, lambda x: x).items())
        bar.set_postfix_str(f"loss {shown}", refresh=False)
        bad, skipped = int(metrics["bad_steps"]), many_tasks.nonzero(by_owner(metrics["skipped"], tasks))
        if bad == 1:
            bar.write(f"step {step} was skipped: a loss or gradient is not finite; skipped so far: {skipped}")
        if bad >= self.config.training.max_nonfinite_steps:
            raise UserError(
                f"step {step}: {bad} steps in a row were skipped, because a loss or gradient was not finite; skipped "
                f"so far, by task: {skipped}. Lower config.optimizer.learning_rate or the λ of a penalty"
            )
        if _is_due(step, self.config.training.log_every) or step == self.config.training.steps:
            self._log.write(step, "train", train_line(metrics, tasks))

    def _repeat_evaluation(self, state: TrainState, step: int, stop: StopSignals, bar: tqdm) -> TrainState:
        """The evaluation that a signal interrupted; the state of `step` is saved already."""
        if self._evaluate(state, step, stop, bar):
            self._save_best(self.placement.replicated(state))
        return self._with_scores(state, step)

    def _evaluate(self, state: TrainState, step: int, stop: StopSignals, bar: tqdm) -> bool:
        """Scores dev. Returns whether these are the best parameters so far, see `ranking.rank`.

        If a signal arrives meanwhile nothing is scored, and `progress.unscored` is set.
        """
        self.progress = self.progress._replace(unscored=True)
        try:
            scored = score_split(self.evaluator, self.placement.replicated(state).params, "dev", stop.raise_if_stopped)
        except Stopped:
            return False
        self.progress = self.progress._replace(unscored=False)
        score = selection_score(scored.scores, self.experiment)
        if score is None:
            return False
        self.scores_by_step[step] = scored
        self._log.write(step, "dev", {"tasks": scored.scores, "score": score})
        bar.write(f"step {step}: dev {self._first_metrics(scored)}")
        self.progress = self.progress.after_evaluation(step, score, mean_loss(scored.scores), scored)
        return self.progress.best_step == step

    def _first_metrics(self, scored: Scored) -> str:
        """ "task metric value" of each task, with the remark on its predictions."""
        parts = []
        firsts = {task: values[self.experiment.tasks[task].metrics[0]] for task, values in scored.scores.items()}
        for task, value in many_tasks.summarized(firsts, lambda x: -x).items():
            if task not in firsts:
                parts.append(f"{task} {value:.4f}")
                continue
            name = self.experiment.tasks[task].metrics[0]
            remark = f" ({scored.remarks[task]})" if task in scored.remarks else ""
            parts.append(f"{task} {name} {value:.4f}{remark}")
        return "  ".join(parts)

    def _with_scores(self, state: TrainState, step: int) -> TrainState:
        """The state with the scores of `step`, where the loss weights ask for them."""
        if state.balance.scores is None or not self.scores_by_step.get(step):
            return state
        full = self.placement.replicated(state)
        scores = jnp.asarray(task_scores(self.scores_by_step[step].scores, self.experiment))
        return self.placement.put_state(full._replace(balance=full.balance._replace(scores=scores)))

    def _save(self, state: TrainState, is_best: bool) -> None:
        """Saves the newest state first, so that the best one is never ahead of it (see `train._first_state`)."""
        self.progress = self.progress._replace(seconds=self.seconds)
        full = self.placement.replicated(state)
        self._log.sync()
        self._checkpoints.save(full, self._metadata())
        if is_best:
            self._save_best(full)

    def _save_best(self, full: TrainState) -> None:
        self._checkpoints.save_best(full, self._metadata())

    def _metadata(self) -> dict[str, Any]:
        return data_metadata(self.experiment.corpus) | {"progress": self.progress._asdict()}


def _is_due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
