"""Runs from Python: what the modes of the command line do, as functions that return objects.

    import mtl_jax
    from mtl_jax.config import default

    run = mtl_jax.train(config, "runs/mine")       # or mtl_jax.load("runs/mine")
    run.scores["sentiment"]["test"]["accuracy"]
    run.predict(["a text", "another one"])

Mistakes are raised as `mtl_jax.errors.UserError`.
"""

from __future__ import annotations

import functools
import os
import pathlib
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, cast

from mtl_jax import checks
from mtl_jax.analysis.ablation import runner
from mtl_jax.analysis.ablation.records import Grid
from mtl_jax.analysis.relatedness import relate as relatedness
from mtl_jax.analysis.relatedness.relate import Relatedness
from mtl_jax.config.plain import from_plain, to_plain
from mtl_jax.config.sections import Config
from mtl_jax.data.batch import Batch
from mtl_jax.data.files.location import local_path
from mtl_jax.data.records import Record
from mtl_jax.data.sampler import evaluation_batches, evaluation_layout
from mtl_jax.errors import Stopped, UserError
from mtl_jax.evaluation.evaluator import evaluation_program, split_outputs
from mtl_jax.evaluation.inference import Predictor
from mtl_jax.evaluation.input_files import TEXT, OpenInput
from mtl_jax.evaluation.input_records import INPUT_SPLIT
from mtl_jax.runs import evaluate as evaluation
from mtl_jax.runs import merge as merging
from mtl_jax.runs import share
from mtl_jax.runs import train as training
from mtl_jax.runtime import interruption
from mtl_jax.storage import workdir as folders
from mtl_jax.storage.summary import Evaluation, SplitScores, Summary
from mtl_jax.training.objective import Objective, Params

CHUNK = 256  # records predicted at a time
Folder = str | os.PathLike[str]
Example = str | Mapping[str, Any]  # a text, or a record with the fields of the data set


class Run:
    """A finished run: a folder, and what is in it, read when it is asked for."""

    def __init__(self, folder: Folder, checkpoint: str = "best"):
        """
        Args:
          folder: of a finished run, or its name on the Hub, "hf://owner/name" or "hf://owner/name@revision".
          checkpoint: whose parameters these are: "best", "last" or a step.

        Raises:
          UserError: it is not the folder of a finished run.
        """
        if isinstance(folder, str) and folder.startswith(share.SCHEME):
            folder = share.fetch(folder)
        self.folder = pathlib.Path(folder).expanduser()
        self.checkpoint = checkpoint
        self.config: Config = from_plain(folders.read_config(self.folder))
        self.summary: Summary = folders.read_summary(self.folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, tasks={self.tasks}, checkpoint={self.checkpoint!r})"

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(self.summary["tasks"])

    @property
    def scores(self) -> SplitScores:
        """{task: {split: {metric: value}}} of the best checkpoint, at the end of the run."""
        return self.summary["tasks"]

    @property
    def params(self) -> Params:
        """The parameters: leaves [O, ...] of layers, one slice for each owner; heads stacked by form of task."""
        return self._predictor.params

    def predict(self, examples: Sequence[Example], tasks: Sequence[str] = ()) -> list[dict[str, Any]]:
        """{task: prediction} for each example: of all tasks that can read it, or of some.

        Raises:
          UserError: an example that no task can read; no such task.
        """
        records, opened, lines = _records(examples), OpenInput(iter(()), local_path(".")), []
        for task in tasks:
            if task not in self.tasks:
                raise UserError(f"the run has no task {task!r}; it has: {', '.join(self.tasks)}")
        for begin in range(0, len(records), CHUNK):
            lines += self._predictor.predict(records[begin : begin + CHUNK], opened)
        chosen = tasks or self.tasks
        return [{task: line[task] for task in chosen if task in line} for line in lines]

    def encode(self, examples: Sequence[Example]) -> dict[str, Batch]:
        """One batch with the rows of all examples for each data set whose tasks can read them: what `apply` takes.

        Arrays [1, R, ...]; `Batch.example` says which example is where.
        """
        read = self._predictor.reading.read(_records(examples))
        batches = {}
        for name in read.numbers:
            rows = read.corpus.rows[name][INPUT_SPLIT]
            layout = self._objective(name).layout
            (batches[name],) = evaluation_batches(rows, layout, len(rows.tokens))
        return batches

    def apply(self, params: Params, batches: Mapping[str, Batch]) -> dict[str, dict[str, Any]]:
        """{task: {"value": predictions, and what else its kind predicts, such as "probability"}}, arrays [R, ...].

        A pure function of the parameters, which may be traced, differentiated and jitted.
        """
        outputs: dict[str, dict[str, Any]] = {}
        for name, batch in batches.items():
            objective = self._objective(name)
            predictions, _ = evaluation_program(objective)(params, batch)
            outputs |= split_outputs(objective, predictions)
        return outputs

    def evaluate(self, checkpoint: str = "") -> Evaluation:
        """Scores a checkpoint on the data of the run, as --mode=evaluate. Raises UserError: the data are not here."""
        return evaluation.evaluate(self.config, self.folder, checkpoint or self.checkpoint)

    @functools.cached_property
    def _predictor(self) -> Predictor:
        return Predictor(self.config, self.folder, [self.checkpoint])

    def _objective(self, dataset: str) -> Objective:
        experiment = self._predictor.experiment
        return experiment.objective_for(evaluation_layout(experiment.corpus.layout, dataset))


