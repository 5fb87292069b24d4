"""Some lanes of a program, trained together from their first step, or their newest checkpoint, to their last."""

from __future__ import annotations

import copy
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.analysis.ablation.engine import Engine, filled
from mtl_jax.analysis.ablation.hypergradient import Tuner
from mtl_jax.errors import Stopped
from mtl_jax.evaluation.ranking import is_defined, rank
from mtl_jax.evaluation.scores import mean_loss, mean_score, task_scores
from mtl_jax.storage.checkpoint import Checkpoints, data_metadata, require_same_data
from mtl_jax.training.penalty_effect import Effect, mean_ratio

CALL_SECONDS = 4.0  # a call about so long keeps the progress bar alive, and a signal from waiting
CURVE_POINTS = 25  # points of a training curve, besides the evaluations
RUNNING, FINISHED, STOPPED = "running", "finished", "stopped early"
FROZEN, DROPPED = "frozen: not finite", "dropped"


def new_log() -> dict[str, Any]:
    """What the host remembers of one lane; JSON.

    status      "running" | "finished" | "stopped early" | "frozen: not finite" | "dropped"
    steps       steps trained
    best_score  highest mean dev score, `best_loss` the mean dev loss there and `best_step` its step, see
                `ranking.rank`; None before the first
    stale       evaluations without a higher score, or a lower loss at the same score
    left_out    steps that changed nothing
    curve       see `results.Lane`
    """
    return {
        "status": RUNNING,
        "steps": 0,
        "left_out": 0,
        "best_score": None,
        "best_loss": None,
        "best_step": None,
        "stale": 0,
        "curve": [],
    }


