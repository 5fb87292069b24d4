"""Prediction from the checkpoints of a run."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from mtl_jax.data import unpacking
from mtl_jax.data.batch import PackedRows
from mtl_jax.data.corpus import Split
from mtl_jax.data.labels import answer_spans
from mtl_jax.data.records import Record
from mtl_jax.evaluation.input_files import Input
from mtl_jax.evaluation.input_records import SPLIT, Read, Reading, corpus_of
from mtl_jax.evaluation.scores import abstract_params, make_evaluator
from mtl_jax.experiment.assemble import Experiment, assemble
from mtl_jax.models.layers import LAYERS
from mtl_jax.storage import artifacts
from mtl_jax.storage.checkpoint import load_params
from mtl_jax.training.placement import Placement, place


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

    def _rows_of(self, rows: PackedRows) -> int:
        """R: no more rows than there are, so that a few texts are not a batch of empty rows."""
        shards = self._placement.row_shards
        most = self.experiment.config.evaluation.rows_per_batch
        least = min(most, max(len(rows.tokens), 1))
        return least + -least % shards

    def _fill(self, lines, name, values, split, numbers, readers):
        """Puts the predictions of one task into the lines of the records that it reads."""
        task = self.experiment.tasks[name]
        if task.level == "span":
            record = split.encoded.record[unpacking.answer_windows(split.encoded)]
            values = task.best(record, values["value"], len(numbers))
            values |= _answers(split, values["value"])
        sources = split.encoded.labels[name].sources
        for at, number in enumerate(numbers):
            if number in readers:
                own = {key: array[at] for key, array in values.items()}
                if sources:
                    own["source"] = sources[at]
                lines[number][name] = _decode(task, own)


def export_refusal(config: Any) -> str:
    """Why the columns of a run are no published architecture, as a sentence; "" where they are."""
    if not LAYERS[config.model.layer].family:
        return (
            f"--mode=export writes Hugging Face folders, which are for model families; this run has "
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
        texts.append(answer_spans.answer_text(wholes[record], split.encoded, record, first, last))
        by_words = split.units.words is not None
        place = (
            (first, last) if by_words or first < 0 else answer_spans.character_span(split.encoded, record, first, last)
        )
        places.append(None if first < 0 else place)
    return {"text": texts, "place": places}


def _decode(task, values: Mapping[str, Any]) -> Any:
    if task.level != "predicate":
        return task.decode(**values)
    return [task.decode(**{key: array[i] for key, array in values.items()}) for i in range(len(values["value"]))]
