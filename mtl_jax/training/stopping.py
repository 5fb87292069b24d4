"""SIGTERM and Ctrl-C as a wish to stop after the step at hand."""

from __future__ import annotations

import signal
import threading

import jax

from mtl_jax.training import processes


class StopSignals:
    """Within this context the first SIGTERM or SIGINT sets `asked`; a second SIGINT interrupts at once.

    Outside of the main thread, where Python handles no signals, `asked` stays False. With several processes JAX takes
    SIGTERM, and all of them stop at the same step, see `at`.
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
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def at(self, step: int) -> bool:
        """Whether to stop after this step; several processes agree on it."""
        self.asked |= processes.preempted(step)
        return self.asked

    def _ask(self, number, frame):
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
