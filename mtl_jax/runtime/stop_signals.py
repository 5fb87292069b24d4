"""SIGTERM and Ctrl-C as a wish to stop after the step at hand."""

from __future__ import annotations

import signal
import threading

import jax

from mtl_jax.errors import Stopped
from mtl_jax.runtime import distributed, interruption


class StopSignals:
    """Within this context the first SIGTERM or SIGINT sets `asked`; a second SIGINT interrupts at once.

    Outside of the main thread, where Python handles no signals, `asked` stays False. With several processes JAX takes
    SIGTERM, which a SIGINT becomes, and all of them stop at the same step, see `reached`.
    """

    def __init__(self):
        self.asked = False
        self._before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else (signal.SIGINT,)
            self._before = {number: signal.signal(number, self._ask) for number in numbers}
        return self

    def __exit__(self, *_):
        self.release()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def hold(self) -> None:
        """From here on there is a state to be saved: a signal waits for that, however long the step takes."""
        interruption.unsaved.set()

    def release(self) -> None:
        """All that there was is saved: a signal may end what takes long."""
        interruption.unsaved.clear()

    def reached(self) -> bool:
        """Whether to stop here; several processes agree on it, and all have to ask equally often."""
        self.asked |= distributed.preempted()
        return self.asked

    def require(self) -> None:
        """Raises `Stopped` where `reached`."""
        if self.reached():
            raise Stopped(interruption.status() - 128)

    def _ask(self, number, frame):
        interruption.note(number)
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if jax.process_count() > 1:  # the others are to stop as well
            signal.raise_signal(signal.SIGTERM)
            return
        self.asked = True
