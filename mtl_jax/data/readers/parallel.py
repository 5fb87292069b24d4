"""Parallel files: line i of each file belongs to example i (SNIPS and ATIS; TweetEval; pairs of translations)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mtl_jax.data.files.location import Location
from mtl_jax.data.readers.columns import split_words
from mtl_jax.data.records import Note, Record
from mtl_jax.errors import UserError

_FILES = {"words": "seq.in", "slots": "seq.out", "intent": "label"}
_WORDS = ("words", "slots")
_SPLIT = "{split}"


def read_parallel(
    location: Location,
    encoding: str,
    *,
    files: Mapping[str, str] | None = None,
    split_fields: Sequence[str] | None = None,
) -> Iterator[Record | Note]:
    """One record for each line of the files in a folder, or of the files with the name of the split in their names.

        SNIPS          no options; splits={"train": "train", "dev": "valid"}, a folder each
        TweetEval      files={"text": "{split}_text.txt", "label": "{split}_labels.txt"}; splits={"train": "train",
                       "dev": "val", "test": "test"}, the names that replace {split}
        translations   files={"source": "{split}.en", "target": "{split}.de"}

    Args:
      files: {field: file in the folder}; None = {"words": "seq.in", "slots": "seq.out", "intent": "label"}. In file
        names "{split}" is replaced by the last part of what `splits` names, and they are relative to the folder around
        it.
      split_fields: fields that are lists of words; they have to be of one length in every line. The others are
        strings. None = those of "words" and "slots" that `files` names.

    Blank lines after the last line of any file are no records. Raises UserError where the files have different numbers
    of lines, or at a line with different numbers of words.
    """
    places = parallel_files(location, files)
    split_fields = [name for name in _WORDS if name in places] if split_fields is None else split_fields
    unknown = [name for name in split_fields if name not in places]
    if unknown:
        raise UserError(f"options.split_fields names {unknown[0]!r}, which options.files does not: {', '.join(places)}")
    lines = {name: [line.strip() for _, line in place.lines(encoding)] for name, place in places.items()}
    counts = {places[name].name: _last(values) for name, values in lines.items()}
    number_of_lines = max(counts.values())
    first = places[next(iter(places))].name
    for number in range(1, number_of_lines + 1):
        if any(len(values) < number for values in lines.values()):
            listed = ", ".join(f"{count} in {file}" for file, count in counts.items())
            raise UserError(f"{location.name}: parallel files with different numbers of lines: {listed}")
        fields = {n: split_words(v[number - 1]) if n in split_fields else v[number - 1] for n, v in lines.items()}
        lengths = {places[name].name: len(fields[name]) for name in split_fields}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{length} in {file}:{number}" for file, length in lengths.items())
            raise UserError(f"different numbers of words: {listed}")
        yield Record(fields, first, number)


def parallel_files(location: Location, files: Mapping[str, str] | None) -> dict[str, Location]:
    """The file of each field of a split: in the folder `location`, or next to it with its name.

    Raises UserError where there is no file, or one is missing.
    """
    files = dict(_FILES if files is None else files)
    if not files:
        raise UserError("options.files is empty; it names a file for each field")
    if any(_SPLIT in file for file in files.values()):
        split, folder = location.place.name, location.parent()
        places = {name: folder.child(file.replace(_SPLIT, split)) for name, file in files.items()}
    else:
        location.require_folder()
        places = {name: location.child(file) for name, file in files.items()}
    for place in places.values():
        place.require_file()
    return places


def _last(lines: Sequence[str]) -> int:
    """The number of the last line that is not blank."""
    return max((number for number, line in enumerate(lines, start=1) if line), default=0)
