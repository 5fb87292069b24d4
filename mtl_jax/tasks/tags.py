"""Tag names: what a B, I, O, E, S tag means, which may follow which, and the spans that a sequence of them marks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

SCHEMES = {"": "", "iob2": "BI", "bioes": "BIES"}


@dataclasses.dataclass(frozen=True, eq=False)
class Moves:
    """Which tags may follow which. numpy bool: move [C, C] (from, to), start [C], end [C].

    Static under `jit`: close over it, or name it in `static_argnums`.
    """

    move: np.ndarray
    start: np.ndarray
    end: np.ndarray


def split(name: str) -> tuple[str, str]:
    """("B", "PER") for "B-PER"; a tag without a type has type "_" (as in seqeval)."""
    return name[:1], name[1:].split("-", maxsplit=1)[-1] or "_"


def misfits(names: Sequence[str], scheme: str) -> list[str]:
    """The names that are neither O nor a prefix of the scheme with a type, as B-PER."""
    prefixes = SCHEMES[scheme]
    return [n for n in names if scheme and n != "O" and not (n[:1] in prefixes and n[1:2] == "-" and len(n) > 2)]


def marks_spans(names: Sequence[str]) -> bool:
    """Whether the names are BIO or BIOES tags, of which spans can be read."""
    return any(n != "O" for n in names) and not misfits(names, "bioes")


@functools.lru_cache(maxsize=64)
def legal_moves(names: tuple[str, ...], scheme: str) -> Moves:
    """The moves that the scheme allows: "" all, "iob2" (Ratnaparkhi 1998), "bioes" (also written IOBES).

    IOB2: I-X only after B-X or I-X. BIOES: B-X and I-X only before I-X or E-X, and I-X and E-X only after them.
    """
    parts = [split(n) for n in names]

    def may_follow(left: tuple[str, str], right: tuple[str, str]) -> bool:
        inside = right[0] in "IE"
        if scheme == "iob2":
            return not inside or (left[0] in "BI" and left[1] == right[1])
        opened = left[0] in "BI"
        return opened == inside and (not inside or left[1] == right[1])

    if not scheme:
        return Moves(*(np.ones(shape, bool) for shape in ((len(names),) * 2, len(names), len(names))))
    outside = ("O", "_")
    return Moves(
        np.array([[may_follow(left, right) for right in parts] for left in parts]),
        np.array([may_follow(outside, right) for right in parts]),
        np.array([may_follow(left, outside) for left in parts]),
    )


def spans(sequences: Sequence[Sequence[int]], names: Sequence[str]) -> list[tuple[int, int, int, str]]:
    """The marked spans (sequence, first word, last word, type) of tag ids -1 ... len(names) - 1; -1 counts as O.

    Ill-formed sequences are read as conlleval (Tjong Kim Sang 2002) and seqeval's default mode read them: I-X or E-X
    with nothing open, or with another type open, begins a span of its own.
    """
    parts = [("O", "_"), *(split(n) for n in names)]
    types = sorted({t for _, t in parts})
    prefix = np.array([p for p, _ in parts])
    kind = np.array([types.index(t) for _, t in parts])

    # all sequences as one, an O behind each, and one before the first
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
