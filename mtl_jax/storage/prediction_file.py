"""A file of predictions that grows line by line, and that a command which was stopped goes on with."""

from __future__ import annotations

import json
import math
import pathlib
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from mtl_jax.errors import UserError

TOLERANCE = 1e-3  # of numbers that another machine, or another number of devices, computes


class Output:
    """JSON lines to a file or to the standard output, complete after each `write`. Use as a context manager.

    What the file holds already is kept as long as `has` finds it to be what would be written; the first lines are
    computed again to see that, since they may be of another model.
    """

    def __init__(self, target: str):
        """`target`: a file, "" for the standard output. Raises UserError where it cannot be written."""
        self._target, self._file, self._lines = target, None, None
        self._count = 0  # lines that stand, and the bytes that they take
        self._bytes = 0

    def __enter__(self):
        if self._target:
            path = pathlib.Path(self._target).expanduser()
            try:
                self._file = path.open("r+b" if path.exists() else "w+b")
            except OSError as error:
                raise UserError(f"--output={self._target}: {error.strerror}") from None
            self._lines = self._file
        return self

    def __exit__(self, *_):
        if self._file is not None:
            self._file.close()

    def has(
        self, places: Sequence[Mapping[str, Any]], tasks: Collection[str], compute: Callable[[], list[dict[str, Any]]]
    ) -> bool:
        """Whether the next lines of the file are those of the records at `places`; what follows is cut off otherwise.

        Args:
          places: {"line": ...} of each record.
          tasks: a line has keys of these alone.
          compute: the lines, asked for at the beginning only.
        """
        if self._lines is None:
            return False
        found, size = [], 0
        for place in places:
            line = self._lines.readline()
            size += len(line)
            value = _parsed(line)
            if value is None or not _is_of(value, place, tasks):
                break
            found.append(value)
        if len(found) == len(places) and (self._count or _alike(found, compute())):
            self._count += len(found)
            self._bytes += size
            return True
        self._cut()
        return False

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Writes lines that a reader of the file sees at once."""
        if self._file is None:
            readable = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
            sys.stdout.write("".join(json.dumps(line, ensure_ascii=not readable) + "\n" for line in lines))
            sys.stdout.flush()
            return
        self._file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode("utf-8"))
        self._file.flush()

    def end(self) -> None:
        """Cuts off what a longer input has left."""
        if self._lines is not None:
            self._cut()

    def _cut(self) -> None:
        """From here on the file is written."""
        self._file.seek(0, 2)
        if self._count:
            print(f"--output={self._target}: going on behind {self._count} lines", file=sys.stderr)
        elif self._file.tell():
            print(
                f"--output={self._target}: what it holds is of another input or model, or not whole; it is written "
                "anew",
                file=sys.stderr,
            )
        self._file.seek(self._bytes)
        self._file.truncate()
        self._lines = None


def _parsed(line: bytes) -> dict[str, Any] | None:
    """What a whole line holds."""
    try:
        value = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_of(value: Mapping[str, Any], place: Mapping[str, Any], tasks: Collection[str]) -> bool:
    return all(value.get(key) == there for key, there in place.items()) and set(value) - set(place) <= set(tasks)


def _alike(first: Any, second: Any) -> bool:
    """Whether two values of JSON are the same but for the rounding of numbers."""
    if isinstance(first, float) or isinstance(second, float):
        numbers = isinstance(first, int | float) and isinstance(second, int | float)
        return numbers and math.isclose(first, second, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_alike(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(_alike, first, second))
    return first == second
