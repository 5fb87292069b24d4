"""The labels of the records of a data set, checked and in a canonical form."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtl_jax.data import string_values
from mtl_jax.data.encoding.record_inputs import RecordInputs, extract_inputs
from mtl_jax.data.labels.label_spec import RECORD_LEVELS, LabelSpec
from mtl_jax.data.labels.label_values import CodedValues, NumberValues, packed_table, unpacked_table
from mtl_jax.data.record_sequences import arrays_of_chunks
from mtl_jax.data.records import Record, find_field, where
from mtl_jax.errors import UserError
from mtl_jax.unicode import nfc

LABEL_SEPARATOR = ":"  # between the parts of a label that comes of several fields
_YES, _NO, _UNKNOWN = ("1", "true", "yes"), ("0", "false", "no"), ("-1",)


class RawLabels(NamedTuple):
    """Labels of a split as read, flat over records (and words, and predicates).

    values   [n] None (missing), str (class), dict or tuple of floats (distribution), tuple of str (set), float
    offsets  int64[M+1], record m has values[offsets[m]:offsets[m+1]]
    records  the M records, whose places messages name
    texts    uint64[M], see `RecordInputs.text_keys`; of level "text" where the records are on disk, else None
    """

    values: CodedValues | NumberValues | list[Any]
    offsets: np.ndarray
    records: Sequence[Record]
    texts: np.ndarray | None = None

    def where(self, index: int) -> str:
        """file:line of value number `index`: of its word where the line is known, else of its record."""
        number = int(np.searchsorted(self.offsets, index, "right")) - 1
        record, begin, end = self.records[number], int(self.offsets[number]), int(self.offsets[number + 1])
        if record.lines and (end - begin) % len(record.lines) == 0:
            record = record._replace(line=record.lines[(index - begin) % len(record.lines)])
        return where(record)


def collect_labels(
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
        names = label_fields(record, spec)
        if len(names) == 1 and spec.level in RECORD_LEVELS:
            values.append(_canonical(find_field(record, spec.field), spec, record))
        elif spec.kind == "set":
            values.append(_flags({name: find_field(record, name) for name in names}, spec, record))
        else:
            count = None if words is None else words[m]
            given = None if predicates is None else predicates[m]
            parts = [_of_record(find_field(record, name), spec, record, count, given) for name in names]
            values += parts[0] if len(parts) == 1 else [_join_labels(p, spec, record) for p in zip(*parts, strict=True)]
        ends.append(len(values))
    coded = NumberValues.encode(values) if spec.kind == "real" else CodedValues.encode(values)
    return RawLabels(coded, np.asarray(ends, np.int64), records)


def labels_of_inputs(inputs: RecordInputs, spec: LabelSpec) -> RawLabels:
    """The raw labels of a split, see `collect_labels`; those of records on disk are collected by the workers."""
    if inputs.options is None:
        return collect_labels(inputs.records, spec, inputs.word_counts, inputs.predicates)
    key = {"inputs": inputs.fingerprint(), "spec": dataclasses.astuple(dataclasses.replace(spec, labelled=0))}
    made = arrays_of_chunks("labels", collect_chunk, inputs.records, (inputs.options, spec), key, cumulative=("end",))
    offsets, labels, texts = made.arrays["end"], made.arrays["label"], made.arrays.get("text")
    if spec.kind == "real":
        return RawLabels(NumberValues(labels), offsets, inputs.records, texts)
    parts, begin = [], 0
    for table, count in made.info:
        parts.append(CodedValues(unpacked_table(table), labels[begin : begin + count]))
        begin += count
    return RawLabels(CodedValues.join(parts), offsets, inputs.records, texts)


def collect_chunk(
    records: Sequence[Record], options: Mapping[str, Any], spec: LabelSpec
) -> tuple[dict[str, np.ndarray], tuple[str, int]]:
    """The labels of a chunk of records: codes or numbers, the table of the codes, and how many there are."""
    inputs = extract_inputs(list(records), **options)
    values, offsets, *_ = collect_labels(inputs.records, spec, inputs.word_counts, inputs.predicates)
    arrays = {"end": offsets[1:]} | ({"text": inputs.text_keys()} if spec.level == "text" else {})
    if spec.kind == "real":
        return arrays | {"label": values.numbers}, ("", len(values))
    return arrays | {"label": values.codes}, (packed_table(values), len(values))


def label_fields(record: Record, spec: LabelSpec) -> list[str]:
    """The fields of a record with its labels: one, or several separated by "+" where no field has that name."""
    if "+" not in spec.field or spec.kind not in ("class", "set") or spec.field in record.fields:
        return [spec.field]
    return [name.strip() for name in spec.field.split("+")]


def _of_record(
    raw: Any, spec: LabelSpec, record: Record, words: int | None, predicates: Sequence[int] | None
) -> list[Any]:
    """The canonical labels of one field of a record: one, or one for each word (for each predicate)."""
    if spec.level in RECORD_LEVELS:
        return [_canonical(raw, spec, record)]
    if isinstance(raw, str) and string_values.looks_like_list(raw):
        raw = string_values.parse_literal(raw) or raw
    if spec.level == "word":
        return _sequence(raw, words, spec, record)
    if raw is not None and (not is_list(raw) or len(raw) != len(predicates)):
        found = f"{len(raw)} lists" if is_list(raw) else repr(raw)
        raise _label_error(spec, record, f"{len(predicates)} predicates want as many lists of labels, found {found}")
    lists = [None] * len(predicates) if raw is None else raw
    return [label for labels in lists for label in _sequence(labels, words, spec, record)]


def _join_labels(parts: Sequence[Any], spec: LabelSpec, record: Record) -> str | None:
    """Several labels as one; missing where one of them is."""
    if any(part is None for part in parts):
        return None
    if not all(isinstance(part, str) for part in parts):
        raise _label_error(spec, record, f"labels of the fields {spec.field!r} should be names, found {parts!r}")
    return LABEL_SEPARATOR.join(parts)


def _flags(values: Mapping[str, Any], spec: LabelSpec, record: Record) -> tuple[str, ...] | None:
    """The names whose value is 1; None, not labelled, where one of the values is missing or -1."""
    names = {}
    for name, raw in values.items():
        text = "" if is_missing(raw, spec) else _name(raw).removesuffix(".0").lower()
        if text and text not in (*_YES, *_NO, *_UNKNOWN):
            raise _label_error(spec, record, f"field {name!r} should be 0 or 1 (-1: not labelled), found {raw!r}")
        names[name] = text
    return tuple(n for n, t in names.items() if t in _YES) if all(t in (*_YES, *_NO) for t in names.values()) else None


def missing_labels(
    records: Sequence[Record],
    spec: LabelSpec,
    words: Sequence[int] | None = None,
    predicates: Sequence[Sequence[int]] | None = None,
) -> RawLabels:
    """As `collect_labels` with every label missing, for records whose labels are to be predicted."""
    blank = [Record({}, record.file, record.line) for record in records]
    return collect_labels(blank, spec, words, predicates)._replace(records=records)


def _sequence(raw: Any, words: int, spec: LabelSpec, record: Record) -> list[Any]:
    """The canonical labels of one sentence (for one predicate); all missing where there is no list."""
    if raw is None:
        return [None] * words
    if not is_list(raw):
        raise _label_error(
            spec, record, f"field {spec.field!r} should be a list with a label for each word, found {raw!r}"
        )
    if len(raw) != words:
        raise _label_error(spec, record, f"{words} words but {len(raw)} labels in field {spec.field!r}")
    return [_canonical(label, spec, record) for label in raw]


def _canonical(raw: Any, spec: LabelSpec, record: Record) -> Any:
    """One label as None, str, float, dict, tuple of floats (distribution) or tuple of str (set)."""
    if type(raw) is str and spec.kind == "class":  # the fast path for the labels of a tagged corpus
        name = nfc(raw.strip())
        return None if name in spec.missing else name
    if isinstance(raw, np.ndarray | np.generic):
        raw = raw.tolist()
    if is_missing(raw, spec):
        return None
    if spec.kind == "real":
        try:
            number = float(raw)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            shown = f"{raw!r:.80}{missing_value_advice(raw, spec)}"
            raise _label_error(spec, record, f"field {spec.field!r} should be a number, found {shown}")
        return number
    if spec.kind == "set":
        return _set(raw, spec, record)
    if isinstance(raw, Mapping):
        return dict(zip(map(_name, raw), _distribution(list(raw.values()), spec, record), strict=True))
    if is_list(raw):
        if raw and all(isinstance(item, str) for item in raw):
            shown = f"{str(raw)[:80]}; kind 'multilabel' reads sets"
            raise _label_error(spec, record, f"field {spec.field!r} should be one name, found the list {shown}")
        return _distribution(raw, spec, record)
    return _name(raw)


def _set(raw: Any, spec: LabelSpec, record: Record) -> tuple[str, ...] | None:
    """The names of a set, each once."""
    if isinstance(raw, str) and string_values.looks_like_list(raw):
        parsed = string_values.parse_literal(raw, names=True)
        if parsed is None and (raw.strip().startswith("[") or raw.strip().endswith("]")):
            raise _label_error(
                spec, record, f"field {spec.field!r} looks like a list, but cannot be read: {raw[:80]!r}"
            )
        raw = raw if parsed is None else parsed or []
    if isinstance(raw, Mapping):
        return _flags({_name(name): value for name, value in raw.items()}, spec, record)
    if isinstance(raw, str):
        raw = raw.split() if spec.delimiter == " " else raw.split(spec.delimiter)
    items = raw if is_list(raw) else [raw]
    if is_list(raw) and _is_vector(raw, spec):
        return tuple(name for name, flag in zip(spec.classes, raw, strict=True) if flag)
    if any(is_list(item) or isinstance(item, Mapping) for item in items):
        raise _label_error(spec, record, f"field {spec.field!r} should be a list of names, found {raw!r:.80}")
    return tuple(dict.fromkeys(_name(item) for item in items if item is not None and _name(item)))


def _is_vector(raw: Sequence[Any], spec: LabelSpec) -> bool:
    """Whether a list has a number 0 or 1 for each of the task's `classes`, none of which is named "0" or "1"."""
    return (
        bool(spec.classes)
        and len(raw) == len(spec.classes)
        and not {"0", "1"} & set(spec.classes)
        and all(isinstance(item, int | float) and item in (0, 1) for item in raw)
    )


