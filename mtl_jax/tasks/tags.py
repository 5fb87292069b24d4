"""Tag names: the meaning of B, I, O, E and S, legal transitions, and the spans that a sequence of tags marks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from mtl_jax.data.labels import tag_schemes

SCHEMES = {"": "", "iob2": "BI", "bioes": "BIES"}


@dataclasses.dataclass(frozen=True, eq=False)
class TransitionMask:
    """Which tags may follow which. numpy bool: move [C, C] (from, to), start [C], end [C].

    Static under `jit`: close over it, or name it in `static_argnums`.
    """

    move: np.ndarray
    start: np.ndarray
    end: np.ndarray


def split_tag(name: str) -> tuple[str, str]:
    """("B", "PER") for "B-PER"; ("B", "_") for "B", as in seqeval; ("O", "_") for O and what is no tag of a span.

    The letters of other schemes count as those of BIOES with their meaning: M as I, L as E, U as S.
    """
    letter, kind = tag_schemes.split_tag(name)
    place = tag_schemes.position_in_span(letter)
    return place, "_" if place == "O" else kind or "_"


def tags_outside_scheme(names: Sequence[str], scheme: str) -> list[str]:
    """The names that are neither O nor a letter of the scheme, alone or with a type, as B-PER."""
    return [n for n in names if scheme and n != "O" and tag_schemes.split_tag(n)[0] not in (*SCHEMES[scheme],)]


def marks_spans(names: Sequence[str], known: bool | None = None) -> bool:
    """Whether tags mark spans: `known` from the data, else judged by the names."""
    return tag_schemes.are_span_tags(names) if known is None else known


def no_spans_reason(names: Sequence[str]) -> str:
    """The end of a message: that tags do not mark spans."""
    listed = ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
    if tag_schemes.are_span_tags(names):
        return f"the labels of all splits, or options.schemes of the data set, say that these mark none: {listed}"
    return f"the tags of train mark none, which look like B-PER, or B where there is one type: {listed}"


def without_types(names: Sequence[str]) -> tuple[str, ...]:
    """Tags of spans with numbers in the place of the names of their types: ("B-0", "O", "I-0") for B-PER, O, I-PER."""
    number: dict[str, int] = {}
    parts = [split_tag(name) for name in names]
    return tuple(prefix if prefix == "O" else f"{prefix}-{number.setdefault(t, len(number))}" for prefix, t in parts)


@functools.lru_cache(maxsize=64)
def legal_transitions(names: tuple[str, ...], scheme: str) -> TransitionMask:
    """The moves that the scheme allows: "" all, "iob2" (Ratnaparkhi 1998), "bioes" (also written IOBES).

    IOB2: I-X only after B-X or I-X. BIOES: B-X and I-X only before I-X or E-X, and I-X and E-X only after them.
    """
    parts = [split_tag(n) for n in names]

    def may_follow(left: tuple[str, str], right: tuple[str, str]) -> bool:
        inside = right[0] in "IE"
        if scheme == "iob2":
            return not inside or (left[0] in "BI" and left[1] == right[1])
        opened = left[0] in "BI"
        return opened == inside and (not inside or left[1] == right[1])

    if not scheme:
        return TransitionMask(*(np.ones(shape, bool) for shape in ((len(names),) * 2, len(names), len(names))))
    outside = ("O", "_")
    return TransitionMask(
        np.array([[may_follow(left, right) for right in parts] for left in parts]),
        np.array([may_follow(outside, right) for right in parts]),
        np.array([may_follow(left, outside) for left in parts]),
    )


def spans(sequences: Sequence[Sequence[int]], names: Sequence[str]) -> list[tuple[int, int, int, str]]:
    """The marked spans (sequence, first word, last word, type) of tag ids -1 ... len(names) - 1.

    -1 counts as O, as does a name that is no tag of a span. Ill-formed sequences are read as conlleval (Tjong Kim Sang
    2002) and seqeval's default mode read them: I-X or E-X outside a span, or in one of another type, begins a new
    span.
    """
    parts = [("O", "_"), *(split_tag(n) for n in names)]
    types = sorted({t for _, t in parts})
    prefix = np.array([p for p, _ in parts])
    kind = np.array([types.index(t) for _, t in parts])

    # all sequences concatenated, an O after each, and one before the first
    lengths = np.array([len(s) + 1 for s in sequences], int)
    flat = np.zeros(lengths.sum() + 1, int)
    begin = np.cumsum(lengths) - lengths + 1
    for first, sequence in zip(begin, sequences, strict=True):
        flat[first : first + len(sequence)] = np.asarray(sequence, int) + 1
    p, k = prefix[flat], kind[flat]
    left, right, same = p[:-1], p[1:], k[:-1] == k[1:]
    closes = np.isin(left, ["E", "S"]) | (np.isin(left, ["B", "I"]) & (np.isin(right, ["B", "S", "O"]) | ~same))
    opens = np.isin(right, ["B", "S"]) | (
        np.isin(right, ["I", "E"]) & (np.isin(left, ["O", "E", "S"]) | (np.isin(left, ["B", "I"]) & ~same))
    )
    last = np.flatnonzero(closes)
    first = np.flatnonzero(opens) + 1
    sequence = np.searchsorted(begin, first, side="right") - 1
    offset = begin[sequence]
    columns = (sequence, first - offset, last - offset, k[first])
    return [(s, a, b, types[t]) for s, a, b, t in zip(*(c.tolist() for c in columns), strict=True)]
