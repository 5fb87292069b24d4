"""Notes on suspicious labels of a task: words for missing values, sets that are not split, names that look alike."""

from __future__ import annotations

import collections
import unicodedata
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np

from mtl_jax.data import string_values
from mtl_jax.data.distinct_values import distinct, is_among
from mtl_jax.data.encoding.record_inputs import RecordInputs
from mtl_jax.data.labels.label_spec import RECORD_LEVELS, LabelSpec
from mtl_jax.data.labels.label_values import CodedValues, NumberValues, hashable
from mtl_jax.data.labels.raw_labels import RawLabels, is_list, is_missing, label_fields, missing_option_advice
from mtl_jax.data.notices import LABELS, Notice
from mtl_jax.data.record_sequences import selected
from mtl_jax.data.records import find_field, where

# How files write a missing value, ignoring case; in other files some of these are names of classes.
SUSPICIOUS = frozenset(
    ("na", "n/a", "#n/a", "#na", "<na>", "nan", "nat", "none", "null", "nil", "missing", "-", "--", "?")
)
_DELIMITERS = (";", "|", "#", ",", "/", "\t", " ")
_SHOWN = 5


def notes(spec: LabelSpec, splits: Mapping[str, RawLabels], names: Sequence[str]) -> list[str]:
    """Notices about the labels of a task; `names` are all its classes, () for numbers."""
    sentences = []
    if spec.level in RECORD_LEVELS:
        sentences += [*_missing(spec, splits), *_suspicious(spec, splits, names), *_lists(spec, splits, names)]
        sentences += _uncut(spec, names)
    sentences += _alike(names)
    return [Notice(f"task {spec.task}: {sentence}", LABELS) for sentence in sentences]


