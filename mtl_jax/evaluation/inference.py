"""Prediction from the checkpoints of a run."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mtl_jax.config.sections import Config
from mtl_jax.data.batch import PackedRows
from mtl_jax.data.corpus import Split
from mtl_jax.data.labels import answer_spans
from mtl_jax.data.packing import unpacking
from mtl_jax.data.records import Record
from mtl_jax.evaluation.input_files import OpenInput
from mtl_jax.evaluation.input_records import INPUT_SPLIT, ReadRecords, RecordReading, build_corpus
from mtl_jax.evaluation.scores import make_evaluator, restore_params
from mtl_jax.experiment.assemble import Experiment, assemble
from mtl_jax.models.layers import LAYERS
from mtl_jax.runtime import distributed
from mtl_jax.storage import artifacts
from mtl_jax.tasks.base import Task
from mtl_jax.training.objective import Params
from mtl_jax.training.placement import AXES, Placement, mesh_placement


def location_fields(record: Record, opened: OpenInput) -> dict[str, Any]:
    """What identifies a record of the input: its line, and its file where there are several."""
    if not opened.several:
        return {"line": record.line}
    return {"line": record.line, "file": record.file.removeprefix(opened.folder.name).lstrip("/")}


class Predictor:
    """A run's model, for any records. Its programs are compiled once, for the shapes of the first records.

    alone  whether each of several processes predicts records of its own; otherwise all predict the same together,
           since the parameters are split over more devices than one of them has
    """

    def __init__(self, config: Config, workdir: pathlib.Path, which: Sequence[str], tasks: Sequence[str] = ()):
        """Loads the checkpoints `which` of a run; the parameters of several are averaged. `tasks`: () for all."""
        saved = artifacts.load(workdir)
        self.reading = RecordReading(config, saved, tasks)
        experiment = assemble(config, build_corpus(config, saved, {}), saved.architecture, None)
        self.experiment = experiment._replace(corpus=self.reading.read([]).corpus)
        self.alone = fits_a_process(config)
        self._placement = placement_over_devices(self.experiment, self.alone)
        self.params = average_params(self.experiment, self._placement, workdir, which)
        self._evaluator = make_evaluator(self.experiment, self._placement, self.reading.tasks)
        self._rows: dict[str, int] = {}  # R of the batches of each group

    def predict(self, records: Sequence[Record], opened: OpenInput) -> list[dict[str, Any]]:
        """For each record its `location_fields`, and {task: its prediction} of the tasks that read it."""
        return self.predict_read(self.reading.read(records, opened.folder), opened)

    def predict_read(self, read: ReadRecords, opened: OpenInput) -> list[dict[str, Any]]:
        """As `predict`, of records that `reading.read` returned."""
        lines = [location_fields(record, opened) for record in read.records]
        self.set_rows(read)
        for group, numbers in read.numbers.items():
            predicted = self._evaluator.for_corpus(read.corpus, self._rows[group]).predict(
                self.params, group, INPUT_SPLIT
            )
            split = read.corpus.splits[group][INPUT_SPLIT]
            for name, values in predicted.values.items():
                self._fill(lines, name, values, split, numbers, read.readers[self.reading.dataset_of[name]])
        return lines

    def set_rows(self, read: ReadRecords) -> None:
        """Sets R, rows of a batch, of the groups that had no records before."""
        for group in read.numbers:
            self._rows.setdefault(group, self._rows_per_batch(read.corpus.rows[group][INPUT_SPLIT]))

    def _rows_per_batch(self, rows: PackedRows) -> int:
        """R: no more rows than there are, so that a few records are not a batch of empty rows."""
        count = min(self.experiment.config.evaluation.rows_per_batch, max(len(rows.tokens), 1))
        return count + -count % self._placement.row_shards

    def _fill(
        self,
        lines: list[dict[str, Any]],
        name: str,
        values: dict[str, Any],
        split: Split,
        numbers: Sequence[int],
        readers: Collection[int],
    ) -> None:
        """Writes the predictions of one task into the lines of the records that it reads.

        Args:
          lines: of all records.
          name: of the task.
          values: {name: predictions by record of the split}, see `Predictions.values`.
          split: the records of the task's group.
          numbers: of the records of the split, in all records.
          readers: numbers of the records that the task reads.
        """
        task = self.experiment.tasks[name]
        if task.defines("best_answers"):
            record = split.encoded.record[unpacking.answer_windows(split.encoded)]
            values = task.best_answers(record, values["value"], len(numbers))
            values |= _answers(split, values["value"])
        sources = split.encoded.labels[name].sources
        for index, number in enumerate(numbers):
            if number in readers:
                prediction = {key: array[index] for key, array in values.items()}
                if sources:
                    prediction["source"] = sources[index]
                lines[number][name] = _decode(task, prediction)


def encoder_refusal(config: Config) -> str:
    """Why the columns of a run are no published encoders, the end of a sentence; "" where they are."""
    if not LAYERS[config.model.layer_type].family:
        return f"no Hugging Face model: config.model.layer_type = {config.model.layer_type!r} is of no model family"
    if config.sharing.mixer:
        return f"no Hugging Face model: published architectures have no mixer {config.sharing.mixer!r}"
    used = {config.tasks[task].dataset for task in (config.train_tasks or config.tasks)}
    if any(config.datasets[name].image for name in used):
        return "no Hugging Face model: published text encoders have no place for patches of pictures"
    return ""


def load_model(config: Config, workdir: pathlib.Path, which: Sequence[str]) -> tuple[Experiment, Params]:
    """A run's model without any data, and its parameters (of several checkpoints their mean) as numpy arrays."""
    experiment = model_without_data(config, workdir)
    params = average_params(experiment, placement_over_devices(experiment), workdir, which)
    return experiment, distributed.to_host(params)


