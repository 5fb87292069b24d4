"""How many lanes a program takes at once, from what the compiler says that it needs."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from mtl_jax.errors import UserError

GIB = 1 << 30


def needed(compiled: Any) -> int:
    """Bytes that a compiled program takes on each device: arguments, results and what lies between."""
    found = compiled.memory_analysis()
    if found is None:
        return 0
    whole = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
    return whole - found.alias_size_in_bytes


def available(share: float) -> int:
    """Bytes that programs may take on each device."""
    device = jax.devices()[0]
    statistics = device.memory_stats() or {}
    if "bytes_limit" in statistics:
        return int(share * statistics["bytes_limit"])
    return int(share * _host_memory() / jax.local_device_count())


def _host_memory() -> int:
    """Bytes of memory of this machine, or of the container that limits it."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = pathlib.Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="utf-8").strip() if limit.is_file() else "max"
    return min(whole, int(text)) if text.isdigit() else whole


def fit(needed_by: Callable[[int, int], int], seeds: int, lanes: int, budget: int, where: str) -> tuple[int, int]:
    """The largest turn that fits: seeds and lanes.

    All seeds of as many settings as fit are preferred, so that what is compared is trained together.

    Args:
      needed_by: (seeds, lanes) -> bytes that so many lanes need on each device.
      seeds, lanes: S and L of the whole.
      budget: bytes on each device.
      where: names the program in the error.

    Raises:
      UserError: one lane alone needs more.
    """
    turn = (seeds, lanes)
    while True:
        bytes_needed = needed_by(*turn)
        if bytes_needed <= budget:
            return turn
        if turn == (1, 1):
            raise UserError(
                f"{where}: one lane needs {bytes_needed / GIB:.2f} GiB, and {budget / GIB:.2f} GiB may be taken "
                "(config.ablation.memory of the device's memory); make the model or config.data.rows_per_block "
                "smaller, or set "
                "config.model.remat=True"
            )
        turn = _smaller(turn, budget / bytes_needed)


def _smaller(turn: tuple[int, int], factor: float) -> tuple[int, int]:
    """A turn that the program's memory, taken as proportional to the lanes, lets expect to fit."""
    seeds, lanes = turn
    if lanes > 1:
        return seeds, max(1, min(lanes - 1, int(lanes * factor)))
    return max(1, min(seeds - 1, int(seeds * factor))), 1