def contradictions(spec: LabelSpec, splits: Mapping[str, RawLabels], inputs: Mapping[str, RecordInputs]) -> list[str]:
    """Notes on equal texts (and pictures) with different labels: within train, and between other splits and train."""
    if spec.level != "text" or not len(splits["train"].values):
        return []
    labels, size = _numbered({split: raw.values for split, raw in splits.items()})
    texts = {split: inputs[split].text_keys() if raw.texts is None else raw.texts for split, raw in splits.items()}
    known = labels["train"] >= 0
    different, number = np.unique(texts["train"][known], return_inverse=True)
    pairs = distinct(number * size + labels["train"][known])
    labels_of_text = np.bincount(pairs // size, minlength=len(different))
    notes = []
    for split in splits if len(different) else ():
        in_train = (labels[split] >= 0) & (known if split == "train" else is_among(texts[split], different))
        at = number if split == "train" else np.searchsorted(different, texts[split][in_train])
        others = labels_of_text[at] - is_among(at * size + labels[split][in_train], pairs)
        if count := int((others > 0).sum()):
            notes.append(f"task {spec.task}: {split}: {count} records have a text that train has with another label")
    return notes


def _numbered(splits: Mapping[str, CodedValues | NumberValues]) -> tuple[dict[str, np.ndarray], int]:
    """({split: int64[M], a number that equal labels share, -1 = missing}, how many numbers there are)."""
    if all(isinstance(values, NumberValues) for values in splits.values()):
        different = distinct(np.concatenate([values.numbers for values in splits.values()]))
        numbers = {split: np.searchsorted(different, values.numbers) for split, values in splits.items()}
        return {split: np.where(np.isnan(v.numbers), -1, numbers[split]) for split, v in splits.items()}, len(different)
    codes: dict[Hashable, int] = {None: -1}
    result = {}
    for split, values in splits.items():
        of_table = [codes.setdefault(hashable(value), len(codes) - 1) for value in values.table]
        result[split] = np.asarray(of_table, np.int64)[values.codes]
    return result, len(codes)


def advice(unseen: Iterable[str], names: Iterable[str], spec: LabelSpec) -> str:
    """A probable reason why labels are not among the classes `names`, or ""."""
    unseen = sorted(unseen)
    known = {_appearance(name): name for name in names}
    alike = [f"{name!r} and {known[_appearance(name)]!r}" for name in unseen if _appearance(name) in known]
    if alike:
        return f"; they differ from classes of train in case, blanks or form alone: {', '.join(alike[:_SHOWN])}"
    odd = [name for name in unseen if name.casefold() in SUSPICIOUS or name == "-1"]
    if not odd or spec.level not in RECORD_LEVELS:
        return ""
    return f"; if {_listed(odd)} means that there is no label, name it: {missing_option_advice(odd, spec)}"


def _missing(spec: LabelSpec, splits: Mapping[str, RawLabels]) -> Iterable[str]:
    """How many labels are missing because of a word in their place, or because one of several fields is missing."""
    for split, raw in splits.items():
        words: collections.Counter[str] = collections.Counter()
        partly = 0
        without_label = selected(raw.records, raw.values.satisfying(lambda value: value is None))
        for record in without_label:
            fields = [find_field(record, name) for name in label_fields(record, spec)]
            words.update({str(field).strip() for field in fields if field is not None and str(field).strip()})
            partly += len({is_missing(field, spec) or str(field).strip() == "-1" for field in fields}) > 1
        if words and not partly:
            counted = ", ".join(f"{word[:40]!r} ({count})" for word, count in words.most_common(_SHOWN))
            yield f"{split}: {counted} in place of a label count as missing (tasks.*.missing)"
        empty = sum(find_field(record, spec.field) == "" for record in without_label) if spec.kind == "set" else 0
        if empty:
            names = tuple(name for name in spec.missing if name)
            yield (
                f"{split}: {empty} empty strings count as not labelled; if they are empty sets, set "
                f"config.tasks.{spec.task}.missing={names!r}"
            )
        if partly:
            yield f"{split}: {partly} records have a value in some of the fields {spec.field} only: not labelled"


def _suspicious(spec: LabelSpec, splits: Mapping[str, RawLabels], names: Sequence[str]) -> Iterable[str]:
    odd = {name for name in names if name.casefold() in SUSPICIOUS} - set(spec.classes)
    if not odd:
        return
    counts = {name: collections.Counter() for name in odd}
    for split, raw in splits.items():
        for value, count in zip(raw.values.table, raw.values.counts(), strict=True):
            for name in (value,) if isinstance(value, str) else value if isinstance(value, tuple) else ():
                if name in odd:
                    counts[name][split] += count
    counted = ", ".join(f"{name!r} ({_by_split(counts[name])})" for name in sorted(odd))
    which = f"the class {counted}" if len(odd) == 1 else f"the classes {counted}"
    yield f"{which} may mean that there is no label; if so, name it: {missing_option_advice(sorted(odd), spec)}"


def _by_split(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} of {split}" for split, count in counts.items())


def _lists(spec: LabelSpec, splits: Mapping[str, RawLabels], names: Sequence[str]) -> Iterable[str]:
    """Lists written as strings, mixed with other values; lists where one class is expected; vectors of 0 and 1."""
    if spec.kind == "class":
        odd = [
            name
            for name in names
            if "[" in name and string_values.looks_like_list(name) and string_values.parse_literal(name) is not None
        ]
        if odd:
            yield f"classes such as {odd[0]!r} are lists written as a string; kind 'multilabel' reads them as sets"
    if spec.kind != "set":
        return
    lists, others, repeats = 0, 0, 0
    first_list, first_other = None, None
    for raw in splits.values():
        for record in raw.records:
            value = find_field(record, spec.field)
            if isinstance(value, str) and value.strip() and value.strip() not in spec.missing:
                if string_values.looks_like_list(value):
                    lists, first_list = lists + 1, first_list or record
                else:
                    others, first_other = others + 1, first_other or record
            elif is_list(value):
                repeats += len({str(item) for item in value}) < len(value)
    if lists and others:
        few, first = min((lists, first_list), (others, first_other), key=lambda pair: pair[0])
        what = "are written as a list" if first is first_list else "are not written as a list, as the others are"
        yield f"{few} of {lists + others} values of the field {spec.field!r} {what}; first at {where(first)}"
    if set(names) == {"0", "1"} and repeats:
        yield "the lists look like vectors of 0 and 1; name their classes, in order, as `classes` of the task"


def _uncut(spec: LabelSpec, names: Sequence[str]) -> Iterable[str]:
    """A delimiter that seems to separate several classes in one name."""
    known = set(names)
    for delimiter in _DELIMITERS:
        if spec.kind not in ("class", "set") or (spec.kind == "set" and delimiter == spec.delimiter):
            continue
        cuts = {name: [part.strip() for part in name.split(delimiter)] for name in names if delimiter in name.strip()}
        cuts = {name: parts for name, parts in cuts.items() if all(parts) and len(set(parts)) == len(parts)}
        uses = collections.Counter(part for parts in cuts.values() for part in parts)
        recurring = known if spec.kind == "class" else known | {part for part, count in uses.items() if count > 1}
        # Many names contain blanks, slashes and commas: in sets all names with them have to split into known parts.
        strict = spec.kind == "class" or delimiter in (" ", "/", ",")
        odd = [n for n, parts in cuts.items() if (all if strict else any)(part in recurring for part in parts)]
        if odd and (spec.kind == "class" or not strict or len(odd) == len(cuts)):
            kind = "" if spec.kind == "set" else " with kind='multilabel'"
            yield (
                f"{len(odd)} classes such as {odd[0]!r} look like several with {delimiter!r} between them; "
                f"options={{'delimiter': {delimiter!r}}}{kind} splits them"
            )
            return


def _alike(names: Sequence[str]) -> Iterable[str]:
    """Names that differ only in case, blanks, invisible signs, or the form of a number."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_appearance(name), []).append(name)
    alike = [group for group in groups.values() if len(group) > 1]
    if alike:
        listed = "; ".join(" and ".join(map(repr, group[:4])) for group in alike[:_SHOWN])
        more = f"; … {len(alike) - _SHOWN} more" if len(alike) > _SHOWN else ""
        yield f"classes differ only in case, blanks, invisible signs or the form of a number: {listed}{more}"


def _appearance(name: str) -> str:
    """A key that names share which look the same."""
    if name.isascii() and name.isalpha():
        return name.lower()
    try:
        return f"{float(name):g}" if any(sign.isdigit() for sign in name) else _letters(name)
    except ValueError:
        return _letters(name)


def _letters(name: str) -> str:
    signs = unicodedata.normalize("NFKC", name).casefold()
    return "".join(sign for sign in signs if not sign.isspace() and unicodedata.category(sign) not in ("Cf", "Cc"))


def _listed(names: Sequence[str]) -> str:
    return " or ".join(map(repr, names[:_SHOWN]))
