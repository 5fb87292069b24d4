"""Soft labels of the training data by finished runs: the teachers of `config.distillation`.

A teacher reads the student's records with its own tokenizer, rows and model; what it says is joined to the student's
labels by record and word. What one run says of one text is computed once and kept in the cache.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mtl_jax.config.plain import from_plain, to_plain
from mtl_jax.data import datasets, packing
from mtl_jax.data.corpus import Corpus
from mtl_jax.data.encoding.gold_labels import GoldLabels
from mtl_jax.data.files import array_cache
from mtl_jax.data.notices import INFORMATION, Notice
from mtl_jax.data.packing import Capacities
from mtl_jax.data.sampler import evaluation_batches, evaluation_layout
from mtl_jax.data.unpacking import gather_text, gather_words
from mtl_jax.errors import UserError
from mtl_jax.evaluation.inference import all_devices, average_params
from mtl_jax.evaluation.input_records import corpus_of
from mtl_jax.experiment.assemble import assemble
from mtl_jax.runtime.progress import progress_bar
from mtl_jax.storage import artifacts
from mtl_jax.storage import workdir as folders
from mtl_jax.storage.artifacts import Artifacts
from mtl_jax.tasks import distillation
from mtl_jax.training import objective as terms
from mtl_jax.training.parameter_paths import flatten


def active(config: Any) -> dict[str, Any]:
    """{task: its entry} of the tasks whose teachers have any weight: without it they are never read."""
    return {task: entry for task, entry in config.distillation.items() if entry.weight > 0}


def with_soft_labels(config: Any, data: Corpus) -> Corpus:
    """The corpus with what the teachers say in its training labels, `teacher` and `teacher_mask`.

    Where no teacher says anything of a labelled word (it was cut off there, say), its gold label stands in.

    Raises:
      UserError: naming `config.distillation.<task>`, a run that is missing, not finished, of another kind or level, or
        with other classes.
    """
    entries = {task: entry for task, entry in active(config).items() if task in data.specs}
    if not entries:
        return data
    seal, notes, rows = hashlib.sha256(), [], {name: dict(by_split) for name, by_split in data.rows.items()}
    for task, entry in entries.items():
        runs = [_finished(f"config.distillation.{task}.teachers", run) for run in entry.teachers]
        said = [_say(run, config, data, task, entry) for run in runs]
        value, known = distillation.average(
            [s["value"] for s in said], [s["known"] for s in said], tuple(entry.weights)
        )
        dataset = data.specs[task].dataset
        gold = data.splits[dataset]["train"].encoded.labels[task]
        notes.append(
            Notice(
                f"task {task}: {int(known.sum())} of {len(known)} training labels have a soft label by "
                f"{', '.join(map(str, entry.teachers))}; {int((known & ~gold.known).sum())} of them have no gold label",
                INFORMATION,
            )
        )
        arrays = _packed(config, data, task, _filled(gold, value, known))
        own = rows[dataset]["train"]
        rows[dataset]["train"] = own._replace(labels={**own.labels, task: {**own.labels[task], **arrays}})
        seal.update(json.dumps([task, [str(s["digest"]) for s in said], list(entry.weights)]).encode())
    return data._replace(rows=rows, soft_labels=seal.hexdigest(), notes=(*data.notes, *notes))


class _Run(NamedTuple):
    """A finished run: where a message is to point, its folder, config and artifacts, and the step that was scored."""

    where: str
    workdir: pathlib.Path
    config: Any
    kept: Artifacts
    step: int


def _finished(where: str, run: str) -> _Run:
    workdir = pathlib.Path(run).expanduser()
    try:
        if folders.is_ablation(workdir):
            raise UserError(f"{run} is the folder of an ablation, which keeps no parameters; name that of a single run")
        config = from_plain(folders.read_config(workdir))
        return _Run(where, workdir, config, artifacts.load(workdir), folders.read_summary(workdir)["step"])
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _say(run: _Run, config: Any, data: Corpus, task: str, entry: Any) -> dict[str, np.ndarray]:
    """What a run says of every training label of a task, by record: value float32[n, C] or [n], known bool[n]; and
    digest, of all that it follows from.
    """
    there = entry.task or task
    order = _classes(run, config, data, task, there)
    spec = data.specs[task]
    held = {
        run.config.tasks[there].dataset: (data.splits[spec.dataset]["train"].records, config.datasets[spec.dataset])
    }
    try:
        corpus = corpus_of(run.config, run.kept, held, datasets.folder_of(config.datasets[spec.dataset]))
        experiment = assemble(run.config, corpus, run.kept.architecture, None)
        placement = all_devices(experiment)
        params = average_params(experiment, placement, run.workdir, [str(run.step)])
    except UserError as error:
        raise UserError(f"{run.where}: {run.workdir}: {error}") from None
    except (AttributeError, KeyError) as error:  # a field that its config.json lacks
        raise UserError(f"{run.where}: {run.workdir} was trained by another version of mtl_jax ({error})") from None
    (dataset,) = held
    rows = corpus.rows[dataset]["input"]
    texts = {name: array for name, array in rows._asdict().items() if isinstance(array, np.ndarray)}
    key = {
        "parameters": array_cache.checksum(jax.device_get(flatten(params))),
        "model": to_plain({name: run.config[name] for name in ("model", "tasks", "sharing", "images")}),
        "texts": array_cache.checksum(texts | {f"labels/{name}": array for name, array in rows.labels[there].items()}),
        "task": there,
        "temperature": float(entry.temperature),
    }
    found = array_cache.load_or_make(
        key, lambda: _predicted(experiment, placement, params, dataset, there, entry.temperature)
    )
    value = found["value"] if order is None else found["value"][:, order]
    return {"value": value, "known": found["known"], "digest": np.asarray(_digest(key))}


def _predicted(experiment, placement, params, dataset: str, name: str, temperature: float) -> dict[str, np.ndarray]:
    """Soft labels of all records, in the order of the teacher's classes."""
    objective = experiment.objective_for(evaluation_layout(experiment.corpus.layout, dataset))
    task = objective.tasks[name]

    @jax.jit
    def soften(params, batch):
        scores = terms.logits(objective, params, batch, None, None)[name]
        return distillation.soften(task, params["heads"][name], scores, terms.rows_of(batch.labels[name]), temperature)

    rows = experiment.corpus.rows[dataset]["input"]
    encoded = experiment.corpus.splits[dataset]["input"].encoded
    count = experiment.config.evaluation.rows_per_batch
    count += -count % placement.row_shards
    outputs = []
    with progress_bar(f"teacher of {name}", "row", len(rows.tokens), leave=False) as bar:
        for batch in evaluation_batches(rows, objective.layout, count):
            outputs.append(jax.device_get(soften(params, placement.put_eval(batch))))
            bar.update(int((batch.row >= 0).sum()))
    values = np.concatenate(outputs)[: len(rows.tokens)]

    def by_label(array):
        if task.level in ("text", "pair"):
            return gather_text(encoded, rows.example, array)
        parts = gather_words(encoded, rows.example, rows.labels[name], array)
        return np.concatenate([part.reshape(-1, *array.shape[2:]) for part in parts])

    return {"value": by_label(values), "known": by_label(np.ones(values.shape[:2], np.int32)) > 0}


