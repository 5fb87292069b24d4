"""What a train step moves between devices, read from the compiled program on 8 fake CPU devices.

    python benchmarks/collectives.py
    python benchmarks/collectives.py --tasks=8 --width=512 --devices=256 --gbytes=100

K columns of a transformer over shared embeddings, on three meshes: rows over `data`; the tasks' stacks over `task`;
features over `model`. Counted are the bytes of the results of all collectives in the program, those of a loop as often
as it runs; each part is the difference between programs with and without it. Beside it stands the time of the part on a
larger number of devices: a ring all-reduce of B bytes over n devices sends 2·(n − 1)/n·B bytes from each, an all-gather
of B bytes (n − 1)/n·B; --gbytes is what a device sends a second (a v5e chip: four links of 50 GB/s, of which a ring
uses two). Over `data` no penalty moves anything, and at further K some parts stand for the others. Nothing is run: the
program is compiled without optimisation of its arithmetic, which does not touch what is moved.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    )
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from hlo import COLLECTIVE_KINDS, collectives
from ml_collections import ConfigDict
from record import Claim, save

from mtl_jax import checks
from mtl_jax.config import default
from mtl_jax.evaluation.scores import abstract_arrays, placement_from_config
from mtl_jax.experiment.penalties import task_stacks
from mtl_jax.runs.build import build
from mtl_jax.training.parameter_paths import flatten
from mtl_jax.training.step import train_step

MESHES = {"data": (8, 1, 1), "task": (2, 4, 1), "model": (1, 1, 8)}
GRAM = ("l2_to_mean", "l2_pairwise", "trace_norm", "subspace")
PENALTIES = {
    "l2_to_mean": {},
    "l2_pairwise": {},
    "trace_norm": {},
    "subspace": {"options": {"dim": 2}},
    "group_lasso": {},
    "orthogonality": {},
    "tucker": {"kind": "trace_norm", "options": {"unfolding": "tucker"}},
}
SOME = ("penalty trace_norm", "aggregation cagrad")  # at every K and mesh; the others at the first K, not over rows
DEVICES = (8, 32, 256)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="4,8", help="K, several with commas: multiples of 4")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--meshes", default=",".join(MESHES))
    parser.add_argument("--devices", default=",".join(map(str, DEVICES)), help="n of the extrapolation, with commas")
    parser.add_argument("--gbytes", type=float, default=100.0)
    options = parser.parse_args()
    counts, devices = [[int(n) for n in text.split(",")] for text in (options.tasks, options.devices)]
    results = []
    for mesh in options.meshes.split(","):
        for tasks in counts:
            plain, sizes = _moved(options, tasks, MESHES[mesh], lambda config: None)
            parts = {"gradients and all else": sum_by_kind(plain)}
            largest = {"gradients and all else": max((one.bytes for one in plain), default=0)}
            for name, change in _changes().items():
                if (tasks != counts[0] or mesh == "data") and name not in SOME:
                    continue
                moved, _ = _moved(options, tasks, MESHES[mesh], change)
                with_it = sum_by_kind(moved)
                parts[name] = {kind: with_it[kind] - parts["gradients and all else"][kind] for kind in COLLECTIVE_KINDS}
                largest[name] = max((one.bytes for one in _added(moved, plain)), default=0)
            for name, moved in parts.items():
                seconds = [
                    sum(_sent(kind, size, n) for kind, size in moved.items()) / (1e9 * options.gbytes) for n in devices
                ]
                results.append(
                    {
                        "mesh": mesh,
                        "tasks": tasks,
                        "part": name,
                        **sizes,
                        "bytes": moved,
                        "largest": largest[name],
                        "seconds": dict(zip(devices, seconds, strict=True)),
                    }
                )
            print(f"{mesh}, K = {tasks}: compiled", file=sys.stderr)
    rows = [("mesh", "K", "part", *COLLECTIVE_KINDS, "largest array", *(f"ms, {n} devices" for n in devices))]
    for one in results:
        moved = [f"{one['bytes'][kind]:,}" if one["bytes"][kind] else "" for kind in COLLECTIVE_KINDS]
        rows.append(
            (
                one["mesh"],
                str(one["tasks"]),
                one["part"],
                *moved,
                f"{one['largest']:,}",
                *(f"{1e3 * seconds:.3f}" for seconds in one["seconds"].values()),
            )
        )
    claims = [claim for mesh in options.meshes.split(",") for claim in _claims(mesh, results)]
    sizes = ", ".join(
        f"K = {tasks}: K² float32 are {4 * tasks**2:,}, the stacks {4 * one['stacks']:,}, all parameters "
        f"{4 * one['parameters']:,}"
        for tasks in counts
        for one in [next(one for one in results if one["tasks"] == tasks)]
    )
    save(
        "collectives", claims, {"bytes a step": rows}, results, f"Bytes: {sizes}. Times are extrapolated, not measured."
    )


def _claims(mesh: str, results) -> list[Claim]:
    """Of penalties that are functions of the Gram matrix: over `model` no array beyond K×K, over `task` no stack."""
    claims = []
    for one in results:
        if one["mesh"] != mesh or one["part"].removeprefix("penalty ") not in GRAM:
            continue
        # over `task` each device gives its features of all tasks for all features of its own: 1/4 of the stacks
        limit = {"data": 0, "model": 4 * one["tasks"] ** 2, "task": one["stacks"]}[mesh]
        goal = {"data": "0", "model": "≤ 4·K²", "task": "≤ 1/4 of the stacks"}[mesh]
        size = float(one["largest"])
        what = f"mesh {mesh}, K = {one['tasks']}, {one['part']}: bytes of the largest array that it moves"
        claims.append(Claim(what, goal, size, size, size, size <= limit))
    return claims


def sum_by_kind(moved) -> dict[str, int]:
    """{kind: bytes} of a step."""
    return {kind: sum(one.bytes * one.times for one in moved if one.kind == kind) for kind in COLLECTIVE_KINDS}


def _added(moved, plain):
    """What is moved in one program and not in the other."""
    left = list(plain)
    for one in moved:
        if one in left:
            left.remove(one)
        else:
            yield one


def _sent(kind: str, size: int, devices: int) -> float:
    """Bytes that each of n devices sends."""
    return size * (devices - 1) / devices * (2 if kind == "all-reduce" else 1)


def _changes():
    def penalised(kind, fields):
        return lambda config: default.add_penalty(config, "p", **{"kind": kind, "strength": 0.1, **fields})

    changes = {f"penalty {kind}": penalised(kind, fields) for kind, fields in PENALTIES.items()}

    def balanced(config):
        config.aggregation.method = "cagrad"

    return changes | {"aggregation cagrad": balanced}


def _moved(options, tasks: int, sizes, change):
    """(what a step moves, {"parameters", "stacks": their numbers})"""
    config = default.get_config()
    for k in range(tasks):
        fields = {"kind": "text", "features": 1000, "tokens": 12, "noise": 0.05, "rho": 0.6, "task": k}
        fields |= {"examples": {"train": 100, "dev": 10, "test": 10}}
        default.add_dataset(config, f"data_{k}", reader="synthetic", words="words", options=fields)
        default.add_task(config, f"task_{k}", kind="classification", dataset=f"data_{k}", label="label")
    config.tokenizer = ConfigDict({**config.tokenizer.to_dict(), "kind": "words"})
    config.model.layer_type, config.model.num_layers, config.model.hidden_size = "transformer", 1, options.width
    config.model.intermediate_size = 4 * options.width
    config.sharing.trunk = "embed"
    config.data.row_length, config.data.rows_per_block = 64, 8
    config.training.mesh = ConfigDict(dict(zip(("data", "task", "model"), sizes, strict=True)))
    change(config)
    checks.check(config)
    experiment = build(config)
    placement = placement_from_config(experiment)
    state = abstract_arrays(jax.eval_shape(lambda: experiment.init(0)), placement)
    batch = placement.put_batch(jax.tree.map(lambda leaf: leaf[None], experiment.batches(0).batch(0)))
    function = placement.train(lambda s, b, h, axis: train_step(experiment.spec, s, b, h, axis))
    text = function.lower(state, batch, experiment.hyper).compile().as_text()
    jax.clear_caches()
    flat = flatten(state.params)
    stacks = sum(leaf.size for leaf in task_stacks(flat, experiment.owners).values())
    return collectives(text), {"parameters": sum(leaf.size for leaf in flat.values()), "stacks": stacks}


if __name__ == "__main__":
    main()
