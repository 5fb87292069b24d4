"""The classes of a task, from its training labels, and gold labels as arrays."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtl_jax.data.encoding.gold_labels import GoldLabels
from mtl_jax.data.labels import suspicious_labels
from mtl_jax.data.labels.label_spec import LabelSpec
from mtl_jax.data.labels.label_values import CodedValues, NumberValues
from mtl_jax.data.labels.raw_labels import RawLabels, label_fields
from mtl_jax.data.notices import LABELS, Notice
from mtl_jax.data.records import Record, find_field, suggestion
from mtl_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class LabelVocabulary:
    """Classes of one task: `names` are learned (ids 0 … C-1), `extra` occur in dev or test only (ids C, C+1, …).

    soft   True where labels are float32[..., C] distributions, because at least one label of the task is one
    spans  for a task on words: whether its tags mark spans, see `tag_columns`; None where it is not known
    """

    names: tuple[str, ...]
    extra: tuple[str, ...] = ()
    soft: bool = False
    spans: bool | None = None

    @property
    def all_names(self) -> tuple[str, ...]:
        """Names by id, the extra ones too."""
        return self.names + self.extra


class TaskLabels(NamedTuple):
    """The labels of one task.

    vocabulary  its classes
    gold        gold labels by split
    notes       what was changed or looks wrong, with counts
    """

    vocabulary: LabelVocabulary
    gold: dict[str, GoldLabels]
    notes: list[str]


def build_vocabulary(
    spec: LabelSpec, splits: Mapping[str, RawLabels], max_unseen_labels: float = 0.05
) -> tuple[LabelVocabulary, list[str]]:
    """The classes of a task from its splits ("train", "dev", ...), and notes on suspicious labels.

    Raises:
      UserError: no label in "train"; a training label outside `spec.classes`; labels that train lacks make up more
        than `max_unseen_labels` of a split's labels, or occur where labels are distributions; a bad distribution.
    """
    train = splits["train"]
    if train.values.none_known:
        raise no_labels_error(spec, train.records)
    if spec.kind == "real":
        return LabelVocabulary(()), suspicious_labels.notes(spec, splits, ())
    types = {kind for raw in splits.values() for kind in set(map(type, raw.values.table))}
    lists = spec.kind == "class" and tuple in types
    soft = lists or dict in types
    if lists and not spec.classes:
        raise UserError(f"task {spec.task}: labels that are lists of probabilities need `classes`, the names in order")
    counts = {split: _counts(raw.values) for split, raw in splits.items()}
    columns = label_fields(train.records[0], spec) if spec.kind == "set" else []
    names = spec.classes or (tuple(columns) if len(columns) > 1 else _ordered(set(counts["train"]), spec))
    known = set(names)
    if outside := sorted(set(counts["train"]) - known):
        index = int(train.values.satisfying(lambda value: outside[0] in _names(value))[0])
        raise UserError(
            f"{train.where(index)}: task {spec.task}: training label {outside[0]!r} is not among its `classes`: "
            f"{', '.join(names[:20])}.{suggestion(outside[0], names)}"
        )
    notes = []
    extra: set[str] = set()
    for split, raw in splits.items():
        unseen = {name: n for name, n in counts[split].items() if name not in known}
        if not unseen:
            continue
        index = int(raw.values.satisfying(lambda value: not known.issuperset(_names(value)))[0])
        total, share = sum(unseen.values()), sum(unseen.values()) / sum(counts[split].values())
        listed = ", ".join(sorted(unseen)[:5]) + (", …" if len(unseen) > 5 else "")
        text = f"task {spec.task}: {total} labels of {split} ({share:.2%}) do not occur in train: {listed}"
        if soft:
            raise UserError(f"{text}; first at {raw.where(index)}. Labels as distributions need all names in `classes`")
        if share > max_unseen_labels:
            way_out = suspicious_labels.advice(unseen, names, spec)
            raise UserError(
                f"{text}; first at {raw.where(index)}. At most {max_unseen_labels:.0%} may (max_unseen_labels){way_out}"
            )
        scored = "left out of the sets" if spec.kind == "set" else "counted as wrong"
        notes.append(Notice(f"{text}; they are {scored}", LABELS, total, sum(counts[split].values())))
        extra.update(unseen)
    notes += suspicious_labels.notes(spec, splits, (*names, *sorted(extra)))
    if len(names) < 2 and spec.kind == "class":
        text = f"task {spec.task}: train has one class only, {names[0]!r}: there is nothing to learn"
        notes.append(Notice(text, LABELS))
    return LabelVocabulary(tuple(names), () if spec.kind == "set" else tuple(sorted(extra)), soft), notes


def encode_labels(raw: RawLabels, spec: LabelSpec, vocabulary: LabelVocabulary) -> GoldLabels:
    """The gold labels of a split; see `GoldLabels`. Names outside the vocabulary are refused by file and line."""
    if isinstance(raw.values, NumberValues):
        known = ~np.isnan(raw.values.numbers)
        return GoldLabels(np.where(known, raw.values.numbers, 0).astype(np.float32), known, raw.offsets)
    table, codes = raw.values.table, raw.values.codes
    known = np.fromiter((value is not None for value in table), bool, len(table))
    ids = {name: i for i, name in enumerate(vocabulary.all_names)}
    if spec.kind == "class" and not vocabulary.soft:
        known_names = {None, *ids}
        if unknown := [v for v in table if not isinstance(v, str | None) or v not in known_names]:
            index = int(raw.values.satisfying(lambda value: value in unknown)[0])
            raise _unknown(raw, index, raw.values[index], spec)
        value = np.fromiter((0 if v is None else ids[v] for v in table), np.int32, len(table))
    else:
        value = _soft_labels(raw, spec, vocabulary, ids)
    return GoldLabels(value[codes], known[codes], raw.offsets)


def _soft_labels(raw: RawLabels, spec: LabelSpec, vocabulary: LabelVocabulary, ids: Mapping[str, int]) -> np.ndarray:
    """float32[V, C], the distribution or the set of each of the different labels."""
    size = len(vocabulary.names)
    value = np.zeros((len(raw.values.table), size), np.float32)

    def place(label: Any) -> int:
        return int(raw.values.satisfying(lambda other: other is label)[0])

    for i, v in enumerate(raw.values.table):
        if v is None:
            continue
        if spec.kind == "set":
            value[i, [ids[name] for name in v if name in ids]] = 1.0
            continue
        weights = v
        if isinstance(v, tuple) and len(v) != size:
            raise UserError(f"{raw.where(place(v))}: task {spec.task}: {len(v)} probabilities for {size} classes")
        if isinstance(v, tuple):
            weights = dict(zip(vocabulary.names, v, strict=True))
        for name, weight in weights.items() if isinstance(weights, dict) else ((v, 1.0),):
            if name not in ids or ids[name] >= size:
                raise _unknown(raw, place(v), name, spec)
            value[i, ids[name]] = weight
    return value


def _ordered(names: set[str], spec: LabelSpec) -> tuple[str, ...]:
    """Sorted, numbers by value; "O", the tag outside of all spans, first."""
    numeric = all(name.lstrip("-").isdecimal() for name in names)
    ordered = sorted(names, key=(lambda name: (int(name), name)) if numeric else None)
    if spec.level != "text" and "O" in names:
        ordered.remove("O")
        ordered.insert(0, "O")
    return tuple(ordered)


def _counts(values: CodedValues) -> collections.Counter[str]:
    """How often each class is named."""
    counts: collections.Counter[str] = collections.Counter()
    for value, count in zip(values.table, values.counts(), strict=True):
        for name in _names(value):
            counts[name] += count
    return counts


def _names(value: Any) -> tuple[str, ...]:
    """The class names of one canonical label."""
    if isinstance(value, str):
        return (value,)
    if isinstance(value, dict):
        return tuple(value)
    return tuple(v for v in value if isinstance(v, str)) if isinstance(value, tuple) else ()


def _unknown(raw: RawLabels, index: int, name: Any, spec: LabelSpec) -> UserError:
    return UserError(f"{raw.where(index)}: task {spec.task}: no such class: {name!r}")


def no_labels_error(spec: LabelSpec, records: Sequence[Record]) -> UserError:
    """The error for a train split without a single label."""
    fields = sorted({str(name) for record in records for name in record.fields})
    several = spec.kind in ("class", "set", "span") and spec.field not in fields
    wanted = spec.field.split("+") if several else [spec.field]
    for name in map(str.strip, wanted):
        if name not in fields and all(find_field(record, name) is None for record in records):
            return UserError(
                f"task {spec.task}: data set {spec.dataset} has no field {name!r} in its train split; "
                f"known fields: {', '.join(fields)}.{suggestion(name, fields)}"
            )
    return UserError(f"task {spec.task}: every label in field {spec.field!r} of the train split is missing")
