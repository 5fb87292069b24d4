"""Checks of the texts of records before they are encoded, and the key of records with the same text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mtl_jax.data.files import parse_cache
from mtl_jax.data.record_sequences import Records, arrays_of_chunks, selected
from mtl_jax.data.records import Note, Record, field, where
from mtl_jax.data.string_values import MISSING
from mtl_jax.errors import UserError

_LOOKS_MISSING = 'records whose text is a word for a missing value such as "nan" (options.empty="drop" leaves them out)'


def check_texts(records: Records, texts: Sequence[str], words: str, empty: str) -> tuple[Records, list[Note]]:
    """The records with a text, and a note for each that was dropped, or whose text is in `literals.MISSING`.

    `empty` = "drop": both are dropped; "error": raises UserError for the first record without a text.
    """
    checked = arrays_of_chunks("checked", check_chunk, records, (tuple(texts), words, empty), _key(texts, words, empty))
    notes = [Note(*note) for chunk in checked.info for note in chunk]
    has_text = checked.arrays["has_text"]
    return (records if has_text.all() else selected(records, np.flatnonzero(has_text))), notes


def _key(*values: Any) -> dict[str, Any]:
    return {"values": values, "code": parse_cache.code_digest()}


def check_chunk(
    records: Sequence[Record], texts: Sequence[str], words: str, empty: str
) -> tuple[dict[str, np.ndarray], list[Note]]:
    """As `check_texts`: whether each record stays, and the notes."""
    has_text, notes = np.ones(len(records), bool), []
    for number, record in enumerate(records):
        problem = _empty_words(record, words) if words else _empty_text(record, texts)
        looks_missing = not problem and any(field(record, name) in MISSING for name in texts)
        if problem and empty != "drop":
            raise UserError(f'{where(record)}: {problem}; options.empty="drop" leaves such records out')
        if looks_missing and empty != "drop":
            notes.append(Note(_LOOKS_MISSING, record.file, record.line))
        if problem or (looks_missing and empty == "drop"):
            notes.append(Note("records without text dropped (options.empty)", record.file, record.line, lost=1))
            has_text[number] = False
    return {"has_text": has_text}, notes


def _empty_text(record: Record, names: Sequence[str]) -> str:
    """Which text is empty, "" for none. Raises UserError for a value that is no string."""
    for name in names:
        value = field(record, name)
        if isinstance(value, float) and math.isnan(value):  # as pandas reads an empty cell
            value = None
        if value is not None and not isinstance(value, str):
            hint = f"; a list of words is named by words={name!r}" if isinstance(value, list) else ""
            raise UserError(f"{where(record)}: field {name!r} has to be a string, found {str(value)[:60]!r}{hint}")
        _check_characters(record, name, value or "")
        if not (value or "").strip():
            return f"the text {name!r} is empty"
    return ""


def _empty_words(record: Record, name: str) -> str:
    """Which word is empty, "" for none. Raises UserError for a value that is no list of words."""
    value = field(record, name)
    if isinstance(value, str):
        raise UserError(
            f"{where(record)}: field {name!r} is a string, not a list of words; name it in text=({name!r},), "
            f'or say where it is split: options={{"lists": {{{name!r}: " "}}}}'
        )
    if value is not None and not (isinstance(value, list) and all(isinstance(word, str) for word in value)):
        raise UserError(f"{where(record)}: field {name!r} has to be a list of words, found {str(value)[:60]!r}")
    if value and all(map(str.strip, value)) and "".join(value).isascii():  # the usual case, checked in one go
        return ""
    for number, word in enumerate(value or (), start=1):
        _check_characters(record, name, word)
        if not word.strip():
            return f"word {number} of {name!r} is empty"
    return "" if value else f"the list of words {name!r} is empty"


def _check_characters(record: Record, name: str, text: str) -> None:
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UserError(f"{where(record)}: field {name!r} has half a surrogate pair (broken \\u escape)") from error


def text_key(record: Record, texts: Sequence[str], words: str) -> tuple[str, ...]:
    """A key that records share whose texts are equal up to blanks."""
    return tuple(field(record, words)) if words else tuple(" ".join(field(record, name).split()) for name in texts)
