"""Prepared data in the cache that no run has read for a while. Downloads and wheels are not prepared data."""

from __future__ import annotations

import pathlib
import shutil
import time
from typing import NamedTuple

from mtl_jax.data.files.array_cache import cache_folder

PREPARED = (
    "records",
    "checked",
    "keys",
    "texts",
    "labels",
    "copies",
    "gold",
    "encoded",
    "rows",
)  # folders of the cache


class Entry(NamedTuple):
    """path  a file, or a folder of arrays
    size     bytes
    read     when a run read or made it, seconds since 1970
    """

    path: pathlib.Path
    size: int
    read: float


def unused_entries(days: float) -> list[Entry]:
    """Prepared data that no run has made or read within `days`, the oldest first."""
    before = time.time() - 86400 * days
    entries = [_entry(path) for kind in PREPARED for path in (cache_folder() / kind).glob("*")]
    return sorted((entry for entry in entries if entry.read < before), key=lambda entry: entry.read)


def remove(entry: Entry) -> None:
    """Removes an entry. A run that has it open keeps its mapped arrays. Raises OSError."""
    if entry.path.is_dir():
        shutil.rmtree(entry.path)
    else:
        entry.path.unlink(missing_ok=True)


def _entry(path: pathlib.Path) -> Entry:
    """Readers set the time of the manifest or of the file; shards of an unfinished one have that of their making."""
    files = [file.stat() for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    newest = max((file.st_mtime for file in files), default=path.stat().st_mtime)
    return Entry(path, sum(file.st_size for file in files), newest)
