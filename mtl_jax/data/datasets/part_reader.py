"""Reading one part of a data set: a file, folder, key or expression that `splits` names, or a slice of it."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from typing import Any

from mtl_jax.data.files import parse_cache
from mtl_jax.data.files.location import Location
from mtl_jax.data.readers import READERS
from mtl_jax.data.readers.options import declared_options
from mtl_jax.data.records import Note, Record
from mtl_jax.data.splits import slices
from mtl_jax.errors import UserError

_PACKED = re.compile(r"\.(gz|bz2|xz)$")


class PartReader:
    """Reads the parts of one data set. A file of which several splits take slices is read once."""

    def __init__(self, reader_name: str, location: Location | None, encoding: str, options: dict[str, Any]):
        """`location`: what the names of parts are relative to; None for a reader that generates records."""
        self.reader_name = reader_name
        self.reader = READERS[reader_name]
        self.location = location
        self.encoding = encoding
        self.options = options
        self.finds_splits = "split" in declared_options(self.reader)
        self._read: dict[str, tuple[list[Record | Note], str]] = {}

    def read(self, part: str) -> tuple[list[Record | Note], str]:
        """(records and notes, hash of the content) of a part. A name that exists, or is a key, is no slice."""
        if part in self._read:
            return self._read[part]
        # TFDS slices by itself.
        if part.endswith("]") and self.reader_name != "tfds" and not self._exists(part):
            name, selection = slices.parse_part(part)
            if selection is not None:
                items, content = self.read(name)
                return slices.take_part(items, selection, part), content
        if part not in self._read:
            self._read[part] = self._read_all(part)
        return self._read[part]

    def _exists(self, part: str) -> bool:
        """Whether `part` names a file or folder, or a split inside one place."""
        if self.location is not None and not self.finds_splits:
            return self.location.child(part).exists()
        try:
            self._read[part] = self._read_all(part)
        except UserError:
            return False
        return True

    def _read_all(self, part: str) -> tuple[list[Record | Note], str]:
        """Records and notes of a part that is no slice, and the hash of its content."""
        if self.location is None:
            items = list(self.reader(self.location, self.encoding, split=part, **self.options))
            return items, _hash_of_records(items)
        if self.finds_splits:
            return self._read_split(self.location, part)
        items, contents = [], []
        places = self.location.glob(part)
        if not places:
            raise UserError(f"{self.location.name}: nothing matches {part!r}")
        for place in places:
            files = self._files(place, part) or [place]
            content = " ".join(file.sha256() for file in files)
            new = self._read_place(place, content)
            if not any(isinstance(item, Record) for item in new):
                raise UserError(f"{place.name}: no records in it; the file is empty or holds nothing but a header")
            contents.append(content)
            _name_files(new, files, self.location)
            items += new
        return items, " ".join(contents)

    def _read_split(self, location: Location, split: str) -> tuple[list[Record | Note], str]:
        """As `_read_all`, for a reader that finds the splits inside one location."""
        items = list(self.reader(location, self.encoding, split=split, **self.options))
        if not any(isinstance(item, Record) for item in items):
            raise UserError(f"{location.name}: split {split!r} is empty")
        if files := self._files(location, split):
            _name_files(items, files, location)
            return items, " ".join(file.sha256() for file in files)
        return items, location.sha256() if location.exists() else _hash_of_records(items)

    def _read_place(self, place: Location, content: str) -> list[Record | Note]:
        """The items of one file or folder, from the cache where the reader has one; `content` is its hash."""
        read = functools.partial(self.reader, place, self.encoding, **self.options)
        if not self.reader.cached:
            return list(read())
        key = {
            "reader": self.reader_name,
            "content": content,
            "encoding": self.encoding,
            "options": self.options,
        }
        return parse_cache.cached_items(key, place.name, read)

    def _files(self, place: Location, part: str) -> list[Location]:
        """The files that the reader reads for a part; [] where it reads `place` itself."""
        return self.reader.list_files(place, part, self.options) if self.reader.list_files else []


def _name_files(items: Sequence[Record | Note], places: Sequence[Location], top: Location) -> None:
    """Adds a field `file` to records without one: the file's name relative to the folder `top` (or the folder of the
    file `top`), without the suffix of a packed file.
    """
    folder = top.folder().name.rstrip("/") + "/"
    file_names = [place.name for place in places if not place.is_folder()]
    names: dict[str, str] = {}
    for item in items:
        if isinstance(item, Record):
            if item.file not in names:
                # "data.json:train" of a reader that finds several places inside one file
                name = next((name for name in file_names if item.file.startswith(f"{name}:")), item.file)
                names[item.file] = _PACKED.sub("", name.removeprefix(folder))
            item.fields.setdefault("file", names[item.file])


def _hash_of_records(items: Sequence[Record | Note]) -> str:
    """Hash of the fields, for a data set that is no file of its own."""
    digest = hashlib.sha256()
    for item in items:
        if isinstance(item, Record):
            digest.update(repr(sorted(item.fields.items(), key=lambda pair: pair[0])).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
