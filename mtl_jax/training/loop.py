"""A run from its first step, or from its newest checkpoint, to its summary."""

from __future__ import annotations

import pathlib
import signal
import sys
import time
from typing import Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from mtl_jax.data.batch import Batch
from mtl_jax.errors import UserError
from mtl_jax.training import workdir as folders
from mtl_jax.training.checkpoint import Checkpoints, load_params
from mtl_jax.training.evaluation import Evaluator
from mtl_jax.training.experiment import Experiment, build
from mtl_jax.training.placement import Placement, place, require_platform
from mtl_jax.training.paths import flatten
from mtl_jax.training.soft_sharing import columns
from mtl_jax.training.step import TrainState, train_step


class Progress(NamedTuple):
    """What the host remembers between evaluations; part of every checkpoint.

    best_score, best_step  highest mean dev score so far and its step; None before the first evaluation
    stale                  evaluations since then
    seconds                time spent in training so far
    """

    best_score: float | None = None
    best_step: int | None = None
    stale: int = 0
    seconds: float = 0.0


def train(config: Any, workdir: pathlib.Path) -> dict[str, Any]:
    """Trains, evaluates and writes summary.json; goes on where the workdir's newest checkpoint stands.

    Returns:
      the summary.

    Raises:
      UserError: see `experiment.build`; a workdir of another run; too many non-finite steps.
    """
    require_platform(config.training.platform)
    folders.claim(workdir, config)
    if (workdir / "summary.json").exists():
        print(f"{workdir}: this run is complete; delete the folder to train anew.\n")
        return folders.read_summary(workdir)
    experiment = build(config)
    for note in experiment.corpus.notes:
        print(f"  {note}")
    placement = _placement(experiment)
    evaluator = make_evaluator(experiment, placement)
    step_function = placement.train(lambda state, batch, hyper, axis: train_step(experiment.spec, state, batch, hyper, axis))
    stop = _StopSignal()
    with Checkpoints(workdir, config.training.keep) as checkpoints:
        state, progress = _first_state(experiment, placement, checkpoints)
        start = int(jax.device_get(placement.replicated(state).step))
        log = folders.MetricsLog(workdir, start)
        began = time.monotonic() - progress.seconds
        run = _Run(experiment, placement, evaluator, checkpoints, log, progress, began)
        with tqdm(total=config.training.steps, initial=start, unit="step", desc="training", dynamic_ncols=True) as bar:
            state = run.steps(step_function, state, start, bar, stop)
        log.close()
        checkpoints.wait()
        if stop.asked:
            print(f"{workdir}: stopped by a signal at step {int(placement.replicated(state).step)}, saved; the same command goes on")
            sys.exit(0)
        return run.finish(workdir, state)


def evaluate(config: Any, workdir: pathlib.Path, which: str) -> dict[str, Any]:
    """Scores the splits in `config.evaluation.splits` with saved parameters. Returns {task: {split: {metric: value}}}."""
    experiment = build(config)
    placement = _placement(experiment)
    saved = load_params(workdir, which, abstract_params(experiment, placement))
    scores, sizes = _score_splits(make_evaluator(experiment, placement), experiment, saved.params)
    return {"tasks": scores, "examples": sizes, "step": saved.step}


def make_evaluator(experiment: Experiment, placement: Placement) -> Evaluator:
    """The evaluator of an experiment."""
    rows = experiment.config.evaluation.rows
    rows += -rows % placement.row_shards
    return Evaluator(experiment.objective_for, experiment.corpus, rows, placement.put_eval)


def abstract_params(experiment: Experiment, placement: Placement) -> Any:
    """Shapes and shardings of the parameters, to restore a checkpoint into."""
    return _abstract(jax.eval_shape(experiment.init_params), placement)


def _placement(experiment: Experiment) -> Placement:
    training = experiment.config.training
    placement = place(training.placement, training.mesh.to_dict(), experiment.spec.slices, len(experiment.tasks))
    if experiment.config.data.rows % placement.row_shards:
        raise UserError(
            f"config.data.rows: {experiment.config.data.rows} rows cannot be split over {placement.row_shards} devices; "
            f"take a multiple of {placement.row_shards}"
        )
    return placement


def _abstract(shapes, placement):
    shardings = placement.shardings(shapes)
    return jax.tree.map(lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding), shapes, shardings)


