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

    `location` is a file (or a folder, where the format is one), the keyword-only parameters after `encoding` are the
    options, and a `Note` stands for what was left out or changed. A function with a parameter `split` finds the splits
    inside one location, one with `fields` gets the names of the fields that are read as texts. Bad input raises
    UserError naming file and line.

    func        the function
    list_files  (location, split, options) -> the files that are read, for one that finds these by itself
    generated   whether records are made from the options alone: the location is None
    binary      whether no text is decoded: the encoding is not read
    cached      whether records are kept between runs, see `mtl_jax.data.files.parse_cache`: the function looks at
                nothing but that file and its options, and fields are strings, whole numbers, None and lists or dicts of
                these
    """

    func: Callable[..., Iterator[Record | Note]]
    list_files: Callable[[Location, str, Mapping[str, Any]], list[Location]] | None = None
    generated: bool = False
    binary: bool = False
    cached: bool = False

    def __call__(self, location: Location | None, encoding: str, **options: Any) -> Iterator[Record | Note]:
        return self.func(location, encoding, **options)
