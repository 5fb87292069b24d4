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
    group   devices among which it runs; 0: all
    """

    kind: str
    shape: tuple[int, ...]
    bytes: int
    times: int
    group: int

    def sent(self, devices: int) -> float:
        """Bytes that each of the devices sends, in rings of the group."""
        n = self.group or devices
        if self.kind == "reduce-scatter":  # it gives out one part of n
            return self.bytes * (n - 1)
        if self.kind == "collective-permute":
            return self.bytes
        return self.bytes * (n - 1) / n * (2 if self.kind == "all-reduce" else 1)


def collectives(program: str) -> list[Moved]:
    """All collectives in the text of a compiled program."""
    bodies = re.split(r"\n(?=(?:ENTRY )?%?[\w.\-]+ \([^\n]*\{\n)", program)
    times = _times(bodies)
    results = []
    for body in bodies:
        for shapes, kind, rest in re.findall(rf"= (.+?) ({'|'.join(COLLECTIVE_KINDS)})(?:-start)?\((.*)", body):
            for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
                shape = tuple(int(dim) for dim in dims.split(",") if dim)
                size = math.prod(shape) * BYTES[dtype]
                results.append(Moved(kind, shape, size, times.get(_name(body), 1), _group_size(rest)))
    return results


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


def _group_size(operation: str) -> int:
    """The devices of a group; `replica_groups` is a list, [groups, devices], or axes of a mesh."""
    if results := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", operation):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", results[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", results[2]))
    if results := re.search(r"replica_groups=\[\d+,(\d+)\]", operation):
        return int(results[1])
    if results := re.search(r"replica_groups=\{\{([\d,]*)\}", operation):
        return results[1].count(",") + 1
    return 0


def _name(body: str) -> str:
    results = re.match(r"(?:ENTRY )?%?([\w.\-]+)", body)
    return results.group(1) if results else ""
