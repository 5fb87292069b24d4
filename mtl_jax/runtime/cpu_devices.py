"""Devices of JAX on a CPU."""

from __future__ import annotations

import os

import jax


def use_all_cores() -> None:
    """On CPU, one device for each core, among which the lanes are divided. Call before JAX is used.

    A lane of a small model would leave all cores but one idle. GPUs and TPUs stay as they are.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        jax.config.update("jax_num_cpu_devices", cores)
