"""One JSON object that holds all splits: {"train": [...], "val": [...]} (the layout of CLINC150)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mtl_jax.data.files import Location
from mtl_jax.data.readers.jsonl import kind, parse_json
from mtl_jax.data.records import Note, Record, suggestion
from mtl_jax.errors import UserError


def read_json_splits(
    location: Location, encoding: str, *, split: str, columns: Sequence[str] = ("text", "label")
) -> Iterator[Record | Note]:
    """One record an item of the list under key `split`. Record.file is "path:split", Record.line the item's number.

    Args:
      split: key of the object; given by `splits` of the data set.
      columns: names for the values of items that are lists; items that are objects have their own names.

    Raises UserError at the item.
    """
    found = parse_json(location.text(encoding), location.name)
    if not isinstance(found, dict):
        raise UserError(f"{location.name}: has to hold one JSON object of splits, found {kind(found)}")
    if split not in found:
        known = ", ".join(found)
        raise UserError(f"{location.name}: no split {split!r}; there are: {known}.{suggestion(split, found)}")
    if not isinstance(found[split], list):
        raise UserError(f"{location.name}: split {split!r} has to be a list of items, found {kind(found[split])}")
    file = f"{location.name}:{split}"
    for number, item in enumerate(found[split], start=1):
        if isinstance(item, list):
            if len(item) != len(columns):
                raise UserError(
                    f"{file}:{number}: {len(item)} values, options.columns names {len(columns)} ({', '.join(columns)})"
                )
            item = dict(zip(columns, item, strict=True))
        if not isinstance(item, dict):
            raise UserError(f"{file}:{number}: an item has to be a list or an object, found {kind(item)}")
        yield Record(item, file, number)