def _first_state(experiment, placement, checkpoints) -> tuple[TrainState, Progress]:
    """The state to begin with: of the newest checkpoint, or the initial one."""
    step = checkpoints.latest
    if step is None:
        return placement.put_state(experiment.init()), Progress()
    metadata = checkpoints.metadata(step)
    if metadata["data"] != experiment.corpus.fingerprint:
        raise UserError(
            f"the checkpoint of step {step} was trained on other data (fingerprint {metadata['data'][:12]} there, "
            f"{experiment.corpus.fingerprint[:12]} now); put the data back, or take another --workdir"
        )
    state = checkpoints.restore(step, _abstract(jax.eval_shape(experiment.init), placement))
    print(f"going on from step {step}")
    return placement.put_state(state), Progress(**metadata["progress"])


class _Run:
    """The steps of one run, with what happens between them."""

    def __init__(self, experiment, placement, evaluator, checkpoints, log, progress, began):
        self.experiment, self.placement, self.evaluator = experiment, placement, evaluator
        self.checkpoints, self.log, self.progress, self.began = checkpoints, log, progress, began
        self.config = experiment.config
        self.hyper = experiment.hyper

    def steps(self, step_function, state, start, bar, stop):
        """Runs from step `start` to the end, an early stop or a signal; saves last. Returns the state."""
        training = self.config.training
        previous = None  # metrics are read a step late, so that the device never waits for the host
        for step in range(start, training.steps):
            batch = self.placement.put_batch(self._batch(step))
            state, metrics = step_function(state, batch, self.hyper)
            if previous is not None:
                self._log(step, previous, bar)
            previous = metrics
            bar.update()
            done, last = step + 1, step + 1 == training.steps
            due = last or _due(done, training.eval_every)
            if due:
                self._log(done, previous, bar)
                previous = None
                self._evaluate(state, done, bar)
            over = stop.asked or (training.early_stop and self.progress.stale >= training.early_stop)
            if last or over or _due(done, training.checkpoint_every):
                if previous is not None:
                    self._log(done, previous, bar)
                    previous = None
                self._save(state)
            if over and not last:
                if not stop.asked:
                    bar.write(f"early stop at step {done}: no better dev score in {self.progress.stale} evaluations")
                break
        return state

    def _batch(self, step) -> Batch:
        """The micro-batches of a step, leaves [A, B, R, ...]."""
        count = self.config.training.accumulate
        parts = [
            self.experiment.batches.batch(step * count + i, jax.process_index(), jax.process_count()) for i in range(count)
        ]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *parts)

    def _log(self, step, metrics, bar):
        """Shows, writes and checks the metrics of the step that made it `step` steps."""
        metrics = jax.device_get(metrics)
        tasks = list(self.experiment.tasks)
        losses = {t: float(l) if here else None for t, l, here in zip(tasks, metrics["losses"], metrics["present"], strict=True)}
        bar.set_postfix({t: f"{l:.3f}" for t, l in losses.items() if l is not None}, refresh=False)
        if int(metrics["bad_steps"]) >= self.config.training.max_bad_steps:
            by_task = dict(zip([*tasks, "shared parameters"], metrics["skipped"].tolist(), strict=True))
            raise UserError(
                f"step {step}: {int(metrics['bad_steps'])} steps in a row had a loss or gradient that is not finite and were "
                f"skipped; so far by task: {by_task}. Lower config.optimizer.learning_rate or the λ of a penalty"
            )
        if step % self.config.training.log_every and step != self.config.training.steps:
            return
        self.log.write(step, "train", {
            "loss": losses,
            "alpha": dict(zip(tasks, metrics["alpha"].tolist(), strict=True)),
            "penalty": {name: float(value) for name, value in metrics["penalty"].items()},
            "strength": {name: float(value) for name, value in metrics["strength"].items()},
            "total": float(metrics["total"]),
            "gradient_norm": dict(zip([*tasks, "shared"], metrics["gradient_norm"].tolist(), strict=True)),
            "learning_rate": float(metrics["learning_rate"]),
            "skipped": dict(zip([*tasks, "shared"], metrics["skipped"].tolist(), strict=True)),
        })  # fmt: skip

    def _evaluate(self, state, step, bar):
        """Scores dev; keeps the parameters where the mean of the tasks' scores is the highest so far."""
        whole = self.placement.replicated(state)
        with tqdm(total=self.evaluator.rows("dev"), unit="row", desc="dev", leave=False, dynamic_ncols=True) as inner:
            scores = self.evaluator.score(whole.params, "dev", inner.update)
        score = mean_score(scores, self.experiment)
        if score is None:
            return
        best = self.progress.best_score
        if best is None or score > best:
            self.progress = self.progress._replace(best_score=score, best_step=step, stale=0)
            self.checkpoints.save_best(whole, self._metadata())
        else:
            self.progress = self.progress._replace(stale=self.progress.stale + 1)
        self.log.write(step, "dev", {"tasks": scores, "score": score})
        shown = "  ".join(f"{t} {name} {value:.4f}" for t, s in scores.items() for name, value in list(s.items())[:1])
        bar.write(f"step {step}: dev {shown}")

    def _save(self, state):
        self.progress = self.progress._replace(seconds=time.monotonic() - self.began)
        self.checkpoints.save(self.placement.replicated(state), self._metadata())

    def _metadata(self):
        return {"data": self.experiment.corpus.fingerprint, "progress": self.progress._asdict()}

    def finish(self, workdir, state) -> dict[str, Any]:
        """The final scores, figures and summary.json."""
        params, step = self.placement.replicated(state).params, int(self.placement.replicated(state).step)
        if self.config.evaluation.use == "best" and self.progress.best_step not in (None, step):
            saved = load_params(workdir, "best", abstract_params(self.experiment, self.placement))
            params, step = saved.params, saved.step
        scores, sizes = _score_splits(self.evaluator, self.experiment, params)
        summary = {
            "tasks": scores,
            "examples": sizes,
            "step": step,
            "seconds": time.monotonic() - self.began,
            "distances": distances(self.experiment, params),
            "parameters": sum(int(leaf.size) for leaf in jax.tree.leaves(params)),
            "skipped": dict(zip([*self.experiment.tasks, "shared"],
                                np.asarray(self.placement.replicated(state).skipped).tolist(), strict=True)),
        }  # fmt: skip
        folders.write_json(workdir / "summary.json", summary)
        return summary


