"""A file of predictions that grows line by line; a command that was stopped resumes it."""

from __future__ import annotations

import json
import math
import pathlib
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, BinaryIO

from mtl_jax.errors import UserError

TOLERANCE = 1e-3  # between numbers of different machines or numbers of devices


class PredictionFile:
    """JSON lines to a file or to the standard output, complete after each `write`. Use as a context manager.

    The lines of an existing file stay as long as `contains` finds that they are the ones to be written; the first of
    them are computed again to verify that, since they may be of another model.
    """

    def __init__(self, target: str):
        """`target`: a file, "" for the standard output."""
        self._target = target
        self._file: BinaryIO | None = None
        self._comparing = False  # whether the next lines of the file may be the ones to be written
        self._verified_lines = self._verified_bytes = 0

    def __enter__(self) -> PredictionFile:
        """Opens the file. Raises UserError where it cannot be written."""
        if self._target:
            path = pathlib.Path(self._target).expanduser()
            try:
                self._file = path.open("r+b" if path.exists() else "w+b")
            except OSError as error:
                raise UserError(f"--output={self._target}: {error.strerror}") from None
            self._comparing = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def contains(
        self, places: Sequence[Mapping[str, Any]], tasks: Collection[str], compute: Callable[[], list[dict[str, Any]]]
    ) -> bool:
        """Whether the next lines of the file are those of the records at `places`; if not, the file is truncated here.

        Args:
          places: {"line": ...} of each record.
          tasks: the only other keys of a line.
          compute: the lines; called for the first records only.
        """
        if not self._comparing:
            return False
        values, size = [], 0
        for place in places:
            line = self._file.readline()
            size += len(line)
            value = _parsed(line)
            if value is None or not _has_keys(value, place, tasks):
                break
            values.append(value)
        if len(values) == len(places) and (self._verified_lines or _is_close(values, compute())):
            self._verified_lines += len(values)
            self._verified_bytes += size
            return True
        self._truncate()
        return False

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Writes lines that a reader of the file sees at once."""
        if self._file is None:
            is_utf = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
            sys.stdout.write("".join(json.dumps(line, ensure_ascii=not is_utf) + "\n" for line in lines))
            sys.stdout.flush()
            return
        self._file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode("utf-8"))
        self._file.flush()

    def truncate(self) -> None:
        """Removes lines that a longer input has left."""
        if self._comparing:
            self._truncate()

    def _truncate(self) -> None:
        """Removes what follows the verified lines; from now on the file is written."""
        self._file.seek(0, 2)
        if self._verified_lines:
            print(f"--output={self._target}: resuming after {self._verified_lines} lines", file=sys.stderr)
        elif self._file.tell():
            print(
                f"--output={self._target}: its content is of another input or model, or damaged; it is overwritten",
                file=sys.stderr,
            )
        self._file.seek(self._verified_bytes)
        self._file.truncate()
        self._comparing = False


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The object in a complete line; None where there is none."""
    try:
        value = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _has_keys(value: Mapping[str, Any], place: Mapping[str, Any], tasks: Collection[str]) -> bool:
    """Whether a line is that of the record at `place`, with predictions of `tasks` only."""
    return all(value.get(key) == expected for key, expected in place.items()) and set(value) - set(place) <= set(tasks)


def _is_close(first: Any, second: Any) -> bool:
    """Whether two JSON values are equal up to the rounding of numbers."""
    if isinstance(first, float) or isinstance(second, float):
        numbers = isinstance(first, int | float) and isinstance(second, int | float)
        return numbers and math.isclose(first, second, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(_is_close(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(_is_close, first, second))
    return first == second
