"""Prediction on new texts, and export, from the checkpoints of a run."""

from __future__ import annotations

import contextlib
import functools
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax

from mtl_jax.data import answers, decoding
from mtl_jax.data.batch import Rows
from mtl_jax.data.corpus import Split
from mtl_jax.data.records import Note, Record, summary
from mtl_jax.errors import UserError
from mtl_jax.models.export import save_folder
from mtl_jax.training import artifacts
from mtl_jax.training.checkpoint import load_params
from mtl_jax.training.experiment import Experiment, assemble
from mtl_jax.training.inputs import Asked, Input, opened
from mtl_jax.training.output import Output
from mtl_jax.training.placement import Placement, place, require_platform
from mtl_jax.training.progress import progress_bar
from mtl_jax.training.reading import SPLIT, Read, Reading, corpus_of
from mtl_jax.training.scoring import abstract_params, make_evaluator

CHUNK = 256  # records read, predicted and written at a time


def predict(
    config: Any, workdir: pathlib.Path, which: Sequence[str], source: str, target: str, tasks: Sequence[str] = (),
    dataset: str = "", reader: str = "", split: str = "",
) -> None:
    """Reads records and writes a JSON line for each: {"line": its place, task: labels, tags, answers, probabilities}.

    Records come by a reader of training, see `inputs`; a file's name stands beside the line where an input has several.
    A record is read by the tasks of every data set whose fields it has: texts or words and pictures (`predicates` for
    roles, choices, marked spans). Masked language modelling tells each [MASK] in it. A line of text is the text, its
    words at blanks, or the path of the picture of every data set that reads one field. Paths of pictures start from the
    folder of the file.

    What is predicted is written at once, `CHUNK` records at a time. A target that holds the first predictions already,
    as a command leaves it that was stopped, is gone on with; anything else in it is replaced.

    Args:
      config: of the run.
      workdir: of the run.
      which: checkpoints; parameters of several are averaged.
      source: a file, a folder, or "-" for the standard input.
      target: file, "" for the standard output.
      tasks: of the run; () for all.
      dataset, reader, split: how the source is read, see `inputs.Asked`.

    Raises:
      UserError: no such file or checkpoint; a record that no task can read, with its place.
    """
    require_platform(config.training.platform)
    asked = Asked(source, dataset, reader, split)
    if target and source != "-" and pathlib.Path(source).resolve() == pathlib.Path(target).resolve():
        raise UserError(f"--output={target} is the input; name another file")
    model = Predictor(config, workdir, which, tasks)
    notes: list[Note] = []
    with contextlib.ExitStack() as stack:
        given = stack.enter_context(opened(asked, model.reading.datasets))
        output = stack.enter_context(Output(target))
        bar = stack.enter_context(progress_bar("predicting", "text"))
        count = 0
        for records in _chunks(given.items, notes, CHUNK):
            lines = functools.cache(lambda of=tuple(records): model.lines(of, given))
            if not output.has([place_of(record, given) for record in records], model.reading.tasks, lines):
                output.write(lines())
            count += len(records)
            bar.update(len(records))
        output.end()
    if not count:
        raise UserError(f"--input={source}: no text in it")
    for note in summary("input", [*notes, *model.reading.notes]):
        print(note, file=sys.stderr)
    if target:
        print(f"{count} predictions in {target}")


def _chunks(items: Iterable[Record | Note], notes: list[Note], size: int) -> Iterator[list[Record]]:
    """Lists of `size` records; notes are put aside."""
    records: list[Record] = []
    for item in items:
        if isinstance(item, Note):
            notes.append(item)
            continue
        records.append(item)
        if len(records) == size:
            yield records
            records = []
    if records:
        yield records


def place_of(record: Record, given: Input) -> dict[str, Any]:
    """What tells a record from others of the input: its line, and its file where there are several."""
    if not given.several:
        return {"line": record.line}
    return {"line": record.line, "file": record.file.removeprefix(given.folder.name).lstrip("/")}


class Predictor:
    """A run's model, for any records. Its programs are compiled once, for the shapes of the first records."""

    def __init__(self, config: Any, workdir: pathlib.Path, which: Sequence[str], tasks: Sequence[str] = ()):
        """See `predict`."""
        kept = artifacts.load(workdir)
        self.reading = Reading(config, kept, tasks)
        plain = assemble(config, corpus_of(config, kept, {}), kept.architecture, None)
        self.experiment = plain._replace(corpus=self.reading.read([]).corpus)
        self._placement = all_devices(self.experiment)
        self.params = average_params(self.experiment, self._placement, workdir, which)
        self._evaluator = make_evaluator(self.experiment, self._placement, self.reading.tasks)
        self._rows: dict[str, int] = {}  # R of the batches of each group

    def lines(self, records: Sequence[Record], given: Input) -> list[dict[str, Any]]:
        """For each record its place in the input, and {task: what it predicts} of the tasks that read it."""
        return self.of_read(self.reading.read(records, given.folder), given)

    def of_read(self, read: Read, given: Input) -> list[dict[str, Any]]:
        """As `lines`, of records as `reading.read` gave them."""
        lines = [place_of(record, given) for record in read.records]
        for group, numbers in read.numbers.items():
            rows = self._rows.setdefault(group, self._rows_of(read.corpus.rows[group][SPLIT]))
            predicted = self._evaluator.of(read.corpus, rows).predict(self.params, group, SPLIT)
            split = read.corpus.splits[group][SPLIT]
            for name, values in predicted.values.items():
                self._fill(lines, name, values, split, numbers, read.readers[self.reading.dataset_of[name]])
        return lines

    def _rows_of(self, rows: Rows) -> int:
        """R: no more rows than there are, so that a few texts are not a batch of empty rows."""
        shards = self._placement.row_shards
        most = self.experiment.config.evaluation.rows
        least = min(most, max(len(rows.tokens), 1))
        return least + -least % shards

    def _fill(self, lines, name, values, split, numbers, readers):
        """Puts the predictions of one task into the lines of the records that it reads."""
        task = self.experiment.tasks[name]
        if task.level == "span":
            record = split.encoded.record[decoding.windows(split.encoded)]
            values = task.best(record, values["value"], len(numbers))
            values |= _answers(split, values["value"])
        sources = split.encoded.labels[name].sources
        for at, number in enumerate(numbers):
            if number in readers:
                own = {key: array[at] for key, array in values.items()}
                if sources:
                    own["source"] = sources[at]
                lines[number][name] = _decode(task, own)


