"""PropBank-style semantic roles: one column of BIO tags, or brackets, for each predicate of the sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mtl_jax.data.files.location import Location
from mtl_jax.data.labels import tag_schemes
from mtl_jax.data.readers.columns import IGNORED, check_columns, sentence_blocks, split_columns
from mtl_jax.data.records import Note, Record, line_numbers
from mtl_jax.errors import UserError

_OF_THE_VERB = ("V", "C-V")  # C-V: the continued part of a verb in two pieces


def read_srl(
    location: Location,
    encoding: str,
    *,
    columns: Sequence[str | None] = ("_", "words", "upos", "xpos", "rolesets"),
    separator: str | None = "\t",
    no_roleset: str = "-",
    columns_after: int = 0,
) -> Iterator[Record | Note]:
    """One record a sentence.

    Fields: a list for each named column but rolesets; predicates: list of 0-based word indices; rolesets: their
    senses ("come.03"); roles: for each predicate the list of the tags of all words, such as B-ARG0.

    Args:
      columns: names of the columns before the roles; "words" and "rolesets" have to be among them.
      separator: between columns; None = any run of blanks and tabs.
      no_roleset: the entry of the rolesets column at a word that is no predicate.
      columns_after: number of columns after the roles, which are not read (CoNLL-2012 has one).

    Columns of roles in brackets, "(A0*", "*", "*)" (CoNLL-2005, CoNLL-2012), become BIO tags.

    Raises UserError at the line: ragged columns, more or fewer role columns than predicates, what is no tag of a
    role, a column whose tag at its predicate is not the verb's.
    """
    check_columns(columns, ("words", "rolesets"))
    for block in sentence_blocks(location, encoding):
        rows = [split_columns(line, separator) for _, line in block]
        numbers = [number for number, _ in block]
        for number, row in zip(numbers, rows, strict=True):
            if len(row) != len(rows[0]) or len(row) < len(columns) + columns_after:
                wanted = max(len(rows[0]), len(columns) + columns_after)
                raise UserError(f"{location.name}:{number}: {len(row)} columns, {wanted} wanted")
        by_name = dict(zip(columns, zip(*rows, strict=True), strict=False))
        senses = by_name.pop("rolesets")
        predicates = [i for i, sense in enumerate(senses) if sense != no_roleset]
        roles = [
            list(tags) for tags in zip(*(row[len(columns) : len(row) - columns_after] for row in rows), strict=True)
        ]
        if len(roles) != len(predicates):
            raise UserError(
                f"{location.name}:{numbers[0]}: {len(roles)} columns of roles for {len(predicates)} predicates"
            )
        roles = [_unbracketed(tags, location.name, numbers) for tags in roles]
        for predicate, tags in zip(predicates, roles, strict=True):
            _check_roles(predicate, tags, location.name, numbers)
        fields = {name: list(values) for name, values in by_name.items() if name not in IGNORED}
        fields |= {"predicates": predicates, "rolesets": [senses[i] for i in predicates], "roles": roles}
        yield Record(fields, location.name, numbers[0], line_numbers(numbers))


def _unbracketed(tags: list[str], file: str, numbers: list[int]) -> list[str]:
    if not tag_schemes.is_bracketed(tags):
        return tags
    try:
        return tag_schemes.convert_tags(tags, "brackets", "iob2")
    except tag_schemes.TagError as error:
        raise UserError(f"{file}:{numbers[error.word]}: {error}") from error


def _check_roles(predicate: int, tags: list[str], file: str, numbers: list[int]) -> None:
    for number, tag in zip(numbers, tags, strict=True):
        letter, role = tag_schemes.split_tag(tag)
        if not letter or (letter != "O" and not role):
            raise UserError(f"{file}:{number}: {tag!r} is no tag of a role, such as B-ARG0")
    if tag_schemes.split_tag(tags[predicate])[1] not in _OF_THE_VERB:
        raise UserError(
            f"{file}:{numbers[predicate]}: the predicate's own column of roles has {tags[predicate]!r} here, "
            "not B-V; are the columns in the order of the predicates?"
        )