def _classes(run: _Run, config: Any, data: Corpus, task: str, there: str) -> np.ndarray | None:
    """Index of each of the student's classes among the teacher's; None where labels are numbers.

    Raises:
      UserError: no such task in the run, or one that says something else.
    """
    if there not in run.kept.vocabularies:
        raise UserError(
            f"{run.where}: {run.workdir} has no task {there!r}, it was trained on {', '.join(run.kept.vocabularies)}; "
            f"name one as config.distillation.{task}.task"
        )
    own, other = config.tasks[task], run.config.tasks[there]
    for field in ("kind", "level"):
        if own[field] != other[field]:
            raise UserError(
                f"{run.where}: {run.workdir} has {field} = {other[field]!r} for its task {there!r}, the student's "
                f"{task!r} has {own[field]!r}"
            )
    if data.specs[task].kind == "real":
        return None
    names, known = data.vocabularies[task].names, run.kept.vocabularies[there].names
    lacking, more = [n for n in names if n not in known], [n for n in known if n not in names]
    if lacking or more:
        said = [f"it lacks {_listed(lacking)}"] * bool(lacking) + [f"it also has {_listed(more)}"] * bool(more)
        raise UserError(
            f"{run.where}: {run.workdir} was trained on other classes of {there!r}: {'; '.join(said)}. Name all of "
            f"them in both configs as config.tasks.<task>.classes"
        )
    return np.asarray([known.index(name) for name in names])


def _filled(gold: GoldLabels, value: np.ndarray, known: np.ndarray) -> GoldLabels:
    """Soft labels of a split, with the gold label where there is no other."""
    gaps = ~known & gold.known
    value = value.copy()
    if gold.value.dtype == np.int32:
        value[gaps] = np.eye(value.shape[-1], dtype=np.float32)[gold.value[gaps]]
    else:
        value[gaps] = gold.value[gaps]
    return GoldLabels(value, known | gaps, gold.offsets)


def _packed(config: Any, data: Corpus, task: str, soft: GoldLabels) -> dict[str, np.ndarray]:
    """Labels by record in the places of the packed training rows."""
    dataset = data.specs[task].dataset
    encoded = data.splits[dataset]["train"].encoded
    specs = [spec for spec in data.specs.values() if spec.dataset == dataset]
    capacities = Capacities(**data.statistics["datasets"][dataset]["capacities"])
    classes = {spec.task: len(data.vocabularies[spec.task].names) for spec in specs}
    encoded = encoded._replace(labels={**encoded.labels, task: soft})
    arrays = packing.pack(encoded, specs, classes, capacities, config.data.packing).labels[task]
    return {"teacher": arrays["value"], "teacher_mask": arrays["mask"]}


def _digest(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "")
