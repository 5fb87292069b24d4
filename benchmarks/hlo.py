"""What a compiled program moves between devices, read from its text."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

COLLECTIVE_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "s16": 2,
    "u16": 2,
    "f16": 2,
    "bf16": 2,
    "s32": 4,
    "u32": 4,
    "s64": 8,
    "u64": 8,
    "f32": 4,
    "f64": 8,
}


class Moved(NamedTuple):
    """One array that a collective gives out on each device.

    kind    of `TASK_KINDS`
    shape   of the array; a collective of several arrays stands once for each
    bytes   of the array
    times   how often it runs in a step: in loops as often as these are known to
    """

    kind: str
    shape: tuple[int, ...]
    bytes: int
    times: int


def collectives(program: str) -> list[Moved]:
    """All collectives in the text of a compiled program."""
    bodies = re.split(r"\n(?=(?:ENTRY )?%?[\w.\-]+ \([^\n]*\{\n)", program)
    times = _times(bodies)
    found = []
    for body in bodies:
        for shapes, kind in re.findall(rf"= (.+?) ({'|'.join(COLLECTIVE_KINDS)})(?:-start)?\(", body):
            for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
                shape = tuple(int(dim) for dim in dims.split(",") if dim)
                found.append(Moved(kind, shape, math.prod(shape) * BYTES[dtype], times.get(_name(body), 1)))
    return found


def _times(bodies: list[str]) -> dict[str, int]:
    """How often the body of each loop runs, as far as XLA knows it; of loops in loops the product."""
    own: dict[str, tuple[str, int]] = {}  # body of a loop -> (where the loop stands, how often its body runs)
    loop = r"while\(.*?body=%?([\w.\-]+).*?\"known_trip_count\":\{\"n\":\"(\d+)\"\}"
    for body in bodies:
        for name, count in re.findall(loop, body):
            own[name] = (_name(body), int(count))

    def total(name: str) -> int:
        return own[name][1] * total(own[name][0]) if name in own else 1

    return {name: total(name) for name in own}


def _name(body: str) -> str:
    found = re.match(r"(?:ENTRY )?%?([\w.\-]+)", body)
    return found.group(1) if found else ""