def train(config: Config, workdir: Folder | None = None) -> Run:
    """Trains a run, or resumes it; returns at once where it is complete.

    Args:
      config: from `mtl_jax.config.default.get_config`; it is not changed.
      workdir: folder of the run; None makes a temporary one, `Run.folder`, which nobody deletes.

    Raises:
      UserError: what is wrong with the config, the data or the folder.
      KeyboardInterrupt, Stopped: a signal stopped the run after a checkpoint; the same call resumes it.
    """
    config = _checked(config, "train")
    with folders.locked(_folder(workdir)) as folder:
        if training.train(config, folder) is None:
            _stopped(folder)
    return Run(folder)


def load(folder: Folder, checkpoint: str = "best") -> Run:
    """A finished run, of a folder or of a name on the Hub. Raises UserError: it is not one."""
    return Run(folder, checkpoint)


def evaluate(run: Run | Folder, checkpoint: str = "") -> Evaluation:
    """As `Run.evaluate`."""
    return (run if isinstance(run, Run) else load(run)).evaluate(checkpoint)


def ablate(config: Config, workdir: Folder | None = None) -> Grid:
    """Trains the lanes of `config.ablation`, or resumes them; ablation.json of the folder has the same. Raises as
    `train`.
    """
    return _lanes(config, workdir, "ablate", runner.ablate)


def relate(config: Config, workdir: Folder | None = None) -> Relatedness:
    """Measures which tasks help which; relatedness.json of the folder has the same. Raises as `train`."""
    return _lanes(config, workdir, "relate", relatedness.relate)


def merge(runs: Sequence[Run | Folder], out: Folder, config: Config | None = None) -> Run:
    """The columns of runs as one encoder, a run of its own; out/merging.json has the scores of all ways to merge.

    Args:
      runs: finished ones.
      out: folder of the merged run.
      config: for its section `merging`; None: that of the first run.

    Raises:
      UserError: there is nothing to merge; runs that do not fit together.
    """
    found = [run if isinstance(run, Run) else load(run) for run in runs]
    if not found:
        raise UserError("merge: name one run or more")
    config = _checked(found[0].config if config is None else config, "merge")
    with folders.locked(out) as folder:
        merging.merge(config.merging, [run.folder for run in found], folder)
    return Run(folder)


def _lanes(config: Config, workdir: Folder | None, mode: str, function: Callable[..., Any]) -> Any:
    config = _checked(config, mode)
    with folders.locked(_folder(workdir)) as folder:
        result = function(config, folder, lambda lane: checks.check(lane, mode))
        if result is None:
            _stopped(folder)
    return result


def _checked(config: Config, mode: str) -> Config:
    """A copy of the config, checked for a mode."""
    copied = cast(Config, from_plain(to_plain(config)))
    checks.check(copied, mode)
    return copied


def _folder(workdir: Folder | None) -> Folder:
    return tempfile.mkdtemp(prefix="mtl_jax-") if workdir is None else workdir


def _stopped(folder: pathlib.Path) -> NoReturn:
    number = interruption.exit_status() - 128
    if number == signal.SIGINT:
        raise KeyboardInterrupt(f"{folder}: saved; the same call resumes")
    raise Stopped(number)


def _records(examples: Sequence[Example]) -> list[Record]:
    if isinstance(examples, str | Mapping):
        raise UserError("a list of texts or of records, not a single one")
    return [
        Record({TEXT: example} if isinstance(example, str) else dict(example), "examples", number)
        for number, example in enumerate(examples, 1)
    ]
