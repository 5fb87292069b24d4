"""Large arrays on disk: made in shards by several processes, checksummed, mapped into memory.

A folder of the cache holds the arrays of one key. While they are made it holds a file for each finished shard, so that
an interrupted run goes on at the first one that is missing, and several processes, also of several hosts on a shared
file system, share the work: a shard belongs to who has its lock, which the system releases when its owner dies. Then
each array becomes one file, mapped into memory, and the manifest has the checksum of every shard of it. A shard that
does not match is made again.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import logging
import os
import pathlib
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mtl_jax.data.files import array_cache, workers
from mtl_jax.errors import UserError

VERSION = 1  # to be raised when the same key gives other arrays
CHUNK = 1 << 15  # records of a shard
IN_MEMORY = 1 << 16  # data of up to as many records stay in memory
_MANIFEST, _INFO = "manifest.json", "__info__"
_POLL_SECONDS = 0.2
_SAVED = 1 << 22  # elements of a shard of `save`


class Arrays(NamedTuple):
    """Arrays by name, and for each shard what its function told beside them (JSON values).

    folder  where they are; None for arrays in memory
    """

    arrays: dict[str, np.ndarray]
    info: list[Any]
    folder: pathlib.Path | None = None


class Job(NamedTuple):
    """How arrays are made: the shards' results are joined along their first axis.

    kind        folder of the cache
    key         JSON values that determine the arrays
    function    (*task, *common) -> (arrays by name, JSON values)
    common      further arguments of all tasks
    cumulative  names of arrays of ends: each begins with 0 and counts on from shard to shard
    """

    kind: str
    key: Mapping[str, Any]
    function: Callable[..., tuple[Mapping[str, np.ndarray], Any]]
    common: tuple = ()
    cumulative: tuple[str, ...] = ()


def digest(value: Any) -> str:
    """sha256 of JSON values; hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def ranges(count: int, size: int = 0) -> list[tuple[int, int]]:
    """[begin, end) of chunks of `size` (`CHUNK`) of `count` items."""
    size = size or CHUNK
    return [(begin, min(begin + size, count)) for begin in range(0, count, size)]


def make(job: Job, tasks: Sequence[tuple], on_disk: bool) -> Arrays:
    """The arrays of all tasks: from the cache, or made by the workers. In memory: made here, not cached.

    Raises:
      UserError: the cache cannot be written; what the function raises.
    """
    if not on_disk:
        results = [job.function(*task, *job.common) for task in tasks]
        return Arrays(_joined([arrays for arrays, _ in results], job.cumulative), [info for _, info in results])
    folder = _folder(job)
    with _writing(folder):
        if not (folder / _MANIFEST).is_file():
            _make_shards(folder, job, tasks)
            with _locked(folder / "lock"):
                if not (folder / _MANIFEST).is_file():
                    _join_shards(folder, len(tasks), job.cumulative)
        _repair(folder, job, tasks)
    return open_arrays(folder)


def make_sequentially(job: Job, tasks: Callable[[], Iterable[tuple]]) -> Arrays:
    """As `make`, of tasks that one process has to go through in order, such as the lines of a file.

    Tasks whose shard exists are read and left out.
    """
    folder = _folder(job)
    with _writing(folder), _locked(folder / "lock"):
        damaged = (folder / _MANIFEST).is_file() and _damaged(folder)
        if damaged:
            logging.getLogger(__name__).warning("damaged %s (%s): made again", folder, ", ".join(map(str, damaged)))
            (folder / _MANIFEST).unlink()
        if not (folder / _MANIFEST).is_file():
            number = -1
            for number, task in enumerate(tasks()):
                if not (path := _shard(folder, number)).is_file():
                    _write_shard(path, *job.function(*task, *job.common))
            _join_shards(folder, number + 1, job.cumulative)
    return open_arrays(folder)


def exists(job: Job) -> bool:
    """Whether the arrays of a job are complete."""
    return (_folder(job) / _MANIFEST).is_file()


@functools.lru_cache(maxsize=64)
def open_arrays(folder: pathlib.Path) -> Arrays:
    """The arrays of a complete folder, mapped read-only; a worker opens them by the folder's name."""
    manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    array_cache.mark_read(folder / _MANIFEST)
    arrays = {}
    for name, entry in manifest["arrays"].items():
        dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
        if entry["constant"] is not None:
            constant = np.frombuffer(bytes.fromhex(entry["constant"]), dtype)[0]
            arrays[name] = np.broadcast_to(constant, shape)
        else:
            arrays[name] = _mapped(_file(folder, name), dtype, shape)
        workers.references[id(arrays[name])] = (arrays[name], __name__, open_array.__name__, folder, name)
    return Arrays(arrays, manifest["info"], folder)


