"""Words of any script: what belongs to a word, and one spelling of what Unicode can write in several ways.

Python's `\\w` knows letters and digits, but neither the vowel signs of Devanagari, Bengali, Telugu or Thai, nor the
points of Arabic and Hebrew, nor accents that are characters of their own. Here a word keeps its marks (categories Mn,
Mc, Me) and the joiners U+200C and U+200D, following Unicode's word boundaries (UAX #29). Han characters and Hiragana,
which are written without blanks, are one word each; a run of Katakana is one word (also UAX #29). Thai, Lao, Khmer and
Burmese, whose words only a dictionary can find, are separated at blanks and zero-width spaces (U+200B) only.
"""

from __future__ import annotations

import functools
import re
import unicodedata

SPACE = r"\s\u200b"  # what separates words, for use inside a character class
_HAN = r"\u3005\u3007\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_HIRAGANA = r"\u3041-\u3096\u309d-\u309f\U0001b001-\U0001b11f"
_KATAKANA = r"\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"
_THAI_TO_KHMER = r"\u0e01-\u0e30\u0e32-\u0e33\u0e40-\u0e46\u0e81-\u0ec6\u1000-\u109f\u1780-\u17b3"  # Lao, Burmese too
_JOINERS = r"\u200c\u200d"
_EMOJI = r"\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f"  # skin tones and the tags of flags, which follow an emoji
_ASCII_RUN, _ASCII_SIGN = r"\w+", r"[^\w\s]"


def words_and_signs(apostrophes: bool) -> tuple[str, str]:
    """The regular expressions of a word, and of a single other sign with its marks (an emoji with all its parts).

    Together they match every character but blanks. `apostrophes`: ' and ’ between letters are part of the word.
    """
    marks, letter = _marks(), rf"[^\W{_HAN}{_HIRAGANA}{_KATAKANA}]"
    run = rf"{letter}(?:{letter}|[{marks}{_JOINERS}])*"
    if apostrophes:
        run = rf"{run}(?:['’]{run})*"
    word = rf"{run}|{_unspaced().pattern}"
    sign = rf"[^\w{SPACE}]"
    return word, rf"[\U0001f1e6-\U0001f1ff]{{2}}|{sign}(?:[{marks}{_EMOJI}]|\u200d{sign})*"


@functools.cache
def pattern(apostrophes: bool, ascii_only: bool, before: str = "") -> re.Pattern[str]:
    """Matches words and signs, see `words_and_signs`. In ASCII text `ascii_only` matches the same and is faster.

    `before` is an expression that is tried first.
    """
    if ascii_only:
        word, sign = _ASCII_RUN + (rf"(?:'{_ASCII_RUN})*" if apostrophes else ""), _ASCII_SIGN
    else:
        word, sign = words_and_signs(apostrophes)
    return re.compile("|".join(filter(None, (before, word, sign))))


def nfc(text: str) -> str:
    """The composed spelling: é is one character, whether it was written as one or as e with an accent."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def nfc_with_offsets(text: str) -> tuple[str, list[int]]:
    """`nfc(text)`, and the offset in `text` of each of its characters, followed by the length of `text`.

    Characters that compose with the one before them are marks, and vowels and ends of Hangul syllables.
    """
    parts, offsets = [], []
    for match in _clusters().finditer(text):
        part = unicodedata.normalize("NFC", match[0])
        parts.append(part)
        offsets += [match.start()] * len(part)
    return "".join(parts), [*offsets, len(text)]


def spaced(text: str) -> str:
    """The text with blanks around the words of Han characters, Hiragana and Katakana."""
    return text if text.isascii() else _unspaced().sub(r" \g<0> ", text)


def without_foreign_punctuation(text: str) -> str:
    """The text without punctuation that English does not use (। 、 ؟): outside ASCII, Latin-1 and U+2000 … U+206F."""
    return text if text.isascii() else "".join(c for c in text if not _is_foreign_punctuation(c))


def is_unspaced(word: str) -> bool:
    """Whether a word belongs to a script that is written without blanks: Han, Hiragana, Katakana."""
    return not word.isascii() and bool(_unspaced().match(word))


def has_no_blanks(text: str) -> bool:
    """Whether most letters of a text belong to scripts that are written without blanks between words."""
    if text.isascii():
        return False
    letters = sum(map(str.isalpha, text))
    return 2 * len(re.findall(f"[{_HAN}{_HIRAGANA}{_KATAKANA}{_THAI_TO_KHMER}]", text)) > letters


def file_name(text: str, allowed: str = "") -> str:
    """The text with "_" for every character that is no letter, digit or mark and is not in `allowed`."""
    return "".join(c if c.isalnum() or c in allowed or unicodedata.category(c)[0] == "M" else "_" for c in text)


def _is_foreign_punctuation(sign: str) -> bool:
    return ord(sign) > 0xFF and not "\u2000" <= sign <= "\u206f" and unicodedata.category(sign)[0] == "P"


@functools.cache
def _unspaced() -> re.Pattern[str]:
    marks = _marks()
    return re.compile(rf"[{_HAN}{_HIRAGANA}][{marks}]*|[{_KATAKANA}][{_KATAKANA}{marks}]*")


@functools.cache
def _clusters() -> re.Pattern[str]:
    return re.compile(rf"(?s:.)[{_marks()}\u1160-\u11ff]*")


@functools.cache
def _marks() -> str:
    """The ranges of all marks, for use inside a character class."""
    ranges: list[list[int]] = []
    for code in (*range(0x300, 0x20000), *range(0xE0100, 0xE01F0)):  # the planes between them have no marks
        if unicodedata.category(chr(code))[0] == "M":
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)
