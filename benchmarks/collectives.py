"""What a train step moves between devices, read from the compiled program on 8 fake CPU devices.

    python benchmarks/collectives.py
    python benchmarks/collectives.py --tasks=8 --width=512 --devices=256 --gbytes=100

K columns of a transformer over shared embeddings, on three meshes: rows over `data`; the tasks' stacks over `task`;
features over `model`. Counted are the bytes of the results of all collectives in the program, those of a loop as often
as it runs; each part is the difference between programs with and without it. Beside it stands the time of the part on a
larger number of devices: a ring all-reduce of B bytes over n devices sends 2·(n − 1)/n·B bytes from each, an all-gather
of B bytes (n − 1)/n·B; --gbytes is what a device sends a second (a v5e chip: four links of 50 GB/s, of which a ring
uses two).
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from ml_collections import ConfigDict

from benchmarks.record import table
from configs import default
from mtl_jax import config as checks
from mtl_jax.training.experiment import build
from mtl_jax.training.paths import flatten
from mtl_jax.training.scoring import abstract, placement_of
from mtl_jax.training.step import train_step

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4, "f64": 8}
MESHES = {"data": (8, 1, 1), "task": (2, 4, 1), "model": (1, 1, 8)}
PENALTIES = {
    "l2_to_mean": {}, "l2_pairwise": {}, "trace_norm": {}, "subspace": {"options": {"dim": 2}},
    "group_lasso": {}, "orthogonality": {},
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=4, help="K")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--devices", type=int, default=256, help="n of the extrapolation")
    parser.add_argument("--gbytes", type=float, default=100.0)
    options = parser.parse_args()
    found, rows = [], [("mesh, part", *KINDS, "bytes", f"ms on {options.devices} devices")]
    for mesh, sizes in MESHES.items():
        plain, parameters = _moved(options, sizes, lambda config: None)
        print(f"{mesh}: {parameters / 1e6:.2f} M parameters compiled", file=sys.stderr)
        parts = {"gradients and all else": plain}
        for name, change in _changes().items():
            moved, _ = _moved(options, sizes, change)
            parts[name] = {kind: moved[kind] - plain[kind] for kind in KINDS}
        for name, moved in parts.items():
            total = sum(moved.values())
            seconds = sum(_sent(kind, size, options.devices) for kind, size in moved.items()) / (1e9 * options.gbytes)
            rows.append((
                f"{mesh}: {name}", *(f"{moved[kind]:,}" if moved[kind] else "" for kind in KINDS), f"{total:,}",
                f"{1e3 * seconds:.3f}",
            ))  # fmt: skip
            found.append({"mesh": mesh, "part": name, "parameters": parameters, "bytes": moved, "seconds": seconds})
    table(rows)
    print(f"\nK² float32 are {4 * options.tasks**2} bytes, all parameters {4 * parameters:,} bytes")
    file = pathlib.Path(__file__).parent / "results" / f"collectives_{time.strftime('%Y%m%d_%H%M%S')}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(found, indent=2))
    print(f"numbers in {file}")


def collectives(program: str) -> list[tuple[str, int, int]]:
    """(kind, bytes of its results, how often it runs) of every collective in the text of a compiled program."""
    bodies = re.split(r"\n(?=(?:ENTRY )?%?[\w.\-]+ \([^\n]*\{\n)", program)
    times = _times(bodies)
    found = []
    for body in bodies:
        for shapes, kind in re.findall(rf"= (.+?) ({'|'.join(KINDS)})(?:-start)?\(", body):
            size = 0
            for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
                count = 1
                for dim in filter(None, dims.split(",")):
                    count *= int(dim)
                size += count * BYTES[dtype]
            found.append((kind, size, times.get(_name(body), 1)))
    return found


def _times(bodies: list[str]) -> dict[str, int]:
    """How often the body of each loop runs, as far as XLA knows it."""
    found: dict[str, int] = {}
    for body in bodies:
        for name, count in re.findall(r"while\(.*?body=%?([\w.\-]+).*?\"known_trip_count\":\{\"n\":\"(\d+)\"\}", body):
            found[name] = int(count)
    return found


def _name(body: str) -> str:
    return re.match(r"(?:ENTRY )?%?([\w.\-]+)", body).group(1)


def _sent(kind: str, size: int, devices: int) -> float:
    """Bytes that each of n devices sends."""
    return size * (devices - 1) / devices * (2 if kind == "all-reduce" else 1)


def _changes():
    def penalised(kind, fields):
        return lambda config: default.add_penalty(config, "p", kind=kind, strength=0.1, **fields)

    changes = {f"penalty {kind}": penalised(kind, fields) for kind, fields in PENALTIES.items()}

    def balanced(config):
        config.aggregation.method = "cagrad"

    return changes | {"aggregation cagrad, of the embeddings": balanced}


def _moved(options, sizes, change) -> tuple[dict[str, int], int]:
    """({kind: bytes} of a step, number of parameters)"""
    config = default.get_config()
    for k in range(options.tasks):
        fields = {"kind": "text", "features": 1000, "tokens": 12, "noise": 0.05, "rho": 0.6, "task": k}
        fields |= {"examples": {"train": 100, "dev": 10, "test": 10}}
        default.add_dataset(config, f"data_{k}", reader="synthetic", words="words", options=fields)
        default.add_task(config, f"task_{k}", kind="classification", dataset=f"data_{k}", label="label")
    config.tokenizer = ConfigDict({**config.tokenizer.to_dict(), "kind": "words"})
    config.model.layer, config.model.layers, config.model.width = "transformer", 2, options.width
    config.model.intermediate = 4 * options.width
    config.sharing.trunk = "embed"
    config.data.row_length, config.data.rows = 64, 8
    config.training.mesh = ConfigDict(dict(zip(("data", "task", "model"), sizes, strict=True)))
    change(config)
    checks.check(config, default)
    experiment = build(config)
    placement = placement_of(experiment)
    state = abstract(jax.eval_shape(lambda: experiment.init(0)), placement)
    batch = placement.put_batch(jax.tree.map(lambda leaf: leaf[None], experiment.batches(0).batch(0)))
    function = placement.train(lambda s, b, h, axis: train_step(experiment.spec, s, b, h, axis))
    text = function.lower(state, batch, experiment.hyper).compile().as_text()
    moved = dict.fromkeys(KINDS, 0)
    for kind, size, times in collectives(text):
        moved[kind] += size * times
    return moved, sum(leaf.size for leaf in flatten(state.params).values())


if __name__ == "__main__":
    main()