class Turn:
    """S seeds × L settings on their way. Use as a context manager: entering restores or begins."""

    def __init__(
        self,
        engine_for: Callable[[int, int], Engine],
        seeds: Sequence[int],
        settings: Sequence[int],
        folder: pathlib.Path,
        tuner_for: Callable[[Engine], Tuner] | None = None,
    ):
        """
        Args:
          engine_for: (S, L) -> the engine of that shape.
          seeds: of the lanes.
          settings: numbers of the program's settings.
          folder: of the turn's checkpoints.
          tuner_for: moves the hyperparameters of an engine's lanes; None where they stay as they are.
        """
        self._engine_for, self._tuner_for = engine_for, tuner_for
        self.seeds, self.settings = list(seeds), list(settings)
        self.logs = {(seed, setting): new_log() for seed in seeds for setting in settings}
        self.position = 0
        self.unscored = False  # whether a signal cut off the evaluation at this position: the next start makes it
        self._checkpoints = Checkpoints(folder, keep=1)
        self._pace = 1  # steps of a call
        self.step_seconds: list[float] = []  # of a step of one lane, by call

    def __enter__(self):
        if self._checkpoints.newest(self._restore) is None:
            self._use(self._engine_for(len(self.seeds), len(self.settings)))
            self.states, self.losses = self.engine.init(self.seeds)
            self.best = jax.tree.map(jnp.copy, self.states.params)
        return self

    def __exit__(self, *error):
        self._checkpoints.__exit__(*error)

    def _use(self, engine: Engine):
        self.engine = engine
        self.config = engine.built.experiment.config
        self.hyper = engine.hyper(self.settings)
        self.tuner = self._tuner_for(engine) if self._tuner_for else None
        self.tuned = self.tuner.init(self.settings) if self.tuner else ()  # log λ and its optimizer's state

    def run(self, until: int, stop: Any, bar: Any) -> bool:
        """Trains up to step `until`; False where a signal stopped it after a checkpoint."""
        training = self.config.training
        if self.unscored:
            self._evaluate(bar, stop)
        while self.position < until and not stop.asked:
            if not self._active().any():
                bar.update((until - self.position) * len(self.logs))
                self.position = until
                break
            before = self.position
            if self.tuner and before % self.tuner.every == self.tuner.every - self.tuner.unroll:
                self._tune()
            else:
                self._call(min(self._boundary(until) - before, self.engine.call_steps, self._pace))
            stop.hold()
            self._checkpoints.check()
            steps = self.position - before
            bar.update(steps * len(self.logs))
            if self._evaluating():
                self._evaluate(bar, stop)
            elif self._curving():
                self._add_to_curve(None)
            if _due(self.position, training.checkpoint_every):
                self.save()
        if stop.asked and self.position:
            self.save()
        return not stop.asked

    def _call(self, steps):
        began = time.monotonic()
        active = self._active()
        hyper = self.tuner.hyper(self.hyper, self.tuned[0]) if self.tuner else self.hyper
        self.states, self.losses = self.engine.advance(
            self.states, self.losses, hyper, active, self.seeds, self.position, steps
        )
        self._moved(steps, active)
        seconds = time.monotonic() - began
        if self.position > steps:  # the first call warms up
            self.step_seconds.append(seconds / (steps * int(active.sum())))
            self._pace = int(min(max(self._pace * CALL_SECONDS / max(seconds, 1e-3), 1), 4 * self._pace))
        else:
            self._pace = 4

    def _tune(self):
        """The steps that are differentiated, and a move of the hyperparameters."""
        active = self._active()
        self.states, self.losses, *self.tuned = self.tuner.move(
            self.states, self.losses, *self.tuned, self.hyper, active, self.seeds, self.position
        )
        self._moved(self.tuner.unroll, active)

    def _moved(self, steps, active):
        """Notes that the lanes went on, and which of them are frozen."""
        bad, left_out = jax.device_get((self.states.bad_steps, self.states.left_out))
        self.position += steps
        for (s, i), log in self._lanes():
            if active[s, i]:
                log.update(steps=self.position, left_out=int(left_out[s, i]))
                if bad[s, i] >= self.config.training.max_bad_steps:
                    log["status"] = FROZEN

    def _boundary(self, until):
        """The next step at which something happens."""
        training = self.config.training
        every = [training.eval_every, training.checkpoint_every, self._curve_every()]
        found = [until, *(self.position - self.position % n + n for n in every if n)]
        if self.tuner:
            found.append(self.position + (-self.position - self.tuner.unroll) % self.tuner.every)
        return min(found)

    def _curve_every(self):
        return max(1, self.config.training.steps // CURVE_POINTS)

    def _evaluating(self):
        return self.position == self.config.training.steps or _due(self.position, self.config.training.eval_every)

    def _curving(self):
        return _due(self.position, self._curve_every())

    def _lanes(self):
        """((place among S, place among L), log) of every lane."""
        for s, seed in enumerate(self.seeds):
            for i, setting in enumerate(self.settings):
                yield (s, i), self.logs[seed, setting]

    def _active(self) -> np.ndarray:
        """bool [S, L], False where a lane has stopped or only fills the shape."""
        active = np.zeros((self.engine.shape.seeds, self.engine.shape.lanes), bool)
        for place, log in self._lanes():
            active[place] = log["status"] == RUNNING
        return active

    def _evaluate(self, bar, stop):
        """Scores dev; keeps the best parameters of each lane; stops lanes that get no better."""
        experiment, limit = self.engine.built.experiment, self.config.training.early_stop
        self.unscored = True
        try:
            scores = self.engine.scores.score(self.states.params, "dev", stop.require)
        except Stopped:
            return
        self.unscored = False
        better = np.zeros((self.engine.shape.seeds, self.engine.shape.lanes), bool)
        found = []
        for (s, i), log in self._lanes():
            if log["status"] != RUNNING:
                continue
            score, loss = mean_score(scores[s][i], experiment), mean_loss(scores[s][i])
            if score is None:
                continue
            found.append(score)
            here, best = rank(score, loss), rank(log["best_score"], log["best_loss"])
            better[s, i] = here >= best and is_defined(score)
            log["stale"] = 0 if here > best else log["stale"] + 1
            if better[s, i]:
                log.update(best_score=score, best_loss=loss, best_step=self.position)
            if limit and log["stale"] >= limit:
                log["status"] = STOPPED
        self._add_to_curve(scores)
        self._tell(scores)
        if better.any() and self.config.evaluation.checkpoint == "best":
            self.best = self.engine.keep_better(self.engine.put(better), self.states.params, self.best)
        if found:
            bar.set_postfix_str(f"dev {min(found):.3f} … {max(found):.3f}", refresh=False)

    def _tell(self, scores):
        """The lanes' states know their scores, where the loss weights ask for them."""
        if self.states.balance.scores is None:
            return
        experiment = self.engine.built.experiment
        by_lane = np.stack([np.stack([task_scores(found, experiment) for found in row]) for row in scores])
        balance = self.states.balance._replace(scores=self.engine.put(by_lane))
        self.states = self.states._replace(balance=balance)

    def _add_to_curve(self, scores):
        losses = jax.device_get(self.losses)
        tasks = list(self.engine.built.experiment.tasks)
        for (s, i), log in self._lanes():
            if log["steps"] < self.position:
                continue
            mean = {
                task: float(total / count) if count else None
                for task, total, count in zip(tasks, losses.total[s, i], losses.count[s, i], strict=True)
            }
            line = {"step": self.position, "loss": mean} | ({"values": self._values(s, i)} if self.tuner else {})
            if losses.ratio:
                line["penalty_ratio"] = {
                    name: float(total[s, i] / losses.ratios[name][s, i]) if losses.ratios[name][s, i] else None
                    for name, total in losses.ratio.items()
                }
            log["curve"].append(line | ({"dev": scores[s][i]} if scores and scores[s][i] else {}))
        self.losses = self.engine.zero_losses()

    def _values(self, s, i):
        """The hyperparameters that a lane has learned so far."""
        return {name: float(np.exp(jax.device_get(log)[s, i])) for name, log in self.tuned[0].items()}

    def save(self) -> None:
        """Starts to write a checkpoint."""
        metadata = data_metadata(self.engine.built.experiment.corpus) | {
            "settings": self.settings,
            "logs": [log for _, log in self._lanes()],
            "unscored": self.unscored,
            "dropped": [[*lane, log] for lane, log in self.logs.items() if lane[1] not in self.settings],
        }
        parts = self._parts(self.states, self.best, self.losses, self.tuned)
        # a copy, since the logs go on while it is written
        self._checkpoints.save_parts(self.position, parts, copy.deepcopy(metadata))

    def _parts(self, states, best, losses, tuned):
        rest = {name: value for name, value in states._asdict().items() if name != "params"}
        parts = {"params": states.params, "best": best, "rest": rest, "losses": losses._asdict()}
        return parts | ({"tuned": list(tuned)} if tuned else {})

    def _restore(self, step) -> int:
        """Takes all from the checkpoint of a step; returns the step."""
        metadata = self._checkpoints.metadata(step)
        self.settings = metadata["settings"]
        self._use(self._engine_for(len(self.seeds), len(self.settings)))
        require_same_data(metadata, self.engine.built.experiment.corpus, step)
        state, losses = self.engine.abstract_state(), jax.eval_shape(self.engine.zero_losses)
        losses = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.engine.shape.sharding("l")), losses
        )
        tuned = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), self.tuned)
        parts = self._checkpoints.restore_parts(step, self._parts(state, state.params, losses, tuned))
        self.tuned = parts.get("tuned", ())
        self.states = type(state)(params=parts["params"], **parts["rest"])
        self.best, self.losses = parts["best"], type(losses)(**parts["losses"])
        self.position, self.unscored = step, metadata.get("unscored", False)
        for (place, _), log in zip(self._lanes(), metadata["logs"], strict=True):
            self.logs[self.seeds[place[0]], self.settings[place[1]]] = log
        self.logs |= {(seed, setting): log for seed, setting, log in metadata["dropped"]}
        return step

    def results(self, stop: Any) -> dict[tuple[int, int], dict[str, Any]] | None:
        """{(seed, setting): result} of all lanes, those dropped before included: see `_finish`.

        None where a signal came meanwhile; what was trained is saved.
        """
        for log in self.logs.values():
            if log["status"] == RUNNING:
                log["status"] = FROZEN if 0 < log["steps"] == log["left_out"] else FINISHED
        try:
            self._finish(self.settings, stop)
        except Stopped:
            self.save()
            return None
        return {lane: log["result"] for lane, log in self.logs.items()}

    def dev_ranks(self, stop: Any) -> list[tuple[float, float]]:
        """`ranking.rank` of the mean dev score and loss over seeds of each of `settings`, of the parameters at hand;
        that of no score where one is not defined.

        Raises `Stopped` where a signal comes, as `drop` does.
        """
        scores = self.engine.scores.score(self.states.params, "dev", stop.require)
        experiment = self.engine.built.experiment
        found = []
        for i, setting in enumerate(self.settings):
            lanes = [
                (mean_score(scores[s][i], experiment), mean_loss(scores[s][i]))
                for s, seed in enumerate(self.seeds)
                if self.logs[seed, setting]["status"] in (RUNNING, STOPPED)
            ]
            bad = len(lanes) < len(self.seeds) or not all(is_defined(score) for score, _ in lanes)
            losses = [loss for _, loss in lanes]
            mean = None if bad or None in losses else float(np.mean(losses))
            found.append(rank(None if bad else float(np.mean([score for score, _ in lanes])), mean))
        return found

    def drop(self, kept: Sequence[int], stop: Any) -> None:
        """Goes on with the settings `kept` alone; the others get their result as they stand."""
        gone = [setting for setting in self.settings if setting not in kept]
        if not gone:
            return
        for (_, setting), log in self.logs.items():
            if setting in gone and log["status"] == RUNNING:
                log["status"] = DROPPED
        self._finish(gone, stop)
        places = [i for i, setting in enumerate(self.settings) if setting in kept]
        self.settings = [self.settings[i] for i in places]
        self._use(self._engine_for(len(self.seeds), len(self.settings)))
        places += [places[-1]] * (self.engine.shape.lanes - len(places))
        seeds = [min(s, len(self.seeds) - 1) for s in range(self.engine.shape.seeds)]
        take = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf[np.asarray(seeds)][:, np.asarray(places)], tree))
        taken = take((self.states, self.best, self.losses))
        self.states, self.best, self.losses = (self.engine.put(tree) for tree in taken)

    def _finish(self, settings, stop):
        """Puts the result of these settings' lanes into their logs."""
        experiment = self.engine.built.experiment
        use_best = self.config.evaluation.checkpoint == "best"
        chosen = np.zeros((self.engine.shape.seeds, self.engine.shape.lanes), bool)
        for place, log in self._lanes():
            chosen[place] = not use_best or log["best_step"] is None
        params = self.engine.keep_better(self.engine.put(chosen), self.states.params, self.best)
        self.best = params
        remarks: dict[tuple[int, int], dict[str, dict[str, str]]] = {}

        def scored(split):
            def remark(s, i, task, text):
                remarks.setdefault((s, i), {}).setdefault(task, {})[split] = text

            return self.engine.scores.score(params, split, stop.require, remark)

        scores = {split: scored(split) for split in self.config.evaluation.splits}
        spread = self.engine.scores.spread(params)
        effects = self._effects(params)
        for (s, i), log in self._lanes():
            if self.settings[i] not in settings:
                continue
            by_task = {
                task: {split: found[s][i][task] for split, found in scores.items() if task in found[s][i]}
                for task in experiment.tasks
            }
            dev = {task: found["dev"] for task, found in by_task.items() if "dev" in found}
            log["result"] = {
                "values": _learned(log),
                "status": log["status"],
                "step": log["steps"] if chosen[s, i] else log["best_step"],
                "steps": log["steps"],
                "scores": by_task,
                "score": mean_score(dev, experiment),
                "distance": spread[s][i][0],
                "effective_rank": spread[s][i][1],
                "curve": log["curve"],
                "left_out": log["left_out"],
                "remarks": remarks.get((s, i), {}),
                "effects": {name: of_lanes[s][i]._asdict() for name, of_lanes in effects.items()},
            }

    def _effects(self, params) -> dict[str, list[list[Effect]]]:
        """{penalty: [S][L] what it did}."""
        if not self.engine.built.spec.objective.penalties:
            return {}
        by_seed = {seed: self.engine.built.experiment.init_params(seed) for seed in self.seeds}
        initial = jax.tree.map(lambda *x: jnp.stack(x), *(by_seed[s] for s in filled(self.seeds, self._shape.seeds)))
        distances = self.engine.scores.penalty_distances(params, jax.device_put(initial, self._shape.sharding("s")))
        hyper = self.tuner.hyper(self.hyper, self.tuned[0]) if self.tuner else self.hyper
        strength = jax.device_get(hyper.strength)

        def effect(name, s, i, log):
            ratio = mean_ratio(line["penalty_ratio"][name] for line in log["curve"] if "penalty_ratio" in line)
            return Effect(ratio, float(strength[name][s, i]), *distances[name][s, i].tolist())

        logs = [[self.logs[seed, setting] for setting in self.settings] for seed in self.seeds]
        return {
            name: [[effect(name, s, i, log) for i, log in enumerate(row)] for s, row in enumerate(logs)]
            for name in distances
        }

    @property
    def _shape(self):
        return self.engine.shape


def _learned(log):
    """The values that a lane had learned at the step that was scored; {} where nothing is learned."""
    lines = [
        line["values"]
        for line in log["curve"]
        if "values" in line and line["step"] <= (log["best_step"] or log["steps"])
    ]
    return lines[-1] if lines else {}


def _due(position, every):
    return bool(every) and position % every == 0
