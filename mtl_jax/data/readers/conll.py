"""CoNLL columns: a word a line with its tags, blank lines between sentences."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from mtl_jax.data.files.location import Location
from mtl_jax.data.readers.columns import IGNORED, check_columns, sentence_blocks, split_columns
from mtl_jax.data.records import Note, Record, line_numbers
from mtl_jax.errors import UserError

_DOCUMENT = "-DOCSTART-"


def read_conll(
    location: Location,
    encoding: str,
    *,
    columns: Sequence[str | None] = ("words", "tags"),
    separator: str | None = None,
    comment: str = "",
) -> Iterator[Record | Note]:
    """One record for each sentence: for each named column the list of its values.

    Args:
      columns: names of all columns, in order; "_" for one to ignore. CoNLL-2003: ("words", "pos", "chunk", "ner").
      separator: between columns; None = any run of blanks and tabs.
      comment: lines that begin with it are dropped; "" = there are none.

    Document markers (-DOCSTART-) are dropped; from the first one on, records have a field document, its number in the
    file. Tags are not changed: a task on them converts all splits to one scheme, see `labels.tag_columns`.
    Raises UserError at the line.
    """
    check_columns(columns, ())
    document = 0
    blocks = (
        (is_marker, list(lines))
        for block in sentence_blocks(location, encoding)
        for is_marker, lines in itertools.groupby(block, lambda numbered: numbered[1].startswith(_DOCUMENT))
    )
    for is_marker, block in blocks:
        document += is_marker
        if is_marker:
            continue
        block = [(number, line) for number, line in block if not (comment and line.startswith(comment))]
        rows = []
        for number, line in block:
            row = split_columns(line, separator)
            if len(row) != len(columns):
                raise UserError(
                    f"{location.name}:{number}: {len(row)} columns, options.columns names {len(columns)} "
                    f'({", ".join(map(str, columns))}); a column to ignore is called "_"'
                )
            rows.append(row)
        if rows:
            named = {name: list(v) for name, v in zip(columns, zip(*rows, strict=True), strict=True)}
            named = {name: values for name, values in named.items() if name not in IGNORED}
            lines = line_numbers([number for number, _ in block])
            yield Record(({"document": document} if document else {}) | named, location.name, lines[0], lines)
