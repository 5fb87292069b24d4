"""What `steps.py` and `packing.py` have in common: the check of losses, the search for the peer's fastest settings."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Mapping
from typing import Any

from record import CORES
from workers import Worker

PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}  # as `launch.py` asks for; PyTorch gains from it too
SHARED = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
EXACT = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}  # float32 products of a GPU, as PyTorch's are by default
CHECKED = 5  # steps whose losses are compared
TOLERANCE = 1e-4  # largest difference of a loss within these steps


def workers() -> tuple[Worker, Worker]:
    """mtl_jax and PyTorch. They share a GPU."""
    return Worker("jax_steps.py", {**PAGES, **SHARED}), Worker("torch_steps.py", PAGES)


def require_same_losses(folder: str, loads: Mapping[str, Any]) -> float:
    """Trains both sides for some steps from the same values on the same batches, in float32, without dropout.

    Returns the largest difference of a loss. SystemExit where it is above TOLERANCE: the sides do different work.
    The processes end, so that the peak memory of what is timed later is its own.
    """
    ours, peer = Worker("jax_steps.py", {**PAGES, **SHARED, **EXACT}), Worker("torch_steps.py", PAGES)
    steps = min(CHECKED, ours("load", folder=folder, **{**loads, "dtype": "float32"})["steps"])
    expected = ours("losses", steps=steps)
    worst = 0.0
    for variant in peer("load", folder=folder)["variants"]:
        if not variant[1]:  # what is compiled is the same model
            results = peer("losses", variant=variant, steps=steps)
            worst = max(worst, *(abs(a - b) for a, b in zip(expected, results, strict=True)))
    ours.close()
    peer.close()
    print(f"losses of {steps} steps differ by {worst:.1e} at most", file=sys.stderr)
    if not worst < TOLERANCE:
        raise SystemExit(f"the sides do different work: a loss differs by {worst:.1e}, allowed are {TOLERANCE:g}")
    return worst


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those of the search for the peer's fastest settings."""
    parser.add_argument("--threads", type=int, help="of PyTorch; default: several numbers up to the cores are tried")
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile, which needs minutes")


def fastest(peer: Worker, variants, steps: int, options, order: str = "ours"):
    """(variant, threads, {what was tried: seconds a step}, [what was left out and why]).

    The number of threads is chosen with the first variant, and taken for the others.
    """
    trials, failed = {}, []
    counts = [options.threads] if options.threads else _thread_counts()
    for variant in variants:
        if variant[1] and options.no_compile:
            failed.append("torch.compile, as asked")
            continue
        for threads in counts:
            asked = {"variant": variant, "threads": threads, "steps": steps, "order": order, "first": 0}
            try:
                peer("run", **asked)  # warms up, and compiles
                seconds = min(peer("run", **asked) for _ in range(3)) / steps
            except RuntimeError as error:  # no C++ compiler
                failed.append(f"{named(variant)}, {threads} threads: {str(error).strip().splitlines()[-1]}")
                continue
            trials[json.dumps([variant, threads])] = seconds
            print(f"tried {named(variant)}, {threads} threads: {seconds:.3f} s a step", file=sys.stderr)
        if trials:
            counts = [json.loads(min(trials, key=trials.get))[1]]
    if not trials:
        raise SystemExit(f"no variant of the peer ran: {failed}")
    return *json.loads(min(trials, key=trials.get)), trials, failed


def _thread_counts() -> list[int]:
    return list(range(CORES, 0, -1)) if CORES <= 4 else sorted({1, CORES // 4, CORES // 2, CORES}, reverse=True)


def named(variant: list) -> str:
    """A variant in words."""
    attention, compiled = variant
    name = f"BertModel, {attention}" if attention else "torch.nn.LSTM"
    return f"{name}, torch.compile" if compiled else name


def in_turns(sides: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side in each round; every round begins with another side."""
    names, seconds = list(sides), {name: [] for name in sides}
    for number in range(rounds):
        for place in range(len(names)):
            name = names[(number + place) % len(names)]
            seconds[name].append(sides[name]())
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    return seconds


def ratios(seconds: list[float], ours: list[float]) -> tuple[float, float, float]:
    """(median, smallest, largest) of peer / mtl_jax within a round."""
    results = [a / b for a, b in zip(seconds, ours, strict=True)]
    return statistics.median(results), min(results), max(results)


def tried(trials: Mapping[str, float], failed: list[str]) -> str:
    """Sentences on what was tried for the peer."""
    listed = sorted(trials.items(), key=lambda item: item[1])
    parts = [f"{named(json.loads(key)[0])}, threads: {json.loads(key)[1]}: {1e3 * s:.0f} ms" for key, s in listed]
    return "Tried for the peer: " + "; ".join([*parts, *(f"left out: {line}" for line in failed)]) + "."
