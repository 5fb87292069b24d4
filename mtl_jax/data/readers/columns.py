"""What the column formats have in common: blocks of lines, one word a line, blank lines between sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mtl_jax.data.files.location import Location
from mtl_jax.errors import UserError

IGNORED = ("_", "", None)  # names for columns that nobody reads


def split_words(line: str) -> list[str]:
    """Words of a line, at runs of blanks and tabs only: a no-break space may be part of a word."""
    return [word for word in line.replace("\t", " ").split(" ") if word]


def split_columns(line: str, separator: str | None) -> list[str]:
    """The columns of a line; `separator` None = runs of blanks and tabs."""
    return split_words(line) if separator is None else line.split(separator)


def sentence_blocks(location: Location, encoding: str) -> Iterator[list[tuple[int, str]]]:
    """Blocks of (line number, line) between blank lines; these are dropped, as are empty blocks."""
    block: list[tuple[int, str]] = []
    for number, line in location.lines(encoding):
        if line.strip():
            block.append((number, line))
        elif block:
            yield block
            block = []
    if block:
        yield block


def check_columns(names: Sequence[str | None], required: Sequence[str]) -> None:
    """Raises UserError where `options.columns` has a name twice or lacks one of `required`."""
    used = [name for name in names if name not in IGNORED]
    if len(set(used)) < len(used):
        raise UserError(f"options.columns has a name twice: {', '.join(used)}")
    for name in required:
        if name not in used:
            raise UserError(f"options.columns has to name the column {name!r}; it is {tuple(names)}")
