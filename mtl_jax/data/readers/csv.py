"""Delimited columns: CSV, TSV, and Orange's .tab."""

from __future__ import annotations

import csv
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mtl_jax.data.files.location import BYTE_ORDER_MARK, Location
from mtl_jax.data.records import Note, Record
from mtl_jax.errors import UserError

_TAB_SUFFIXES = (".tsv", ".tab")
_DELIMITERS = "\t;|,"  # looked at where the one of the options makes one column
_LONGEST = 2**31 - 1  # characters of a field; the csv module's own limit is 131,072
_EXCEL = re.compile(r'sep=([^\s"]|\t)\r?\n?')  # a first line by which Excel writes its delimiter
_SKIPPED = "bad lines skipped (options.on_bad_line)"


class _Row(NamedTuple):
    """Lines first, ..., first + count - 1 (from 0) of a file, and their cells, or what is wrong with them."""

    first: int
    count: int
    cells: list[str] | csv.Error


def read_csv(
    location: Location,
    encoding: str,
    *,
    delimiter: str = "",
    columns: Sequence[str] = (),
    header: bool | None = None,
    quoting: str = "",
    skip_before_header: int = 0,
    skip_after_header: int = 0,
    on_bad_line: str = "error",
) -> Iterator[Record | Note]:
    """One record a row; every value is a string. Empty lines are skipped.

    Args:
      delimiter: one character; "" = tab for .tsv and .tab files, comma otherwise (or what a first line "sep=;" says).
      columns: names of the columns, for a file without header or to rename those of its header.
      header: whether the first line has the names; None = where `columns` is empty.
      quoting: "minimal": a field may be quoted, with delimiters, newlines and doubled quotes inside; "none":
        quotes are ordinary characters (the files of GLUE); "" = "none" with tabs, "minimal" otherwise.
      skip_before_header: lines to leave out at the top.
      skip_after_header: lines to leave out after the header (Orange's .tab: 2, types and roles).
      on_bad_line: "error" or "skip", for a row with another number of columns or broken quotes. Reading goes on at the
        line after the one where a bad row begins, so that a quote which is never closed costs one line; a row over
        several lines most of which are no rows themselves is left out entirely. Lines and records are counted.

    Noted: fields and names that hold line ends; rows of empty cells, and such as repeat the header (both are left out);
    empty cells after the last column.

    Raises UserError at the line; and where the delimiter makes one column and another one several.
    """
    lines = list(location.raw_lines(encoding))
    at = skip_before_header
    if not delimiter and at < len(lines) and (excel := _EXCEL.fullmatch(lines[at])):
        delimiter, at = excel[1], at + 1
    bare = re.sub(r"\.(gz|bz2|xz)$", "", location.name)
    delimiter = delimiter or ("\t" if pathlib.PurePosixPath(bare).suffix in _TAB_SUFFIXES else ",")
    quoting = quoting or ("none" if delimiter == "\t" else "minimal")
    header = not columns if header is None else header
    names = [str(name) for name in columns]
    _check_options(delimiter, names, header, quoting, on_bad_line)
    form = _Form(lines, delimiter, quoting == "minimal")
    heading: list[str] = []
    if header and (top := next(form.rows(at), None)) is not None:
        heading = _cells(top, form, f"{location.name}:{top.first + 1}")
        names = _header(heading, names, f"{location.name}:{top.first + 1}")
        at = top.first + top.count
        if top.count > 1:
            yield Note("line ends in the names of the header", location.name, top.first + 1, top.count - 1)
    for _ in range(skip_after_header):
        left_out = next(form.rows(at), None)
        at = left_out.first + left_out.count if left_out else at
    yield from _records(location.name, form, at, names, heading, on_bad_line == "skip")


def _records(
    file: str, form: _Form, at: int, names: list[str], heading: list[str], skip: bool
) -> Iterator[Record | Note]:
    """The rows from line `at`; what is noted of them.

    Every line that is not empty belongs to one record, or is counted in one note of what is left out.
    """
    least = len(names)
    while heading and least > 1 and not heading[least - 1].strip():
        least -= 1  # the header ends with delimiters, which rows may lack
    rows, behind_a_bad_one = form.rows(at), False
    while (row := next(rows, None)) is not None:
        number = row.first + 1
        wrong = _row_problem(row, form, names, least)
        if behind_a_bad_one and not wrong and form.has_half_a_quote(row):
            wrong = "the end of quotes that begin in a line before"
        behind_a_bad_one = bool(wrong)
        if wrong and not skip:
            hint = ', options.quoting="none"' if form.quoted else ""
            other = _other_delimiter(row, form, len(names))
            raise UserError(
                f'{file}:{number}: {wrong}. Ways out: another options.delimiter{other}{hint}, on_bad_line="skip"'
            )
        if wrong:
            inner, good = form.inside(row, least, len(names))
            if isinstance(row.cells, csv.Error) or 2 * good > inner:  # the quote is a stray one
                yield Note(_SKIPPED, file, number, lost=1)
                rows = form.rows(row.first + 1)
            else:
                yield Note(_SKIPPED, file, number, row.count, lost=row.count if good else 1)
            continue
        cells, more = row.cells[: len(names)], len(row.cells) > len(names)
        if len(names) > 1 and row.count == 1 and not any(map(str.strip, cells)):
            yield Note("rows of empty cells left out", file, number, harmless=True)
        elif len(names) > 1 and cells == heading[: len(names)]:
            yield Note("rows left out that repeat the header", file, number, harmless=True)
        else:
            if more:
                yield Note("rows with empty cells after the last column", file, number, harmless=True)
            if ends := sum("\n" in cell or "\r" in cell for cell in cells) if row.count > 1 else 0:
                inner, good = form.inside(row, least, len(names))
                yield Note("fields hold line ends", file, number, ends, harmless=2 * good <= inner)
            yield Record(dict(zip(names, cells, strict=False)), file, number)


