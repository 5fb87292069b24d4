"""Cached output of slow readers, as JSON: the next start reads it in a fraction of the time."""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from mtl_jax.data.files import array_cache
from mtl_jax.data.records import Note, Record, line_numbers

MIN_SECONDS = 0.2  # seconds; files that are read faster are not cached


def cached_items(key: Mapping[str, Any], name: str, read: Callable[[], Iterable[Record | Note]]) -> list[Record | Note]:
    """The items of `read()`, from the cache where it has them.

    Args:
      key: JSON values that determine the items, together with the code of the readers and `name`.
      name: of the one file that all items come from.
      read: called where the cache has no items or is damaged. Its errors are raised, and nothing is cached.
    """

    def make() -> dict[str, np.ndarray]:
        rows = [
            [item.fields, item.line, list(item.lines)]
            if isinstance(item, Record)
            else [item.what, item.line, item.count, item.lost, item.harmless]
            for item in read()
        ]
        # Surrogates represent bytes that could not be decoded; escaped they are plain ASCII.
        return {"items": np.frombuffer(json.dumps(rows).encode("ascii"), np.uint8)}

    # The first run reads the JSON as well: no result may depend on the state of the cache.
    arrays = array_cache.load_or_make({**key, "file": name, "code": code_digest()}, make, MIN_SECONDS)
    rows = json.loads(arrays["items"].tobytes())
    return [
        Record(row[0], name, row[1], line_numbers(row[2])) if len(row) == 3 else Note(row[0], name, *row[1:])
        for row in rows
    ]


@functools.cache
def code_digest() -> str:
    """Hash of the modules that read data: another version of a reader may give other items."""
    digest = hashlib.sha256()
    for file in sorted(pathlib.Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
