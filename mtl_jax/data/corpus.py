"""All data of a run: data sets read, encoded and packed; vocabularies; notes; statistics."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from mtl_jax.data import datasets as datasets_module
from mtl_jax.data import packing, sampler
from mtl_jax.data.batch import BatchLayout, PackedRows
from mtl_jax.data.encoding.encode import OVERFLOW, EncodedSplit, copy_for_predicates
from mtl_jax.data.encoding.record_inputs import RecordInputs, extract_inputs
from mtl_jax.data.files import array_cache, workers
from mtl_jax.data.files.location import Location
from mtl_jax.data.labels import task_labels
from mtl_jax.data.labels.label_spec import LabelSpec
from mtl_jax.data.labels.vocabulary import LabelVocabulary
from mtl_jax.data.notices import notice
from mtl_jax.data.packing import capacities as row_capacities
from mtl_jax.data.packing import packed_labels
from mtl_jax.data.pictures import image_store, patches
from mtl_jax.data.pictures.image_store import PatchSpec
from mtl_jax.data.preparation import (
    EncodingSettings,
    PreparedDataset,
    encode_with_patches,
    inputs_for_tasks,
    prepare_dataset,
    resolve_overflow,
    text_length,
    with_answers,
)
from mtl_jax.data.record_sequences import map_chunks
from mtl_jax.data.records import Record, suggestion
from mtl_jax.data.tokenizers import Tokenizer, WordVocabulary
from mtl_jax.errors import UserError

TokenizerFactory = Callable[[Iterable[str | Sequence[str]]], Tokenizer]


class Split(NamedTuple):
    """A split as read, its inputs, and as encoded; `encoded.labels` has the gold labels by record."""

    records: Sequence[Record]
    encoded: EncodedSplit
    inputs: RecordInputs


class KnownLabels(NamedTuple):
    """The classes of a task whose data are not read, and the statistics {"train": ...} of its labels."""

    vocabulary: LabelVocabulary
    statistics: Mapping[str, Any]


class Corpus(NamedTuple):
    """Everything that training and evaluation read.

    layout        static layout of training batches
    rows          {data set: {split: PackedRows}}
    splits        {data set: {split: Split}}
    vocabularies  {task: LabelVocabulary}
    specs         {task: LabelSpec}
    tokenizer     the tokenizer of all data sets
    notes         sentences about truncated texts, unseen labels, dropped duplicates, the share of real tokens; see
                  `notices.Notice`
    fingerprint   content hash of all rows, the vocabularies and the tokenizer
    statistics    {data set: {"capacities", split: {"records", "available", "examples", "rows", ...}}} and
                  {task: {split: {"known", "missing", "counts": {name: n}}}} under "datasets" and "tasks"
    soft_labels   content hash of the teachers whose soft labels are in the rows, "" where there are none
    pictures      properties of the pictures of all data sets that have some; None where none has
    """

    layout: BatchLayout
    rows: Mapping[str, Mapping[str, PackedRows]]
    splits: Mapping[str, Mapping[str, Split]]
    vocabularies: Mapping[str, LabelVocabulary]
    specs: Mapping[str, LabelSpec]
    tokenizer: Tokenizer
    notes: Sequence[str]
    fingerprint: str
    statistics: Mapping[str, Any]
    soft_labels: str = ""
    pictures: image_store.ImageSpec | None = None


def load(
    datasets: Mapping[str, Mapping[str, Any]],
    specs: Sequence[LabelSpec],
    tokenizer: Tokenizer | TokenizerFactory,
    *,
    row_length: int,
    max_length: int | None = None,
    pack: bool = True,
    overflow: str = "auto",
    stride: int = 0,
    seed: int = 0,
    tasks: Sequence[str] | None = None,
    mixing: sampler.Mixing | None = None,
    max_unseen_labels: float = 0.05,
    cut: PatchSpec | None = None,
    read: Callable[..., Any] | None = None,
    untrained: Collection[str] = (),
    known: Mapping[str, KnownLabels] = MappingProxyType({}),
) -> Corpus:
    """Reads, encodes and packs all data sets.

    Args:
      datasets: entries of the config by name, see `datasets.read_dataset`.
      specs: what every task of the config reads, in order.
      tokenizer: a tokenizer, or a function that makes one from the training texts and sentences of *all* data sets, so
        that the ids do not depend on `tasks`.
      row_length: T of every row.
      max_length: the largest number of tokens of an example, by default `row_length`.
      pack: False for one example a row.
      overflow: how records of more tokens are encoded. "auto" splits sentences of data sets with word-level or
        predicate-level tasks between words, uses windows for tasks that predict spans of texts, and truncates others;
        "truncate", "split", "error": see `encoding.encode`.
      stride: of windows, see `encoding.encode`.
      seed: keys the splits that are carved out, and the records that keep their label.
      tasks: names of the tasks to train, all by default. Data sets that none of them reads are left out; the rows of
        the others do not depend on it.
      mixing: how data sets share the batches.
      max_unseen_labels: the largest share of a split's labels that train may lack.
      cut: how pictures become patches; their size is in the data set's entry.
      read: `datasets.read_dataset` by default.
      untrained: tasks whose data sets are in no training batch.
      known: of them those whose data sets are not read.

    Raises:
      UserError: see the readers, `labels`, `encoding` and `pictures`; two tasks of one name, and unknown names.
    """
    read = read or datasets_module.read_dataset
    trained = _check(datasets, specs, row_length, max_length, overflow, tasks)
    unread = [name for name in datasets if any(spec.dataset == name and spec.task in known for spec in trained)]
    used = [name for name in datasets if name not in unread and any(spec.dataset == name for spec in trained)]
    is_factory = not hasattr(tokenizer, "single")
    sources = [name for name in datasets if name in used or (is_factory and name not in unread)]
    read_data = {name: read(name, datasets[name], seed) for name in sources}
    inputs = {name: _inputs_by_split(name, datasets[name], data, specs) for name, data in read_data.items()}
    if is_factory:
        tokenizer = _make_tokenizer(tokenizer, [inputs[name]["train"] for name in sources])
    stores = {}
    for name in used:
        if datasets[name].get("image"):
            folder = read_data[name].folder
            stores[name], inputs[name] = patches.add_pictures(inputs[name], datasets[name], folder, cut)
    settings = EncodingSettings(row_length, max_length or row_length, pack, overflow, stride, max_unseen_labels, seed)
    prepared: dict[str, PreparedDataset] = {}
    for name in used:
        prepared[name] = _prepare(name, inputs[name], specs, trained, tokenizer, settings)
        for split, count in read_data[name].available.items():
            prepared[name].dataset_statistics[split]["available"] = count
    workers.close()
    read_notes = [notice(note).prefixed(name) for name in used for note in read_data[name].notes]
    layout = _make_layout([*used, *unread], trained, mixing or sampler.Mixing(), list(stores), untrained)
    return _assemble(prepared, inputs, stores, trained, tokenizer, layout, known)._replace(
        notes=(*read_notes, *(note for data in prepared.values() for note in data.notes))
    )


def _assemble(
    prepared: Mapping[str, PreparedDataset],
    inputs: Mapping[str, Mapping[str, RecordInputs]],
    stores: Mapping[str, image_store.ImageStore],
    trained: Sequence[LabelSpec],
    tokenizer: Tokenizer,
    layout: BatchLayout,
    known: Mapping[str, KnownLabels],
) -> Corpus:
    """The corpus of prepared data sets, without notes."""
    rows = {name: patches.add_pixels(data.rows, stores.get(name)) for name, data in prepared.items()}
    vocabularies = {task: labels.vocabulary for task, labels in known.items()}
    vocabularies |= {task: v for data in prepared.values() for task, v in data.vocabularies.items()}
    counts = {task: labels.statistics for task, labels in known.items()}
    counts |= {task: numbers for data in prepared.values() for task, numbers in data.task_statistics.items()}
    return Corpus(
        layout=layout,
        rows=rows,
        splits={
            name: {
                split: Split(inputs[name][split].records, e, inputs[name][split]) for split, e in data.encoded.items()
            }
            for name, data in prepared.items()
        },
        vocabularies={spec.task: vocabularies[spec.task] for spec in trained},
        specs={spec.task: spec for spec in trained},
        tokenizer=tokenizer,
        notes=(),
        fingerprint=_fingerprint(
            layout, rows, vocabularies, tokenizer, {name: data.keys for name, data in prepared.items()}
        ),
        statistics={
            "datasets": {name: data.dataset_statistics for name, data in prepared.items()},
            "tasks": counts,
        },
        pictures=image_store.image_spec(stores, {name: inputs[name] for name in stores}),
    )


def _make_layout(
    names: Sequence[str],
    trained: Sequence[LabelSpec],
    mixing: sampler.Mixing,
    pictured: Sequence[str],
    untrained: Collection[str],
) -> BatchLayout:
    """The layout of training batches over the data sets `names`."""
    learned = {spec.dataset for spec in trained if spec.task not in untrained}
    return sampler.make_layout(
        names,
        [spec.task for spec in trained],
        [names.index(spec.dataset) for spec in trained],
        mixing,
        [names.index(name) for name in pictured],
        [index for index, name in enumerate(names) if name not in learned],
    )


def _prepare(
    name: str,
    inputs: Mapping[str, RecordInputs],
    specs: Sequence[LabelSpec],
    trained: Sequence[LabelSpec],
    tokenizer: Tokenizer,
    settings: EncodingSettings,
) -> PreparedDataset:
    """One data set: all tasks of the config on it shape the rows, the trained ones have labels in them."""
    dataset_specs = [spec for spec in specs if spec.dataset == name]
    overflow = resolve_overflow(settings.overflow, inputs["train"], dataset_specs)
    dataset_trained = [spec for spec in dataset_specs if spec in trained]
    return prepare_dataset(
        name, inputs, dataset_specs, dataset_trained, tokenizer, settings._replace(overflow=overflow)
    )


def corpus_for_prediction(
    records: Sequence[Record],
    entry: Mapping[str, Any],
    specs: Sequence[LabelSpec],
    vocabularies: Mapping[str, LabelVocabulary],
    tokenizer: Tokenizer,
    *,
    row_length: int,
    max_length: int | None = None,
    pack: bool = True,
    overflow: str = "auto",
    stride: int = 0,
    cut: PatchSpec | None = None,
    form: image_store.ImageSpec | None = None,
    folder: Location | None = None,
    like: PackedRows | None = None,
) -> tuple[PackedRows, Split]:
    """New records of one data set, packed without looking at their labels (mask False throughout).

    Args:
      records: M records with the fields that `entry` names as `text` or `words`.
      entry: the data set's entry.
      specs: its tasks.
      vocabularies, tokenizer, row_length, max_length, pack, overflow, stride, cut: as for `load`.
      form: of the pictures in training, where the data set has pictures; the new ones have to have the same size.
      folder: the folder that paths of pictures start from.
      like: rows of the same data set: the new rows have as many example slots and label positions, unless an example
        needs more.
    """
    inputs = inputs_for_tasks(records, "data to predict", entry, specs)
    store = None
    if entry.get("image"):
        size = form.sizes[specs[0].dataset]
        store, with_pictures = patches.add_pictures({"input": inputs}, entry, folder, cut, size, form.max_images)
        inputs = with_pictures["input"]
    overflow = resolve_overflow(overflow, inputs, specs)
    longest = text_length(max_length or row_length, specs, tokenizer)
    encoded = encode_with_patches(inputs, tokenizer, longest, overflow, stride)
    gold = {
        spec.task: task_labels.unknown_labels(spec, inputs, encoded, vocabularies[spec.task], tokenizer)
        for spec in specs
    }
    encoded = encoded._replace(labels=gold, targets=np.zeros(len(records), np.int64))
    encoded = with_answers(encoded, specs, tokenizer)
    encoded = copy_for_predicates(encoded, row_capacities.predicate_limit([encoded], row_length, pack))
    levels = sorted({spec.level for spec in specs})
    if like is None:
        capacities = row_capacities.choose_capacities([encoded], levels, row_length, pack)
    else:
        capacities = row_capacities.enlarged_capacities(row_capacities.capacities_of(like, specs), encoded, levels)
    classes = {spec.task: len(vocabularies[spec.task].names) for spec in specs}
    rows = packing.pack(encoded, specs, classes, capacities, pack)
    rows = patches.add_pixels({"input": rows}, store)["input"]
    least = {s.task: like.labels[s.task]["token"].shape[1] if like else 1 for s in specs if s.level == "token"}
    hidden = {task: packed_labels.masked_positions(rows, tokenizer, count) for task, count in least.items()}
    return rows._replace(labels=rows.labels | hidden), Split(records, encoded, inputs)


def _check(
    datasets: Mapping[str, Any],
    specs: Sequence[LabelSpec],
    row_length: int,
    max_length: int | None,
    overflow: str,
    tasks: Sequence[str] | None,
) -> list[LabelSpec]:
    """The specs of the tasks to train, in the order of `specs`. Raises UserError for contradictory arguments."""
    names = [spec.task for spec in specs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"two tasks are named {twice[0]!r}")
    for spec in specs:
        if spec.dataset not in datasets:
            raise _no_such("data set", spec.dataset, datasets, f"task {spec.task}: ")
    for name in tasks or ():
        if name not in names:
            raise _no_such("task", name, names)
    if not specs or (tasks is not None and not tasks):
        raise UserError("no task to train")
    if overflow not in ("auto", *OVERFLOW):
        raise UserError(f"overflow: {overflow!r} is none of auto, {', '.join(OVERFLOW)}")
    if max_length is not None and not 1 <= max_length <= row_length:
        raise UserError(f"max_length {max_length} should be from 1 to row_length {row_length}")
    return [spec for spec in specs if tasks is None or spec.task in tasks]


def _no_such(what: str, name: str, known: Iterable[str], prefix: str = "") -> UserError:
    return UserError(f"{prefix}there is no {what} {name!r}; known: {', '.join(known)}.{suggestion(name, known)}")


def _inputs_by_split(
    name: str, entry: Mapping[str, Any], data: datasets_module.ReadData, specs: Sequence[LabelSpec]
) -> dict[str, RecordInputs]:
    if not data.splits.get("train"):
        raise UserError(f"data set {name}: no train split")
    what, specs = f"data set {name}", [spec for spec in specs if spec.dataset == name]
    return {split: inputs_for_tasks(records, what, entry, specs) for split, records in data.splits.items()}


def _make_tokenizer(factory: TokenizerFactory, train: Sequence[RecordInputs]) -> Tokenizer:
    """The tokenizer of training texts; the workers count the words of those on disk."""
    if not isinstance(factory, WordVocabulary) or all(inputs.options is None for inputs in train):
        return factory(text for inputs in train for text in _texts(inputs))

    def make() -> dict[str, np.ndarray]:
        counts: collections.Counter[str] = collections.Counter()
        for inputs in train:
            for chunk_counts in (
                map_chunks(count_words, inputs.records, (inputs.options, factory))
                if inputs.options
                else [factory.count(_texts(inputs))]
            ):
                counts.update(chunk_counts)
        return {"words": np.frombuffer(json.dumps(factory.ranked(counts)).encode(), np.uint8)}

    key = {"vocabulary": [dataclasses.astuple(factory), [inputs.fingerprint() for inputs in train]]}
    return factory.make(json.loads(array_cache.load_or_make(key, make)["words"].tobytes()))


def count_words(
    records: Sequence[Record], options: Mapping[str, Any], vocabulary: WordVocabulary
) -> collections.Counter[str]:
    """The words of a chunk of records on disk."""
    return vocabulary.count(_texts(extract_inputs(list(records), **options)))


def _texts(inputs: RecordInputs) -> Iterable[str | Sequence[str]]:
    """All texts (str) or sentences (lists of words)."""
    if inputs.texts is None:
        return inputs.words
    return itertools.chain(
        itertools.chain.from_iterable(inputs.texts), itertools.chain.from_iterable(inputs.choices or ())
    )


def _fingerprint(
    layout: BatchLayout,
    rows: Mapping[str, Mapping[str, PackedRows]],
    vocabularies: Mapping[str, LabelVocabulary],
    tokenizer: Tokenizer,
    keys: Mapping[str, Mapping[str, str]],
) -> str:
    """Hash of everything that training reads; `keys` {data set: {split: what identifies its rows}} of those on disk."""
    digest = hashlib.sha256()
    names = {task: [v.names, v.extra, v.soft] for task, v in vocabularies.items()}
    digest.update(json.dumps([layout.datasets, layout.tasks, names, tokenizer.fingerprint], sort_keys=True).encode())
    for name in rows:
        for split in sorted(rows[name]):
            packed = rows[name][split]._asdict()
            tasks = packed.pop("labels")
            del packed["hidden"]  # a function of the rest and of the parameters
            packed = {name: array for name, array in packed.items() if array is not None}
            arrays = packed | {f"labels/{task}/{n}": a for task, named in tasks.items() for n, a in named.items()}
            checksum = (
                _stored_checksum(arrays, keys[name][split]) if split in keys[name] else array_cache.checksum(arrays)
            )
            digest.update(f"{name} {split} {checksum}\n".encode())
    return digest.hexdigest()


def _stored_checksum(arrays: Mapping[str, np.ndarray], key: str) -> str:
    """The checksum of arrays on disk, which were verified when they were opened."""

    def make() -> dict[str, np.ndarray]:
        return {"checksum": np.frombuffer(array_cache.checksum(arrays).encode(), np.uint8)}

    return array_cache.load_or_make({"checksum": key}, make)["checksum"].tobytes().decode()
