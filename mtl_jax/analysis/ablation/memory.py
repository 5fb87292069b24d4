"""How many lanes of a program fit into memory at once, from the compiler's memory analysis."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable

import jax
from jax.stages import Compiled

from mtl_jax.errors import UserError
from mtl_jax.runtime import distributed

GIB = 1 << 30


def required_bytes(compiled: Compiled) -> int:
    """Bytes that a compiled program takes on each device: arguments, results and temporaries."""
    sizes = compiled.memory_analysis()
    if sizes is None:
        return 0
    total = sizes.argument_size_in_bytes + sizes.output_size_in_bytes + sizes.temp_size_in_bytes
    return total - sizes.alias_size_in_bytes


def available_bytes(share: float) -> int:
    """Bytes that programs may take on each device: of several processes the least."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    total = statistics.get("bytes_limit") or _host_memory() / jax.local_device_count()
    return int(share * min(distributed.gather(total)))


def _host_memory() -> int:
    """Bytes of memory of this machine, or of the container that limits it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = pathlib.Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="utf-8").strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdigit() else total


def fit_lanes(needed_by: Callable[[int, int], int], seeds: int, lanes: int, budget: int, where: str) -> tuple[int, int]:
    """The largest batch of lanes that fits: seeds and settings.

    It has all seeds of as many settings as fit, so that lanes that are compared are trained together.

    Args:
      needed_by: (seeds, lanes) -> bytes that these lanes need on each device.
      seeds, lanes: S and L of all lanes.
      budget: bytes on each device.
      where: names the program in the error.

    Raises:
      UserError: one lane alone needs more.
    """
    size = (seeds, lanes)
    while True:
        bytes_needed = needed_by(*size)
        if bytes_needed <= budget:
            return size
        if size == (1, 1):
            raise UserError(
                f"{where}: one lane needs {bytes_needed / GIB:.2f} GiB, and {budget / GIB:.2f} GiB are allowed "
                "(config.ablation.memory_fraction of the device's memory); make the model or "
                "config.data.rows_per_block smaller, or set config.model.remat_policy=nothing_saveable"
            )
        size = _smaller(size, budget / bytes_needed)


def _smaller(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """A size that should fit if memory is proportional to the number of lanes."""
    seeds, lanes = size
    if lanes > 1:
        return seeds, max(1, min(lanes - 1, int(lanes * factor)))
    return max(1, min(seeds - 1, int(seeds * factor))), 1