def open_array(folder: pathlib.Path, name: str) -> np.ndarray:
    """One of `open_arrays`."""
    return open_arrays(folder).arrays[name]


def save(kind: str, key: Any, array: np.ndarray, cumulative: bool = False) -> np.ndarray:
    """The array, written to disk and mapped; ends (`cumulative`) get the 0 before them."""
    job = Job(kind, {"saved": key}, _unchanged, cumulative=("array",) if cumulative else ())

    def chunks() -> Iterator[tuple]:
        last = 0
        for begin, end in ranges(len(array), _SAVED) or [(0, 0)]:
            yield ({"array": array[begin:end] - last if cumulative else array[begin:end]},)
            last = array[end - 1] if cumulative and end else 0

    return make_sequentially(job, chunks).arrays["array"]


def _unchanged(arrays: Mapping[str, np.ndarray]) -> tuple[Mapping[str, np.ndarray], None]:
    return arrays, None


def _mapped(path: pathlib.Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(np.memmap(path, dtype, "r", shape=shape)) if np.prod(shape) else np.zeros(shape, dtype)


def _locked(path: pathlib.Path) -> BinaryIO:
    """Waits for the lock of a file, which closing it gives back; the system does so where we die."""
    return _open_lock(path, wait=True)


def _make_shards(folder: pathlib.Path, job: Job, tasks: Sequence[tuple]) -> None:
    """Makes the shards that no other process is making, then waits for theirs."""
    while missing := [n for n in range(len(tasks)) if not _shard(folder, n).is_file()]:
        if (folder / _MANIFEST).is_file():
            return
        claimed: dict[int, Any] = {}
        done = 0
        try:
            for result in workers.run(job.function, _claims(folder, missing, tasks, claimed), job.common):
                number = list(claimed)[done]
                _write_shard(_shard(folder, number), *result)
                claimed[number].close()
                done += 1
        finally:
            for lock in claimed.values():
                lock.close()
        if not done:
            time.sleep(_POLL_SECONDS)


def _claims(
    folder: pathlib.Path, missing: Sequence[int], tasks: Sequence[tuple], claimed: dict[int, Any]
) -> Iterator[tuple]:
    """The tasks of missing shards whose lock is free; `claimed` gets the open lock of each."""
    for number in missing:
        lock = _open_lock(folder / "locks" / f"{number:05d}", wait=False)
        if lock is None:
            continue
        if _shard(folder, number).is_file():
            lock.close()
            continue
        claimed[number] = lock
        yield tasks[number]


def _open_lock(path: pathlib.Path, wait: bool) -> BinaryIO | None:
    """The locked file; None where another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        file.close()
        return None
    return file


def _write_shard(path: pathlib.Path, arrays: Mapping[str, np.ndarray], info: Any) -> None:
    """Writes one shard under a temporary name, then renames it; zip files have checksums of their own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays, **{_INFO: np.frombuffer(json.dumps(info).encode(), np.uint8)})
        os.replace(temporary, path)
    except BaseException:
        pathlib.Path(temporary).unlink(missing_ok=True)
        raise


def _read_shard(path: pathlib.Path) -> tuple[dict[str, np.ndarray], Any]:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return arrays, json.loads(arrays.pop(_INFO).tobytes())


def _join_shards(folder: pathlib.Path, count: int, cumulative: Sequence[str]) -> None:
    """Writes each array as one file, and the manifest; removes the shards."""
    entries: dict[str, dict[str, Any]] = {}
    info = []
    with contextlib.ExitStack() as files:
        opened = {}
        for number in range(count):
            try:
                arrays, shard_info = _read_shard(_shard(folder, number))
            except Exception as error:  # whatever a damaged archive raises
                _shard(folder, number).unlink(missing_ok=True)
                raise UserError(f"{_shard(folder, number)}: damaged ({error}); start again to make it again") from error
            info.append(shard_info)
            for name, array in arrays.items():
                if name not in entries:
                    first = b"" if name not in cumulative else np.zeros(1, array.dtype).tobytes()
                    opened[name] = files.enter_context(_file(folder, name).open("wb"))
                    opened[name].write(first)
                    entries[name] = _new_entry(array, name in cumulative)
                _append(entries[name], array, opened[name])
    for entry in entries.values():
        entry.pop("last")
    for name, entry in entries.items():
        if entry["constant"] is not None:
            _file(folder, name).unlink()
    _write_text(folder / _MANIFEST, json.dumps({"arrays": entries, "info": info}))
    for leftover in ("shards", "locks"):
        shutil.rmtree(folder / leftover, ignore_errors=True)


def _new_entry(array: np.ndarray, cumulative: bool) -> dict[str, Any]:
    first = np.zeros(1, array.dtype) if cumulative else array.ravel()[:1]
    constant = first.tobytes().hex() if len(first) else None
    shape = [int(cumulative), *array.shape[1:]]
    entry = {"dtype": array.dtype.str, "shape": shape, "cumulative": cumulative, "constant": constant}
    return entry | {"ends": [], "crc32": [], "last": 0}


