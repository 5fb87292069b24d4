"""The records of a file that belong to a data set, by values of their fields: `filter` of the entry."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mtl_jax.data.notices import INFORMATION, Notice
from mtl_jax.data.record_sequences import Records, selected
from mtl_jax.data.records import find_field, suggestion
from mtl_jax.errors import UserError

_SHOWN = 12  # values named in a message


def parse_conditions(given: Any) -> dict[str, tuple[str, ...]]:
    """{field: its accepted values, as strings} from `filter`. Raises UserError for what is neither value nor values."""
    if not isinstance(given, Mapping):
        raise UserError(f'filter has to be {{}} or such as {{"genre": "email"}}, found {given!r}')
    accepted = {}
    for name, values in given.items():
        values = tuple(values) if isinstance(values, list | tuple) else (values,)
        if not values or not all(isinstance(value, str | int | float) for value in values):
            raise UserError(f"filter.{name}: has to be a value or a tuple of values, found {given[name]!r}")
        accepted[name] = tuple(str(value) for value in values)
    return accepted


def filter_records(
    splits: Mapping[str, Records], accepted: Mapping[str, tuple[str, ...]]
) -> tuple[dict[str, Records], list[str]]:
    """The records whose fields have accepted values, in their order, and a note for each split.

    Values are compared as strings; a field may be a path, see `records.field`; a record without it is left out.
    Raises UserError where no record has a field, or no record of a split is left, naming the fields or values that
    exist.
    """
    chosen, notes = dict(splits), []
    for name in accepted:
        if not any(text is not None for records in splits.values() for text in _values(records, name)):
            known = sorted({str(key) for records in splits.values() for record in records for key in record.fields})
            raise UserError(
                f"filter.{name}: no record has such a field; fields: {', '.join(known)}.{suggestion(name, known)}"
            )
    for split, records in splits.items():
        for name, values in accepted.items():
            before = chosen[split]
            is_accepted = np.fromiter((text in values for text in _values(before, name)), bool, len(before))
            chosen[split] = selected(before, np.flatnonzero(is_accepted))
            if not is_accepted.any():
                counts = collections.Counter(text for text in _values(before, name) if text is not None)
                raise UserError(f"filter.{name}: no record of {split} has {_either(values)}; {_listed(counts, values)}")
        if accepted:
            text = f"{split}: {len(chosen[split])} of {len(records)} records (filter)"
            notes.append(Notice(text, INFORMATION, len(chosen[split]), len(records)))
    return chosen, notes


def _values(records: Records, name: str) -> Iterator[str | None]:
    """The field's value of each record as a string; None where it has none."""
    for record in records:
        value = find_field(record, name)
        yield None if value is None else str(value)


def _either(values: Sequence[str]) -> str:
    return " or ".join(map(repr, values[:_SHOWN])) + (" …" if len(values) > _SHOWN else "")


def _listed(counts: collections.Counter[str], values: Sequence[str]) -> str:
    """The most frequent values that exist, and one that may have been meant."""
    shown = ", ".join(f"{text[:40]!r} ({count})" for text, count in counts.most_common(_SHOWN))
    return f"there are: {shown or 'none'}{' …' if len(counts) > _SHOWN else ''}.{suggestion(values[0], counts)}"
