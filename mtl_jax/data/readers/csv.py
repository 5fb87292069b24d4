"""Delimited columns: CSV, TSV, and Orange's .tab."""

from __future__ import annotations

import csv
import pathlib
from collections.abc import Iterator, Sequence

from mtl_jax.data.files import Location
from mtl_jax.data.records import Note, Record
from mtl_jax.errors import UserError

_TAB_SUFFIXES = (".tsv", ".tab")
_LONGEST = 2**31 - 1  # characters of a field; the csv module's own limit is 131,072


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
      delimiter: one character; "" = tab for .tsv and .tab files, comma otherwise.
      columns: names of the columns, for a file without header or to rename those of its header.
      header: whether a line of names stands first; None = where `columns` is empty.
      quoting: "minimal": a field may stand in quotes, with delimiters, newlines and doubled quotes inside; "none":
        quotes are ordinary characters (GLUE's own files); "" = "none" with tabs, "minimal" otherwise.
      skip_before_header: lines to leave out at the top.
      skip_after_header: lines to leave out after the header (Orange's .tab: 2, types and roles).
      on_bad_line: "error" or "skip" (counted), for a row with another number of columns or broken quotes.

    Raises UserError at the line.
    """
    delimiter = delimiter or ("\t" if pathlib.PurePosixPath(location.name).suffix in _TAB_SUFFIXES else ",")
    quoting = quoting or ("none" if delimiter == "\t" else "minimal")
    header = not columns if header is None else header
    names = [str(name) for name in columns]
    _check_options(delimiter, names, header, quoting, on_bad_line)
    read_rows = _plain_rows if quoting == "none" else _quoted_rows
    left_out = 0 if header else skip_after_header
    waits_for_header = header
    for number, row in read_rows(location, encoding, delimiter, skip_before_header):
        place = f"{location.name}:{number}"
        if waits_for_header:
            if isinstance(row, csv.Error):
                raise UserError(f"{place}: the header has {_wrong(row, names)}")
            names = _header(row, names, place)
            waits_for_header, left_out = False, skip_after_header
            continue
        if left_out:
            left_out -= 1
            continue
        wrong = _wrong(row, names)
        if wrong and on_bad_line == "error":
            hint = "" if quoting == "none" else ', options.quoting="none"'
            raise UserError(f'{place}: {wrong}. Ways out: another options.delimiter{hint}, on_bad_line="skip"')
        if wrong:
            yield Note("bad lines skipped (options.on_bad_line)", location.name, number)
            continue
        yield Record(dict(zip(names, row, strict=True)), location.name, number)


def _plain_rows(
    location: Location, encoding: str, delimiter: str, skip: int
) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """(line number, fields); quotes mean nothing."""
    for number, line in location.lines(encoding):
        if number > skip and line:
            yield number, line.split(delimiter)


def _quoted_rows(
    location: Location, encoding: str, delimiter: str, skip: int
) -> Iterator[tuple[int, list[str] | csv.Error]]:
    """(number of the row's first line, fields or what is wrong with the row); newlines may stand in quotes."""
    csv.field_size_limit(_LONGEST)
    lines = location.raw_lines(encoding)
    for _ in range(skip):
        next(lines, None)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        number = skip + rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, error
            continue
        if row:
            yield number, row


def _header(row: list[str], renamed: list[str], place: str) -> list[str]:
    """The names of the columns; one without a name is called by its number, "column_1"."""
    if renamed and len(renamed) != len(row):
        raise UserError(f"{place}: the header has {len(row)} columns, options.columns names {len(renamed)}")
    names = renamed or [name.strip() or f"column_{i}" for i, name in enumerate(row, start=1)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{place}: the header names {twice[0]!r} twice; give options.columns and header=True")
    return names


def _wrong(row: list[str] | csv.Error, names: list[str]) -> str:
    """What is wrong with a row, or nothing."""
    if isinstance(row, csv.Error):
        return f"broken quotes or fields: {row}"
    return "" if len(row) == len(names) else f"{len(row)} columns, {len(names)} wanted ({', '.join(names)})"


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
