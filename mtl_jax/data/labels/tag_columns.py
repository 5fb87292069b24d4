"""The tags of a task in all splits of its data set: whether they mark spans, their spelling, and one scheme for them.

This is decided once, from all splits together and for every reader. Values that are no tags of spans count as O, and
notes name them with their places.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import NamedTuple

import numpy as np

from mtl_jax.data.files import array_shards
from mtl_jax.data.labels import tag_schemes, tag_spellings
from mtl_jax.data.labels.label_spec import LabelSpec
from mtl_jax.data.labels.label_values import CodedValues
from mtl_jax.data.labels.raw_labels import RawLabels
from mtl_jax.data.notices import INFORMATION, LABELS, Notice
from mtl_jax.errors import UserError

_SHOWN = 5  # values that a note lists


class UnifiedTags(NamedTuple):
    """Tags of all splits in one scheme.

    spec    what the task reads, with `classes` in that scheme
    splits  the labels by split
    spans   whether the tags mark spans; None where they are distributions
    notes   what was changed, with counts
    """

    spec: LabelSpec
    splits: dict[str, RawLabels]
    spans: bool | None
    notes: list[str]


def unify_tags(spec: LabelSpec, splits: Mapping[str, RawLabels], words: Mapping[str, Sequence[int]]) -> UnifiedTags:
    """The tags of a task on words (levels "word" and "predicate") in the scheme `spec.target_scheme`.

    Args:
      spec: of the task. With a `source_scheme` every tag that violates it raises; "none" leaves the tags unchanged.
      splits: the labels as read.
      words: [M] numbers of words of the records of each split.

    Raises:
      UserError: a tag that violates the scheme named by the user, by file and line.
    """
    splits = dict(splits)
    if any(set(map(type, raw.values.table)) - {str, type(None)} for raw in splits.values()):
        return UnifiedTags(spec, splits, None, [])
    splits, numbered = _named(spec, splits)
    counts = _counts(splits.values())
    if spec.source_scheme == "none":
        return UnifiedTags(spec, splits, False, numbered)
    parse = (
        tag_spellings.spelling_of_scheme(spec.source_scheme, counts)
        if spec.source_scheme
        else tag_spellings.detect_spelling(counts)
    )
    if parse is None:
        return UnifiedTags(spec, splits, False, numbered + _no_spans(spec, counts, splits))
    tags = {value: parse(value) for value in counts}
    if spec.source_scheme:
        _refuse(spec, splits, tags, counts)
    notes = numbered + _odd(spec, splits, tags)
    tags = {value: tag or tag_spellings.outside_tag(parse) for value, tag in tags.items()}
    flat = {split: _Flat(raw, words[split], tags) for split, raw in splits.items()}
    source = spec.source_scheme or ("brackets" if parse is tag_spellings.bracket_spelling else _scheme(flat))
    if source != spec.target_scheme:
        notes.append(Notice(f"{_task(spec)} written in {source} and converted to {spec.target_scheme}", INFORMATION))
    for split, raw in splits.items():
        splits[split], broken = _converted(spec, raw, flat[split], source)
        if broken:
            count, first = broken
            text = f"{_task(spec)}: {count} sentences of {split} with a broken {source} sequence repaired; {first}"
            notes.append(Notice(text, LABELS, count))
    present = set().union(*(raw.values.table for raw in splits.values())) - {None}
    classes = _classes(spec, parse, present - counts.keys(), counts.keys())
    return UnifiedTags(dataclasses.replace(spec, classes=classes), splits, bool(present - {"O"}), notes)


def _task(spec: LabelSpec) -> str:
    return f"task {spec.task}: tags in field {spec.field!r}"


def _named(spec: LabelSpec, splits: dict[str, RawLabels]) -> tuple[dict[str, RawLabels], list[str]]:
    """Class numbers replaced by their names in `spec.classes`; a note where there are no names."""
    values = set().union(*(raw.values.table for raw in splits.values())) - {None}
    if not values or not all(value.isascii() and value.isdigit() and len(value) < 10 for value in values):
        return splits, []
    if not spec.classes:
        numbers = f"{_task(spec)} are numbers, of which no spans are read; where they mean tags such as B-PER, "
        return splits, [f"{numbers}name these in order in `classes` of the task"]
    if values <= set(spec.classes) or max(map(int, values)) >= len(spec.classes):
        return splits, []
    names = {value: spec.classes[int(value)] for value in values} | {None: None}
    return {s: raw._replace(values=raw.values.mapped(names.__getitem__)) for s, raw in splits.items()}, []


def _counts(splits: Iterable[RawLabels]) -> collections.Counter[str]:
    """How often each value occurs in all splits together."""
    counts: collections.Counter[str] = collections.Counter()
    for raw in splits:
        counts.update(dict(zip(raw.values.table, raw.values.counts(), strict=True)))
    counts.pop(None, None)
    return counts


# Values that are no tags.


def _odd(spec: LabelSpec, splits: Mapping[str, RawLabels], tags: Mapping[str, str]) -> list[str]:
    """A note for each split with values that are no tags, and one on tags in another spelling."""
    notes = []
    odd = {value for value, tag in tags.items() if not tag}
    for split, raw in splits.items():
        places = raw.values.satisfying(odd.__contains__)
        if len(places):
            counts = collections.Counter({value: n for value, n in _counts([raw]).items() if value in odd})
            listed = ", ".join(f"{value!r} ({n})" for value, n in counts.most_common(_SHOWN))
            more = ", …" if len(counts) > _SHOWN else ""
            known = _counts([raw]).total()
            text = f"{_task(spec)}: {len(places)} of {known} of {split} are no tags of spans and count as O: "
            text += f"{listed}{more}; first at {raw.where(int(places[0]))}"
            notes.append(Notice(text, LABELS, len(places), known))
    respelled = next((value for value, tag in tags.items() if tag not in ("", "O", value)), None)
    if respelled:
        text = f"{_task(spec)} are spelled in another way and rewritten: {respelled!r} as {tags[respelled]!r}"
        notes.append(Notice(text, INFORMATION))
    return notes


def _no_spans(spec: LabelSpec, counts: Mapping[str, int], splits: Mapping[str, RawLabels]) -> list[str]:
    """A note on a column with too few tags of spans to be read as such."""
    inner = {value: n for value, n in counts.items() if value not in tag_spellings.OUTSIDE}
    parts = {value: tag_schemes.split_tag(value) for value in inner}
    bare = {"O", "B", "I"} <= counts.keys()  # single letters alone are names of something else
    some = {value: n for value, n in inner.items() if parts[value][0] and (parts[value][1] or bare)}
    if not some:
        return []
    others = [value for value in inner if value not in some]
    if not others:
        listed = ", ".join(f"{value!r} ({n})" for value, n in some.items())
        return [
            f"{_task(spec)} are read as labels without spans: {listed} are not the letters of one scheme, with an end "
            "for each beginning"
        ]
    other = max(others, key=lambda value: inner[value])
    raw = next(raw for raw in splits.values() if other in raw.values.table)
    first = int(raw.values.satisfying(lambda value: value == other)[0])
    return [
        f"{_task(spec)} are read as labels without spans: {sum(some.values())} of {sum(inner.values())} that are not O "
        f"are tags such as {next(iter(some))!r}, most are others such as {other!r} at "
        f"{raw.where(first)}"
    ]


def _refuse(
    spec: LabelSpec, splits: Mapping[str, RawLabels], tags: Mapping[str, str], counts: Mapping[str, int]
) -> None:
    """Raises UserError for a value that is no tag of the scheme named by the user."""
    letters = {"O", *tag_schemes.LETTERS.get(spec.source_scheme, "")}
    odd = {v for v, tag in tags.items() if not tag or (tag != v) or tag_schemes.split_tag(tag)[0] not in letters}
    if spec.source_scheme == "brackets":
        odd = {value for value, tag in tags.items() if not tag}
    for raw in splits.values():
        for i in raw.values.satisfying(odd.__contains__)[:1].tolist():
            value = raw.values[i]
            raise _broken(spec, raw.where(i), f"{value!r} is no tag of the scheme {spec.source_scheme}", counts)


def _broken(spec: LabelSpec, place: str, problem: str, counts: Mapping[str, int]) -> UserError:
    are_spans = tag_spellings.detect_spelling(counts) is not None
    without = "broken sequences are repaired and other values count as O" if are_spans else "these are no spans"
    return UserError(
        f"{place}: task {spec.task}: {problem}, which options.schemes[{spec.field!r}] of data set {spec.dataset} says; "
        f"without it {without}"
    )


# Sequences.


class _Flat:
    """The tags of a split, concatenated, without the words that have no label.

    names   the different tags
    ids     int32[n], each tag's number in `names`
    at      int[n], their indices among all labels of the split
    begins  [S + 1], where each sentence (for one predicate) begins
    """

    def __init__(self, raw: RawLabels, words: Sequence[int], tags: Mapping[str, str]):
        words = np.asarray(words, np.int64)
        lengths = np.repeat(words, np.diff(raw.offsets) // np.maximum(words, 1))
        self.names = sorted(set(tags.values()))
        numbers = {value: self.names.index(tag) for value, tag in tags.items()} | {None: -1}
        ids = np.asarray([numbers[value] for value in raw.values.table], np.int32)[raw.values.codes]
        self.at = np.flatnonzero(ids >= 0)
        self.ids = ids[self.at]
        self.begins = np.concatenate([[0], np.cumsum(ids >= 0)])[np.concatenate([[0], np.cumsum(lengths)])]

    def tags(self, begin: int, end: int) -> list[str]:
        """The tags number begin, ..., end - 1."""
        return [self.names[n] for n in self.ids[begin:end].tolist()]

    def sentences(self) -> Iterator[tuple[int, int]]:
        """(begin, end) of each sentence with a known tag."""
        for first, last in array_shards.ranges(len(self.begins) - 1):
            yield from ((a, b) for a, b in itertools.pairwise(self.begins[first : last + 1].tolist()) if a < b)

    def breaks(self, scheme: str) -> np.ndarray:
        """int[...], indices of the tags that a scheme of letters does not know, or does not allow at their position."""
        parts = [tag_schemes.split_tag(name) for name in self.names]
        kinds = sorted({kind for _, kind in parts})

        def each(values: list, before: int | bool) -> np.ndarray:
            """The value of each tag, from `values` of the different tags, after one for an O before the first tag."""
            return np.concatenate([[before], np.array(values)[self.ids]])

        kind = each([-1 if letter == "O" else kinds.index(kind) for letter, kind in parts], -1)
        foreign = each([letter not in ("O", *tag_schemes.LETTERS[scheme]) for letter, _ in parts], False)
        places = [tag_schemes.position_in_span(letter) for letter, _ in parts]
        first = np.zeros(len(kind), bool)
        first[self.begins] = True  # the last entry is after the last tag
        goes_on = (kind[1:] == kind[:-1]) & ~first[:-1]
        if scheme in ("iob1", "iob2"):
            wants = each([letter == ("I" if scheme == "iob2" else "B") for letter, _ in parts], False)
            return np.flatnonzero(foreign[1:] | (wants[1:] & ~goes_on))
        opened, inside = each([p in "BI" for p in places], False), each([p in "IE" for p in places], False)
        left_open = opened[:-1] & ~first[:-1]
        never_closed = opened[1:] & first[1:]
        return np.flatnonzero(foreign[1:] | (left_open != inside[1:]) | (inside[1:] & ~goes_on) | never_closed)


def _scheme(flat: Mapping[str, _Flat]) -> str:
    """The scheme that the fewest tags violate."""
    breaks = {scheme: sum(len(f.breaks(scheme)) for f in flat.values()) for scheme in tag_schemes.LETTERS}
    return min(("iob2", *breaks), key=breaks.__getitem__)


def _converted(spec: LabelSpec, raw: RawLabels, flat: _Flat, source: str) -> tuple[RawLabels, tuple[int, str] | None]:
    """The labels in the target scheme, and (number of broken sentences, "first at file:line")."""
    ids = {name: number for number, name in enumerate(flat.names)}
    new = np.full(len(raw.values), -1, np.int32)
    new[flat.at] = flat.ids
    if source == spec.target_scheme == "iob2":  # only broken sentences change
        numbers = np.unique(np.searchsorted(flat.begins, flat.breaks("iob2"), side="right") - 1)
        where = [(int(flat.begins[n]), int(flat.begins[n + 1])) for n in numbers]
    else:
        where = flat.sentences()
    broken, first = 0, ""
    for begin, end in where:
        sentence = flat.tags(begin, end)
        try:
            tag_schemes.spans_from_tags(sentence, source)
        except tag_schemes.TagError as error:
            place = raw.where(int(flat.at[begin + error.word]))
            if spec.source_scheme:
                raise _broken(spec, place, str(error), _counts([raw])) from error
            broken, first = broken + 1, first or f"first at {place}"
        values = tag_schemes.convert_tags(sentence, source, spec.target_scheme, strict=False)
        new[flat.at[begin:end]] = [ids.setdefault(value, len(ids)) for value in values]
    different, codes = np.unique(new, return_inverse=True)
    names = [*ids, None]
    coded = CodedValues([names[number] for number in different.tolist()], codes.astype(np.int32))
    return raw._replace(values=coded), (broken, first) if broken else None


def _classes(spec: LabelSpec, parse: tag_spellings.Spelling, further: set[str], values: Set[str]) -> tuple[str, ...]:
    """`spec.classes` in the target scheme, and those of the tags `further` (results of the conversion) that have one of
    their types.

    Raises:
      UserError: a class that is neither a tag nor one of the `values` in the files, which count as O.
    """
    if not spec.classes:
        return ()
    names: dict[str, None] = {}
    kinds = {""}
    for name in spec.classes:
        tag = parse(name) or tag_spellings.usual_spelling(name, typed=False)  # classes may be named as after conversion
        if parse is tag_spellings.bracket_spelling and tag_schemes.is_bracket(tag):
            (tag,) = tag_schemes.convert_tags([tag], "brackets", "iob2", strict=False)
        letter, kind = tag_schemes.split_tag(tag)
        if letter not in ("", "O"):
            kinds.add(kind)
            begins = tag_schemes.position_in_span(letter) in "BS"
            letter = tag_schemes.position_in_span(letter) if spec.target_scheme == "bioes" else "B" if begins else "I"
            tag = f"{letter}-{kind}" if kind else letter
        if letter:
            names[tag] = None
        elif name not in values:
            raise UserError(
                f"{_task(spec)} mark spans, but its classes name {name!r}, which is no such tag; name tags such as "
                "'B-PER', or leave classes out"
            )
    return (*names, *sorted(tag for tag in further - names.keys() if tag_schemes.split_tag(tag)[1] in kinds))
