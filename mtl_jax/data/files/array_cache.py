"""Arrays cached on disk by the hash of their inputs: computed once, verified when read, recomputed where damaged."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

VERSION = 4  # to be raised when the same key gives other arrays
_SEAL = "__sha256__"
_BLOCK = 1 << 24  # bytes that are hashed at a time


def cache_folder() -> pathlib.Path:
    """`$MTL_JAX_CACHE`, else `$XDG_CACHE_HOME/mtl_jax`, else `~/.cache/mtl_jax`."""
    if chosen := os.environ.get("MTL_JAX_CACHE"):
        return pathlib.Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (pathlib.Path(base) if base else pathlib.Path.home() / ".cache") / "mtl_jax"


def load_or_make(
    key: Mapping[str, Any], make: Callable[[], Mapping[str, np.ndarray]], worth: float = 0.0
) -> dict[str, np.ndarray]:
    """The arrays of `make()`, from the cache where it holds them.

    Args:
      key: JSON values that determine the arrays; the file's name is their hash with `VERSION`.
      make: called where the file is missing or damaged. Arrays of plain dtypes (no objects).
      worth: seconds; arrays that `make` gives sooner are not cached.

    A cache that cannot be written costs time only, with a warning.
    """
    cached = load(key)
    if cached is not None:
        return cached
    began = time.perf_counter()
    arrays = {name: np.asarray(array) for name, array in make().items()}
    if time.perf_counter() - began >= worth:
        store(key, arrays)
    return arrays


def load(key: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
    """The arrays of a key; None where the cache lacks them."""
    return _read(_path(key))


def store(key: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays to the cache; one that cannot be written costs a warning."""
    path = _path(key)
    try:
        _write(path, arrays)
    except OSError as error:
        logging.getLogger(__name__).warning("cannot write to the cache %s: %s", path.parent, error)


def _path(key: Mapping[str, Any]) -> pathlib.Path:
    name = hashlib.sha256(json.dumps([VERSION, key], sort_keys=True).encode()).hexdigest()
    return cache_folder() / "encoded" / f"{name}.npz"


def checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """sha256 over names, dtypes, shapes and contents, independent of the order."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        if array.dtype.hasobject:
            raise TypeError(f"{name}: objects have no contents to be sealed, only addresses")
        digest.update(f"{name} {array.dtype.str} {array.shape or (1,)}\n".encode())
        array = np.atleast_1d(array)
        step = max(_BLOCK // max(array[:1].nbytes, 1), 1)  # a mapped array need not fit into memory
        for begin in range(0, len(array) if array.size else 0, step):
            digest.update(np.ascontiguousarray(array[begin : begin + step]).data)
    return digest.hexdigest()


def _read(path: pathlib.Path) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        return None
    # Whatever a damaged archive raises, the answer is to make it again.
    except Exception as error:
        logging.getLogger(__name__).warning("damaged cache file %s (%s): made again", path, error)
        return None
    if str(arrays.pop(_SEAL, "")) != checksum(arrays):
        logging.getLogger(__name__).warning("damaged cache file %s (wrong hash): made again", path)
        return None
    mark_read(path)
    return arrays


def mark_read(path: pathlib.Path) -> None:
    """Sets the time of a file to now, by which `cache_cleaning` knows what is in use."""
    with contextlib.suppress(OSError):  # a cache that is read only has no cleaning either
        os.utime(path)


def _write(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays, **{_SEAL: np.asarray(checksum(arrays))})
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise
