"""A run from its first step, or from its newest checkpoint, to its summary."""

from __future__ import annotations

import gc
import pathlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.data.batch import Batch
from mtl_jax.errors import Stopped, UserError
from mtl_jax.evaluation.distances import distances
from mtl_jax.evaluation.ranking import is_defined, rank
from mtl_jax.evaluation.scores import (
    Scored,
    abstract,
    abstract_params,
    ceilings,
    make_evaluator,
    mean_loss,
    mean_score,
    means,
    placement_of,
    score_split,
    score_splits,
    task_scores,
)
from mtl_jax.experiment.assemble import Experiment
from mtl_jax.runs.build import build
from mtl_jax.runtime import distributed
from mtl_jax.runtime.progress import progress_bar
from mtl_jax.runtime.stop_signals import StopSignals
from mtl_jax.storage import artifacts, run_warnings
from mtl_jax.storage import workdir as folders
from mtl_jax.storage.checkpoint import Checkpoints, data_metadata, load_params, require_same_data
from mtl_jax.training import penalty_effect
from mtl_jax.training.parameter_paths import flatten
from mtl_jax.training.placement import Placement, require_platform
from mtl_jax.training.state import TrainState
from mtl_jax.training.step import train_step


class Progress(NamedTuple):
    """What the host remembers between evaluations; part of every checkpoint.

    best_score, best_step  highest mean dev score so far and its step, see `ranking.rank`; None before the first
    best_loss              mean dev loss at that step
    best_scores            `Scored` of dev at that step
    stale                  evaluations without a higher score, or a lower loss at the same score
    evaluations, undefined  how many there were, and of them with a score that is no finite number
    unscored               True where a signal came in the evaluation of this step: the next start makes it
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


def train(config: Any, workdir: pathlib.Path) -> dict[str, Any] | None:
    """Trains, evaluates and writes summary.json; goes on where the workdir's newest checkpoint stands.

    Returns:
      the summary:
        tasks       {task: {"dev": {metric: value}, "test": {...}}}; the metrics are those of the task and "loss", its
                    mean loss as in training (class weights, label smoothing) without dropout, penalties and α;
                    None where a value is not defined
        means       {split: {"mean": of the tasks' first metrics, "tasks", "metrics"}}, see `scores.means`
        examples    {task: {split: {"scored": examples, "total": examples before `limit`}}}
        step        of the parameters that were scored, see config.evaluation.checkpoint
        seconds     wall-clock time of the run, compilation and evaluation included, over all its starts
        distances   {"task | task": {"distance": ‖Θi − Θj‖, "relative": to the mean norm}}; empty where all is shared
        parameters  their number
        penalties   {penalty: what it did, see `penalty_effect.Effect`}
        skipped     {task or "shared": steps left out because their loss or gradient was not finite}
        steps       {"made": steps of the run, "left_out": those that changed nothing}
        warnings    what a reader of the scores has to know, see `run_warnings`
      None where SIGTERM or Ctrl-C stopped it after a checkpoint.

    Raises:
      UserError: see `experiment.build`; a workdir of another run; too many non-finite steps, or no other ones.
    """
    require_platform(config.training.platform)
    if folders.is_ablation(workdir):
        raise UserError(f"{workdir} is the folder of an ablation; take another --workdir for a single run")
    folders.require_unclaimed(workdir, config)
    if (workdir / "summary.json").exists():
        print(f"{workdir}: this run is complete; delete the folder to train anew.\n")
        return folders.read_summary(workdir)
    began = time.monotonic()
    # records and programs are many objects, and stay: the collector need not go through them again and again
    gc.disable()
    try:
        return _train_to_the_end(config, workdir, began)
    finally:
        gc.enable()


def _train_to_the_end(config: Any, workdir: pathlib.Path, began: float) -> dict[str, Any] | None:
    """As `train`, of a run that is not complete."""
    experiment = build(config)
    for note in experiment.corpus.notes:
        print(f"  {note}")
    placement = placement_of(experiment)
    step_function = placement.train(
        lambda state, batch, hyper, axis: train_step(experiment.spec, state, batch, hyper, axis)
    )
    with StopSignals() as stop, Checkpoints(workdir, config.training.keep) as checkpoints:
        state, progress = _first_state(experiment, placement, checkpoints)
        distributed.wait_for_all("read what is there")
        if distributed.is_first():
            folders.claim(workdir, config)
            artifacts.save(workdir, experiment.corpus, experiment.model.architecture)
        start = int(placement.replicated(state).step)
        with folders.MetricsLog(workdir, start, progress.unscored) as log:
            run = _Run(experiment, placement, checkpoints, log, progress, began - progress.seconds)
            state = run.steps(step_function, state, start, stop)
        checkpoints.wait()
    if stop.asked:
        step = int(placement.replicated(state).step)
        print(f"{workdir}: stopped by a signal at step {step}, saved; the same command goes on from there")
        return None
    return run.finish(workdir, state)


def _first_state(experiment: Experiment, placement: Placement, checkpoints: Checkpoints) -> tuple[TrainState, Progress]:
    """The state to begin with: of the newest whole checkpoint, or the initial one."""
    seed = experiment.config.seed

    def read(step):
        metadata = checkpoints.metadata(step)
        require_same_data(metadata, experiment.corpus, step)
        state = checkpoints.restore(step, abstract(jax.eval_shape(lambda: experiment.init(seed)), placement))
        return step, metadata, state

    if (found := checkpoints.newest(read)) is None:
        return placement.put_state(experiment.init(seed)), Progress()
    step, metadata, state = found
    progress = Progress(**metadata["progress"])
    if progress.best_scores is not None:
        progress = progress._replace(best_scores=Scored(*progress.best_scores))
    if progress.best_step == step and checkpoints.best != step:  # cut off between the two writes
        checkpoints.save_best(state, metadata)
    print(f"  going on from step {step} of {experiment.config.training.steps}")
    return placement.put_state(state), progress


class _Run:
    """The steps of one run, with what happens between them."""

    def __init__(self, experiment, placement, checkpoints, log, progress, began):
        self.experiment, self.placement, self.checkpoints = experiment, placement, checkpoints
        self.log, self.progress, self.began = log, progress, began
        self.config = experiment.config
        self.batches = experiment.batches(self.config.seed)
        self.evaluator = make_evaluator(experiment, placement)
        self.shown: dict[str, float] = {}  # the last loss of each task
        self.dev = {progress.best_step: progress.best_scores}  # step: `Scored`, so that none is computed twice

    def steps(self, step_function, state, start, stop):
        """Runs from step `start` to the end, an early stop or a signal. The last state is saved. Returns it."""
        training = self.config.training
        previous, done = None, start  # metrics are read a step late, so that the device never waits for the host
        with progress_bar("compiling", "step", training.steps, initial=start) as bar:
            if self.progress.unscored:
                state = self._score_late(state, start, stop, bar)
            for step in range(start, training.steps):
                if self._stale() or stop.asked:
                    break
                batch = self.placement.put_batch(self._batch(step))
                state, metrics = step_function(state, batch, self.experiment.hyper)
                if previous is not None:
                    self._log(step, previous, bar)
                previous, done = metrics, step + 1
                stop.hold()
                self.checkpoints.check()
                if step == start:  # its losses at once: they tell that the long wait is over
                    gc.freeze()
                    gc.enable()
                    bar.set_description("training", refresh=False)
                    self._log(done, previous, bar)
                    previous = None
                bar.update()
                evaluating = done == training.steps or _due(done, training.eval_every)
                stopping = stop.reached()
                if evaluating or stopping or _due(done, training.checkpoint_every):
                    if previous is not None:
                        self._log(done, previous, bar)
                        previous = None
                    better = evaluating and self._evaluate(state, done, stop, bar)
                    state = self._with_scores(state, done)
                    self._save(state, better)
                if stopping or stop.asked:
                    break
            if done < training.steps and self._stale():
                bar.write(f"early stop at step {done}: no better dev score in {self.progress.stale} evaluations")
        return state

    def _stale(self):
        limit = self.config.training.early_stop
        return bool(limit) and self.progress.stale >= limit

    def _batch(self, step) -> Batch:
        """The micro-batches of a step, leaves [A, B, R, ...]."""
        count = self.config.training.accumulate
        parts = [self.batches.batch(step * count + i, jax.process_index(), jax.process_count()) for i in range(count)]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *parts)

    def _log(self, step, metrics, bar):
        """Shows, writes and checks the metrics of the step that made it `step` steps."""
        metrics = distributed.fetch(metrics)
        tasks = list(self.experiment.tasks)

        def by_owner(values):
            return dict(zip([*tasks, "shared"], values.tolist(), strict=True))

        losses = {
            task: float(loss) if present else None
            for task, loss, present in zip(tasks, metrics["losses"], metrics["present"], strict=True)
        }
        self.shown |= {task: loss for task, loss in losses.items() if loss is not None}
        shown = " ".join(f"{task} {self.shown[task]:.3f}" for task in tasks if task in self.shown)
        bar.set_postfix_str(f"loss {shown}", refresh=False)
        bad = int(metrics["bad_steps"])
        if bad == 1:
            bar.write(f"step {step}: left out, a loss or gradient is not finite; so far {by_owner(metrics['skipped'])}")
        if bad >= self.config.training.max_bad_steps:
            raise UserError(
                f"step {step}: {bad} steps in a row had a loss or gradient that is not finite and were left out; "
                f"so far by task: {by_owner(metrics['skipped'])}. Lower config.optimizer.learning_rate or the λ of "
                "a penalty"
            )
        if not _due(step, self.config.training.log_every) and step != self.config.training.steps:
            return
        self.log.write(
            step,
            "train",
            {
                "loss": losses,
                "alpha": dict(zip(tasks, metrics["alpha"].tolist(), strict=True)),
                "penalty": {name: float(value) for name, value in metrics["penalty"].items()},
                "strength": {name: float(value) for name, value in metrics["strength"].items()},
                "penalty_ratio": {name: float(value) for name, value in metrics["penalty_ratio"].items()},
                "column_distance": {name: float(value) for name, value in metrics["column_distance"].items()},
                "total": float(metrics["total"]),
                "gradient_norm": by_owner(metrics["gradient_norm"]),
                "learning_rate": float(metrics["learning_rate"]),
                "skipped": by_owner(metrics["skipped"]),
                **(
                    {"auxiliary": {n: float(v) for n, v in metrics["auxiliary"].items()}}
                    if "auxiliary" in metrics
                    else {}
                ),
                **({"teaching": jax.tree.map(float, metrics["teaching"])} if "teaching" in metrics else {}),
                **self._balanced(tasks, metrics.get("balanced")),
                **self._adapted(tasks, metrics),
            },
        )

    @staticmethod
    def _balanced(tasks, told) -> dict[str, Any]:
        """Of an aggregation: weights and norms by task, and the cosine to the gradient each conflicts with most."""
        if told is None:
            return {}
        lowest = np.where(np.eye(len(tasks), dtype=bool), np.inf, told["cosine"]).min(axis=1)

        def by_task(values):
            return {task: float(v) if np.isfinite(v) else None for task, v in zip(tasks, values, strict=True)}

        return {
            "weights": by_task(told["weights"]),
            "task_norms": by_task(told["task_norms"]),
            "lowest_cosine": by_task(lowest),
        }

    @staticmethod
    def _adapted(tasks, metrics) -> dict[str, Any]:
        """Of meta-learning: the loss of each task's first inner step."""
        if "support" not in metrics:
            return {}
        found = zip(tasks, metrics["support"], metrics["present"], strict=True)
        return {"support": {task: float(loss) if present else None for task, loss, present in found}}

    def _score_late(self, state, step, stop, bar):
        """The evaluation that a signal cut off; the state of `step` is saved already. Returns the state."""
        better = self._evaluate(state, step, stop, bar)
        if better:
            self._save_best(self.placement.replicated(state))
        return self._with_scores(state, step)

    def _evaluate(self, state, step, stop, bar) -> bool:
        """Scores dev. Returns whether these are the best parameters so far, see `ranking.rank`.

        Where a signal comes meanwhile nothing is scored, and `progress.unscored` says so.
        """
        self.progress = self.progress._replace(unscored=True)
        try:
            found = score_split(self.evaluator, self.placement.replicated(state).params, "dev", stop.require)
        except Stopped:
            return False
        self.progress = self.progress._replace(unscored=False)
        scores, remarks = found
        score, loss = mean_score(scores, self.experiment), mean_loss(scores)
        if score is None:
            return False
        self.dev[step] = found
        self.log.write(step, "dev", {"tasks": scores, "score": score})
        firsts = {task: self.experiment.tasks[task].metrics[0] for task in scores}
        bar.write(
            f"step {step}: dev "
            + "  ".join(
                f"{task} {name} {scores[task][name]:.4f}" + (f" ({remarks[task]})" if task in remarks else "")
                for task, name in firsts.items()
            )
        )
        before = self.progress
        here, best = rank(score, loss), rank(before.best_score, before.best_loss)
        counted = before._replace(
            evaluations=before.evaluations + 1,
            undefined=before.undefined + (not is_defined(score)),
            stale=0 if here > best else before.stale + 1,
        )
        if here < best or not is_defined(score):
            self.progress = counted
            return False
        self.progress = counted._replace(best_score=score, best_loss=loss, best_step=step, best_scores=found)
        return True

    def _with_scores(self, state, step):
        """The state that knows the scores of `step`, where the loss weights ask for them."""
        if state.balance.scores is None or not self.dev.get(step):
            return state
        whole = self.placement.replicated(state)
        scores = jnp.asarray(task_scores(self.dev[step].scores, self.experiment))
        return self.placement.put_state(whole._replace(balance=whole.balance._replace(scores=scores)))

    def _save(self, state, best: bool):
        """The newest state first: what is saved as the best is then never ahead of it (see `_first_state`)."""
        self.progress = self.progress._replace(seconds=time.monotonic() - self.began)
        whole = self.placement.replicated(state)
        self.log.sync()
        self.checkpoints.save(whole, self._metadata())
        if best:
            self._save_best(whole)

    def _save_best(self, whole):
        self.checkpoints.save_best(whole, self._metadata())

    def _metadata(self):
        return data_metadata(self.experiment.corpus) | {"progress": self.progress._asdict()}

    def finish(self, workdir, state) -> dict[str, Any]:
        """The final scores and summary.json.

        Raises:
          UserError: no step changed anything.
        """
        whole = self.placement.replicated(state)
        params, step = whole.params, int(whole.step)
        made, left_out = step, int(whole.left_out)
        by_owner = dict(zip([*self.experiment.tasks, "shared"], np.asarray(whole.skipped).tolist(), strict=True))
        if 0 < made == left_out:
            raise UserError(
                f"{workdir}: nothing was trained: {left_out} of {made} steps were left out, as a loss or gradient was "
                f"not finite (by owner: {by_owner}). Lower config.optimizer.learning_rate or the λ of a penalty, and "
                "take another --workdir"
            )
        best = self.progress.best_step
        if self.config.evaluation.checkpoint == "best" and best not in (None, step):
            params, step, _ = load_params(workdir, str(best), abstract_params(self.experiment, self.placement))
        scores, sizes, remarks = score_splits(self.evaluator, self.experiment, params, {"dev": self.dev.get(step)})
        effects = self._effects(workdir, params)
        warnings = [
            *run_warnings.of_steps(left_out, made, by_owner),
            *run_warnings.of_scores(self.progress.undefined, self.progress.evaluations),
            *run_warnings.of_predictions(remarks),
            *run_warnings.of_penalties(effects),
            *run_warnings.of_data(self.experiment.corpus),
        ]
        summary = {
            "tasks": scores,
            "means": means(scores),
            "examples": sizes,
            "ceilings": ceilings(self.experiment, scores),
            "step": step,
            "seconds": time.monotonic() - self.began,
            "distances": distances(self.experiment, params),
            "parameters": sum(int(leaf.size) for leaf in jax.tree.leaves(params)),
            "penalties": {name: effect._asdict() for name, effect in effects.items()},
            "skipped": by_owner,
            "steps": {"made": made, "left_out": left_out},
            "warnings": run_warnings.ordered(warnings),
        }
        if distributed.is_first():
            folders.write_json(workdir / "summary.json", summary)
        return summary

    def _effects(self, workdir, params) -> dict[str, penalty_effect.Effect]:
        """{penalty: what it did}, of all steps that were logged."""
        penalties = self.experiment.spec.objective.penalties
        if not penalties:
            return {}
        initial = self.placement.replicated(self.placement.put_state(self.experiment.init_params(self.config.seed)))

        def distances(*trees):
            flat = [flatten(tree) for tree in trees]
            return {n: penalty_effect.distances(*(p.stacks(tree) for tree in flat)) for n, p in penalties.items()}

        found = distributed.fetch(jax.jit(distances)(params, initial))
        lines = [line["penalty_ratio"] for line in folders.read_metrics(workdir) if line["kind"] == "train"]
        return {
            name: penalty_effect.Effect(
                penalty_effect.mean_ratio(line.get(name) for line in lines),
                float(self.experiment.hyper.strength[name]),
                *found[name].tolist(),
            )
            for name in penalties
        }


def _due(step, every):
    return bool(every) and step % every == 0
