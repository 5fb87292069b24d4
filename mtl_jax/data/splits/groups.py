"""Groups of records that belong together, such as questions on one text; carving keeps each group in one split."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from mtl_jax.data.record_sequences import places
from mtl_jax.data.records import Record, find_field, suggestion
from mtl_jax.errors import UserError

AUTO = "auto"
_SENTENCE_NUMBER = re.compile(r"(.*[^\W_].*?)[-_.:/#]+[a-zA-Z]{0,4}[0-9]+", re.DOTALL)


class Groups(NamedTuple):
    """Groups of records.

    keys   {split: [M] a key that the records of a group share; None for a record in a group of its own}
    name   of a group in messages
    sure   False where the groups are guessed from the form of identifiers
    """

    keys: dict[str, list[Hashable]]
    name: str
    sure: bool = True


def find_groups(
    splits: Mapping[str, Sequence[Record]], group: str, reader: str, options: Mapping[str, Any]
) -> Groups | None:
    """The groups of all records; None where every record is a group of its own.

    Args:
      splits: the records by split.
      group: name of a field whose values define the groups | "" (none) | "auto": by reader. squad, srl_questions: the
        context; conllu, conllu_endings: the document ("newdoc"; else sent_id without its last number); conll: the
        document ("-DOCSTART-"); brat: the file; nlvr: the presentation; derived: as for the reader that it reads
        through; all others: records of one line.
      reader, options: of the data set.

    Raises UserError where no record has the field.
    """
    if not group:
        return None
    if group != AUTO:
        keys = {split: [_key(find_field(record, group)) for record in records] for split, records in splits.items()}
        if all(key is None for split_keys in keys.values() for key in split_keys):
            known = sorted({str(name) for records in splits.values() for record in records for name in record.fields})
            raise UserError(
                f"group_by: no record has a field {group!r}; fields: {', '.join(known)}.{suggestion(group, known)}"
            )
        return Groups(keys, group)
    if reader == "derived":
        reader = options.get("reader", "conllu")
    grouping = _GROUPINGS.get(reader, _by_line)
    if grouping is _by_line and not any(map(_repeats_lines, splits.values())):
        return None
    keyed = {split: grouping(records) for split, records in splits.items()}
    keys = {split: keys for split, (keys, _, _) in keyed.items()}
    if not _repeats([key for split_keys in keys.values() for key in split_keys]):
        return None
    _, name, sure = keyed["train"] if "train" in keyed else next(iter(keyed.values()))
    return Groups(keys, name, sure)


def count_shared(keys: Sequence[Hashable], others: Sequence[Hashable]) -> int:
    """How many records with `keys` belong to a group that `others` has as well."""
    other_groups = set(others) - {None}
    return sum(key in other_groups for key in keys)


_Keyed = tuple[list[Hashable], str, bool]  # keys, name, sure


def _by_line(records: Sequence[Record]) -> _Keyed:
    """Several records of one line are consecutive."""
    if not _repeats_lines(records):
        return [None] * len(records), "line of the file", True
    return [(record.file, record.line) if record.line else None for record in records], "line of the file", True


def _repeats_lines(records: Sequence[Record]) -> bool:
    """Whether two records that follow each other are of one line."""
    _, file, line = places(records)
    return bool(((file[1:] == file[:-1]) & (line[1:] == line[:-1])).any())


def _by_context(records: Sequence[Record]) -> _Keyed:
    return [_key(record.fields.get("context")) for record in records], "context", True


def _by_presentation(records: Sequence[Record]) -> _Keyed:
    keys = [
        record.fields.get("presentation") or str(record.fields.get("identifier") or "").partition("-")[0] or None
        for record in records
    ]
    return keys, "presentation", True


def _by_file(records: Sequence[Record]) -> _Keyed:
    return [record.file for record in records], "document", True


def _by_document(records: Sequence[Record]) -> _Keyed:
    """By the field `document`, a number within its file or an id; where no record has one, guessed from sent_id."""
    values = [record.fields.get("document") for record in records]
    if any(isinstance(value, str | int) for value in values):
        keys = [
            (record.file, value) if isinstance(value, int) else value if isinstance(value, str) else None
            for record, value in zip(records, values, strict=True)
        ]
        return keys, "document", True
    matches = [_SENTENCE_NUMBER.fullmatch(str(record.fields.get("sent_id") or "")) for record in records]
    return [match and match[1] for match in matches], "sent_id without its number", False


def _key(value: Any) -> Hashable:
    """A field's value as a key; a list that repeats one value, such as a column of document names, as that value."""
    if isinstance(value, list | tuple):
        items = [str(item) for item in value]
        return items[0] if items and len(set(items)) == 1 else tuple(items) or None
    return None if value is None or value == "" else str(value)


def _repeats(keys: Sequence[Hashable]) -> bool:
    given = [key for key in keys if key is not None]
    return len(set(given)) < len(given)


_GROUPINGS: dict[str, Callable[[Sequence[Record]], _Keyed]] = {
    "squad": _by_context,
    "srl_questions": _by_context,
    "nlvr": _by_presentation,
    "brat": _by_file,
    "conll": _by_document,
    "conllu": _by_document,
    "conllu_endings": _by_document,
}
