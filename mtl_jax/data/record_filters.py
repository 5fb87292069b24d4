"""Which records of a file belong to a data set: `where` of its entry, for one file that holds several tasks."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtl_jax.data.notices import INFORMATION, Notice
from mtl_jax.data.records import Record, find_field, suggestion
from mtl_jax.errors import UserError

_SHOWN = 12  # values named in a message


def conditions(given: Any) -> dict[str, tuple[str, ...]]:
    """{field: the values it may have, as texts} from `where`. Raises UserError for what is neither value nor values."""
    if not isinstance(given, Mapping):
        raise UserError(f'where has to be {{}} or such as {{"genre": "email"}}, found {given!r}')
    wanted = {}
    for name, values in given.items():
        values = tuple(values) if isinstance(values, list | tuple) else (values,)
        if not values or not all(isinstance(value, str | int | float) for value in values):
            raise UserError(f"where.{name}: has to be a value or a tuple of values, found {given[name]!r}")
        wanted[name] = tuple(str(value) for value in values)
    return wanted


def select(
    splits: Mapping[str, list[Record]], wanted: Mapping[str, tuple[str, ...]]
) -> tuple[dict[str, list[Record]], list[str]]:
    """The records whose fields have one of the wanted values, and a note for each split; every split keeps its order.

    A value is compared as text; a field may be a path, as `records.field` reads it; a record without it is left out.
    Raises UserError where no record has a field, or none of a split is left, naming what there is.
    """
    chosen, notes = dict(splits), []
    whole = [record for records in splits.values() for record in records]
    for name in wanted:
        if not any(True for _ in _values(whole, name)):
            known = sorted({str(key) for record in whole for key in record.fields})
            raise UserError(
                f"where.{name}: no record has such a field; fields: {', '.join(known)}.{suggestion(name, known)}"
            )
    for split, records in splits.items():
        for name, values in wanted.items():
            there = collections.Counter(text for _, text in _values(chosen[split], name))
            chosen[split] = [record for record, text in _values(chosen[split], name) if text in values]
            if not chosen[split]:
                raise UserError(f"where.{name}: no record of {split} has {_either(values)}; {_named(there, values)}")
        if wanted:
            text = f"{split}: {len(chosen[split])} of {len(records)} records (where)"
            notes.append(Notice(text, INFORMATION, len(chosen[split]), len(records)))
    return chosen, notes


def _values(records: Sequence[Record], name: str) -> Iterator[tuple[Record, str]]:
    """Each record that has the field, and the field's value as text."""
    for record in records:
        value = find_field(record, name)
        if value is not None:
            yield record, str(value)


def _either(values: Sequence[str]) -> str:
    return " or ".join(map(repr, values[:_SHOWN])) + (" …" if len(values) > _SHOWN else "")


def _named(there: collections.Counter[str], values: Sequence[str]) -> str:
    """The most frequent values that there are, and one that may have been meant."""
    shown = ", ".join(f"{text[:40]!r} ({count})" for text, count in there.most_common(_SHOWN))
    return f"there are: {shown or 'none'}{' …' if len(there) > _SHOWN else ''}.{suggestion(values[0], there)}"
