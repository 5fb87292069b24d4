"""CoNLL columns: a word a line with its tags, blank lines between sentences."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from mtl_jax.data import schemes as tagging
from mtl_jax.data.files import Location
from mtl_jax.data.readers.columns import IGNORED, cells, check_columns, sentences
from mtl_jax.data.records import Note, Record, suggestion
from mtl_jax.errors import UserError

_DOCUMENT = "-DOCSTART-"


class _Sentence(NamedTuple):
    lines: list[int]  # line number of each word
    columns: dict[str, list[str]]
    document: int  # number of the document, from 1; 0 before the first marker


def read_conll(
    location: Location,
    encoding: str,
    *,
    columns: Sequence[str | None] = ("words", "tags"),
    separator: str | None = None,
    comment: str = "",
    schemes: Mapping[str, str] | None = None,
    scheme: str = "iob2",
) -> Iterator[Record | Note]:
    """One record a sentence: for each named column the list of its values.

    Args:
      columns: names of all columns, in order; "_" for one to ignore. CoNLL-2003: ("words", "pos", "chunk", "ner").
      separator: between columns; None = any run of blanks and tabs.
      comment: lines that begin with it are dropped; "" = there are none.
      schemes: {column: scheme of its tags in the file}: "iob1", "iob2", "bioes", "bilou", "bmes", "brackets"; a tag
        that breaks the scheme is an error. "none": the column holds no spans. Columns not named here, and not called
        "words": where all tags of the file look like O and B-X, or like * and (X*, the scheme is found out and broken
        sequences are mended as conlleval reads them.
      scheme: scheme of the tags in the records, "iob2" or "bioes".

    Document markers (-DOCSTART-) are dropped; from the first one on, records have a field document, its number in the
    file. Raises UserError at the line.
    """
    check_columns(columns, ())
    schemes = dict(schemes or {})
    _check_schemes(columns, schemes, scheme)
    found = list(_sentences(location, encoding, columns, separator, comment))
    for name in columns:
        if name not in IGNORED and schemes.get(name, "none" if name == "words" else None) != "none":
            yield from _convert(found, name, schemes.get(name), scheme, location.name)
    for sentence in found:
        document = {"document": sentence.document} if sentence.document else {}
        yield Record(document | sentence.columns, location.name, sentence.lines[0])


def _sentences(
    location: Location, encoding: str, columns: Sequence[str | None], separator: str | None, comment: str
) -> Iterator[_Sentence]:
    document = 0
    blocks = (
        (is_marker, list(lines))
        for block in sentences(location, encoding)
        for is_marker, lines in itertools.groupby(block, lambda numbered: numbered[1].startswith(_DOCUMENT))
    )
    for is_marker, block in blocks:
        document += is_marker
        if is_marker:
            continue
        block = [(number, line) for number, line in block if not (comment and line.startswith(comment))]
        rows = []
        for number, line in block:
            row = cells(line, separator)
            if len(row) != len(columns):
                raise UserError(
                    f"{location.name}:{number}: {len(row)} columns, options.columns names {len(columns)} "
                    f'({", ".join(map(str, columns))}); a column to ignore is called "_"'
                )
            rows.append(row)
        if rows:
            named = {name: list(v) for name, v in zip(columns, zip(*rows, strict=True), strict=True)}
            named = {name: values for name, values in named.items() if name not in IGNORED}
            yield _Sentence([number for number, _ in block], named, document)


def _convert(found: list[_Sentence], name: str, source: str | None, target: str, file: str) -> Iterator[Note]:
    """Rewrites column `name` of all sentences from scheme `source` (None = find out) to `target`, in place."""
    scheme = source or tagging.detect(sentence.columns[name] for sentence in found)
    if scheme is None:
        return
    for sentence in found:
        values = sentence.columns[name]
        try:
            sentence.columns[name] = tagging.convert(values, scheme, target, strict=True)
        except tagging.TagError as error:
            line = sentence.lines[error.word]
            if source is not None:
                raise UserError(
                    f"{file}:{line}: column {name!r}: {error}; leave options.schemes[{name!r}] out to mend such tags"
                ) from error
            sentence.columns[name] = tagging.convert(values, scheme, target, strict=False)
            yield Note(f"sentences with a broken {scheme} sequence in column {name!r} mended", file, line)
    if scheme != target:
        yield Note(f"files with column {name!r} converted from {scheme} to {target}", file, 0)


def _check_schemes(columns: Sequence[str | None], schemes: Mapping[str, str], scheme: str) -> None:
    if scheme not in ("iob2", "bioes"):
        raise UserError(f'options.scheme has to be "iob2" or "bioes", not {scheme!r}')
    for name, source in schemes.items():
        if name not in columns:
            raise UserError(f"options.schemes names {name!r}, which options.columns does not: {tuple(columns)}")
        if source not in (*tagging.SCHEMES, "none"):
            known = (*tagging.SCHEMES, "none")
            raise UserError(f"options.schemes[{name!r}]: {source!r} is not one of {known}.{suggestion(source, known)}")
