"""All data of a run: each data set read, encoded and packed; vocabularies; what was odd; what there is to see."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtl_jax.data import (
    batches,
    cache,
    encoding,
    labels,
    levels,
    marks,
    packing,
    patches,
    pictures,
    statistics,
    targets,
    vocabulary,
)
from mtl_jax.data import gold as golds
from mtl_jax.data.batch import Layout, Rows
from mtl_jax.data.encoding import EncodedSplit
from mtl_jax.data.files import Location
from mtl_jax.data.labels import LabelSpec
from mtl_jax.data.pictures import Cut
from mtl_jax.data.records import Record, suggestion
from mtl_jax.data.tokenizers import Tokenizer
from mtl_jax.data.units import Units, units_of
from mtl_jax.data.vocabulary import Gold, LabelVocabulary
from mtl_jax.errors import UserError

TokenizerFactory = Callable[[Iterable[str | Sequence[str]]], Tokenizer]


class Split(NamedTuple):
    """A split as it was read, its texts, and as it was encoded; `encoded.labels` has the gold labels by record."""

    records: Sequence[Record]
    encoded: EncodedSplit
    units: Units


class Corpus(NamedTuple):
    """Everything that training and evaluation read.

    layout        static layout of training batches
    rows          {data set: {split: Rows}}
    splits        {data set: {split: Split}}
    vocabularies  {task: LabelVocabulary}
    specs         {task: LabelSpec}
    tokenizer     the tokenizer of all data sets
    notes         sentences for people: truncated texts, unseen labels, dropped duplicates, share of real tokens
    fingerprint   content hash of all rows, the vocabularies and the tokenizer
    statistics    {data set: {"capacities", split: {"records", "available", "pieces", "rows", ...}}} and
                  {task: {split: {"known", "missing", "counts": {name: n}}}} under "datasets" and "tasks"
    soft_labels   content hash of the teachers whose soft labels are in the rows, "" where there are none
    pictures      form of the pictures of all data sets that have some; None where none has
    """

    layout: Layout
    rows: Mapping[str, Mapping[str, Rows]]
    splits: Mapping[str, Mapping[str, Split]]
    vocabularies: Mapping[str, LabelVocabulary]
    specs: Mapping[str, LabelSpec]
    tokenizer: Tokenizer
    notes: Sequence[str]
    fingerprint: str
    statistics: Mapping[str, Any]
    soft_labels: str = ""
    pictures: pictures.Form | None = None


def load(
    datasets: Mapping[str, Mapping[str, Any]],
    specs: Sequence[LabelSpec],
    tokenizer: Tokenizer | TokenizerFactory,
    *,
    row_length: int,
    max_length: int | None = None,
    pack: bool = True,
    overlong: str = "auto",
    seed: int = 0,
    tasks: Sequence[str] | None = None,
    mixing: batches.Mixing | None = None,
    max_unseen: float = 0.05,
    cut: Cut | None = None,
    read: Callable[..., Any] | None = None,
) -> Corpus:
    """Reads, encodes and packs.

    Args:
      datasets: entries of the config by name; `text` (one or two fields) or `words` (one field), else see `read`.
      specs: what every task of the config reads, in order.
      tokenizer: a tokenizer, or what makes one of the training texts and sentences of *all* data sets, so that the
        ids do not depend on `tasks`.
      row_length: T of every row.
      max_length: tokens of a piece at most, by default `row_length`.
      pack: False for one piece a row.
      overlong: "auto" splits long sentences of data sets with word-level or predicate-level tasks at words and
        truncates the others; "truncate", "split", "error": see `encoding.encode`.
      seed: of splits that are carved out.
      tasks: names of the tasks to train, all by default. Data sets that none of them reads are left out; the rows of
        the others stay the same.
      mixing: how data sets share the batches.
      max_unseen: the largest share of a split's labels that train may lack.
      cut: how pictures become patches; the size is that of the data set's entry.
      read: `datasets.read` by default.

    Raises:
      UserError: see the readers, `labels`, `encoding` and `pictures`; besides tasks of one name, and unknown names.
    """
    if read is None:
        from mtl_jax.data.datasets import read
    chosen = _check(datasets, specs, row_length, max_length, overlong, tasks)
    used = [name for name in datasets if any(spec.dataset == name for spec in chosen)]
    is_factory = not hasattr(tokenizer, "single")
    read_data = {name: read(name, datasets[name], seed) for name in datasets if is_factory or name in used}
    notes = [f"{name}: {note}" for name in used for note in read_data[name].notes]
    units = {name: _units(name, datasets[name], data, specs) for name, data in read_data.items()}
    if is_factory:
        train = [units[name]["train"] for name in datasets]
        tokenizer = tokenizer(unit for u in train for unit in _flat(u))
    albums = {}
    for name in used:
        if datasets[name].get("image"):
            data = read_data[name]
            albums[name], units[name] = patches.illustrate(units[name], datasets[name], data.folder, cut)
    prepared = {}
    for name in used:
        # All tasks of the config shape the rows; labels are kept of the chosen ones only.
        own = [spec for spec in specs if spec.dataset == name]
        how = _overlong(overlong, units[name]["train"], own)
        settings = _Settings(row_length, max_length or row_length, pack, how)
        kept = [spec for spec in own if spec in chosen]
        prepared[name] = _prepare(name, units[name], own, kept, tokenizer, settings, max_unseen)
        for split, count in read_data[name].available.items():
            prepared[name].dataset_statistics[split]["available"] = count
        notes += prepared[name].notes
    rows = {name: patches.with_pixels(data.rows, albums.get(name)) for name, data in prepared.items()}
    vocabularies = {task: v for data in prepared.values() for task, v in data.vocabularies.items()}
    layout = batches.make_layout(
        used, [s.task for s in chosen], [used.index(s.dataset) for s in chosen], mixing or batches.Mixing(),
        [used.index(name) for name in albums],
    )  # fmt: skip
    return Corpus(
        layout=layout,
        rows=rows,
        splits={
            name: {split: Split(units[name][split].records, e, units[name][split]) for split, e in data.encoded.items()}
            for name, data in prepared.items()
        },
        vocabularies={spec.task: vocabularies[spec.task] for spec in chosen},
        specs={spec.task: spec for spec in chosen},
        tokenizer=tokenizer,
        notes=tuple(notes),
        fingerprint=_fingerprint(layout, rows, vocabularies, tokenizer),
        statistics={
            "datasets": {name: data.dataset_statistics for name, data in prepared.items()},
            "tasks": {task: found for data in prepared.values() for task, found in data.task_statistics.items()},
        },
        pictures=pictures.form_of(albums, {name: units[name] for name in albums}),
    )


def for_prediction(
    records: Sequence[Record],
    entry: Mapping[str, Any],
    specs: Sequence[LabelSpec],
    vocabularies: Mapping[str, LabelVocabulary],
    tokenizer: Tokenizer,
    *,
    row_length: int,
    max_length: int | None = None,
    pack: bool = True,
    overlong: str = "auto",
    cut: Cut | None = None,
    form: pictures.Form | None = None,
    folder: Location | None = None,
) -> tuple[Rows, Split]:
    """New records of one data set, packed without looking at their labels (mask False throughout).

    Args:
      records: M records with the fields that `entry` names as `text` or `words`.
      entry: the data set's entry.
      specs: its tasks.
      vocabularies, tokenizer, row_length, max_length, pack, overlong, cut: as `load` gave and took them.
      form: of the pictures in training, where the data set has pictures; they have to be of one size with those.
      folder: what paths of pictures start from.
    """
    units = _units_of(records, "data to predict", entry, specs)
    album = None
    if entry.get("image"):
        size = form.sizes[specs[0].dataset]
        album, illustrated = patches.illustrate({"input": units}, entry, folder, cut, size, form.most)
        units = illustrated["input"]
    encoded = _encode_anew(units, tokenizer, max_length or row_length, _overlong(overlong, units, specs))
    gold = {
        spec.task: golds.blank(spec, units)
        if spec.kind in golds.KINDS
        else targets.unlabelled(len(records), _sources(spec, units, encoded, tokenizer))
        if spec.level == "sequence"
        else vocabulary.encode_labels(
            labels.unlabelled(records, spec, units.word_counts, units.predicates), spec, vocabularies[spec.task]
        )
        for spec in specs
    }
    encoded = encoded._replace(labels=gold, targets=np.zeros(len(records), np.int64))
    encoded = encoding.copy_for_predicates(encoded, packing.predicate_limit([encoded], row_length, pack))
    capacities = packing.choose_capacities([encoded], sorted({spec.level for spec in specs}), row_length, pack)
    classes = {spec.task: len(vocabularies[spec.task].names) for spec in specs}
    rows = packing.pack(encoded, specs, classes, capacities, pack)
    rows = patches.with_pixels({"input": rows}, album)["input"]
    hidden = {s.task: levels.masked(rows, encoded, tokenizer) for s in specs if s.level == "token"}
    return rows._replace(labels=rows.labels | hidden), Split(records, encoded, units)


class _Settings(NamedTuple):
    row_length: int
    max_length: int
    pack: bool
    overlong: str


class _Prepared(NamedTuple):
    rows: dict[str, Rows]
    encoded: dict[str, EncodedSplit]
    vocabularies: dict[str, LabelVocabulary]
    dataset_statistics: dict[str, Any]
    task_statistics: dict[str, Any]
    notes: list[str]


def _prepare(
    name: str,
    units: Mapping[str, Units],
    own: Sequence[LabelSpec],
    kept: Sequence[LabelSpec],
    tokenizer: Tokenizer,
    settings: _Settings,
    max_unseen: float,
) -> _Prepared:
    """One data set from its units by split: the tasks `own` shape its rows, those in `kept` get labels."""
    row_length, max_length, pack, overlong = settings
    notes: list[str] = []
    vocabularies: dict[str, LabelVocabulary] = {}
    gold: dict[str, dict[str, Gold]] = {split: {} for split in units}
    for spec in kept:
        if spec.level == "sequence" or spec.kind in golds.KINDS:
            continue
        raw = {s: labels.collect(u.records, spec, u.word_counts, u.predicates) for s, u in units.items()}
        vocabularies[spec.task], odd = vocabulary.build_vocabulary(spec, raw, max_unseen)
        notes += odd
        for split, values in raw.items():
            gold[split][spec.task] = vocabulary.encode_labels(values, spec, vocabularies[spec.task])
    encoded = {split: _encode(u, tokenizer, max_length, overlong) for split, u in units.items()}
    notes += [note for split, e in encoded.items() if (note := encoding.overlong_note(f"{name}/{split}", e))]
    if any(spec.level == "pair" for spec in own):
        lost = {split: int((e.first & (e.mark_token < 0).any(1)).sum()) for split, e in encoded.items()}
        notes += [f"{name}/{s}: {n} marked spans are cut off, they are not learned from" for s, n in lost.items() if n]
    for spec in (s for s in kept if s.kind in golds.KINDS):
        vocabularies[spec.task], by_split, odd = golds.build(spec, units, encoded, tokenizer)
        notes += odd
        for split, values in by_split.items():
            gold[split][spec.task] = values
    longest = {split: np.zeros(len(u.records), np.int64) for split, u in units.items()}
    for spec in own:
        if spec.level == "sequence":
            names, found, odd = _targets(spec, units, encoded, tokenizer)
            longest = {split: np.maximum(longest[split], np.diff(g.offsets)) for split, g in found.items()}
            if spec in kept:
                vocabularies[spec.task] = names
                notes += odd
                for split, sequences in found.items():
                    gold[split][spec.task] = sequences
    encoded = {split: e._replace(labels=gold[split], targets=longest[split]) for split, e in encoded.items()}
    wanted = sorted({spec.level for spec in own})
    if "predicate" in wanted:
        limit = packing.predicate_limit(list(encoded.values()), row_length, pack)
        encoded = {split: encoding.copy_for_predicates(e, limit) for split, e in encoded.items()}
        copies = {split: int(e.copy.sum()) for split, e in encoded.items()}
        notes += [f"{name}/{s}: {n} copies of sentences with many predicates" for s, n in copies.items() if n]
    # Files are often sorted, by class or by source: a row should not be all of one kind.
    orders = {s: _shuffled(e, f"pieces {name}/{s}") for s, e in encoded.items()}
    encoded = {split: encoding.take(e, orders[split]) for split, e in encoded.items()}
    capacities = packing.choose_capacities(list(encoded.values()), wanted, row_length, pack)
    classes = {task: len(v.names) for task, v in vocabularies.items()}
    rows = {split: packing.pack(e, kept, classes, capacities, pack) for split, e in encoded.items()}
    for spec in (s for s in kept if s.level == "token"):
        rows = {s: r._replace(labels=r.labels | {spec.task: levels.maskable(r, tokenizer)}) for s, r in rows.items()}
    notes.append(
        f"{name}: {packing.real_share(rows['train']):.1%} of the token positions of train hold real tokens "
        f"({len(encoded['train'].record)} pieces in {len(rows['train'].tokens)} rows of {row_length})"
    )
    lengths = {split: statistics.of_lengths(e, rows[split]) for split, e in encoded.items()}
    counts = {
        spec.task: {
            s: golds.statistics(gold[s][spec.task], spec)
            if spec.kind in golds.KINDS
            else statistics.of_labels(gold[s][spec.task], spec, vocabularies[spec.task])
            for s in units
        }
        for spec in kept
    }
    return _Prepared(rows, encoded, vocabularies, {"capacities": capacities._asdict()} | lengths, counts, notes)


def _targets(spec: LabelSpec, units: Mapping[str, Units], encoded: Mapping[str, EncodedSplit], tokenizer: Tokenizer):
    """(vocabulary, {split: Gold}, notes) of a task that writes sequences."""
    raw = {split: targets.collect(u.records, spec, tokenizer) for split, u in units.items()}
    names = targets.build_vocabulary(spec, raw, units["train"].records)
    gold: dict[str, Gold] = {}
    notes: list[str] = []
    for split, values in raw.items():
        sources = _sources(spec, units[split], encoded[split], tokenizer)
        gold[split], cut, unknown = targets.encode(values, spec, names, sources)
        notes += targets.notes(spec, split, gold[split], cut, unknown)
    return names, gold, notes


def _sources(spec: LabelSpec, units: Units, encoded: EncodedSplit, tokenizer: Tokenizer) -> Sequence[Sequence[str]]:
    """What a task may copy of each record; () where it does not."""
    return targets.source_tokens(units, encoded, tokenizer) if spec.target.copy else ()


def _check(datasets, specs, row_length, max_length, overlong, tasks) -> list[LabelSpec]:
    """The specs of the tasks to train, in the order of `specs`."""
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
    if overlong not in ("auto", *encoding.OVERLONG):
        raise UserError(f"overlong: {overlong!r} is none of auto, {', '.join(encoding.OVERLONG)}")
    if max_length is not None and not 1 <= max_length <= row_length:
        raise UserError(f"max_length {max_length} should be from 1 to row_length {row_length}")
    return [spec for spec in specs if tasks is None or spec.task in tasks]


def _no_such(what: str, name: str, known: Iterable[str], prefix: str = "") -> UserError:
    return UserError(f"{prefix}there is no {what} {name!r}; known: {', '.join(known)}.{suggestion(name, known)}")


def _units(name: str, entry: Mapping[str, Any], data: Any, specs: Sequence[LabelSpec]) -> dict[str, Units]:
    if not data.splits.get("train"):
        raise UserError(f"data set {name}: no train split")
    own = [spec for spec in specs if spec.dataset == name]
    return {split: _units_of(records, f"data set {name}", entry, own) for split, records in data.splits.items()}


def _units_of(records: Sequence[Record], what: str, entry: Mapping[str, Any], specs: Sequence[LabelSpec]) -> Units:
    fields = {spec.predicates for spec in specs if spec.level == "predicate"}
    if len(fields) > 1:
        raise UserError(f"{what}: its tasks name different fields of predicates: {', '.join(sorted(fields))}")
    text, words = entry.get("text") or (), entry.get("words") or ""
    marked = tuple(entry.get("marked") or ())
    if any(spec.level == "pair" for spec in specs) and not marked:
        raise UserError(f"{what}: a task on it reads two marked spans; name them as `marked` of the data set")
    return units_of(
        records, text=text, words=words, predicates="".join(fields), choices=tuple(entry.get("choices") or ()),
        marked=marked, markers=tuple(entry.get("markers") or marks.MARKERS),
        aligned=bool(text) and any(spec.level == "span" for spec in specs), pictured=bool(entry.get("image")),
    )  # fmt: skip


def _shuffled(split: EncodedSplit, name: str) -> Any:
    """A permutation of the pieces that keeps the choices of a record together."""
    first = np.flatnonzero(split.choice == 0)
    sizes = np.diff(np.append(first, len(split.choice)))
    order = batches.permutation(len(first), 0, name, 0)
    return encoding.ranges(first[order], sizes[order])[1]


def _overlong(overlong: str, units: Units, specs: Sequence[LabelSpec]) -> str:
    """What "auto" means for a data set with the tasks `specs`: split where words are labelled, or hidden."""
    if overlong != "auto":
        return overlong
    by_words = units.words is not None and any(spec.level in ("word", "predicate", "token") for spec in specs)
    return "split" if by_words else "truncate"


def _flat(units: Units) -> Iterable[str | Sequence[str]]:
    if units.texts is None:
        return units.words
    return itertools.chain.from_iterable([*units.texts, *(units.choices or ())])


def _encode(units: Units, tokenizer: Tokenizer, max_length: int, overlong: str) -> EncodedSplit:
    key = {
        "units": units.fingerprint(),
        "tokenizer": tokenizer.fingerprint,
        "max_length": max_length,
        "overlong": overlong,
    }

    def make():
        arrays = _encode_anew(units, tokenizer, max_length, overlong)._asdict()
        del arrays["labels"], arrays["targets"]
        return {name: array for name, array in arrays.items() if array is not None}

    return EncodedSplit(**cache.cached(key, make))


def _encode_anew(units: Units, tokenizer: Tokenizer, max_length: int, overlong: str) -> EncodedSplit:
    encoded = encoding.encode(units, tokenizer, max_length, overlong)
    return encoded if units.pictures is None else patches.insert(encoded, units, encoding.before(units, tokenizer))


def _fingerprint(layout: Layout, rows, vocabularies, tokenizer: Tokenizer) -> str:
    digest = hashlib.sha256()
    names = {task: [v.names, v.extra, v.soft] for task, v in vocabularies.items()}
    digest.update(json.dumps([layout.datasets, layout.tasks, names, tokenizer.fingerprint], sort_keys=True).encode())
    for name in layout.datasets:
        for split in sorted(rows[name]):
            packed = rows[name][split]._asdict()
            tasks = packed.pop("labels")
            del packed["hidden"]  # follows from the rest
            packed = {name: array for name, array in packed.items() if array is not None}
            arrays = packed | {f"labels/{task}/{n}": a for task, named in tasks.items() for n, a in named.items()}
            digest.update(f"{name} {split} {cache.seal(arrays)}\n".encode())
    return digest.hexdigest()