def _append(entry: dict[str, Any], array: np.ndarray, file: Any) -> None:
    """Appends a shard's array to its file and its entry of the manifest."""
    if entry["cumulative"]:
        array = array + np.asarray(entry["last"], array.dtype)
        entry["last"] = int(array[-1]) if len(array) else entry["last"]
    content = np.ascontiguousarray(array)
    if entry["constant"] is not None and array.size:
        same = content.ravel()[:1].tobytes().hex() == entry["constant"] and (content == content.ravel()[0]).all()
        entry["constant"] = entry["constant"] if same else None
    file.write(content.data if content.size else b"")
    entry["shape"][0] += len(array)
    entry["ends"].append(entry["shape"][0])
    entry["crc32"].append(_crc32(content))


def _crc32(array: np.ndarray) -> int:
    return zlib.crc32(array.reshape(-1).view(np.uint8) if array.size else b"")


def _damaged(folder: pathlib.Path) -> list[int]:
    """The numbers of the shards that do not match their checksums."""
    manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    damaged = set()
    for name, entry in manifest["arrays"].items():
        if entry["constant"] is not None:
            continue
        path, dtype, shape = _file(folder, name), np.dtype(entry["dtype"]), tuple(entry["shape"])
        size = int(np.prod(shape)) * dtype.itemsize
        if not path.is_file() or path.stat().st_size != size:
            return list(range(len(entry["ends"])))
        if not size:
            continue
        array = np.asarray(np.memmap(path, dtype, "r", shape=shape))
        begin = int(entry["cumulative"])
        for number, (end, expected) in enumerate(zip(entry["ends"], entry["crc32"], strict=True)):
            if _crc32(array[begin:end]) != expected:
                damaged.add(number)
            begin = end
    return sorted(damaged)


def _repair(folder: pathlib.Path, job: Job, tasks: Sequence[tuple]) -> None:
    """Makes damaged shards of a complete folder again, in place."""
    if not (damaged := _damaged(folder)):
        return
    logging.getLogger(__name__).warning("damaged %s, shards %s: made again", folder, ", ".join(map(str, damaged)))
    with _locked(folder / "lock"):
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        for name, entry in manifest["arrays"].items():
            with _file(folder, name).open("ab") as file:  # a file that was cut off, or is missing
                if entry["constant"] is None:
                    file.truncate(int(np.prod(entry["shape"])) * np.dtype(entry["dtype"]).itemsize)
        for number in damaged:
            arrays, _ = job.function(*tasks[number], *job.common)
            for name, entry in manifest["arrays"].items():
                if entry["constant"] is not None:
                    continue
                dtype, first = np.dtype(entry["dtype"]), int(entry["cumulative"])
                begin = entry["ends"][number - 1] if number else first
                array = np.memmap(_file(folder, name), dtype, "r+", shape=tuple(entry["shape"]))
                before = array[begin - 1] if first else 0
                array[begin : entry["ends"][number]] = arrays[name] + before if first else arrays[name]
                array.flush()
        if left := _damaged(folder):
            (folder / _MANIFEST).unlink()
            raise UserError(
                f"{folder}: shards {', '.join(map(str, left))} are damaged and come out otherwise now; "
                "start again to make all of them"
            )


def _joined(parts: Sequence[Mapping[str, np.ndarray]], cumulative: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of shards in memory, joined."""
    result = {}
    for name in parts[0]:
        arrays = [part[name] for part in parts]
        if name in cumulative:
            lasts = np.cumsum([0, *(a[-1] if len(a) else 0 for a in arrays)])
            arrays = [np.zeros(1, arrays[0].dtype), *(a + last for a, last in zip(arrays, lasts, strict=False))]
        result[name] = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return result


@contextlib.contextmanager
def _writing(folder: pathlib.Path) -> Iterator[None]:
    """Errors of the disk in one sentence. What is finished stays, and the next start goes on from there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(
            f"{folder}: prepared data cannot be written there: {error.strerror or error}. Make room, or set "
            "MTL_JAX_CACHE to a folder on another disk; finished parts are kept"
        ) from error


def _folder(job: Job) -> pathlib.Path:
    return array_cache.cache_folder() / job.kind / digest([VERSION, CHUNK, job.key])[:40]


def _shard(folder: pathlib.Path, number: int) -> pathlib.Path:
    return folder / "shards" / f"{number:05d}.npz"


def _file(folder: pathlib.Path, name: str) -> pathlib.Path:
    return folder / f"{name.replace('/', '.')}.bin"


def _write_text(path: pathlib.Path, text: str) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(temporary, path)
