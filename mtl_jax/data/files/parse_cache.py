"""What a reader made of a file, kept as JSON: the next start reads that, which takes a fraction of the time."""

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

WORTH = 0.2  # seconds; what is read sooner is not kept


def kept(key: Mapping[str, Any], name: str, read: Callable[[], Iterable[Record | Note]]) -> list[Record | Note]:
    """The items of `read()`, from the cache where it has them.

    Args:
      key: what decides them besides the code of the readers and `name`, JSON values.
      name: of the one file that all of them come from.
      read: called where they are not kept, or damaged. Its errors are raised, and leave nothing behind.
    """

    def make():
        rows = [
            [item.fields, item.line, list(item.lines)]
            if isinstance(item, Record)
            else [item.what, item.line, item.count, item.lost, item.harmless]
            for item in read()
        ]
        # Surrogates stand for bytes that are no text; escaped they are plain ASCII.
        return {"items": np.frombuffer(json.dumps(rows).encode("ascii"), np.uint8)}

    # The first time too they are those of the JSON: no run shall depend on what was kept.
    arrays = array_cache.cached({**key, "file": name, "code": _code()}, make, WORTH)
    rows = json.loads(arrays["items"].tobytes())
    return [
        Record(row[0], name, row[1], line_numbers(row[2])) if len(row) == 3 else Note(row[0], name, *row[1:])
        for row in rows
    ]


@functools.cache
def _code() -> str:
    """Hash of the modules that read data: another version of a reader may read otherwise."""
    digest = hashlib.sha256()
    for file in sorted(pathlib.Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