class _Form:
    """The lines of a file and how they become rows."""

    def __init__(self, lines: list[str], delimiter: str, quoted: bool):
        csv.field_size_limit(_LONGEST)
        self.lines, self.delimiter, self.quoted = lines, delimiter, quoted

    def rows(self, begin: int) -> Iterator[_Row]:
        """The rows from line `begin`, without those of an empty line."""
        if not self.quoted:
            for number in range(begin, len(self.lines)):
                if line := self.lines[number].removesuffix("\n").rstrip("\r").lstrip(BYTE_ORDER_MARK):
                    yield _Row(number, 1, line.split(self.delimiter))
            return
        lines = (self.lines[number].lstrip(BYTE_ORDER_MARK) for number in range(begin, len(self.lines)))
        reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
        while True:
            first = begin + reader.line_num
            try:
                cells: list[str] | csv.Error = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                cells = error
            if cells:
                yield _Row(first, begin + reader.line_num - first, cells)

    def inside(self, row: _Row, least: int, most: int) -> tuple[int, int]:
        """(lines inside a row over several ones, how many of them are rows by themselves)."""
        inner = self.lines[row.first + 1 : row.first + row.count]
        inner = inner[:-1] or inner
        if most == 1:
            return len(inner), 0
        alone = [next(_Form([line], self.delimiter, True).rows(0), None) for line in inner]
        good = [r and not isinstance(r.cells, csv.Error) and least <= len(r.cells) <= most for r in alone]
        return len(inner), sum(map(bool, good))

    def has_half_a_quote(self, row: _Row) -> bool:
        return self.quoted and row.count == 1 and self.lines[row.first].count('"') % 2 == 1


def _cells(row: _Row, form: _Form, place: str) -> list[str]:
    """The cells of a header."""
    if isinstance(row.cells, csv.Error):
        raise UserError(f"{place}: the header has {_broken(row, form)}")
    return row.cells


def _header(row: list[str], renamed: list[str], place: str) -> list[str]:
    """The names of the columns; one without a name is called by its number, "column_1"."""
    if renamed and len(renamed) != len(row):
        other = _splitting(row[0], len(renamed)) if len(row) == 1 else ""
        hint = f"; options.delimiter={other!r} makes {len(renamed)}" if other else ""
        raise UserError(f"{place}: the header has {len(row)} columns, options.columns names {len(renamed)}{hint}")
    names = renamed or [name.strip(f"{BYTE_ORDER_MARK} \t") or f"column_{i}" for i, name in enumerate(row, start=1)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{place}: the header names {twice[0]!r} twice; give options.columns and header=True")
    if len(row) == 1 and not renamed and (other := _splitting(row[0])):
        named = ", ".join(name.strip() for name in row[0].split(other))
        raise UserError(
            f"{place}: one column; options.delimiter={other!r} makes {len(row[0].split(other))}: {named[:200]}. "
            "Of a file of one column give its name as options.columns, and header=True"
        )
    return names


def _splitting(text: str, wanted: int = 0) -> str:
    """The delimiter that makes the most cells of a text, more than one (or as many as wanted); "" where none does."""
    counts = {other: len(text.split(other)) for other in _DELIMITERS}
    best = max(counts, key=lambda other: (counts[other] == wanted, counts[other]))
    return best if counts[best] > 1 and (not wanted or counts[best] == wanted) else ""


def _other_delimiter(row: _Row, form: _Form, wanted: int) -> str:
    """The delimiter that makes as many columns as wanted of the line of a row, for the message."""
    other = _splitting(form.lines[row.first], wanted) if wanted > 1 else ""
    return f" ({other!r} makes {wanted} columns)" if other not in ("", form.delimiter) else ""


def _row_problem(row: _Row, form: _Form, names: list[str], least: int) -> str:
    """What is wrong with a row, or nothing; empty cells after the last column are allowed."""
    if type(row.cells) is list and len(row.cells) == len(names):
        return ""
    if isinstance(row.cells, csv.Error):
        return _broken(row, form)
    if len(row.cells) == 1 and least > 1 and not row.cells[0].strip():
        return ""
    if len(row.cells) < least or any(row.cells[len(names) :]):
        return f"{len(row.cells)} columns, {len(names)} wanted ({', '.join(names)})"
    return ""


def _broken(row: _Row, form: _Form) -> str:
    if row.first + row.count == len(form.lines) and "unexpected end" in str(row.cells):
        return "broken quotes: they begin in this row and are not closed until the end of the file"
    return f"broken quotes or fields: {row.cells}"


def _check_options(delimiter: str, names: list[str], header: bool, quoting: str, on_bad_line: str) -> None:
    if len(delimiter) != 1 or delimiter in '\r\n" ':
        raise UserError(f"options.delimiter has to be one character, no quote, blank or line end: {delimiter!r}")
    if quoting not in ("minimal", "none"):
        raise UserError(f'options.quoting has to be "minimal" or "none", not {quoting!r}')
    if on_bad_line not in ("error", "skip"):
        raise UserError(f'options.on_bad_line has to be "error" or "skip", not {on_bad_line!r}')
    if not header and not names:
        raise UserError("options.header=False needs options.columns, the names of the columns")
    if len(set(names)) < len(names):
        raise UserError(f"options.columns has a name twice: {', '.join(names)}")
