"""Tags of spans: what one tag means, and reading and writing the tags of one sentence. Pure functions.

    iob1   B- only where a span follows one of the same type (CoNLL-2003 as published); Ramshaw & Marcus 1995
    iob2   B- at every beginning (also called BIO)
    bioes  B, I, E(nd), S(ingle);   bilou: L(ast), U(nit) for E, S;   bmes: M(iddle) for I
    brackets  "(PER*", "*", "*)", "(PER)" (CoNLL-2005, CoNLL-2012); only read

Where there is one type of span only, tags may be the letters alone: B, I, O in chunking, B, M, E, S in word
segmentation.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """Words start, ..., end - 1 form one span of type `type`, "" where tags are letters alone."""

    type: str
    start: int
    end: int


class TagError(ValueError):
    """A tag that the scheme does not allow at this word. `word` is its 0-based index."""

    def __init__(self, word: int, message: str):
        super().__init__(message)
        self.word = word


# Letters of the four places in a span: begin, inside, end, single.
LETTERS = {"iob1": "BI", "iob2": "BI", "bioes": "BIES", "bilou": "BILU", "bmes": "BMES"}
SCHEMES = (*LETTERS, "brackets")
TARGET_SCHEMES = ("iob2", "bioes")  # what tags are converted to
# The position in a span that a letter means, in the letters of "bioes". A letter has one meaning in all schemes.
SPAN_POSITIONS = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S"}
_BRACKET = re.compile(r"(?:\(([^()*\s]+))?(\*?)(\)?)")
_TAG = re.compile(r"([BIMELSU])(?:-(.*))?", re.DOTALL)


@functools.lru_cache(maxsize=1 << 16)
def split_tag(tag: str) -> tuple[str, str]:
    """(letter, type): ("B", "PER") for "B-PER", ("B", "") for "B" and "B-"; ("O", ""); ("", tag) for any other text."""
    if tag == "O":
        return "O", ""
    match = _TAG.fullmatch(tag)
    return (match[1], match[2] or "") if match else ("", tag)


def position_in_span(letter: str) -> str:
    """B, I, E or S of the letter of a tag; "O" for what is in no span."""
    return SPAN_POSITIONS.get(letter, "O")


def are_span_tags(names: Iterable[str]) -> bool:
    """Whether all names are tags of spans or O, as far as names tell: single letters need a B among them, or only I."""
    parts = [split_tag(name) for name in set(names) - {"O"}]
    letters = {letter for letter, _ in parts}
    typed = any(kind for _, kind in parts)
    return bool(parts) and "" not in letters and (typed or "B" in letters or letters == {"I"})


def spans_from_tags(tags: Sequence[str], scheme: str, strict: bool = True) -> list[Span]:
    """The spans of one sentence, in order.

    Args:
      tags: one tag a word.
      scheme: one of `SCHEMES`.
      strict: True: a tag that the scheme does not allow raises. False: tags of all schemes but "brackets" are read as
        by conlleval: a span begins where a tag says so, where the type changes, or after the end of another; any other
        string counts as O.

    Raises TagError naming the word; in the scheme "brackets" also without `strict` for other strings.
    """
    if scheme == "brackets":
        return _bracketed(tags, strict)
    if strict:
        check_tags(tags, scheme)
    spans: list[Span] = []
    start, kind = -1, ""  # the open span
    for i, tag in enumerate(tags):
        letter, tag_type = split_tag(tag)
        at = position_in_span(letter)
        goes_on = start >= 0 and at in "IE" and tag_type == kind
        if start >= 0 and not goes_on:
            spans.append(Span(kind, start, i))
            start = -1
        if at != "O" and not goes_on:
            start, kind = i, tag_type
        if at in "ES":
            spans.append(Span(kind, start, i + 1))
            start = -1
    if start >= 0:
        spans.append(Span(kind, start, len(tags)))
    return spans


def check_tags(tags: Sequence[str], scheme: str) -> None:
    """Raises TagError at the first tag that the scheme does not know, or does not allow at its position."""
    inside, *closing = LETTERS[scheme][1:3]
    kind = None  # of the open span; in "iob1" and "iob2", of the word before
    for i, tag in enumerate(tags):
        letter, tag_type = split_tag(tag)
        if letter not in ("O", *LETTERS[scheme]):
            raise TagError(i, f"{tag!r} is no tag of the scheme {scheme}")
        goes_on = position_in_span(letter) in "IE"
        if not closing:
            if scheme == "iob2" and letter == "I" and tag_type != kind:
                raise TagError(
                    i, f"{tag!r} follows no tag of its type; iob2 begins every span with {_write('B', tag_type)}"
                )
            if scheme == "iob1" and letter == "B" and tag_type != kind:
                raise TagError(i, f"{tag!r} follows no tag of its type; iob1 has B only between two spans of one type")
            kind = None if letter == "O" else tag_type
            continue
        if kind is not None and not (goes_on and tag_type == kind):
            wanted = " or ".join(_write(letter, kind) for letter in (inside, *closing))
            raise TagError(i, f"{tag!r}: the open span wants {wanted} ({scheme})")
        if kind is None and goes_on:
            raise TagError(i, f"{tag!r}: no span of this type is open ({scheme})")
        kind = tag_type if position_in_span(letter) in "BI" else None
    if closing and kind is not None:
        raise TagError(len(tags) - 1, f"the last span is never closed by {_write(closing[0], kind)} ({scheme})")


def is_bracketed(tags: Iterable[str]) -> bool:
    """Whether tags are of the scheme "brackets": all have a star or brackets, and one at least has a star."""
    names = set(tags)
    return any("*" in tag for tag in names) and all(map(is_bracket, names))


def is_bracket(tag: str) -> bool:
    """Whether a tag is one of the scheme "brackets"."""
    return _bracket(tag) is not None


def _bracket(tag: str) -> re.Match[str] | None:
    """(type that begins, star, bracket that ends) of a tag of the scheme "brackets"; None for others."""
    match = _BRACKET.fullmatch(tag)
    return match if match and (match[2] or (match[1] and match[3])) else None


def _bracketed(tags: Sequence[str], strict: bool) -> list[Span]:
    """As `spans_from_tags`; without `strict` a span ends where another begins and at the end; one that is not open
    does not.
    """
    spans: list[Span] = []
    start, kind = -1, ""
    for i, tag in enumerate(tags):
        match = _bracket(tag)
        if match is None:
            raise TagError(i, f"{tag!r} is no tag of the scheme brackets: (TYPE*, *, *) or (TYPE)")
        if match[1]:
            if start >= 0 and strict:
                raise TagError(i, f"{tag!r} opens a span inside that of {kind}")
            if start >= 0:
                spans.append(Span(kind, start, i))
            start, kind = i, match[1]
        if match[3] and start >= 0:
            spans.append(Span(kind, start, i + 1))
            start = -1
        elif match[3] and strict:
            raise TagError(i, f"{tag!r} closes a span, and none is open")
    if start >= 0 and strict:
        raise TagError(len(tags) - 1, f"the span of {kind} is never closed")
    return [*spans, Span(kind, start, len(tags))] if start >= 0 else spans


def tags_from_spans(spans: Sequence[Span], length: int, scheme: str) -> list[str]:
    """The tags of a sentence of `length` words in `scheme`. Inverse of `spans_from_tags` for spans that do not
    overlap.
    """
    begin, inside, end, single = LETTERS[scheme] if len(LETTERS[scheme]) == 4 else "BIIB"
    out = ["O"] * length
    previous = Span("", -1, -1)
    for span in spans:
        size = span.end - span.start
        letters = [begin, *[inside] * (size - 2), end] if size > 1 else [single]
        if scheme == "iob1" and not (previous.end == span.start and previous.type == span.type):
            letters[0] = inside
        out[span.start : span.end] = [_write(letter, span.type) for letter in letters]
        previous = span
    return out


def convert_tags(sentence: Sequence[str], source: str, target: str, strict: bool = True) -> list[str]:
    """The tags of one sentence in scheme `target`. Raises as `spans_from_tags`."""
    return tags_from_spans(spans_from_tags(sentence, source, strict), len(sentence), target)


def _write(letter: str, kind: str) -> str:
    return f"{letter}-{kind}" if kind else letter
