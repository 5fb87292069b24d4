"""Lists in the cells of a table, written as texts, made lists again: words and their tags, choices, spans, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtl_jax.data import literals
from mtl_jax.data.records import Record, where
from mtl_jax.errors import UserError


def read_lists(records: Sequence[Record], entry: Mapping[str, Any]) -> tuple[list[Record], int]:
    """The records with lists in the fields that an entry reads as lists, and how many were changed.

    Such fields are `words`, a single field of `choices`, two of `marked`, `image`, and those that a path such as
    "choices.text" leads into; beside words that are a list as a text every field that is one too, such as their tags.
    Raises UserError for words that are a broken list.
    """
    words = entry.get("words") or ""
    named = {words, entry.get("image") or ""} - {""}
    for name in ("choices", "marked"):
        fields = tuple(entry.get(name) or ())
        named |= set(fields) if len(fields) == (1 if name == "choices" else 2) else set()
    paths = [words, entry.get("image") or "", *(entry.get("choices") or ()), *(entry.get("marked") or ())]
    text = entry.get("text") or ()
    paths += [text] if isinstance(text, str) else text
    named |= {path.split(".")[0] for path in paths if "." in path}
    if not named:
        return list(records), 0
    changed, count = [], 0
    for record in records:
        cells = {name: record.fields.get(name) for name in named}
        cells = {name: cell for name, cell in cells.items() if isinstance(cell, str) and literals.is_like(cell)}
        if words in cells:
            cells = {n: c for n, c in record.fields.items() if isinstance(c, str) and literals.is_like(c)}
        lists = {name: found for name, cell in cells.items() if (found := literals.parse(cell)) is not None}
        if words in cells and words not in lists:
            cell = cells[words][:60]
            raise UserError(f"{where(record)}: field {words!r} looks like a list, but cannot be read: {cell!r}")
        count += bool(lists)
        changed.append(record._replace(fields=record.fields | lists) if lists else record)
    return changed, count
