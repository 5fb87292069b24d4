"""Soft labels of the training data by finished runs: the teachers of `config.distillation`.

A teacher reads the student's records with its own tokenizer, rows and model; its predictions are joined to the
student's labels by record and word. They are computed once for each run and data, and stored in the cache.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from mtl_jax.config.entries import Distillation
from mtl_jax.config.plain import from_plain, to_plain
from mtl_jax.config.sections import Config
from mtl_jax.data import datasets, packing
from mtl_jax.data.corpus import Corpus
from mtl_jax.data.encoding.gold_labels import GoldLabels
from mtl_jax.data.files import array_cache
from mtl_jax.data.notices import INFORMATION, Notice
from mtl_jax.data.packing.capacities import Capacities
from mtl_jax.data.packing.unpacking import gather_text, gather_words
from mtl_jax.data.sampler import evaluation_batches, evaluation_layout
from mtl_jax.errors import UserError
from mtl_jax.evaluation.inference import average_params, placement_over_devices
from mtl_jax.evaluation.input_records import build_corpus
from mtl_jax.experiment.assemble import Experiment, assemble
from mtl_jax.runs import teacher_positions
from mtl_jax.runtime import distributed
from mtl_jax.runtime.progress import progress_bar
from mtl_jax.storage import artifacts
from mtl_jax.storage import workdir as folders
from mtl_jax.storage.artifacts import Artifacts
from mtl_jax.tasks import distillation
from mtl_jax.training import objective as terms
from mtl_jax.training.objective import Params
from mtl_jax.training.parameter_paths import flatten
from mtl_jax.training.placement import Placement

BY_POSITION = ("choice", "span")  # levels whose soft labels stand at positions of the rows, not at one of a record


def active_teachers(config: Config) -> dict[str, Distillation]:
    """{task: its entry} of the tasks whose teachers have any weight; teachers without weight are never read."""
    return {task: entry for task, entry in config.distillation.items() if entry.weight > 0}


def with_soft_labels(config: Config, data: Corpus) -> Corpus:
    """The corpus with the teachers' predictions in its training labels, `teacher` and `teacher_mask`.

    Where no teacher predicts a labelled word (for example because it was truncated), its gold label takes its place.

    Raises:
      UserError: naming `config.distillation.<task>`, a run that is missing, not finished, of another kind or level, or
        with other classes.
    """
    entries = {task: entry for task, entry in active_teachers(config).items() if task in data.specs}
    if not entries:
        return data
    digest, notes, rows = hashlib.sha256(), [], {name: dict(by_split) for name, by_split in data.rows.items()}
    for task, entry in entries.items():
        runs = [_read_run(f"config.distillation.{task}.teachers", run) for run in entry.teachers]
        predicted = [_soft_labels(run, config, data, task) for run in runs]
        value, known = distillation.average_predictions(
            [labels.value for labels in predicted], [labels.known for labels in predicted], tuple(entry.weights)
        )
        dataset = data.specs[task].dataset
        if data.specs[task].level in BY_POSITION:
            train = rows[dataset]["train"]
            arrays = teacher_positions.at_positions(train, data.splits[dataset]["train"].encoded, task, value, known)
            rows[dataset]["train"] = train._replace(labels={**train.labels, task: {**train.labels[task], **arrays}})
            digest.update(json.dumps([task, [labels.digest for labels in predicted], list(entry.weights)]).encode())
            text = f"task {task}: soft labels of {int(known.sum())} positions by {', '.join(map(str, entry.teachers))}"
            notes.append(Notice(text, INFORMATION))
            continue
        gold = data.splits[dataset]["train"].encoded.labels[task]
        notes.append(
            Notice(
                f"task {task}: {int(known.sum())} of {len(known)} training labels have a soft label by "
                f"{', '.join(map(str, entry.teachers))}; {int((known & ~gold.known).sum())} of them have no gold label",
                INFORMATION,
            )
        )
        arrays = _packed(config, data, task, _with_gold_in_gaps(gold, value, known))
        train = rows[dataset]["train"]
        rows[dataset]["train"] = train._replace(labels={**train.labels, task: {**train.labels[task], **arrays}})
        digest.update(json.dumps([task, [labels.digest for labels in predicted], list(entry.weights)]).encode())
    return data._replace(rows=rows, soft_labels=digest.hexdigest(), notes=(*data.notes, *notes))


class _Teacher(NamedTuple):
    """A finished run: the config field that names it, its folder, config, artifacts, and the step that was scored."""

    field: str
    workdir: pathlib.Path
    config: Config
    artifacts: Artifacts
    step: int


class _SoftLabels(NamedTuple):
    """The predictions of one teacher for every training label of a task, by record.

    value   float32[n, C] or [n]
    known   bool[n], False where the teacher predicts nothing
    digest  hash of everything that they depend on
    """

    value: np.ndarray
    known: np.ndarray
    digest: str


def _read_run(field: str, run: str) -> _Teacher:
    workdir = pathlib.Path(run).expanduser()
    try:
        if folders.is_ablation(workdir):
            raise UserError(f"{run} is the folder of an ablation; name a run, e.g. one of config.ablation.keep")
        config = from_plain(folders.read_config(workdir))
        return _Teacher(field, workdir, config, artifacts.load(workdir), folders.read_summary(workdir)["step"])
    except UserError as error:
        raise UserError(f"{field}: {error}") from None


def _soft_labels(run: _Teacher, config: Config, data: Corpus, task: str) -> _SoftLabels:
    """Predicts the training labels of a task by a run, or takes the predictions from the cache."""
    entry = config.distillation[task]
    teacher_task = entry.task or task
    order = _class_order(run, config, data, task, teacher_task)
    spec = data.specs[task]
    dataset = run.config.tasks[teacher_task].dataset
    records = {dataset: (data.splits[spec.dataset]["train"].records, config.datasets[spec.dataset])}
    try:
        corpus = build_corpus(run.config, run.artifacts, records, datasets.folder_of(config.datasets[spec.dataset]))
        experiment = assemble(run.config, corpus, run.artifacts.architecture, None)
        placement = placement_over_devices(experiment)
        params = average_params(experiment, placement, run.workdir, [str(run.step)])
    except UserError as error:
        raise UserError(f"{run.field}: {run.workdir}: {error}") from None
    except (AttributeError, KeyError) as error:  # a field that its config.json lacks
        raise UserError(f"{run.field}: {run.workdir} was trained by another version of mtl_jax ({error})") from None
    rows = corpus.rows[dataset]["input"]
    if spec.level == "span":
        teacher_positions.require_same_windows(
            f"{run.field}: {run.workdir}",
            corpus.splits[dataset]["input"].encoded,
            data.splits[spec.dataset]["train"].encoded,
        )
    inputs = {name: array for name, array in rows._asdict().items() if isinstance(array, np.ndarray)}
    labels = {f"labels/{name}": array for name, array in rows.labels[teacher_task].items()}
    key = {
        "parameters": array_cache.checksum(distributed.to_host(flatten(params))),
        "model": to_plain({name: run.config[name] for name in ("model", "tasks", "sharing", "images")}),
        "texts": array_cache.checksum(inputs | labels),
        "task": teacher_task,
        "temperature": float(entry.temperature),
    }
    arrays = array_cache.load(key)
    if distributed.any_process(arrays is None):  # all of them predict together
        arrays = _predict(experiment, placement, params, dataset, teacher_task, entry.temperature)
        array_cache.store(key, arrays)
    value = arrays["value"] if order is None else arrays["value"][:, order]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return _SoftLabels(value, arrays["known"], digest)


def _predict(
    experiment: Experiment, placement: Placement, params: Params, dataset: str, name: str, temperature: float
) -> dict[str, np.ndarray]:
    """`value` and `known` of `_SoftLabels`, in the order of the teacher's classes."""
    objective = experiment.objective_for(evaluation_layout(experiment.corpus.layout, dataset))
    task = objective.tasks[name]

    @jax.jit
    def soften(params, batch):
        part, params = terms.task_batch(objective, batch, name), terms.task_params(objective, params, name)
        scores = part.logits(params, objective.network.apply(params, batch).features)
        return distillation.soften_targets(task, part.heads(params), scores, part.labels, temperature)

    rows = experiment.corpus.rows[dataset]["input"]
    encoded = experiment.corpus.splits[dataset]["input"].encoded
    rows_per_batch = experiment.config.evaluation.rows_per_batch
    rows_per_batch += -rows_per_batch % placement.row_shards
    outputs = []
    with progress_bar(f"teacher of {name}", "row", len(rows.tokens), leave=False) as bar:
        for batch in evaluation_batches(rows, objective.layout, rows_per_batch):
            outputs.append(distributed.to_host(soften(params, placement.put_eval(batch))))
            bar.update(int((batch.row >= 0).sum()))
    values = np.concatenate(outputs)[: len(rows.tokens)]

    if task.level in BY_POSITION:
        return teacher_positions.by_position(rows, encoded, name, values)

    def by_label(array: np.ndarray) -> np.ndarray:
        if task.level in ("text", "pair"):
            return gather_text(encoded, rows.example, array)
        parts = gather_words(encoded, rows.example, rows.labels[name], array)
        return np.concatenate([part.reshape(-1, *array.shape[2:]) for part in parts])

    return {"value": by_label(values), "known": by_label(np.ones(values.shape[:2], np.int32)) > 0}


