"""Ends a command within seconds of SIGTERM or SIGINT, with status 128 + the signal, and without loss.

Training stops after its current step (`stop_signals.StopSignals`); everything else at once. Python runs signal handlers
between two of its own instructions, but compilation or a large program may take minutes: then a thread ends the
process, unless a state has to be saved first.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

from mtl_jax.errors import Stopped

GRACE_SECONDS = 5.0  # seconds from a signal to the end of code that does not respond

unsaved = threading.Event()  # set while there is a state that is in no checkpoint
_received: list[int] = []  # signals in order


def record(number: int) -> None:
    """Records a signal for `exit_status`; signal handlers call this."""
    _received.append(number)


def exit_status() -> int:
    """The exit status of a stopped command; the signal may have come from another process."""
    return 128 + (_received[-1] if _received else signal.SIGTERM)


@contextlib.contextmanager
def raising_on_sigterm() -> Iterator[None]:
    """In this context SIGTERM raises `Stopped`, as SIGINT raises KeyboardInterrupt; see the top of this file."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous = signal.signal(signal.SIGTERM, _stop)
    previous_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous_fd)
        signal.signal(signal.SIGTERM, previous)
        os.close(writer)  # which ends the thread


def _stop(number: int, frame: FrameType | None) -> None:
    record(number)
    raise Stopped(number)


def _watch(reader: int) -> None:
    while number := os.read(reader, 1):
        if number[0] in (signal.SIGTERM, signal.SIGINT):
            time.sleep(GRACE_SECONDS)
            if not unsaved.is_set():
                sys.stderr.write(f"stopped by {signal.Signals(number[0]).name}\n")
                sys.stderr.flush()
                os._exit(128 + number[0])
    os.close(reader)
