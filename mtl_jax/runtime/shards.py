"""Independent shards: n processes without communication but files; each does its part of a list of work."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from mtl_jax.errors import UserError

T = TypeVar("T")
FOLDER = "shards"  # of a workdir


class Shard(NamedTuple):
    """Number `index` of `count`, from 0."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"shard {self.index} of {self.count}"

    @property
    def name(self) -> str:
        """Of its folder or file."""
        return f"{self.index}_of_{self.count}"

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """Its consecutive part of the items; parts differ by one item at most, and together are all items."""
        first, last = (len(items) * i // self.count for i in (self.index, self.index + 1))
        return items[first:last]

    def folder(self, workdir: pathlib.Path) -> pathlib.Path:
        """Where it works inside of a workdir, which shards may have in common."""
        return workdir / FOLDER / self.name


def parse(text: str) -> Shard | None:
    """The shard that "i/n" names; None for "".

    Raises:
      UserError: something else, or a number out of range.
    """
    if not text:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None:
        raise UserError(f"--shard={text}: write i/n, the number of the shard from 0 and how many there are, e.g. 0/4")
    shard = Shard(int(match[1]), int(match[2]))
    if shard.index >= shard.count:
        have = f"the numbers of {shard.count} shards are 0 to {shard.count - 1}"
        raise UserError(f"--shard={text}: {have if shard.count else 'there is one shard at least, 0/1'}")
    return shard


def shards_in(workdir: pathlib.Path) -> dict[Shard, pathlib.Path]:
    """The shards that a workdir holds, with their folders; of those that were refused only a lock is left."""
    folders = {}
    for folder in (workdir / FOLDER).glob("*_of_*"):
        match = re.fullmatch(r"(\d+)_of_(\d+)", folder.name)
        if match and (folder / "config.json").exists():
            folders[Shard(int(match[1]), int(match[2]))] = folder
    return dict(sorted(folders.items()))
