"""Text files in which a pattern matches texts and labels: in each line, or in records of several lines."""

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
    r"""One record for each line that is not blank. Fields: the named groups of `pattern`, stripped (None for a group
    that did not match). Groups may be nested.

        fastText       pattern=r"(?P<labels>(?:__label__\S+\s+)+)(?P<text>.+)", lists={"labels": "__label__"}
        TREC           pattern=r"(?P<fine>(?P<label>\w+):\w+)\s(?P<text>.+)": ENTY, and ENTY:other with the coarse class
                       in it, since there are LOC:other and NUM:other too
        rt-polarity    no options; splits={"train": ("rt-polarity.pos", "rt-polarity.neg")}, a task with label="file"
        SemEval-2010 task 8   lines_per_record=0, pattern=r'(?P<id>\d+)\t"(?P<text>.+)"\n(?P<relation>.+)\nComment:.*';
                       the data set's marked=("<e1>", "</e1>", "<e2>", "</e2>")

    Args:
      pattern: a regular expression of Python that a complete line, or record, has to match, with at least one named
        group. The lines of a record are separated by "\n", which "." does not match.
      lists: {field: separator}: its value is split there into a list of the parts that are not blank.
      on_bad_line: "error" or "skip" (counted), for a line or record that does not match. Where records have a fixed
        number of lines, reading continues at the next line from which one matches.
      lines_per_record: number of lines of a record, not counting blank ones; 0: all lines up to the next blank one.

    Raises UserError at the line, and for a pattern that is invalid or names no group.
    """
    form = _compiled(pattern)
    cut = dict(lists or {})
    for name, separator in cut.items():
        if name not in form.groupindex or not separator:
            raise UserError(f"options.lists.{name}: names a group of options.pattern, and the string between two items")
    if on_bad_line not in ("error", "skip"):
        raise UserError(f'options.on_bad_line has to be "error" or "skip", not {on_bad_line!r}')
    skipped: list[_Candidate] = []
    for candidate in _candidates(location, encoding, form, lines_per_record):
        if candidate.match is None and on_bad_line == "error":
            what = "line does" if lines_per_record == 1 else "record does"
            raise UserError(
                f"{location.name}:{candidate.line}: the {what} not match options.pattern {pattern!r}: "
                f"{candidate.text[:80]!r}. "
                'Ways out: another pattern, on_bad_line="skip"'
            )
        if candidate.match is None:
            skipped.append(candidate)
            continue
        yield from _skipped(skipped, location.name, lines_per_record)
        skipped = []
        fields = {name: value and value.strip() for name, value in candidate.match.groupdict().items()}
        for name, separator in cut.items():
            fields[name] = [part.strip() for part in (fields[name] or "").split(separator) if part.strip()]
        yield Record(fields, location.name, candidate.line)
    yield from _skipped(skipped, location.name, lines_per_record)


class _Candidate(NamedTuple):
    """A record that matches, or lines that are skipped because they do not.

    line   number of the first line
    lines  number of lines
    text   of the record that should match
    """

    line: int
    lines: int
    text: str
    match: re.Match[str] | None


def _candidates(location: Location, encoding: str, form: re.Pattern[str], size: int) -> Iterator[_Candidate]:
    """The records of `size` lines, of as many as follow each other for size 0."""
    if not size:
        for block in sentence_blocks(location, encoding):
            text = "\n".join(line for _, line in block)
            yield _Candidate(block[0][0], len(block), text, form.fullmatch(text))
        return
    waiting: list[tuple[int, str]] = []
    for number, line in location.lines(encoding):
        if line.strip():
            waiting.append((number, line))
        if len(waiting) == size:
            text = "\n".join(line for _, line in waiting)
            match = form.fullmatch(text)
            lines = size if match else 1
            yield _Candidate(waiting[0][0], lines, text, match)
            del waiting[:lines]
    for number, line in waiting:  # the file ends inside a record
        yield _Candidate(number, 1, line, None)


def _skipped(skipped: Sequence[_Candidate], file: str, size: int) -> Iterator[Note]:
    """A note for records that do not match, one after the other."""
    if skipped:
        count = sum(candidate.lines for candidate in skipped)
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
