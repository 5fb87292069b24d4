"""A text a line, with its labels somewhere in the line."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator, Mapping

from mtl_jax.data.files import Location
from mtl_jax.data.records import Note, Record
from mtl_jax.errors import UserError


def read_lines(
    location: Location,
    encoding: str,
    *,
    pattern: str = "(?P<text>.+)",
    lists: Mapping[str, str] | None = None,
    on_bad_line: str = "error",
) -> Iterator[Record | Note]:
    r"""One record a line that is not blank. Fields: the named groups of `pattern`, stripped (None where a group took no
    part), and file, the file's name, for data with a file for each label.

        fastText       pattern=r"(?P<labels>(?:__label__\S+\s+)+)(?P<text>.+)", lists={"labels": "__label__"}
        TREC           pattern=r"(?P<label>\w+):(?P<fine>\w+)\s(?P<text>.+)"
        rt-polarity    no options; splits={"train": ("rt-polarity.pos", "rt-polarity.neg")}, a task with label="file"

    Args:
      pattern: a regular expression of Python that the whole line has to match, with one named group at least.
      lists: {field: separator}: its value is cut there, and becomes a list of what is not blank.
      on_bad_line: "error" or "skip" (counted), for a line that does not match.

    Raises UserError at the line, and for a pattern that is none or names no group.
    """
    form = _compiled(pattern)
    cut = dict(lists or {})
    for name, separator in cut.items():
        if name not in form.groupindex or not separator:
            raise UserError(f"options.lists.{name}: names a group of options.pattern, and the text between two items")
    if on_bad_line not in ("error", "skip"):
        raise UserError(f'options.on_bad_line has to be "error" or "skip", not {on_bad_line!r}')
    file = re.sub(r"\.(gz|bz2|xz)$", "", pathlib.PurePath(location.name).name)
    for number, line in location.lines(encoding):
        if not line.strip():
            continue
        match = form.fullmatch(line)
        if match is None and on_bad_line == "error":
            raise UserError(
                f"{location.name}:{number}: the line does not match options.pattern {pattern!r}: {line[:80]!r}. "
                'Ways out: another pattern, on_bad_line="skip"'
            )
        if match is None:
            yield Note("bad lines skipped (options.on_bad_line)", location.name, number, lost=1)
            continue
        fields = {name: value and value.strip() for name, value in match.groupdict().items()}
        for name, separator in cut.items():
            fields[name] = [part.strip() for part in (fields[name] or "").split(separator) if part.strip()]
        yield Record({"file": file, **fields}, location.name, number)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        form = re.compile(pattern)
    except re.error as error:
        raise UserError(f"options.pattern: {pattern!r} is no regular expression: {error}") from error
    if not form.groupindex:
        raise UserError(f"options.pattern: {pattern!r} names no group; (?P<text>.+) makes a field `text`")
    return form
