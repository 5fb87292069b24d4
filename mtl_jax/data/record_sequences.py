"""Records in memory or on disk as sequences, and functions of chunks of them.

A list of more than `array_shards.IN_MEMORY` records goes to disk while it is read: the fields of each record, found by
their offset. Everything after that handles records by index, in chunks.
"""

from __future__ import annotations

import functools
import itertools
import marshal
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtl_jax.data.files import array_cache, array_shards, workers
from mtl_jax.data.records import Note, Record
from mtl_jax.errors import UserError

_FORMAT = 2  # of marshal: without references, so that equal records have equal bytes
_RANGE = -1  # before the first and last of consecutive lines
_STEP = 1 << 12  # records of a loop through all


class Places(NamedTuple):
    """Where M records come from: `names` of files, int32[M] index in them, int64[M] line."""

    names: list[str]
    file: np.ndarray
    line: np.ndarray


class RecordStore:
    """Records on disk, in a folder that `shards` made by `store_chunk`."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        opened = array_shards.open_arrays(folder)
        self._arrays = opened.arrays
        self.names = list(dict.fromkeys(name for info in opened.info for name in info["files"]))
        numbers = {name: number for number, name in enumerate(self.names)}
        self._files = [np.asarray([numbers[name] for name in info["files"]], np.int32) for info in opened.info]
        self._first = np.cumsum([0, *(info["count"] for info in opened.info)])

    def __len__(self) -> int:
        return len(self._arrays["line"])

    def records(self, index: np.ndarray) -> list[Record]:
        """The records of the given indices."""
        ends, blob = self._arrays["end"], self._arrays["blob"]
        begins, stops = ends[index], ends[index + 1]
        files, lines = self.file(index).tolist(), self.line(index).tolist()
        if len(index) and (begins[1:] == stops[:-1]).all():  # one after the other, as usual: one copy of all
            blob = blob[begins[0] : stops[-1]].tobytes()
            begins, stops = begins - begins[0], stops - begins[0]
        result = []
        for begin, stop, file, line in zip(begins.tolist(), stops.tolist(), files, lines, strict=True):
            fields, words = marshal.loads(blob[begin:stop])
            words = range(words[1], words[2] + 1) if words[:1] == (_RANGE,) else words
            result.append(Record(fields, self.names[file], line, words))
        return result

    def line(self, index: np.ndarray) -> np.ndarray:
        """int64, the lines of the records of the given indices."""
        return self._arrays["line"][index]

    def file(self, index: np.ndarray) -> np.ndarray:
        """int32, the indices in `names` of the files of the records of the given indices."""
        if len(self.names) == 1:
            return np.zeros(len(index), np.int32)
        shard, local = np.searchsorted(self._first, index, "right") - 1, self._arrays["source"][index]
        result = np.empty(len(index), np.int32)
        for number in np.unique(shard):
            result[shard == number] = self._files[number][local[shard == number]]
        return result


@functools.lru_cache(maxsize=64)
def _open_store(folder: pathlib.Path) -> RecordStore:
    return RecordStore(folder)


class StoredRecords(Sequence[Record]):
    """Records of one or several stores, one after the other, with the indices int64[M]."""

    def __init__(self, folders: tuple[pathlib.Path, ...], index: np.ndarray | None = None):
        self.folders = folders
        self._first = np.cumsum([0, *(len(_open_store(folder)) for folder in folders)])
        self.index = np.arange(self._first[-1]) if index is None else index

    def __reduce__(self) -> tuple:
        return StoredRecords, (self.folders, self.index)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return StoredRecords(self.folders, self.index[index])
        return next(iter(self._gathered(self.index[range(len(self))[index]][None])))

    def __iter__(self) -> Iterator[Record]:
        for begin, end in array_shards.ranges(len(self), _STEP):
            yield from self._gathered(self.index[begin:end])

    @functools.cached_property
    def key(self) -> str:
        """What identifies the records and their order."""
        return array_shards.digest([[f.name for f in self.folders], array_cache.checksum({"index": self.index})])

    def in_memory(self) -> list[Record]:
        """The records as a list."""
        return list(self)

    def selected(self, index: np.ndarray) -> StoredRecords:
        """Those with the given indices."""
        return StoredRecords(self.folders, self.index[index])

    def places(self) -> Places:
        """Where the records come from."""
        names: list[str] = []
        file, line = np.empty(len(self), np.int32), np.empty(len(self), np.int64)
        for number, folder in enumerate(self.folders):
            store = _open_store(folder)
            mine = (self.index >= self._first[number]) & (self.index < self._first[number + 1])
            inside = self.index[mine] - self._first[number]
            known = {name: at for at, name in enumerate(names)}
            names += [name for name in store.names if name not in known]
            codes = np.asarray([names.index(name) for name in store.names], np.int32)
            file[mine], line[mine] = codes[store.file(inside)], store.line(inside)
        return Places(names, file, line)

    def _gathered(self, index: np.ndarray) -> list[Record]:
        if len(self.folders) == 1:
            return _open_store(self.folders[0]).records(index)
        number = np.searchsorted(self._first, index, "right") - 1
        parts = {
            n: iter(_open_store(self.folders[n]).records(index[number == n] - self._first[n]))
            for n in np.unique(number).tolist()
        }
        return [next(parts[n]) for n in number.tolist()]


Records = Sequence[Record]


def selected(records: Records, index: Iterable[int] | np.ndarray) -> Records:
    """The records with the given indices."""
    if isinstance(records, StoredRecords):
        return records.selected(np.asarray(index, np.int64))
    return [records[i] for i in (index.tolist() if isinstance(index, np.ndarray) else index)]


def joined(parts: Sequence[Records], key: Any) -> Records:
    """The records of all parts; on disk where one of them is, the others stored by `key`."""
    if not any(isinstance(part, StoredRecords) for part in parts):
        return [record for part in parts for record in part]
    if len(parts) == 1:
        return parts[0]
    stored = [
        part if isinstance(part, StoredRecords) else store(part, {"part": number, "key": key})
        for number, part in enumerate(parts)
    ]
    folders = tuple(dict.fromkeys(folder for part in stored for folder in part.folders))
    first = dict(zip(folders, np.cumsum([0, *(len(_open_store(folder)) for folder in folders)]).tolist(), strict=False))
    indices = []
    for part in stored:
        begins = np.asarray([first[folder] for folder in part.folders])
        number = np.searchsorted(part._first, part.index, "right") - 1
        indices.append(part.index - part._first[number] + begins[number])
    return StoredRecords(folders, np.concatenate(indices))


def places(records: Records) -> Places:
    """Where records come from."""
    if isinstance(records, StoredRecords):
        return records.places()
    names = {name: number for number, name in enumerate(dict.fromkeys(record.file for record in records))}
    count = len(records)
    file = np.fromiter((names[record.file] for record in records), np.int32, count)
    return Places(list(names), file, np.fromiter((record.line for record in records), np.int64, count))


class ReadItems(NamedTuple):
    """What a reader yielded: records, and (number of records before it, note) of each note."""

    records: Records
    notes: list[tuple[int, Note]]


def collect(items: Iterable[Record | Note], key: Any, in_memory: bool = False) -> ReadItems:
    """The items of a reader; on disk where there are many of them, unless `in_memory`.

    `key` (JSON values) determines the items: where they have been stored, they are not read.
    """
    job = _store_job(key)
    if not in_memory and array_shards.exists(job):
        return _stored(array_shards.make_sequentially(job, lambda: _chunks(items)))
    items, first = iter(items), []
    count = 0
    for item in items:
        first.append(item)
        count += isinstance(item, Record)
        if count > array_shards.IN_MEMORY and not in_memory:
            return _stored(array_shards.make_sequentially(job, lambda: _chunks(itertools.chain(first, items))))
    return _read(first)


def store(records: Iterable[Record], key: Any) -> StoredRecords:
    """Records written to disk."""
    return _stored(array_shards.make_sequentially(_store_job(key), lambda: _chunks(records))).records


def _read(items: Iterable[Record | Note]) -> ReadItems:
    records: list[Record] = []
    notes = []
    for item in items:
        if isinstance(item, Record):
            records.append(item)
        else:
            notes.append((len(records), item))
    return ReadItems(records, notes)


def _store_job(key: Any) -> array_shards.Job:
    return array_shards.Job("records", {"records": key}, store_chunk, cumulative=("end",))


def _chunks(items: Iterable[Record | Note]) -> Iterator[tuple]:
    chunk: list[Record | Note] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == array_shards.CHUNK:
            yield (chunk,)
            chunk = []
    yield (chunk,)


def store_chunk(items: Sequence[Record | Note]) -> tuple[dict[str, np.ndarray], Any]:
    """The arrays of a `RecordStore` of one chunk of items; its notes, files and number of records beside them."""
    records, notes = _read(items)
    names = {name: number for number, name in enumerate(dict.fromkeys(record.file for record in records))}
    parts = []
    for record in records:
        words = record.lines
        words = (_RANGE, words[0], words[-1]) if isinstance(words, range) and words else tuple(words)
        parts.append(marshal.dumps((record.fields, words), _FORMAT))
    if records and not _is_plain(records[0].fields):
        raise UserError(f"{records[0].file}: records of more than text, numbers and lists of them do not go to disk")
    arrays = {
        "blob": np.frombuffer(b"".join(parts), np.uint8),
        "end": np.cumsum([len(part) for part in parts], dtype=np.int64),
        "line": np.fromiter((record.line for record in records), np.int64, len(records)),
        "source": np.fromiter((names[record.file] for record in records), np.int32, len(records)),
    }
    return arrays, {"files": list(names), "count": len(records), "notes": [(at, *note) for at, note in notes]}


def _is_plain(value: Any) -> bool:
    """Whether a value comes back from disk as it is."""
    if isinstance(value, dict):
        return _is_plain([*value, *value.values()])
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str, bytes)


def _stored(made: array_shards.Arrays) -> ReadItems:
    notes, before = [], 0
    for info in made.info:
        notes += [(before + at, Note(*note)) for at, *note in info["notes"]]
        before += info["count"]
    return ReadItems(StoredRecords((made.folder,)), notes)


def map_chunks(function: Callable[..., Any], records: Records, common: tuple = ()) -> Iterator[Any]:
    """`function(chunk, *common)` of chunks of records in order: all of a list at once, those on disk by workers."""
    if not isinstance(records, StoredRecords):
        yield function(records, *common)
        return
    tasks = ((records[begin:end],) for begin, end in array_shards.ranges(len(records)))
    yield from workers.run(function, tasks, common)


def arrays_of_chunks(
    kind: str, function: Callable[..., Any], records: Records, common: tuple, key: Mapping[str, Any], **options: Any
) -> array_shards.Arrays:
    """The arrays that `function(chunk, *common)` makes of chunks of records, joined; see `array_shards.Job`."""
    if not isinstance(records, StoredRecords):
        return array_shards.make(array_shards.Job(kind, key, function, common, **options), [(records,)], False)
    job = array_shards.Job(kind, {**key, "records": records.key}, function, common, **options)
    return array_shards.make(job, [(records[begin:end],) for begin, end in array_shards.ranges(len(records))], True)
