"""A folder for each label, a file for each document."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence

from mtl_jax.data.files.location import Location
from mtl_jax.data.records import Note, Record, suggestion
from mtl_jax.errors import UserError


def read_folders(
    location: Location, encoding: str, *, pattern: str = "*", labels: Sequence[str] = ()
) -> Iterator[Record | Note]:
    """One record for each file, by label and name. Fields: text, label (name of the folder), name (path inside it).

    Args:
      pattern: of the names of files, e.g. "*.txt"; a literal name where files have it. Hidden files and files outside
        the labels' folders are left out; all but hidden ones are counted.
      labels: names of folders; () = all.

    Raises UserError where a file cannot be decoded, a label has no folder, or there is no folder at all.
    """
    folders = [child for child in location.children() if child.is_folder()]
    names = [folder.place.name for folder in folders]
    for label in labels:
        if label not in names:
            known = ", ".join(names) or "none"
            raise UserError(
                f"{location.name}: no folder for the label {label!r}; there are: {known}.{suggestion(label, names)}"
            )
    if not folders:
        raise UserError(f"{location.name}: holds no folders; this reader needs one for each label")
    other_files = [child for child in location.children() if not child.is_folder()]
    if other_files:
        yield Note(
            "files outside of the labels' folders left out", other_files[0].name, 0, len(other_files), harmless=True
        )
    files = [(folder, file) for folder in folders for file in folder.files()]
    literal = any(file.place.name == pattern for _, file in files)
    for folder, file in files:
        if labels and folder.place.name not in labels:
            yield Note("files of other labels left out (options.labels)", file.name, 0, lost=1, harmless=True)
        elif not (file.place.name == pattern if literal else fnmatch.fnmatchcase(file.place.name, pattern)):
            yield Note("files of other names left out (options.pattern)", file.name, 0, lost=1, harmless=True)
        else:
            name = file.name[len(folder.name) :].lstrip("/\\")
            yield Record({"text": file.text(encoding).strip(), "label": folder.place.name, "name": name}, file.name, 0)
