"""Records that belong together, such as questions on one text: splits that are carved out keep them in one split."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from mtl_jax.data.records import Record, find_field, suggestion
from mtl_jax.errors import UserError

AUTO = "auto"
_SENTENCE_NUMBER = re.compile(r"(.*[^\W_].*?)[-_.:/#]+[a-zA-Z]{0,4}[0-9]+", re.DOTALL)


class Groups(NamedTuple):
    """keys   {split: [M] what the records of a group share; None for a record that belongs to no other}
    name   how messages call a group
    sure   False where the groups are guessed from the form of identifiers
    """

    keys: dict[str, list[Hashable]]
    name: str
    sure: bool = True


def find(splits: Mapping[str, Sequence[Record]], group: str, reader: str, options: Mapping[str, Any]) -> Groups | None:
    """The groups of all records; None where every record stands for itself.

    Args:
      splits: the records by split.
      group: name of a field whose values are shared | "" (none) | "auto": records of one line, and what the reader
        knows: squad and srl_questions the context; conllu, conllu_endings documents ("newdoc"; else sent_id without
        its last number); conll documents ("-DOCSTART-"); brat the file; nlvr the presentation; derived what the
        reader inside knows.
      reader, options: of the data set.

    Raises UserError where no record has the field.
    """
    if not group:
        return None
    if group != AUTO:
        keys = {split: [_key(find_field(record, group)) for record in records] for split, records in splits.items()}
        if all(key is None for found in keys.values() for key in found):
            known = sorted({str(name) for records in splits.values() for record in records for name in record.fields})
            raise UserError(
                f"group: no record has a field {group!r}; fields: {', '.join(known)}.{suggestion(group, known)}"
            )
        return Groups(keys, group)
    if reader == "derived":
        reader = options.get("reader", "conllu")
    known = _KNOWN.get(reader, _lines)
    found = {split: known(records) for split, records in splits.items()}
    keys = {split: keys for split, (keys, _, _) in found.items()}
    if not _repeats([key for keys_of_split in keys.values() for key in keys_of_split]):
        return None
    _, name, sure = found["train"] if "train" in found else next(iter(found.values()))
    return Groups(keys, name, sure)


def shared(keys: Sequence[Hashable], others: Sequence[Hashable]) -> int:
    """How many records of `keys` belong to a group that `others` has too."""
    there = set(others) - {None}
    return sum(key in there for key in keys)


_Found = tuple[list[Hashable], str, bool]  # keys, name, sure


def _lines(records: Sequence[Record]) -> _Found:
    """Several records of one line follow each other."""
    if not any(a.line == b.line and a.file == b.file for a, b in itertools.pairwise(records)):
        return [None] * len(records), "line of the file", True
    return [(record.file, record.line) if record.line else None for record in records], "line of the file", True


def _context(records: Sequence[Record]) -> _Found:
    return [_key(record.fields.get("context")) for record in records], "context", True


def _presentation(records: Sequence[Record]) -> _Found:
    keys = [
        record.fields.get("presentation") or str(record.fields.get("identifier") or "").partition("-")[0] or None
        for record in records
    ]
    return keys, "presentation", True


def _files(records: Sequence[Record]) -> _Found:
    return [record.file for record in records], "document", True


def _documents(records: Sequence[Record]) -> _Found:
    """What the reader calls `document`, a number within its file or an id; where none has one, guessed of sent_id."""
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
    """A field's value as a key; a list of one value again and again, as columns of documents have it, as that value."""
    if isinstance(value, list | tuple):
        items = [str(item) for item in value]
        return items[0] if items and len(set(items)) == 1 else tuple(items) or None
    return None if value is None or value == "" else str(value)


def _repeats(keys: Sequence[Hashable]) -> bool:
    given = [key for key in keys if key is not None]
    return len(set(given)) < len(given)


_KNOWN: dict[str, Callable[[Sequence[Record]], _Found]] = {
    "squad": _context,
    "srl_questions": _context,
    "nlvr": _presentation,
    "brat": _files,
    "conll": _documents,
    "conllu": _documents,
    "conllu_endings": _documents,
}
