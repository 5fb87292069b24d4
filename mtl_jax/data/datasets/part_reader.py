"""Reading one part of a data set: a file, folder, key or expression that `splits` names, or a slice of it."""

from __future__ import annotations

import functools
import hashlib
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from mtl_jax.data import record_sequences
from mtl_jax.data.files import array_shards, parse_cache
from mtl_jax.data.files.location import Location
from mtl_jax.data.readers import READERS
from mtl_jax.data.readers.options import declared_options
from mtl_jax.data.record_sequences import ReadItems, StoredRecords
from mtl_jax.data.records import Note, Record
from mtl_jax.data.splits import slices
from mtl_jax.errors import UserError

_PACKED = re.compile(r"\.(gz|bz2|xz)$")
_MAX_CACHED_BYTES = 1 << 26  # records of larger files are stored themselves, see `record_sequences`


class Part(NamedTuple):
    """A part as read, and the hash of its content."""

    items: ReadItems
    content: str


class PartReader:
    """Reads the parts of one data set. A file of which several splits take slices is read once."""

    def __init__(
        self,
        reader_name: str,
        location: Location | None,
        encoding: str,
        options: dict[str, Any],
        in_memory: bool = False,
    ):
        """`location`: what the names of parts are relative to; None for a reader that generates records. `in_memory`:
        records never go to disk, as they may hold pictures.
        """
        self.reader_name = reader_name
        self.reader = READERS[reader_name]
        self.location = location
        self.encoding = encoding
        self.options = options
        self.in_memory = in_memory
        self.finds_splits = "split" in declared_options(self.reader)
        self._read: dict[str, Part] = {}

    def read(self, part: str) -> Part:
        """The records of a part. A name that exists, or is a key, is no slice."""
        if part in self._read:
            return self._read[part]
        # TFDS slices by itself.
        if part.endswith("]") and self.reader_name != "tfds" and not self._exists(part):
            name, selection = slices.parse_part(part)
            if selection is not None:
                items, content = self.read(name)
                return Part(slices.take_part(items, selection, part), content)
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

    def _read_all(self, part: str) -> Part:
        """A part that is no slice."""
        if self.location is None:
            return self._read_unnamed(part)
        if self.finds_splits:
            return self._read_split(self.location, part)
        parts, contents = [], []
        places = self.location.glob(part)
        if not places:
            raise UserError(f"{self.location.name}: nothing matches {part!r}")
        for place in places:
            files = self._files(place, part) or [place]
            content = " ".join(file.sha256() for file in files)
            new = self._collected(self._read_place(place, content), [place.name, content], files)
            if not len(new.records):
                raise UserError(f"{place.name}: no records in it; the file is empty or holds nothing but a header")
            contents.append(content)
            parts.append(new)
        return Part(_joined(parts, [part, contents]), " ".join(contents))

    def _read_split(self, location: Location, split: str) -> Part:
        """As `_read_all`, for a reader that finds the splits inside one location."""
        files = self._files(location, split)
        if not files and not location.exists():
            return self._read_unnamed(split)
        content = " ".join(file.sha256() for file in files) if files else location.sha256()
        items = self.reader(location, self.encoding, split=split, **self.options)
        part = Part(self._collected(items, [location.name, split, content], files), content)
        if not len(part.items.records):
            raise UserError(f"{location.name}: split {split!r} is empty")
        return part

    def _read_unnamed(self, split: str) -> Part:
        """As `_read_split`, for records that are in no file of a known name: they are what identifies them."""
        items = self.reader(self.location, self.encoding, split=split, **self.options)
        identity = self.reader.identity(self.location, split, self.options) if self.reader.identity else ""
        digest = _RecordsHash()
        key = [self.location and self.location.name, split, identity or uuid.uuid4().hex]
        read = self._collected(items if identity else map(digest.update, items), key, [])
        if not len(read.records) and self.location is not None:
            raise UserError(f"{self.location.name}: split {split!r} is empty")
        if identity and not isinstance(read.records, StoredRecords):
            for record in read.records:
                digest.update(record)
        elif identity:
            return Part(read, array_shards.digest([self.reader_name, self.options, key]))
        return Part(read, digest.hexdigest())

    def _collected(self, items: Iterable[Record | Note], key: Any, files: Sequence[Location]) -> ReadItems:
        """The items of one place, with the field `file`; `key` names the place and its content."""
        identity = [self.reader_name, self.encoding, self.options, parse_cache.code_digest(), key]
        named = _name_files(items, files, self.location) if files else items
        return record_sequences.collect(named, identity, self.in_memory)

    def _read_place(self, place: Location, content: str) -> Iterator[Record | Note]:
        """The items of one file or folder, from the cache where the reader has one; `content` is its hash."""
        read = functools.partial(self.reader, place, self.encoding, **self.options)
        if not self.reader.cached or place.size() > _MAX_CACHED_BYTES:
            yield from read()
            return
        key = {
            "reader": self.reader_name,
            "content": content,
            "encoding": self.encoding,
            "options": self.options,
        }
        yield from parse_cache.cached_items(key, place.name, read)

    def _files(self, place: Location, part: str) -> list[Location]:
        """The files that the reader reads for a part; [] where it reads `place` itself."""
        return self.reader.list_files(place, part, self.options) if self.reader.list_files else []


def _joined(parts: Sequence[ReadItems], key: Any) -> ReadItems:
    """The items of several places, one after the other."""
    notes, before = [], 0
    for part in parts:
        notes += [(before + at, note) for at, note in part.notes]
        before += len(part.records)
    return ReadItems(record_sequences.joined([part.records for part in parts], key), notes)


def _name_files(items: Iterable[Record | Note], places: Sequence[Location], top: Location) -> Iterator[Record | Note]:
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
        yield item


class _RecordsHash:
    """Hash of the fields of records, for a data set that is no file of its own."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self.hexdigest = self._digest.hexdigest

    def update(self, item: Record | Note) -> Record | Note:
        """Adds an item and returns it."""
        if isinstance(item, Record):
            fields = repr(sorted(item.fields.items(), key=lambda pair: pair[0]))
            self._digest.update(fields.encode("utf-8", "surrogatepass"))
        return item
