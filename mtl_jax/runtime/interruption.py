"""A command that a signal asks to end does so within seconds, with status 128 + the signal, and loses nothing.

What trains stops at its next whole step (`stopping.StopSignals`); everything else at once. Python runs its handlers
between two of its own instructions, while compiling or a large program may take minutes: a thread ends the process
there, unless a state is to be saved first.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

from mtl_jax.errors import Stopped

GRACE = 5.0  # seconds from a signal to the end of what does not listen

unsaved = threading.Event()  # set while there is a state that no checkpoint has
_noted: list[int] = []  # signals as they came


def note(number: int) -> None:
    """To be called by handlers of signals: `status` tells of the last one."""
    _noted.append(number)


def status() -> int:
    """The exit status of a command that was stopped; of several processes one may have it from another."""
    return 128 + (_noted[-1] if _noted else signal.SIGTERM)


@contextlib.contextmanager
def ending_by_signals() -> Iterator[None]:
    """In this context SIGTERM raises `Stopped`, as SIGINT does KeyboardInterrupt; see the head of this file."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.signal(signal.SIGTERM, _stop)
    awake = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(awake)
        signal.signal(signal.SIGTERM, before)
        os.close(writer)  # which ends the thread


def _stop(number, frame):
    note(number)
    raise Stopped(number)


def _watch(reader: int) -> None:
    while number := os.read(reader, 1):
        if number[0] in (signal.SIGTERM, signal.SIGINT):
            time.sleep(GRACE)
            if not unsaved.is_set():
                sys.stderr.write(f"stopped by {signal.Signals(number[0]).name}\n")
                sys.stderr.flush()
                os._exit(128 + number[0])
    os.close(reader)