def model_without_data(config: Config, workdir: pathlib.Path) -> Experiment:
    """The experiment of a run, as its folder describes it."""
    saved = artifacts.load(workdir)
    return assemble(config, build_corpus(config, saved, {}), saved.architecture, None)


def average_params(experiment: Experiment, placement: Placement, workdir: pathlib.Path, which: Sequence[str]) -> Params:
    """The mean of the parameters of several checkpoints."""
    total = None
    for name in which:
        params = restore_params(experiment, placement, workdir, name).params
        total = params if total is None else jax.tree.map(lambda a, b: a + b, total, params)
    return jax.tree.map(lambda leaf: leaf / len(which), total) if len(which) > 1 else total


def fits_a_process(config: Config) -> bool:
    """Whether the devices of one process are enough to split parameters as `config.training.mesh` says."""
    return jax.process_count() == 1 or mesh_over(config, jax.local_device_count()) is not None


def placement_over_devices(experiment: Experiment, alone: bool = False) -> Placement:
    """Rows over all devices, or with `alone` those of this process; parameters as `config.training.mesh` splits them.

    A run may have been trained on other devices: where the mesh does not divide these, each has all parameters.
    """
    devices = jax.local_devices() if alone else jax.devices()
    sizes = mesh_over(experiment.config, len(devices)) or dict.fromkeys(AXES, 1) | {"data": len(devices)}
    names = tuple(sizes)
    mesh = jax.make_mesh(
        tuple(sizes.values()), names, devices=devices, axis_types=(jax.sharding.AxisType.Auto,) * len(names)
    )
    return mesh_placement(mesh, experiment.spec.slices, len(experiment.tasks), offload_optimizer=False)


def mesh_over(config: Config, count: int) -> dict[str, int] | None:
    """Devices for each axis where `config.training.mesh` divides so many, with all that are left along `data`."""
    sizes = {axis: int(config.training.mesh[axis]) for axis in AXES if axis != "data"}
    split = math.prod(size for size in sizes.values() if size > 0)
    sizes = {axis: size if size > 0 else max(1, count // split) for axis, size in sizes.items()}
    split = math.prod(sizes.values())
    return None if count % split else {axis: sizes.get(axis, count // split) for axis in AXES}


def _answers(split: Split, spans: np.ndarray) -> dict[str, list[Any]]:
    """The strings of predicted spans int32[M, 2], and their characters or words in the text; None for no answer."""
    by_words = split.inputs.words is not None
    contexts = split.inputs.words if by_words else [texts[-1] for texts in split.inputs.texts]
    texts, places = [], []
    for record, (first, last) in enumerate(spans.tolist()):
        texts.append(answer_spans.answer_text(contexts[record], split.encoded, record, first, last))
        place = (
            (first, last) if by_words or first < 0 else answer_spans.character_span(split.encoded, record, first, last)
        )
        places.append(None if first < 0 else place)
    return {"text": texts, "place": places}


def _decode(task: Task, values: Mapping[str, Any]) -> Any:
    if task.level != "predicate":
        return task.decode(**values)
    return [task.decode(**{key: array[i] for key, array in values.items()}) for i in range(len(values["value"]))]
