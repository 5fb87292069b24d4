"""Dialogues: each turn is to be generated from the turns before it."""

from __future__ import annotations

from collections.abc import Iterator

from mtl_jax.data.files.location import Location
from mtl_jax.data.readers.jsonl import read_records
from mtl_jax.data.records import Note, Record, field, find_field, where
from mtl_jax.errors import UserError


def read_dialogue(
    location: Location,
    encoding: str,
    *,
    turns: str = "turns",
    text: str = "text",
    before: int = 3,
    separator: str = " | ",
    records: str = "",
    key: str = "",
) -> Iterator[Record | Note]:
    """One record for each turn but the first of each dialogue; a dialogue is an object, in any form of `jsonl`.

    A dialogue of less than two turns gives no record and is counted.

    Fields: context, the turns before it, joined; reply, the turn; turn, its number from 2; and the other fields of the
    dialogue.

    Args:
      turns: field with the list of turns, strings or objects.
      text: key of the text, where turns are objects.
      before: the largest number of turns of the context; 0 = all.
      separator: between them.
      records, key: where the dialogues are, see `jsonl`; an object with turns is a dialogue.

    Raises UserError at the line: no such field, a turn without text; and the errors of `jsonl`.
    """
    for item in read_records(location, encoding, records, key, fields=(turns,)):
        turns_of_record = field(item, turns)
        if not isinstance(turns_of_record, list):
            raise UserError(
                f"{where(item)}: field {turns!r} should be a list of turns, found {turns_of_record!r}"[:200]
            )
        texts = [
            find_field(item._replace(fields=turn), text) if isinstance(turn, dict) else turn for turn in turns_of_record
        ]
        for number, turn in enumerate(texts, start=1):
            if not isinstance(turn, str):
                raise UserError(f"{where(item)}: turn {number} of {turns!r} should be a string, found {turn!r}"[:200])
        if len(texts) < 2:
            yield Note("dialogues without a second turn left out", item.file, item.line, lost=1)
        other_fields = {name: value for name, value in item.fields.items() if name != turns}
        for number in range(1, len(texts)):
            context = separator.join(texts[max(0, number - before) if before else 0 : number])
            yield item._replace(fields={**other_fields, "context": context, "reply": texts[number], "turn": number + 1})
