"""Values that files hold as strings: missing values, and lists: "['a', 'b']" (pandas, the Hub), JSON, NumPy, sets."""

from __future__ import annotations

import json
import re
from typing import Any

MISSING = ("NaN", "nan", "NAN", "<NA>", "#N/A", "null", "NULL", "Null")  # as pandas, spreadsheets and SQL write it
_DEEPEST = 6
_CALL = re.compile(r"(?:np\.|numpy\.)?(?:array|list|tuple|set|frozenset)\(")
_DTYPE = re.compile(r",\s*dtype=[^()]*$")
_QUOTED = re.compile(r"""[bBuU]?(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")""", re.DOTALL)
_BARE = re.compile(r"[^,\[\](){}'\"][^,\[\](){}]*")
_NUMBER = re.compile(r"[-+]?[0-9]{1,15}(\.[0-9]{0,15}(?:[eE][-+]?[0-9]{1,3})?)?")
_BLANKS = re.compile(r"\s*")
_COLON = re.compile(r"\s*:\s*")
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
_CONTROL = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": ""}
_CLOSES = {"[": "]", "(": ")", "{": "}"}
_WORDS = {
    "True": True,
    "true": True,
    "False": False,
    "false": False,
    "None": None,
    "null": None,
    "nan": None,
    "NaN": None,
    "<NA>": None,
}
_BROKEN = re.compile(r"\[\s*[bBuU]?['\"].*|.*['\"]\s*,?\s*\]", re.DOTALL)


class _Unreadable(ValueError):
    """The string is no list."""


def looks_like_list(text: str) -> bool:
    """Whether a string looks like a list: in brackets, or with the beginning or end of a list of quoted strings."""
    text = text.strip()
    in_brackets = len(text) > 1 and _CLOSES.get(text[0]) == text[-1]
    return in_brackets or bool(_CALL.match(text) and text.endswith(")")) or bool(_BROKEN.fullmatch(text))


def parse_literal(text: str, names: bool = False) -> list[Any] | dict[str, Any] | None:
    """The list (also of a set or tuple) or object that the string `text` represents; None where it represents none.

    Items are strings, numbers, True, False, None, lists and objects. In [brackets] strings need no quotes: [a, b];
    items may be separated by blanks, as NumPy writes them. A list that is abridged with "..." is no list.

    `names`: strings need no quotes in {a, b} (PostgreSQL) and (a, b) either; (a) is no list, {a: b} no list of names.
    """
    text = text.strip()
    if text[:1] in ("[", "{"):
        try:
            value = json.loads(text)
            return value if isinstance(value, list | dict) else None
        except (ValueError, RecursionError):
            pass
    try:
        loose = names and (("," in text and text[:1] == "(") or (":" not in text and text[:1] == "{"))
        value, end = _value(text, 0, 0, text[:1] == "[" or loose or bool(_CALL.match(text)))
        return value if end == len(text) and isinstance(value, list | dict) else None
    except _Unreadable:
        return None


def _value(text: str, at: int, depth: int, bare: bool) -> tuple[Any, int]:
    """(the value that begins at `at`, where it ends). `bare`: strings need no quotes."""
    if depth > _DEEPEST:
        raise _Unreadable
    if match := _CALL.match(text, at):
        at = match.end()
        if text[at : at + 1] == ")":
            return [], at + 1
        value, at = _value(text, at, depth + 1, bare)
        end = text.find(")", at)
        if end < 0 or (text[at:end].strip() and not _DTYPE.fullmatch(text[at:end].rstrip())):
            raise _Unreadable
        return value, end + 1
    if text[at : at + 1] in _CLOSES:
        return _items(text, at, depth, bare)
    if match := _QUOTED.match(text, at):
        return _unescaped(match[1] if match[1] is not None else match[2]), match.end()
    if match := _BARE.match(text, at):
        return _plain(match[0].strip(), bare), match.end()
    raise _Unreadable


def _items(text: str, at: int, depth: int, bare: bool) -> tuple[Any, int]:
    """(list or object between the bracket at `at` and its closing bracket, where it ends)."""
    opening, closing = text[at], _CLOSES[text[at]]
    items, keys, commas, words = [], [], 0, []
    at = _BLANKS.match(text, at + 1).end()
    while text[at : at + 1] != closing:
        begin = at
        key = _QUOTED.match(text, at) if opening == "{" else None
        colon = key and _COLON.match(text, key.end())
        if colon:
            keys.append(_unescaped(key[1] if key[1] is not None else key[2]))
            at = colon.end()
        value, at = _value(text, at, depth + 1, bare)
        items.append(value)
        words.append(text[begin:at].strip() if _BARE.match(text, begin) and not _CALL.match(text, begin) else None)
        at = _BLANKS.match(text, at).end()
        if text[at : at + 1] == ",":
            commas += 1
            at = _BLANKS.match(text, at + 1).end()
        elif text[at : at + 1] != closing and text[at : at + 1] not in ("'", '"', *_CLOSES):
            raise _Unreadable
    if keys:
        if len(keys) != len(items):
            raise _Unreadable
        return dict(zip(keys, items, strict=True)), at + 1
    if not commas:  # NumPy has blanks between its items
        pairs = zip(items, words, strict=True)
        items = [i for item, word in pairs for i in ([_plain(w, bare) for w in word.split()] if word else [item])]
    return items, at + 1


def _plain(word: str, bare: bool) -> Any:
    """A number, True, False or None, else a string without quotes."""
    if word in _WORDS:
        return _WORDS[word]
    if match := _NUMBER.fullmatch(word):
        return float(word) if match[1] else int(word)
    if not bare or "..." in word or not word:
        raise _Unreadable
    return word


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text

    def character(match: re.Match[str]) -> str:
        escape = match[1]
        if len(escape) > 1:
            code = int(escape[1:], 16)
            return chr(code) if code <= 0x10FFFF else "\ufffd"
        return _CONTROL.get(escape, escape)

    unescaped = _ESCAPE.sub(character, text)
    return unescaped.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")  # joins surrogate pairs
