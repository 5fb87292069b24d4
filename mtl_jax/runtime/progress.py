"""Progress bars on the terminal, refreshed rarely if stderr is a file or a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import jax
from tqdm import tqdm

SECONDS_TO_FILE = 15.0  # between two updates of a bar that is not on a terminal
SECONDS_TO_MEASURE = 5.0  # before a forecast
MIN_FORECAST_SECONDS = 60.0  # shorter forecasts are not printed


def progress_bar(desc: str, unit: str, total: int | None = None, **options: Any) -> tqdm:
    """A tqdm bar on stderr; of several processes only the first shows one."""
    interval = 0.1 if sys.stderr.isatty() else SECONDS_TO_FILE
    return tqdm(
        desc=desc,
        unit=unit,
        total=total,
        mininterval=interval,
        dynamic_ncols=True,
        disable=jax.process_index() > 0,
        **options,
    )


class Forecast:
    """Prints once how long a bar will still take, if that is minutes. Call it with each count, after the update."""

    def __init__(self, bar: tqdm, clock: Callable[[], float] = time.monotonic):
        self._bar, self._clock = bar, clock
        self._first: tuple[float, float] | None = None  # time and count after the first call, which compiles
        self._open = True

    def __call__(self, count: int) -> None:
        """The bar is at `count` now."""
        now = self._clock()
        if self._first is None:
            self._first = now, count
        began, before = self._first
        if not self._open or now - began < SECONDS_TO_MEASURE or count <= before:
            return
        self._open = False
        left = (self._bar.total - count) * (now - began) / (count - before)
        if left >= MIN_FORECAST_SECONDS:
            self._bar.write(f"{self._bar.desc}: {self._bar.total:,} {self._bar.unit}s, about {left / 60:.0f} min more")
