"""Parallel files: line i of each file belongs to example i (the layout of SNIPS and ATIS)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mtl_jax.data.files import Location
from mtl_jax.data.readers.columns import split_words
from mtl_jax.data.records import Note, Record
from mtl_jax.errors import UserError

_FILES = {"words": "seq.in", "slots": "seq.out", "intent": "label"}


def read_parallel(
    location: Location,
    encoding: str,
    *,
    files: Mapping[str, str] | None = None,
    split_fields: Sequence[str] = ("words", "slots"),
) -> Iterator[Record | Note]:
    """One record a line of the files in a folder.

    Args:
      files: {field: file in the folder}; None = {"words": "seq.in", "slots": "seq.out", "intent": "label"}.
      split_fields: fields that are lists of words; they have to be of one length in every line. The others are
        strings.

    Raises UserError where the files have different numbers of lines, or at a line with different numbers of words.
    """
    files = dict(files or _FILES)
    unknown = [name for name in split_fields if name not in files]
    if unknown:
        raise UserError(f"options.split_fields names {unknown[0]!r}, which options.files does not: {', '.join(files)}")
    location.require_folder()
    places = {name: location.child(file) for name, file in files.items()}
    lines = {name: _lines(place, encoding) for name, place in places.items()}
    counts = {places[name].name: len(values) for name, values in lines.items()}
    first = places[next(iter(places))].name
    number_of_lines = counts[first]
    for number in range(1, number_of_lines + 1):
        if any(len(values) < number for values in lines.values()):
            break
        fields = {n: split_words(v[number - 1]) if n in split_fields else v[number - 1] for n, v in lines.items()}
        lengths = {places[name].name: len(fields[name]) for name in split_fields}
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{length} in {file}:{number}" for file, length in lengths.items())
            raise UserError(f"different numbers of words: {found}")
        yield Record(fields, first, number)
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{count} in {file}" for file, count in counts.items())
        raise UserError(f"{location.name}: parallel files with different numbers of lines: {found}")


def _lines(place: Location, encoding: str) -> list[str]:
    """Stripped lines, without the blank ones at the end."""
    lines = [line.strip() for _, line in place.lines(encoding)]
    while lines and not lines[-1]:
        lines.pop()
    return lines