def mean_score(scores: dict[str, dict[str, float]], experiment: Experiment) -> float | None:
    """The mean over tasks of each one's first metric; None where no task was scored."""
    firsts = [scores[name][task.metrics[0]] for name, task in experiment.tasks.items() if name in scores]
    return float(np.mean(firsts)) if firsts else None


def distances(experiment: Experiment, params: Any) -> dict[str, dict[str, float]]:
    """{"task | task": {"distance": ‖Θi − Θj‖, "relative": to the mean norm}} over all that tasks do not all share."""
    from mtl_jax.sharing import gram

    stacks = columns(flatten({path: tree for path, tree in params.items() if path != "heads"}), experiment.owners)
    names = list(experiment.tasks)
    if not stacks or len(names) < 2:
        return {}
    centred, whole = jax.device_get(jax.jit(lambda tree: (gram(tree, "mean"), gram(tree)))(stacks))
    norm = float(np.sqrt(np.diag(whole)).mean())
    result = {}
    for i, first in enumerate(names):
        for j in range(i + 1, len(names)):
            squared = centred[i, i] + centred[j, j] - 2 * centred[i, j]
            distance = float(np.sqrt(max(squared, 0.0)))
            result[f"{first} | {names[j]}"] = {"distance": distance, "relative": distance / norm if norm else 0.0}
    return result


def _score_splits(evaluator, experiment, params):
    """{task: {split: {metric: value}}} and how many of how many examples were scored."""
    scores: dict[str, dict[str, Any]] = {name: {} for name in experiment.tasks}
    sizes: dict[str, dict[str, Any]] = {name: {} for name in experiment.tasks}
    for split in experiment.config.evaluation.splits:
        with tqdm(total=evaluator.rows(split), unit="row", desc=split, leave=False, dynamic_ncols=True) as bar:
            for task, values in evaluator.score(params, split, bar.update).items():
                scores[task][split] = values
                dataset = experiment.config.tasks[task].dataset
                numbers = experiment.corpus.statistics["datasets"][dataset][split]
                sizes[task][split] = {"scored": numbers["records"], "total": numbers["available"]}
    return scores, sizes


def _due(step, every):
    return bool(every) and step % every == 0


class _StopSignal:
    """SIGTERM asks the loop to save and leave after the step it is in."""

    def __init__(self):
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, *_):
        self.asked = True