def _class_order(run: _Teacher, config: Config, data: Corpus, task: str, teacher_task: str) -> np.ndarray | None:
    """Index of each of the student's classes among the teacher's; None where labels are numbers.

    Raises:
      UserError: no such task in the run, or one of another kind, level or with other classes.
    """
    vocabularies = run.artifacts.vocabularies
    if teacher_task not in vocabularies:
        raise UserError(
            f"{run.field}: {run.workdir} has no task {teacher_task!r}, it was trained on {', '.join(vocabularies)}; "
            f"name one as config.distillation.{task}.task"
        )
    student, teacher = config.tasks[task], run.config.tasks[teacher_task]
    for field in ("kind", "level"):
        if student[field] != teacher[field]:
            raise UserError(
                f"{run.field}: {run.workdir} has {field} = {teacher[field]!r} for its task {teacher_task!r}, the "
                f"student's {task!r} has {student[field]!r}"
            )
    if data.specs[task].kind == "real" or data.specs[task].level in BY_POSITION:
        return None
    names, teacher_names = data.vocabularies[task].names, vocabularies[teacher_task].names
    missing, additional = set(names) - set(teacher_names), set(teacher_names) - set(names)
    if missing or additional:
        difference = "; ".join(
            f"it {verb} {_shortened([name for name in (*names, *teacher_names) if name in different])}"
            for verb, different in (("lacks", missing), ("also has", additional))
            if different
        )
        raise UserError(
            f"{run.field}: {run.workdir} was trained on other classes of {teacher_task!r}: {difference}. Name all of "
            f"them in both configs as config.tasks.<task>.classes"
        )
    return np.asarray([teacher_names.index(name) for name in names])


