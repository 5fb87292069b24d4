"""Blanks between the words of a text that is generated word by word.

For most words the usual spacing holds: no blank before a comma, one after it. Where a text differs, as in "3.14" or
"3 %", a special token before the word says so. Every text can be restored up to repeated blanks, and everyday language
hardly gets longer (English news and Wikipedia by 1 to 3 %).
"""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Iterator, Sequence

from mtl_jax import unicode

NO_BLANK, BLANK = MARKERS = ("[NO BLANK]", "[BLANK]")
_CLOSING, _OPENING = frozenset(".,;:!?%…'"), frozenset("$€£#@¿¡")  # as well as brackets and quotation marks
_INNER = frozenset("-/")


def mark_blanks(words: Sequence[str], blanks: Sequence[bool]) -> list[str]:
    """The words, with one of `MARKERS` before each word whose entry in `blanks` (a blank is before it) is unusual."""
    marked: list[str] = []
    for word, blank, usual in zip(words, blanks, _usual(words), strict=True):
        if blank != usual:
            marked.append(BLANK if blank else NO_BLANK)
        marked.append(word)
    return marked


def join_words(tokens: Sequence[str]) -> str:
    """The text of words with markers; of several markers the last one counts, those after the last word do not."""
    words: list[str] = []
    marked: dict[int, bool] = {}
    for token in tokens:
        if token in MARKERS:
            marked[len(words)] = token == BLANK
        else:
            words.append(token)
    parts: list[str] = []
    for number, (word, usual) in enumerate(zip(words, _usual(words), strict=True)):
        if number and marked.get(number, usual):
            parts.append(" ")
        parts.append(word)
    return "".join(parts)


def _usual(words: Sequence[str]) -> Iterator[bool]:
    """Whether a blank is usual before each word. Straight quotation marks alternately open and close."""
    is_quoted = False
    if words:
        yield False
    for before, word in itertools.pairwise(words):
        is_quoted ^= before == '"'
        if word == '"':
            yield not is_quoted and not _opens(before)
        elif before == '"' and is_quoted:
            yield False
        else:
            yield not (_closes(word) or _opens(before) or _is_unspaced(before) or _is_unspaced(word))


def _is_unspaced(word: str) -> bool:
    """Whether it is Chinese or Japanese, including punctuation (U+3000 … U+303F, U+FF00 … U+FF65)."""
    return unicode.is_unspaced(word) or "\u3000" <= word[0] <= "\u303f" or "\uff00" <= word[0] <= "\uff65"


def _closes(word: str) -> bool:
    """Whether no blank is usual before it."""
    category = unicodedata.category(word[0])
    return word in _CLOSING or word in _INNER or category in ("Pe", "Pf") or (category == "Po" and word[0] > "\xff")


def _opens(word: str) -> bool:
    """Whether no blank is usual after it."""
    return word in _OPENING or word in _INNER or unicodedata.category(word[0]) in ("Ps", "Pi")
