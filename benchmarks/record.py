"""What a benchmark found: a table on the terminal, and a file from which `benchmarks/RESULTS.md` is made."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

FOLDER = pathlib.Path(os.environ.get("MTL_JAX_BENCHMARK_RESULTS", pathlib.Path(__file__).resolve().parent / "results"))
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers", "LibMTL", "torchjd")


class Claim(NamedTuple):
    """One figure that was promised.

    what      what is compared, in words, e.g. "BERT-mini, 2,048 tokens a step: PyTorch / mtl_jax"
    goal      e.g. "≥ 1.0×"
    measured  the median of the ratios, or whatever the goal speaks of
    low, high the smallest and the largest of the ratios
    reached   whether the goal is met
    bound     what bounds it, in a sentence; "" where the goal is met and nothing is to be said
    """

    what: str
    goal: str
    measured: float
    low: float
    high: float
    reached: bool
    bound: str = ""


def save(
    name: str, claims: Sequence[Claim], tables: Mapping[str, Sequence[Sequence[str]]], numbers: Any, notes: str = ""
) -> None:
    """Writes results/NAME.json, which replaces an earlier one, and says where.

    tables   {title: rows of text, the first is the header}; they are printed too
    numbers  everything measured, for whoever wants to compute with it; JSON
    notes    sentences for below the tables
    """
    for title, rows in tables.items():
        print(f"\n{title}", end="")
        table(rows)
    for claim in claims:
        print(f"{'reached' if claim.reached else 'NOT reached'}: {claim.what}: {figure(claim)} (goal {claim.goal})")
    FOLDER.mkdir(exist_ok=True)
    file = FOLDER / f"{name}.json"
    command = f"python benchmarks/{pathlib.Path(sys.argv[0]).name} {shlex.join(sys.argv[1:])}".strip()
    results = {
        "command": command,
        "machine": machine(),
        "claims": [claim._asdict() for claim in claims],
        "tables": dict(tables),
        "notes": notes,
        "numbers": numbers,
    }
    file.write_text(json.dumps(results, indent=1, ensure_ascii=False))
    print(f"\nnumbers in {file}")


def figure(claim: Claim) -> str:
    """The median and its spread."""
    return f"{claim.measured:.3g} ({claim.low:.3g} to {claim.high:.3g})"


def table(rows: Sequence[Sequence[str]]) -> None:
    """Prints rows of text under the first one as header."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print()
    for number, row in enumerate(rows):
        first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join([first.strip().ljust(widths[0]), *rest]))
        if number == 0:
            print("  ".join("-" * width for width in widths))


def machine() -> dict[str, Any]:
    """Processor, cores and versions of what is installed."""
    return {
        "processor": _processor(),
        "cores": CORES,
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