def _with_gold_in_gaps(gold: GoldLabels, value: np.ndarray, known: np.ndarray) -> GoldLabels:
    """Soft labels of a split, with the gold label where no teacher has one."""
    gaps = ~known & gold.known
    value = value.copy()
    if gold.value.dtype == np.int32:
        value[gaps] = np.eye(value.shape[-1], dtype=np.float32)[gold.value[gaps]]
    else:
        value[gaps] = gold.value[gaps]
    return GoldLabels(value, known | gaps, gold.offsets)


def _packed(config: Config, data: Corpus, task: str, soft: GoldLabels) -> dict[str, np.ndarray]:
    """Labels by record at the positions of the packed training rows."""
    dataset = data.specs[task].dataset
    encoded = data.splits[dataset]["train"].encoded
    specs = [spec for spec in data.specs.values() if spec.dataset == dataset]
    capacities = Capacities(**data.statistics["datasets"][dataset]["capacities"])
    classes = {spec.task: len(data.vocabularies[spec.task].names) for spec in specs}
    encoded = encoded._replace(labels={**encoded.labels, task: soft})
    rows = packing.rows_of_groups(data.rows[dataset]["train"], encoded)
    arrays = packing.pack(encoded, specs, classes, capacities, config.data.packing, lambda *_: rows).labels[task]
    return {"teacher": arrays["value"], "teacher_mask": arrays["mask"]}


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "")
