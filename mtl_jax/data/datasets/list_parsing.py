"""Lists that a table holds as strings, parsed: words and their tags, choices, spans, pictures."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mtl_jax.data.files import parse_cache
from mtl_jax.data.record_sequences import Records, StoredRecords, arrays_of_chunks, map_chunks, store
from mtl_jax.data.records import Record, suggestion, where
from mtl_jax.data.string_values import looks_like_list, parse_literal
from mtl_jax.errors import UserError


def check_separators(separators: Any) -> None:
    """Raises UserError for what is no mapping of fields to separators."""
    if not isinstance(separators, Mapping) or not all(isinstance(s, str) and s for s in separators.values()):
        raise UserError(f'options.lists has to be such as {{"tokens": " "}}, field to separator; found {separators!r}')


def check_fields(names: Iterable[str], parts: Sequence[Records]) -> None:
    """Raises UserError for a name in `options.lists` that no record of any part has as a field."""
    for name in names:
        if not any(name in record.fields for records in parts for record in records):
            known = sorted({str(field) for records in parts for record in records for field in record.fields})
            near = suggestion(name, known)
            raise UserError(f"options.lists: no record has a field {name!r}; fields: {', '.join(known)}.{near}")


def parse_list_cells(records: Records, entry: Mapping[str, Any]) -> tuple[Records, int]:
    """The records with lists in the fields that an entry reads as lists, and how many records were changed.

    Such fields are `words`, a single field of `choices`, two of `marked`, `image`, and the first field of a path such
    as "choices.text"; where the words are a list written as a string, also every other field that is one, such as
    their tags; and the fields in `options.lists` of the entry, which are split at their separators.

    Raises UserError for words that are a broken list.
    """
    separators = (entry.get("options") or {}).get("lists") or {}
    separators = dict(separators.items()) if hasattr(separators, "items") else {}  # a list of fields for XML
    words = entry.get("words") or ""
    list_fields = _list_fields(entry)
    if not list_fields and not separators:
        return records, 0
    if not isinstance(records, StoredRecords):
        return parse_chunk(records, words, list_fields, separators)
    common = (words, sorted(list_fields), separators)
    key = {"lists": common, "code": parse_cache.code_digest()}
    changed = arrays_of_chunks("lists", changed_chunk, records, common, key).arrays["changed"]
    if not changed.any():
        return records, 0
    chunks = (chunk for chunk, _ in map_chunks(parse_chunk, records, common))
    return store(itertools.chain.from_iterable(chunks), [records.key, key]), int(changed.sum())


def changed_chunk(records: Sequence[Record], *arguments: Any) -> tuple[dict[str, np.ndarray], None]:
    """Which records `parse_chunk` changes."""
    records = list(records)
    parsed, _ = parse_chunk(records, *arguments)
    changed = (new is not old for new, old in zip(parsed, records, strict=True))
    return {"changed": np.fromiter(changed, bool, len(parsed))}, None


def parse_chunk(
    records: Sequence[Record], words: str, list_fields: Iterable[str], separators: Mapping[str, str]
) -> tuple[list[Record], int]:
    """As `parse_list_cells`."""
    result, count = [], 0
    for record in records:
        cells = {name: record.fields.get(name) for name in list_fields}
        cells = {name: cell for name, cell in cells.items() if isinstance(cell, str) and looks_like_list(cell)}
        if words in cells:
            cells = {n: c for n, c in record.fields.items() if isinstance(c, str) and looks_like_list(c)}
        lists = {name: items for name, cell in cells.items() if (items := parse_literal(cell)) is not None}
        if words in cells and words not in lists:
            cell = cells[words][:60]
            raise UserError(f"{where(record)}: field {words!r} looks like a list, but cannot be read: {cell!r}")
        for name, separator in separators.items():
            if isinstance(cell := record.fields.get(name), str) and name not in lists:
                parts = cell.split(None if separator == " " else separator)
                lists[name] = [part.strip() for part in parts if part.strip()]
        count += bool(lists)
        result.append(record._replace(fields=record.fields | lists) if lists else record)
    return result, count


def _list_fields(entry: Mapping[str, Any]) -> set[str]:
    """The fields that an entry reads as lists, those of `options.lists` aside."""
    words, image, text = entry.get("words") or "", entry.get("image") or "", entry.get("text") or ()
    choices, marked = tuple(entry.get("choices") or ()), tuple(entry.get("marked") or ())
    names = {words, image} - {""}
    if len(choices) == 1:
        names |= set(choices)
    if len(marked) == 2:
        names |= set(marked)
    paths = (words, image, *choices, *marked, *((text,) if isinstance(text, str) else text))
    return names | {path.split(".")[0] for path in paths if "." in path}
