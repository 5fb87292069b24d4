"""Lanes of a program that are trained together, from their first step or newest checkpoint to their last step."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from mtl_jax.analysis.ablation.engine import Engine, padded
from mtl_jax.analysis.ablation.hypergradient import TunedLane, Tuner
from mtl_jax.analysis.ablation.kept_runs import KeptRuns, write_runs
from mtl_jax.analysis.ablation.lane_log import DROPPED, FROZEN, RUNNING, STOPPED, LaneLog, LaneResult
from mtl_jax.analysis.ablation.lane_results import LaneParameters, lane_results
from mtl_jax.analysis.ablation.lanes import Losses
from mtl_jax.analysis.ablation.scores import GridScores
from mtl_jax.errors import Stopped
from mtl_jax.evaluation.ranking import is_defined, rank
from mtl_jax.evaluation.scores import mean_loss, selection_score, task_scores
from mtl_jax.runtime import distributed
from mtl_jax.runtime.stop_signals import StopSignals
from mtl_jax.storage.checkpoint import Checkpoints
from mtl_jax.storage.data_identity import data_metadata, require_same_data
from mtl_jax.training.state import TrainState

CALL_SECONDS = 4.0  # of a call: short enough for the progress bar and for signals
CURVE_POINTS = 25  # points of a training curve, in addition to the evaluations


class LaneBatch:
    """S seeds × L settings in training. Use as a context manager: its entry restores a checkpoint or begins.

    Cell [s, i] of arrays [S, L] is the lane of `seeds[s]` and `settings[i]`; further cells only fill the devices.
    """

    def __init__(
        self,
        engine_for: Callable[[int, int], Engine],
        seeds: Sequence[int],
        settings: Sequence[int],
        folder: pathlib.Path,
        tuner_for: Callable[[Engine], Tuner] | None = None,
        parent: pathlib.Path | None = None,
        keep: KeptRuns | None = None,
    ):
        """
        Args:
          engine_for: (S, L) -> the engine of that shape.
          seeds: of the lanes.
          settings: indices of the program's settings.
          folder: of the checkpoints.
          tuner_for: moves the hyperparameters of an engine's lanes; None where they are constant.
          parent: of the checkpoints of a batch of which these lanes are a part, for where `folder` has none.
          keep: where the lanes stay as runs; None: nowhere.
        """
        self._engine_for, self._tuner_for, self._keep = engine_for, tuner_for, keep
        self.seeds, self.settings = list(seeds), list(settings)
        self.logs = {(seed, setting): LaneLog() for seed in seeds for setting in settings}
        self.step = 0
        self.unscored = False  # whether a signal interrupted the evaluation of this step: the next start repeats it
        self.step_seconds: list[float] = []  # of a step of one lane, by call
        self._checkpoints, self._parent = Checkpoints(folder, keep=1), parent
        self._steps_per_call = 1

    def __enter__(self) -> LaneBatch:
        if not self._restore_newest(self._checkpoints) and not self._restore_parent():
            self._set_engine(self._engine_for(len(self.seeds), len(self.settings)))
            self.states, self.losses = self.engine.init(self.seeds)
            self.best = jax.tree.map(jnp.copy, self.states.params)
        return self

    def _restore_newest(self, checkpoints: Checkpoints) -> bool:
        """Whether there is a checkpoint, which is restored."""
        return checkpoints.restore_newest(functools.partial(self._restore, checkpoints)) is not None

    def _restore_parent(self) -> bool:
        if self._parent is None:
            return False
        with Checkpoints(self._parent, keep=1) as checkpoints:
            return self._restore_newest(checkpoints)

    def __exit__(self, *error: object) -> None:
        self._checkpoints.__exit__(*error)

    def _set_engine(self, engine: Engine) -> None:
        self.engine = engine
        self.config = engine.built.experiment.config
        self.hyper = engine.hyper(self.settings)
        self.tuner = self._tuner_for(engine) if self._tuner_for else None
        self.tuned = self.tuner.init(self.settings) if self.tuner else ()  # log λ and its optimizer's state

    def _current_hyper(self) -> chex.ArrayTree:
        return self.tuner.hyper(self.hyper, self.tuned[0]) if self.tuner else self.hyper

    def run(self, until: int, stop: StopSignals, bar: tqdm) -> bool:
        """Trains up to step `until`; False where a signal stopped it after a checkpoint."""
        if self.unscored:
            self._evaluate(bar, stop)
        while self.step < until and not stop.should_stop():
            if not self._active().any():
                bar.update((until - self.step) * len(self.logs))
                self.step = until
                break
            before = self.step
            if self.tuner and before % self.tuner.every == self.tuner.every - self.tuner.unroll:
                self._tune()
            else:
                self._train(min(self._next_event(until) - before, self.engine.call_steps, self._steps_per_call))
            stop.defer()
            self._checkpoints.check()
            bar.update((self.step - before) * len(self.logs))
            if self._evaluates():
                self._evaluate(bar, stop)
            elif _is_due(self.step, self._curve_interval()):
                self._extend_curves(None)
            if _is_due(self.step, self.config.training.checkpoint_every):
                self.save()
        if stop.asked and self.step:
            self.save()
        return not stop.asked

    def _train(self, steps: int) -> None:
        """One call of the engine; adapts the number of steps of the next."""
        began, active = time.monotonic(), self._active()
        self.states, self.losses = self.engine.advance(
            self.states,
            self.losses,
            self._current_hyper(),
            active=active,
            seeds=self.seeds,
            start=self.step,
            steps=steps,
        )
        self._record_steps(steps, active)
        seconds = max(distributed.gather(time.monotonic() - began))
        if self.step > steps:  # the first call warms up
            self.step_seconds.append(seconds / (steps * int(active.sum())))
            current = self._steps_per_call
            self._steps_per_call = int(min(max(current * CALL_SECONDS / max(seconds, 1e-3), 1), 4 * current))
        else:
            self._steps_per_call = 4

    def _tune(self) -> None:
        """The steps that are differentiated, and a move of the hyperparameters."""
        active = self._active()
        lanes = TunedLane(self.states, self.losses, *self.tuned)
        self.states, self.losses, *self.tuned = self.tuner.move(lanes, self.hyper, active, self.seeds, self.step)
        self._record_steps(self.tuner.unroll, active)

    def _record_steps(self, steps: int, active: np.ndarray) -> None:
        """Counts the steps of the active lanes; freezes those with too many bad steps."""
        bad, left_out = distributed.to_host((self.states.bad_steps, self.states.left_out))
        self.step += steps
        for cell, log in self._lanes():
            if active[cell]:
                log.steps, log.left_out = self.step, int(left_out[cell])
                if bad[cell] >= self.config.training.max_nonfinite_steps:
                    log.status = FROZEN

    def _next_event(self, until: int) -> int:
        """The next step at which lanes are evaluated, saved, tuned or plotted."""
        training = self.config.training
        intervals = [training.eval_every, training.checkpoint_every, self._curve_interval()]
        events = [until, *(self.step - self.step % interval + interval for interval in intervals if interval)]
        if self.tuner:
            events.append(self.step + (-self.step - self.tuner.unroll) % self.tuner.every)
        return min(events)

    def _curve_interval(self) -> int:
        return max(1, self.config.training.steps // CURVE_POINTS)

    def _evaluates(self) -> bool:
        return self.step == self.config.training.steps or _is_due(self.step, self.config.training.eval_every)

    def _lanes(self) -> Iterator[tuple[tuple[int, int], LaneLog]]:
        """((s, i), log) of every lane."""
        for s, seed in enumerate(self.seeds):
            for i, setting in enumerate(self.settings):
                yield (s, i), self.logs[seed, setting]

    def _cells(self) -> np.ndarray:
        """bool [S, L], False."""
        return np.zeros((self.engine.shape.seeds, self.engine.shape.lanes), bool)

    def _active(self) -> np.ndarray:
        """bool [S, L], False where a lane has stopped, or only fills the devices."""
        active = self._cells()
        for cell, log in self._lanes():
            active[cell] = log.status == RUNNING
        return active

    def _evaluate(self, bar: tqdm, stop: StopSignals) -> None:
        """Scores dev; stores the best parameters of each lane; stops lanes that no longer improve."""
        experiment = self.engine.built.experiment
        self.unscored = True
        try:
            scores = self.engine.scores.score(self.states.params, "dev", stop.raise_if_stopped)
        except Stopped:
            return
        self.unscored = False
        is_best, dev_scores = self._cells(), []
        for (s, i), log in self._lanes():
            score = selection_score(scores[s][i], experiment) if log.status == RUNNING else None
            if score is None:
                continue
            dev_scores.append(score)
            loss = mean_loss(scores[s][i])
            is_best[s, i] = log.evaluated(score, loss, self.step, self.config.training.early_stopping_patience)
        self._extend_curves(scores)
        self._set_scores(scores)
        if is_best.any() and self.config.evaluation.checkpoint == "best":
            self.best = self.engine.select(self.engine.put(is_best), self.states.params, self.best)
        if dev_scores:
            bar.set_postfix_str(f"dev {min(dev_scores):.3f} … {max(dev_scores):.3f}", refresh=False)

    def _set_scores(self, scores: GridScores) -> None:
        """Writes the scores into the states, where the loss weights ask for them."""
        if self.states.balance.scores is None:
            return
        experiment = self.engine.built.experiment
        by_cell = np.stack([np.stack([task_scores(lane, experiment) for lane in row]) for row in scores])
        balance = self.states.balance._replace(scores=self.engine.put(by_cell))
        self.states = self.states._replace(balance=balance)

    def _extend_curves(self, scores: GridScores | None) -> None:
        """Adds the losses since the last point, and the dev scores if any, to the curve of each lane."""
        losses = distributed.to_host(self.losses)
        learned = distributed.to_host(self.tuned[0]) if self.tuner else {}
        tasks = list(self.engine.built.experiment.tasks)
        for cell, log in self._lanes():
            if log.steps < self.step:
                continue
            point = {"step": self.step, "loss": _means(tasks, losses.total[cell], losses.count[cell])}
            if self.tuner:
                point["values"] = {name: float(np.exp(log_values[cell])) for name, log_values in learned.items()}
            if losses.ratio:
                totals, counts = ([array[cell] for array in sums.values()] for sums in (losses.ratio, losses.ratios))
                point["penalty_ratio"] = _means(list(losses.ratio), totals, counts)
            if scores and scores[cell[0]][cell[1]]:
                point["dev"] = scores[cell[0]][cell[1]]
            log.curve.append(point)
        self.losses = self.engine.zero_losses()

    def save(self) -> None:
        """Starts to write a checkpoint."""
        dropped = [lane for lane in self.logs if lane[1] not in self.settings]
        metadata = data_metadata(self.engine.built.experiment.corpus) | {
            "seeds": self.seeds,
            "settings": self.settings,
            "size": [self.engine.shape.seeds, self.engine.shape.lanes],
            "logs": [dataclasses.asdict(log) for _, log in self._lanes()],
            "unscored": self.unscored,
            "dropped": [[*lane, dataclasses.asdict(self.logs[lane])] for lane in dropped],
        }
        parts = _parts(self.states, self.best, self.losses, self.tuned)
        # a copy, since the logs change while it is written
        self._checkpoints.save_parts(self.step, parts, copy.deepcopy(metadata))

    def _restore(self, checkpoints: Checkpoints, step: int) -> int:
        """Restores everything from the checkpoint of a step, which may have further lanes; returns the step."""
        metadata = checkpoints.metadata(step)
        self.settings = [i for i in metadata["settings"] if i in self.settings]
        self._set_engine(self._engine_for(len(self.seeds), len(self.settings)))
        require_same_data(metadata, self.engine.built.experiment.corpus, step)
        state = self.engine.abstract_state()
        tuned = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self.tuned)
        parts = self._restore_parts(
            checkpoints, step, metadata, _parts(state, state.params, self.engine.abstract_losses(), tuned)
        )
        self.tuned = parts.get("tuned", ())
        self.states = TrainState(params=parts["params"], **parts["rest"])
        self.best, self.losses = parts["best"], Losses(**parts["losses"])
        self.step, self.unscored = step, metadata.get("unscored", False)
        lanes = itertools.product(metadata["seeds"], metadata["settings"])
        saved = {lane: LaneLog(**log) for lane, log in zip(lanes, metadata["logs"], strict=True)}
        saved |= {(seed, setting): LaneLog(**log) for seed, setting, log in metadata["dropped"]}
        self.logs = {lane: saved[lane] for lane in self.logs}
        return step

    def _restore_parts(
        self, checkpoints: Checkpoints, step: int, metadata: Mapping[str, Any], abstract: dict[str, chex.ArrayTree]
    ) -> dict[str, chex.ArrayTree]:
        """The arrays of these lanes; by way of the host where they were saved with other lanes or devices."""
        shape = self.engine.shape
        if (metadata["seeds"], metadata["settings"], metadata["size"]) == (
            self.seeds,
            self.settings,
            [shape.seeds, shape.lanes],
        ):
            return checkpoints.restore_parts(step, abstract)
        on_host = jax.tree.map(lambda x: np.empty((*metadata["size"], *x.shape[2:]), x.dtype), abstract)
        rows = padded([metadata["seeds"].index(seed) for seed in self.seeds], shape.seeds)
        columns = padded([metadata["settings"].index(setting) for setting in self.settings], shape.lanes)
        parts = checkpoints.restore_parts(step, on_host)
        return self.engine.put(jax.tree.map(lambda x: x[np.ix_(rows, columns)], parts))

    def results(self, stop: StopSignals) -> dict[tuple[int, int], LaneResult] | None:
        """{(seed, setting): see `LaneLog.result`} of all lanes, those dropped earlier included.

        None where a signal interrupted the scoring; the trained lanes are saved.
        """
        for log in self.logs.values():
            log.end()
        try:
            self._score(self.settings, stop)
        except Stopped:
            self.save()
            return None
        return {lane: log.result for lane, log in self.logs.items()}

    def dev_ranks(self, stop: StopSignals) -> list[tuple[float, float]]:
        """`ranking.rank` of each of `settings`, by mean dev score and loss over seeds of the current parameters.

        Raises:
          Stopped: a signal arrived.
        """
        scores = self.engine.scores.score(self.states.params, "dev", stop.raise_if_stopped)
        experiment = self.engine.built.experiment
        ranks = []
        for i, setting in enumerate(self.settings):
            lanes = [
                (selection_score(scores[s][i], experiment), mean_loss(scores[s][i]))
                for s, seed in enumerate(self.seeds)
                if self.logs[seed, setting].status in (RUNNING, STOPPED)
            ]
            if len(lanes) < len(self.seeds) or not all(is_defined(score) for score, _ in lanes):
                ranks.append(rank(None, None))
                continue
            losses = [loss for _, loss in lanes]
            mean = None if None in losses else float(np.mean(losses))
            ranks.append(rank(float(np.mean([score for score, _ in lanes])), mean))
        return ranks

    def drop_others(self, survivors: Sequence[int], stop: StopSignals) -> None:
        """Continues with the settings `survivors`; the others end with their current parameters.

        Raises:
          Stopped: a signal arrived.
        """
        dropped = [setting for setting in self.settings if setting not in survivors]
        if not dropped:
            return
        for (_, setting), log in self.logs.items():
            if setting in dropped and log.status == RUNNING:
                log.status = DROPPED
        self._score(dropped, stop)
        columns = [i for i, setting in enumerate(self.settings) if setting in survivors]
        self.settings = [self.settings[i] for i in columns]
        self._set_engine(self._engine_for(len(self.seeds), len(self.settings)))
        columns += [columns[-1]] * (self.engine.shape.lanes - len(columns))
        rows = [min(s, len(self.seeds) - 1) for s in range(self.engine.shape.seeds)]
        state_shardings, loss_shardings = self.engine.lane_shardings()
        take = jax.jit(
            lambda tree: jax.tree.map(lambda leaf: leaf[np.asarray(rows)][:, np.asarray(columns)], tree),
            out_shardings=(state_shardings, state_shardings.params, loss_shardings),
        )
        self.states, self.best, self.losses = take((self.states, self.best, self.losses))

    def _score(self, settings: Sequence[int], stop: StopSignals) -> None:
        """Writes the results of these settings' lanes into their logs."""
        uses_last = self._cells()
        for cell, log in self._lanes():
            uses_last[cell] = self.config.evaluation.checkpoint != "best" or log.best_step is None
        self.best = self.engine.select(self.engine.put(uses_last), self.states.params, self.best)
        lanes = LaneParameters(self.engine, self.seeds, self.best, self._current_hyper())
        logs = {cell: log for cell, log in self._lanes() if self.settings[cell[1]] in settings}
        for cell, result in lane_results(lanes, logs, uses_last, stop).items():
            logs[cell].result = result
        if self._keep:
            write_runs(self._keep, lanes, self.settings, logs)


def _parts(
    states: TrainState, best: chex.ArrayTree, losses: Losses, tuned: Sequence[chex.ArrayTree]
) -> dict[str, chex.ArrayTree]:
    """The named pytrees of a checkpoint."""
    rest = {name: value for name, value in states._asdict().items() if name != "params"}
    parts = {"params": states.params, "best": best, "rest": rest, "losses": losses._asdict()}
    return parts | ({"tuned": list(tuned)} if tuned else {})


def _means(names: Sequence[str], totals: Sequence[float], counts: Sequence[float]) -> dict[str, float | None]:
    """{name: total / count}, None where the count is 0."""
    return {
        name: float(total / count) if count else None for name, total, count in zip(names, totals, counts, strict=True)
    }


def _is_due(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
