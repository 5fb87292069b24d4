"""CoNLL-U, the format of Universal Dependencies."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mtl_jax.data.files.location import Location
from mtl_jax.data.readers.columns import sentence_blocks
from mtl_jax.data.records import Note, Record
from mtl_jax.errors import UserError

_SKIPPED_ID = re.compile(r"[0-9]+-[0-9]+|[0-9]+\.[0-9]+")  # multi-word token ranges and empty nodes
_DOCUMENT = re.compile(r"#\s*newdoc(?:\s+id)?\s*(?:=\s*(.*?))?\s*")
_COMMENT = re.compile(r"#\s*(.+?)\s*=\s*(.*?)\s*")


def read_conllu(location: Location, encoding: str, *, genre: str = "") -> Iterator[Record | Note]:
    """One record a sentence.

    Fields: words (FORM), lemmas, upos, xpos, feats, deprels: lists of strings as in the file; heads: list of int, 0 the
    root, None for "_"; and every comment `# key = value` as a string: sent_id, text, "newdoc id", ...; document, the id
    (its number in the file where it has none) of the document that the last "# newdoc" began, absent before it.
    Multi-word token ranges (1-2) and empty nodes (1.1) are left out.

    Args:
      genre: a regular expression; where given, its first group (or the complete match) at the beginning of sent_id
        becomes the field genre. UD EWT: r"([a-z]+)-".

    Raises UserError at the line.
    """
    try:
        pattern = re.compile(genre)
    except re.error as error:
        raise UserError(f"options.genre: {genre!r} is no regular expression: {error}") from error
    documents = 0
    document: dict[str, str | int] = {}
    for block in sentence_blocks(location, encoding):
        comments = [line for _, line in block if line.startswith("#")]
        for match in filter(None, map(_DOCUMENT.fullmatch, comments)):
            documents += 1
            document = {"document": match[1] or documents}
        fields = document | {m[1]: m[2] for m in map(_COMMENT.fullmatch, comments) if m}
        lines = [(number, line) for number, line in block if not line.startswith("#")]
        rows = [(number, row) for number, line in lines if (row := _row(line, f"{location.name}:{number}"))]
        if not rows:
            if lines:
                raise UserError(f"{location.name}:{lines[0][0]}: a sentence without words")
            continue  # comments alone
        for i, (number, row) in enumerate(rows, start=1):
            if row[0] != str(i):
                raise UserError(f"{location.name}:{number}: the word's number should be {i}, found {row[0]!r}")
        names = ("words", "lemmas", "upos", "xpos", "feats")
        fields |= {name: [row[column] for _, row in rows] for column, name in enumerate(names, start=1)}
        fields["heads"] = [_head(row[6], len(rows), f"{location.name}:{number}") for number, row in rows]
        fields["deprels"] = [row[7] for _, row in rows]
        if genre:
            match = pattern.match(fields.get("sent_id", ""))
            if not match:
                raise UserError(
                    f"{location.name}:{block[0][0]}: options.genre {genre!r} does not match "
                    f"sent_id {fields.get('sent_id', '')!r}"
                )
            fields["genre"] = match[1] if pattern.groups else match[0]
        yield Record(fields, location.name, block[0][0])


def _row(line: str, place: str) -> list[str]:
    """The ten columns of a word, or nothing for a line that is none."""
    row = line.split("\t")
    if len(row) != 10:
        raise UserError(f"{place}: {len(row)} columns, CoNLL-U has 10, separated by tabs")
    return [] if _SKIPPED_ID.fullmatch(row[0]) else row


def _head(value: str, words: int, place: str) -> int | None:
    if value == "_":
        return None
    if not (value.isascii() and value.isdigit() and len(value) < 10 and int(value) <= words):
        raise UserError(f"{place}: HEAD has to be 0 to {words} or _, found {value!r}")
    return int(value)
