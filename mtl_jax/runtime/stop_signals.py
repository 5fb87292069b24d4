"""SIGTERM and Ctrl-C as a request to stop after the current step."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import jax

from mtl_jax.errors import Stopped
from mtl_jax.runtime import distributed, interruption


class StopSignals:
    """Within this context the first SIGTERM or SIGINT sets `asked`; a second SIGINT interrupts at once.

    Outside the main thread, where Python handles no signals, `asked` stays False. With several processes JAX handles
    SIGTERM, a SIGINT is turned into one, and all of them stop at the same step, see `should_stop`.
    """

    def __init__(self):
        self.asked = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else (signal.SIGINT,)
            self._previous = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def defer(self) -> None:
        """From now on there is a state to save: a signal waits for that, however long the step takes."""
        interruption.unsaved.set()

    def release(self) -> None:
        """Everything is saved: a signal may end what takes long."""
        interruption.unsaved.clear()

    def should_stop(self) -> bool:
        """Whether to stop now; several processes agree on it, and all have to call this equally often."""
        self.asked |= distributed.is_preempted()
        return self.asked

    def raise_if_stopped(self) -> None:
        """Raises `Stopped` if `should_stop`."""
        if self.should_stop():
            raise Stopped(interruption.exit_status() - 128)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        interruption.record(number)
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if jax.process_count() > 1:  # the other processes have to stop too
            signal.raise_signal(signal.SIGTERM)
            return
        self.asked = True