def is_missing(raw: Any, spec: LabelSpec) -> bool:
    """Whether a value means that there is no label: None, the number NaN, or one of `spec.missing`."""
    if raw is None or (isinstance(raw, float) and math.isnan(raw)):
        return True
    return not is_list(raw) and not isinstance(raw, Mapping) and _name(raw) in spec.missing


def missing_value_advice(raw: Any, spec: LabelSpec) -> str:
    """Advice for a value that may mean "not labelled": a string in place of a number, or -1; "" for other values."""
    name = "" if is_list(raw) or isinstance(raw, Mapping) else _name(raw)[:40]
    if not name or (name != "-1" and any(sign.isdigit() for sign in name)):
        return ""
    return f'; if that means "no label", name it: {missing_option_advice([name], spec)}'


def missing_option_advice(names: Sequence[str], spec: LabelSpec) -> str:
    """The line of a config by which `names` mean "not labelled" as well."""
    known = [name for name in (*spec.missing, *names) if name is not None]
    return f"config.tasks.{spec.task}.missing={tuple(dict.fromkeys(known))!r}"


def _distribution(raw: Sequence[Any], spec: LabelSpec, record: Record) -> tuple[float, ...]:
    """Checked probabilities, normalised where rounding changed their sum (by up to 1e-3)."""
    if any(isinstance(p, bool) or not isinstance(p, int | float) or not math.isfinite(p) or p < 0 for p in raw):
        raise _label_error(spec, record, f"field {spec.field!r}: probabilities should be numbers >= 0, found {raw!r}")
    if not math.isclose(sum(raw), 1.0, abs_tol=1e-3):
        raise _label_error(spec, record, f"field {spec.field!r}: probabilities should sum to 1, found {sum(raw):g}")
    return tuple(p / sum(raw) for p in raw)


def _name(raw: Any) -> str:
    """A class name: 1, 1.0 and "1" are the same class; true and false as JSON writes them."""
    if isinstance(raw, bool):
        return "true" if raw else "false"
    if isinstance(raw, float) and raw.is_integer():
        raw = int(raw)
    return nfc((raw.decode("utf-8", "replace") if isinstance(raw, bytes) else str(raw)).strip())


def is_list(raw: Any) -> bool:
    """Whether a raw value is a list."""
    return isinstance(raw, list | tuple | np.ndarray)


def _label_error(spec: LabelSpec, record: Record, message: str) -> UserError:
    return UserError(f"{where(record)}: task {spec.task}: {message}")
