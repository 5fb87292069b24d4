"""Labels as they stand in the records of a data set: what a task reads, checked and in one form."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtl_jax.data.records import Record, find, where
from mtl_jax.errors import UserError

LEVELS = ("text", "word", "predicate", "sequence", "pair", "choice", "span", "token")
KINDS = ("class", "set", "real", "tokens", "choice", "span", "hidden")
# what of a record has one label, or an answer, each
PER_RECORD = ("text", "pair", "choice", "span")


@dataclasses.dataclass(frozen=True)
class LabelSpec:
    """What a task reads.

    task, dataset  names; the task's is used in every message
    field          field of the records that holds the label: one label a text, a list of labels a sentence (one for
                   each word), or for "predicate" a list of such lists, one for each of the record's predicates; for
                   "sequence" a text or a list of words
    level          "text" | "word" | "predicate" | "sequence" | "pair" (a text with two marked spans) | "choice" (one of
                   several texts) | "span" (of a text) | "token" (the text itself, tokens of which are hidden)
    kind           "class": one class, or a distribution as {class: probability} or C numbers in the order of `classes`
                   "set": several classes, a list of names or a string with `delimiter` between them (level "text")
                   "real": a number (level "text")
                   "tokens": a target sequence (level "sequence"), cut and encoded as `target` says
                   "choice", "span": of the levels of these names, see `choices` and `answers`
                   "hidden": the hidden tokens (level "token"); `field` is not read
    classes        names in the order of the ids; () = those of the training data, sorted, "O" first for tagging
    missing        values that mean "not labelled", besides None
    predicates     field with the word indices of the predicates (level "predicate")
    labelled       records of train that keep their labels, drawn by seed among those that have some; 0 = all
    source_scheme  levels "word" and "predicate": how tags of spans are written, see `schemes`; "none": the labels are
                   no such tags; "": found out from all splits
    target_scheme  "iob2" | "bioes", what they are converted to
    """

    task: str
    dataset: str
    field: str
    level: str = "text"
    kind: str = "class"
    classes: tuple[str, ...] = ()
    missing: tuple[str | None, ...] = ("", None)
    delimiter: str = ","
    predicates: str = "predicates"
    labelled: int = 0
    source_scheme: str = ""
    target_scheme: str = "iob2"
    target: Any = None  # `mtl_jax.data.targets.TargetSpec`, of level "sequence" alone

    def __post_init__(self):
        for name, value, known in (("level", self.level, LEVELS), ("kind", self.kind, KINDS)):
            if value not in known:
                raise UserError(f"task {self.task}: {name} {value!r} is none of {', '.join(known)}")
        if (self.kind == "tokens") != (self.level == "sequence") or (self.target is None) == (self.kind == "tokens"):
            raise UserError(f"task {self.task}: kind 'tokens' and a target belong to level 'sequence', and only there")
        if self.kind in ("set", "real") and self.level != "text":
            raise UserError(f"task {self.task}: labels of kind {self.kind} belong to texts, not to level {self.level}")
        if self.labelled and self.kind in ("tokens", "hidden"):
            raise UserError(f"task {self.task}: labels of kind {self.kind} are all there, `labelled` has to be 0")
        if len(set(self.classes)) != len(self.classes):
            raise UserError(f"task {self.task}: classes names a class twice")


class RawLabels(NamedTuple):
    """Labels of a split as they were read, flat over records (and words, and predicates).

    values   list of None (missing), str (class), dict or tuple of floats (distribution), tuple of str (set), float
    offsets  int64[M+1], record m has values[offsets[m]:offsets[m+1]]
    records  the M records, to say where
    """

    values: list[Any]
    offsets: np.ndarray
    records: Sequence[Record]

    def where(self, index: int) -> str:
        """file:line of value number `index`: of the word where its line is known, else of the record."""
        number = int(np.searchsorted(self.offsets, index, "right")) - 1
        record, begin, end = self.records[number], int(self.offsets[number]), int(self.offsets[number + 1])
        if record.lines and (end - begin) % len(record.lines) == 0:
            record = record._replace(line=record.lines[(index - begin) % len(record.lines)])
        return where(record)


def collect(
    records: Sequence[Record],
    spec: LabelSpec,
    words: Sequence[int] | None = None,
    predicates: Sequence[Sequence[int]] | None = None,
) -> RawLabels:
    """The raw labels of a split.

    Args:
      records: M records.
      spec: what to read.
      words: [M] numbers of words (levels "word" and "predicate").
      predicates: [M] word indices of the predicates (level "predicate").

    Raises:
      UserError: by file and line: words and labels of different length, a label of a wrong type.
    """
    if spec.level in ("word", "predicate") and words is None:
        raise UserError(
            f"task {spec.task}: it labels words, but data set {spec.dataset} is read as plain text; "
            f"name the field that holds the list of words as `words` of the data set instead of `text`"
        )
    values: list[Any] = []
    ends = [0]
    for m, record in enumerate(records):
        raw = get(record, spec.field)
        if spec.level in PER_RECORD:
            values.append(_canonical(raw, spec, record))
        elif spec.level == "word":
            values.extend(_sequence(raw, words[m], spec, record))
        else:
            given = predicates[m]
            if raw is not None and (not is_list(raw) or len(raw) != len(given)):
                found = f"{len(raw)} lists" if is_list(raw) else repr(raw)
                raise _wrong(spec, record, f"{len(given)} predicates want as many lists of labels, found {found}")
            for number in range(len(given)):
                values.extend(_sequence(None if raw is None else raw[number], words[m], spec, record))
        ends.append(len(values))
    return RawLabels(values, np.asarray(ends, np.int64), records)


def unlabelled(
    records: Sequence[Record],
    spec: LabelSpec,
    words: Sequence[int] | None = None,
    predicates: Sequence[Sequence[int]] | None = None,
) -> RawLabels:
    """As `collect`, every label missing: for records whose labels are to be predicted."""
    blank = [Record({}, record.file, record.line) for record in records]
    return collect(blank, spec, words, predicates)._replace(records=records)


def get(record: Record, name: str) -> Any:
    """The value of a field, None where the record lacks it; see `records.find`."""
    return find(record, name)


def _sequence(raw: Any, words: int, spec: LabelSpec, record: Record) -> list[Any]:
    """The canonical labels of one sentence (of one predicate); all missing where there is no list."""
    if raw is None:
        return [None] * words
    if not is_list(raw):
        raise _wrong(spec, record, f"field {spec.field!r} should be a list with a label for each word, found {raw!r}")
    if len(raw) != words:
        raise _wrong(spec, record, f"{words} words but {len(raw)} labels in field {spec.field!r}")
    return [_canonical(label, spec, record) for label in raw]


def _canonical(raw: Any, spec: LabelSpec, record: Record) -> Any:
    """One label as None, str, float, dict, tuple of floats (distribution) or tuple of str (set)."""
    if type(raw) is str and spec.kind == "class":  # nearly every label of a tagged corpus
        name = raw.strip()
        return None if name in spec.missing else name
    if isinstance(raw, np.ndarray | np.generic):
        raw = raw.tolist()
    if raw is None or (not is_list(raw) and not isinstance(raw, Mapping) and _name(raw) in spec.missing):
        return None
    if spec.kind == "real":
        try:
            number = float(raw)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise _wrong(spec, record, f"field {spec.field!r} should be a number, found {raw!r}")
        return number
    if spec.kind == "set":
        if isinstance(raw, Mapping):
            raise _wrong(spec, record, f"field {spec.field!r} should be a list of names, found {raw!r}")
        items = raw.split(spec.delimiter) if isinstance(raw, str) else raw if is_list(raw) else [raw]
        return tuple(dict.fromkeys(name for name in map(_name, items) if name))
    if isinstance(raw, Mapping):
        return dict(zip(map(_name, raw), _distribution(list(raw.values()), spec, record), strict=True))
    if is_list(raw):
        return _distribution(raw, spec, record)
    return _name(raw)


def _distribution(raw: Sequence[Any], spec: LabelSpec, record: Record) -> tuple[float, ...]:
    """Checked probabilities; what rounding left of their sum (up to 1e-3) is divided out."""
    if any(isinstance(p, bool) or not isinstance(p, int | float) or not math.isfinite(p) or p < 0 for p in raw):
        raise _wrong(spec, record, f"field {spec.field!r}: probabilities should be numbers >= 0, found {raw!r}")
    if not math.isclose(sum(raw), 1.0, abs_tol=1e-3):
        raise _wrong(spec, record, f"field {spec.field!r}: probabilities should sum to 1, found {sum(raw):g}")
    return tuple(p / sum(raw) for p in raw)


def _name(raw: Any) -> str:
    """A class name: 1, 1.0 and "1" are the same class; true and false as JSON writes them."""
    if isinstance(raw, bool):
        return "true" if raw else "false"
    if isinstance(raw, float) and raw.is_integer():
        raw = int(raw)
    return (raw.decode() if isinstance(raw, bytes) else str(raw)).strip()


def is_list(raw: Any) -> bool:
    """Whether a raw value is a list."""
    return isinstance(raw, list | tuple | np.ndarray)


def _wrong(spec: LabelSpec, record: Record, message: str) -> UserError:
    return UserError(f"{where(record)}: task {spec.task}: {message}")
