"""A side of a benchmark as a process of its own, asked in turns: JSON lines in, JSON lines out.

So the sides share neither thread pools nor memory, and each one's peak memory is its own.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import pathlib
import resource
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any


class Worker:
    """A running side. Call it with the name of a handler and its arguments."""

    def __init__(self, file: str, environment: Mapping[str, str] | None = None):
        path = pathlib.Path(__file__).with_name(file)
        self.process = subprocess.Popen(
            [sys.executable, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
            cwd=path.parent.parent,
        )

    def start(self, name: str, **arguments: Any) -> None:
        """Asks; `answer` waits for it."""
        self.process.stdin.write(json.dumps([name, arguments]) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """What the handler returned. RuntimeError with its traceback where it failed."""
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a side ended with status {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["value"]

    def __call__(self, name: str, **arguments: Any) -> Any:
        self.start(name, **arguments)
        return self.answer()

    def close(self) -> None:
        """Ends the process."""
        self.process.stdin.close()
        self.process.wait()


def serve(handlers: Mapping[str, Callable[..., Any]]) -> None:
    """Answers until the input ends. What is printed meanwhile goes to stderr."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = {"value": handlers[name](**arguments)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def peak_memory() -> int:
    """The most bytes that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_since_reset() -> int:
    """The most bytes held since `reset_peak`, less those held then."""
    return _held("VmHWM") - _reset_at[0]


def reset_peak() -> None:
    """Lets the peak start anew from what is held now, memory that was freed given back. Linux with glibc only."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    _reset_at[0] = _held("VmRSS")


_reset_at = [0]


def _held(field: str) -> int:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])
