"""Tagging schemes of spans: reading tags in one scheme, writing them in another. Pure functions on one sentence.

    iob1   B- only where a span follows one of the same type (CoNLL-2003 as published); Ramshaw & Marcus 1995
    iob2   B- at every beginning (also called BIO)
    bioes  B, I, E(nd), S(ingle);   bilou: L(ast), U(nit) for E, S;   bmes: M(iddle) for I
    brackets  "(PER*", "*", "*)", "(PER)" (CoNLL-2005, CoNLL-2012); only read
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """Words start, ..., end - 1 form one span of type `type`."""

    type: str
    start: int
    end: int


class TagError(ValueError):
    """A tag that the scheme does not allow at this word. `word` is its 0-based index."""

    def __init__(self, word: int, message: str):
        super().__init__(message)
        self.word = word


# Letters of the four places in a span: begin, inside, end, single.
_LETTERS = {"bioes": "BIES", "bilou": "BILU", "bmes": "BMES"}
SCHEMES = ("iob1", "iob2", *_LETTERS, "brackets")
_BRACKET = re.compile(r"(?:\(([^()*\s]+))?(\*?)(\)?)")
_TAG = re.compile(r"([A-Z])-(.+)", re.DOTALL)


@functools.lru_cache(maxsize=1 << 16)
def split_tag(tag: str) -> tuple[str, str]:
    """("B", "PER") for "B-PER"; ("O", "") for "O"; ("", tag) for what is no span tag."""
    if tag == "O":
        return "O", ""
    match = _TAG.fullmatch(tag)
    return (match[1], match[2]) if match else ("", tag)


def detect(sentences: Iterable[Sequence[str]]) -> str | None:
    """The scheme of a whole column, or None where its values are no span tags.

    Tags that mix IOB1 and IOB2 count as "iob2": `spans` reads both in the way of conlleval.
    """
    sentences = [list(tags) for tags in sentences]
    if is_bracketed(tag for tags in sentences for tag in tags):
        return "brackets"
    letters: set[str] = set()
    valid = {"iob1": True, "iob2": True}
    for tags in sentences:
        before = ("O", "")
        for tag in tags:
            letter, kind = split_tag(tag)
            letters.add(letter)
            goes_on = before[0] in ("B", "I") and before[1] == kind
            if letter == "B" and not goes_on:
                valid["iob1"] = False
            if letter == "I" and not goes_on:
                valid["iob2"] = False
            before = (letter, kind)
    if letters <= set("OBI"):
        return "iob1" if valid["iob1"] and not valid["iob2"] else "iob2"
    for scheme, known in _LETTERS.items():
        if letters <= {"O", *known}:
            return scheme
    return None


def spans(tags: Sequence[str], scheme: str, strict: bool = True) -> list[Span]:
    """The spans of one sentence, in order.

    Args:
      tags: one tag a word: "O" or letter-type.
      scheme: one of `SCHEMES`.
      strict: True: a tag that the scheme does not allow raises. False: it is read as conlleval does: a tag begins
        a span where it says so, where the type changes, or after the end of one.

    Raises TagError naming the word, always for what is no tag of the scheme, with `strict` for an illegal sequence.
    """
    if scheme == "brackets":
        return _bracketed(tags, strict)
    begin, inside, end, single = _LETTERS.get(scheme, "BI  ")
    closed = scheme in _LETTERS
    found: list[Span] = []
    start, kind = -1, ""  # the open span

    def close(at: int) -> None:
        nonlocal start
        if start >= 0:
            found.append(Span(kind, start, at))
        start = -1

    for i, tag in enumerate(tags):
        letter, of = split_tag(tag)
        if letter not in {"O", begin, inside, end, single}:
            raise TagError(i, f"{tag!r} is no tag of the scheme {scheme}")
        goes_on = start >= 0 and letter in (inside, end) and of == kind
        if strict:
            if closed and start >= 0 and not goes_on:
                raise TagError(i, f"{tag!r}: the open span of {kind} wants {inside}-{kind} or {end}-{kind} ({scheme})")
            if closed and start < 0 and letter in (inside, end):
                raise TagError(i, f"{tag!r}: no span of this type is open ({scheme})")
            if scheme == "iob2" and letter == inside and not goes_on:
                raise TagError(i, f"{tag!r} follows no tag of its type; iob2 begins every span with B-")
            if scheme == "iob1" and letter == begin and not (start >= 0 and of == kind):
                raise TagError(i, f"{tag!r} follows no tag of its type; iob1 has B- only between two spans of one type")
        if not goes_on:
            close(i)
            if letter != "O":
                start, kind = i, of
        if letter in (end, single):
            close(i + 1)
    if strict and closed and start >= 0:
        raise TagError(len(tags) - 1, f"the span of {kind} is never closed by {end}-{kind} ({scheme})")
    close(len(tags))
    return found


def is_bracketed(tags: Iterable[str]) -> bool:
    """Whether tags are of the scheme "brackets": all have a star or brackets, and one at least has a star."""
    found = set(tags)
    return any("*" in tag for tag in found) and all(map(_bracket, found))


def _bracket(tag: str) -> re.Match[str] | None:
    """(type that begins, star, bracket that ends) of a tag of the scheme "brackets"; None for others."""
    match = _BRACKET.fullmatch(tag)
    return match if match and (match[2] or (match[1] and match[3])) else None


def _bracketed(tags: Sequence[str], strict: bool) -> list[Span]:
    """As `spans`; without `strict` a span ends where another begins and at the end, and one that is not open does not.
    """
    found: list[Span] = []
    start, kind = -1, ""
    for i, tag in enumerate(tags):
        match = _bracket(tag)
        if match is None:
            raise TagError(i, f"{tag!r} is no tag of the scheme brackets: (TYPE*, *, *) or (TYPE)")
        if match[1]:
            if start >= 0 and strict:
                raise TagError(i, f"{tag!r} opens a span inside that of {kind}")
            if start >= 0:
                found.append(Span(kind, start, i))
            start, kind = i, match[1]
        if match[3] and start >= 0:
            found.append(Span(kind, start, i + 1))
            start = -1
        elif match[3] and strict:
            raise TagError(i, f"{tag!r} closes a span, and none is open")
    if start >= 0 and strict:
        raise TagError(len(tags) - 1, f"the span of {kind} is never closed")
    return [*found, Span(kind, start, len(tags))] if start >= 0 else found


def tags(found: Sequence[Span], length: int, scheme: str) -> list[str]:
    """The tags of a sentence of `length` words in `scheme`. Inverse of `spans` for spans that do not overlap."""
    begin, inside, end, single = _LETTERS.get(scheme, "BIIB")
    out = ["O"] * length
    previous = Span("", -1, -1)
    for span in found:
        size = span.end - span.start
        letters = [begin, *[inside] * (size - 2), end] if size > 1 else [single]
        if scheme == "iob1" and not (previous.end == span.start and previous.type == span.type):
            letters[0] = inside
        out[span.start : span.end] = [f"{letter}-{span.type}" for letter in letters]
        previous = span
    return out


def convert(sentence: Sequence[str], source: str, target: str, strict: bool = True) -> list[str]:
    """The tags of one sentence in scheme `target`. Raises as `spans`."""
    return tags(spans(sentence, source, strict), len(sentence), target)
