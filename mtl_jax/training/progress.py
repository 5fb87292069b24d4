"""Progress bars on the terminal, and rarely refreshed ones where a file or pipe takes their place."""

from __future__ import annotations

import sys
from typing import Any

import jax
from tqdm import tqdm

SECONDS_TO_FILE = 15.0  # between two states of a bar that is not on a terminal


def progress_bar(desc: str, unit: str, total: int | None = None, **options: Any) -> tqdm:
    """A tqdm bar on stderr; of several processes the first has one."""
    interval = 0.1 if sys.stderr.isatty() else SECONDS_TO_FILE
    return tqdm(desc=desc, unit=unit, total=total, mininterval=interval, dynamic_ncols=True,
                disable=jax.process_index() > 0, **options)  # fmt: skip
