"""SIGTERM and Ctrl-C as a wish to stop after the step at hand."""

from __future__ import annotations

import signal
import threading


class StopSignals:
    """Within this context the first SIGTERM or SIGINT sets `asked`; a second SIGINT interrupts at once.

    Outside of the main thread, where Python handles no signals, `asked` stays False.
    """

    def __init__(self):
        self.asked = False
        self._before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number, frame):
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True
