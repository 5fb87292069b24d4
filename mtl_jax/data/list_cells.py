"""Lists in the cells of a table, written as texts, made lists again: words and their tags, choices, spans, pictures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mtl_jax.data import literals
from mtl_jax.data.records import Record, suggestion, where
from mtl_jax.errors import UserError


def check_separators(separators: Any) -> None:
    """Raises UserError for what is no mapping of fields to the texts between the items of a list."""
    if not isinstance(separators, Mapping) or not all(isinstance(text, str) and text for text in separators.values()):
        raise UserError(f'options.lists has to be such as {{"tokens": " "}}, field to separator; found {separators!r}')


def check_fields(names: Iterable[str], records: Sequence[Record]) -> None:
    """Raises UserError for a name in `options.lists` that is the field of no record."""
    for name in names:
        if not any(name in record.fields for record in records):
            known = sorted({str(field) for record in records for field in record.fields})
            near = suggestion(name, known)
            raise UserError(f"options.lists: no record has a field {name!r}; fields: {', '.join(known)}.{near}")


def read_lists(records: Sequence[Record], entry: Mapping[str, Any]) -> tuple[list[Record], int]:
    """The records with lists in the fields that an entry reads as lists, and how many were changed.

    Such fields are `words`, a single field of `choices`, two of `marked`, `image`, and those that a path such as
    "choices.text" leads into; beside words that are a list as a text every field that is one too, such as their tags;
    and texts that `options.lists` of the entry says where to cut.

    Raises UserError for words that are a broken list.
    """
    separators = (entry.get("options") or {}).get("lists") or {}
    separators = dict(separators.items()) if hasattr(separators, "items") else {}  # XML names fields alone
    words = entry.get("words") or ""
    named = {words, entry.get("image") or ""} - {""}
    for name in ("choices", "marked"):
        fields = tuple(entry.get(name) or ())
        named |= set(fields) if len(fields) == (1 if name == "choices" else 2) else set()
    paths = [words, entry.get("image") or "", *(entry.get("choices") or ()), *(entry.get("marked") or ())]
    text = entry.get("text") or ()
    paths += [text] if isinstance(text, str) else text
    named |= {path.split(".")[0] for path in paths if "." in path}
    if not named and not separators:
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
        for name, separator in separators.items():
            if isinstance(cell := record.fields.get(name), str) and name not in lists:
                parts = cell.split(None if separator == " " else separator)
                lists[name] = [part.strip() for part in parts if part.strip()]
        count += bool(lists)
        changed.append(record._replace(fields=record.fields | lists) if lists else record)
    return changed, count
