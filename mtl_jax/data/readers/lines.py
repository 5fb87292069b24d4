"""Text files in which a pattern finds texts and labels: in each line, or in records of several lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from mtl_jax.data.files.location import Location
from mtl_jax.data.readers.columns import sentence_blocks
from mtl_jax.data.records import Note, Record
from mtl_jax.errors import UserError


def read_lines(
    location: Location,
    encoding: str,
    *,
    pattern: str = "(?P<text>.+)",
    lists: Mapping[str, str] | None = None,
    on_bad_line: str = "error",
    lines_per_record: int = 1,
) -> Iterator[Record | Note]:
    r"""One record a line that is not blank. Fields: the named groups of `pattern`, stripped (None where a group took no
    part). Groups may stand in each other.

        fastText       pattern=r"(?P<labels>(?:__label__\S+\s+)+)(?P<text>.+)", lists={"labels": "__label__"}
        TREC           pattern=r"(?P<fine>(?P<label>\w+):\w+)\s(?P<text>.+)": ENTY, and ENTY:other with the coarse class
                       in it, since there are LOC:other and NUM:other too
        rt-polarity    no options; splits={"train": ("rt-polarity.pos", "rt-polarity.neg")}, a task with label="file"
        SemEval-2010 task 8   lines_per_record=0, pattern=r'(?P<id>\d+)\t"(?P<text>.+)"\n(?P<relation>.+)\nComment:.*';
                       the data set's marked=("<e1>", "</e1>", "<e2>", "</e2>")

    Args:
      pattern: a regular expression of Python that the whole line, or record, has to match, with one named group at
        least. The lines of a record have "\n" between them, which "." does not match.
      lists: {field: separator}: its value is cut there, and becomes a list of what is not blank.
      on_bad_line: "error" or "skip" (counted), for a line or record that does not match. Where records have a number of
        lines, reading goes on at the next line with which one matches.
      lines_per_record: lines of a record, without blank ones, which are passed over; 0: as many as there are up to the
        next blank line.

    Raises UserError at the line, and for a pattern that is none or names no group.
    """
    form = _compiled(pattern)
    cut = dict(lists or {})
    for name, separator in cut.items():
        if name not in form.groupindex or not separator:
            raise UserError(f"options.lists.{name}: names a group of options.pattern, and the text between two items")
    if on_bad_line not in ("error", "skip"):
        raise UserError(f'options.on_bad_line has to be "error" or "skip", not {on_bad_line!r}')
    skipped: list[_Found] = []
    for found in _found(location, encoding, form, lines_per_record):
        if found.match is None and on_bad_line == "error":
            what = "line does" if lines_per_record == 1 else "record does"
            raise UserError(
                f"{location.name}:{found.line}: the {what} not match options.pattern {pattern!r}: {found.text[:80]!r}. "
                'Ways out: another pattern, on_bad_line="skip"'
            )
        if found.match is None:
            skipped.append(found)
            continue
        yield from _skipped(skipped, location.name, lines_per_record)
        skipped = []
        fields = {name: value and value.strip() for name, value in found.match.groupdict().items()}
        for name, separator in cut.items():
            fields[name] = [part.strip() for part in (fields[name] or "").split(separator) if part.strip()]
        yield Record(fields, location.name, found.line)
    yield from _skipped(skipped, location.name, lines_per_record)


class _Found(NamedTuple):
    """A record that matches, or the lines that are passed over since none does.

    line   number of the first
    lines  how many there are
    text   of the record that should match
    """

    line: int
    lines: int
    text: str
    match: re.Match[str] | None


def _found(location: Location, encoding: str, form: re.Pattern[str], size: int) -> Iterator[_Found]:
    """The records of `size` lines, of as many as follow each other for size 0."""
    if not size:
        for block in sentence_blocks(location, encoding):
            text = "\n".join(line for _, line in block)
            yield _Found(block[0][0], len(block), text, form.fullmatch(text))
        return
    waiting: list[tuple[int, str]] = []
    for number, line in location.lines(encoding):
        if line.strip():
            waiting.append((number, line))
        if len(waiting) == size:
            text = "\n".join(line for _, line in waiting)
            match = form.fullmatch(text)
            lines = size if match else 1
            yield _Found(waiting[0][0], lines, text, match)
            del waiting[:lines]
    for number, line in waiting:  # the file ends inside a record
        yield _Found(number, 1, line, None)


def _skipped(skipped: Sequence[_Found], file: str, size: int) -> Iterator[Note]:
    """A note for records that do not match, one after the other."""
    if skipped:
        count = sum(found.lines for found in skipped)
        lost = -(-count // size) if size else len(skipped)
        yield Note("bad lines skipped (options.on_bad_line)", file, skipped[0].line, count, lost)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        form = re.compile(pattern)
    except re.error as error:
        raise UserError(f"options.pattern: {pattern!r} is no regular expression: {error}") from error
    if not form.groupindex:
        raise UserError(f"options.pattern: {pattern!r} names no group; (?P<text>.+) makes a field `text`")
    return form