def export(config: Any, workdir: pathlib.Path, which: Sequence[str], target: pathlib.Path) -> list[str]:
    """Writes each column as a Hugging Face folder: target/<task>, or target/shared where all tasks share it.

    Returns:
      what was written, a line each.

    Raises:
      UserError: see `export_refusal`.
    """
    require_platform(config.training.platform)
    if refusal := export_refusal(config):
        raise UserError(refusal)
    kept = artifacts.load(workdir)
    experiment, params = model(config, workdir, which)
    columns = {tuple(owner[k] for owner in experiment.owners.values()): [] for k in range(len(experiment.tasks))}
    for k, task in enumerate(experiment.tasks):
        columns[tuple(owner[k] for owner in experiment.owners.values())].append(task)
    lines = []
    for column, tasks in columns.items():
        name = "shared" if len(columns) == 1 and len(tasks) > 1 else "+".join(tasks)
        own = {
            path: jax.tree.map(lambda leaf, o=o: leaf[o], params[path])
            for path, o in zip(experiment.owners, column, strict=True)
        }
        written = save_folder(target / name, kept.architecture, own, workdir / "model")
        lines.append(f"{target / name}: {len(written)} tensors, for {', '.join(tasks)}")
    return lines


def export_refusal(config: Any) -> str:
    """Why the columns of a run are no published architecture, as a sentence; "" where they are."""
    if config.model.layer != "transformer":
        return (
            f"--mode=export writes Hugging Face folders, which are for transformers; this run has "
            f"config.model.layer = {config.model.layer!r}"
        )
    for field in ("mixer", "adapter"):
        if config.sharing[field]:
            return (
                f"--mode=export writes columns as published architectures, which have no {field}s; this run has "
                f"config.sharing.{field} = {config.sharing[field]!r}"
            )
    used = {config.tasks[task].dataset for task in (config.train_on or config.tasks)}
    if any(config.datasets[name].image for name in used):
        return "--mode=export writes published text encoders, which have no place for patches of pictures"
    return ""


def model(config: Any, workdir: pathlib.Path, which: Sequence[str]) -> tuple[Experiment, Any]:
    """A run's model without any data, and its parameters (of several checkpoints their mean) as numpy arrays."""
    kept = artifacts.load(workdir)
    experiment = assemble(config, corpus_of(config, kept, {}), kept.architecture, None)
    return experiment, jax.device_get(average_params(experiment, all_devices(experiment), workdir, which))


def average_params(experiment: Experiment, placement: Placement, workdir: pathlib.Path, which: Sequence[str]) -> Any:
    """The mean of the parameters of several checkpoints."""
    abstract = abstract_params(experiment, placement)
    total = None
    for name in which:
        params = load_params(workdir, name, abstract).params
        total = params if total is None else jax.tree.map(lambda a, b: a + b, total, params)
    return jax.tree.map(lambda leaf: leaf / len(which), total) if len(which) > 1 else total


def all_devices(experiment: Experiment) -> Placement:
    """Rows split over all devices."""
    shape = {"data": jax.device_count(), "task": 1, "model": 1}
    return place("jit", shape, experiment.spec.slices, len(experiment.tasks))


def _answers(split: Split, spans) -> dict[str, list[Any]]:
    """The texts of predicted spans int32[M, 2], and where they stand: characters or words; None for no answer."""
    wholes = [texts[-1] for texts in split.units.texts] if split.units.words is None else split.units.words
    texts, places = [], []
    for record, (first, last) in enumerate(spans.tolist()):
        texts.append(answers.text_of(wholes[record], split.encoded, record, first, last))
        by_words = split.units.words is not None
        place = (first, last) if by_words or first < 0 else answers.characters(split.encoded, record, first, last)
        places.append(None if first < 0 else place)
    return {"text": texts, "place": places}


def _decode(task, values: Mapping[str, Any]) -> Any:
    if task.level != "predicate":
        return task.decode(**values)
    return [task.decode(**{key: array[i] for key, array in values.items()}) for i in range(len(values["value"]))]
