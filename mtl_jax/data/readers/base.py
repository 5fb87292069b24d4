"""What a reader is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mtl_jax.data.files.location import Location
from mtl_jax.data.records import Note, Record


@dataclasses.dataclass(frozen=True)
class Reader:
    """A format of files; called as its function: `reader(location, encoding, **options) -> Iterator[Record | Note]`.

    `location` is a file (or a folder, for formats of folders), the keyword-only parameters after `encoding` are the
    options, and a `Note` reports what was left out or changed. A function with a parameter `split` finds the splits
    inside one location, one with `fields` gets the names of the fields with texts. Bad input raises UserError naming
    file and line.

    func        the function
    list_files  (location, split, options) -> the files that are read, for a reader that finds them itself
    identity    (location, split, options) -> what identifies records that are in no file, so that they need not be read
                to know whether they are in the cache
    named       True where `path` may be a name that the reader knows, and nothing on disk
    generated   True where records are made from the options alone: the location is None
    binary      True where no text is decoded: the encoding is not used
    cached      True to cache records between runs, see `mtl_jax.data.files.parse_cache`: the function reads only its
                file, and fields are strings, integers, None and lists or dicts of these
    """

    func: Callable[..., Iterator[Record | Note]]
    list_files: Callable[[Location, str, Mapping[str, Any]], list[Location]] | None = None
    identity: Callable[[Location | None, str, Mapping[str, Any]], str] | None = None
    named: bool = False
    generated: bool = False
    binary: bool = False
    cached: bool = False

    def __call__(self, location: Location | None, encoding: str, **options: Any) -> Iterator[Record | Note]:
        return self.func(location, encoding, **options)
