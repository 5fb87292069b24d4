"""Large trunks on a v5e-256 and on 8 H200 without either: bytes moved and memory by mesh, from compiled programs.

    pip install libtpu==0.0.42.*          # the version that `pip install jax[tpu]` would take
    python benchmarks/on_paper.py
    python benchmarks/on_paper.py --machine=v5e-256 --workload=hard --layers=2,4
    python benchmarks/on_paper.py --compiler=cpu --small

No weight is allocated and nothing is run: the train step is lowered from shapes, and compiled by the TPU's compiler for
the topology of a machine that is not there (`jax.experimental.topologies`); --compiler=cpu partitions it for as many
fake CPU devices, which needs no libtpu and overestimates memory. Programs with few layers are compiled, as many as
--layers names, and a further layer is what they differ by. For 8 H200 the program for 8 v5p chips stands in, of as much
memory as a compiler for TPUs knows (95 GiB). The compiler runs at its lowest effort: at --effort=0 it takes three times
as long and plans less memory. With --compiler=cpu the peak means nothing (bfloat16 is computed in float32, nothing is
fused), and what `model` sums is an upper bound.

Shapes (the layers that the project has: attention in both directions, an MLP of two matrices; the gated MLP of the
model named has three, so that `intermediate_size` is 1.5 times its own):

hard   like ModernBERT-large: 28 layers of 1024, 16 heads, 3936, vocabulary 50368; all shared, bfloat16, AdamW.
       64 tasks with a data set each; one drawn block of rows of 1024 tokens
lora   like a decoder of 7 billion: 32 layers of 4096, 32 heads, 16512, vocabulary 32000; frozen, LoRA of rank 16 on
       query and value for each of 16 tasks; a block of rows of 512 tokens for each

Time on the wire: a ring all-reduce of B bytes over n devices sends 2·(n − 1)/n·B from each, an all-gather,
reduce-scatter or all-to-all half of it; a device sends 100 GB/s (v5e, two of its links in a ring) or 450 GB/s (NVLink).
Time of products: the program's operations at half of the peak in bfloat16. Both are estimates, to compare meshes.
"""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import re
import sys
import time
from typing import Any, NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # as a compiler only
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=256",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
    )
)

import jax
import numpy as np
from hlo import COLLECTIVE_KINDS, collectives
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from record import Claim, save

from mtl_jax import checks
from mtl_jax.config import default
from mtl_jax.evaluation.scores import abstract_arrays
from mtl_jax.experiment.assemble import assemble
from mtl_jax.models.families.bert import Bert
from mtl_jax.runs.build import build
from mtl_jax.training.placement import AXES, mesh_placement
from mtl_jax.training.step import train_step

GIB = 2**30


class Machine(NamedTuple):
    """devices; gib: memory of each; gbytes: what each sends a second; tflops: its peak in bfloat16; topology: whose
    compiler plans.
    """

    devices: int
    gib: float
    gbytes: float
    tflops: float
    topology: str


class Workload(NamedTuple):
    """The shapes of a trunk, its tasks, and the rows of a block by machine."""

    layers: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    vocabulary: int
    tasks: int
    row_length: int
    rows: Any
    drawn_blocks: int  # 0: a block for each task
    lora: int  # rank; 0: everything is trained


MACHINES = {
    "v5e-256": Machine(256, 15.75, 100, 197, "v5e:16x16"),
    "8 H200": Machine(8, 139, 450, 989, "v5p:2x2x2"),
}
WORKLOADS = {
    "hard": Workload(28, 1024, 16, 3936, 50368, 64, 1024, {"v5e-256": 1024, "8 H200": 128}, 1, 0),
    "lora": Workload(32, 4096, 32, 16512, 32000, 16, 512, {"v5e-256": 256, "8 H200": 8}, 0, 16),
}
SMALL = {  # for a test on CPU
    "hard": Workload(28, 128, 4, 512, 512, 4, 16, {"v5e-256": 256, "8 H200": 8}, 1, 0),
    "lora": Workload(32, 128, 4, 512, 512, 4, 16, {"v5e-256": 256, "8 H200": 8}, 0, 4),
}
NOTHING, ALL = {"remat_policy": "nothing_saveable"}, {"remat_policy": "everything_saveable"}
MESHES = {  # (workload, machine) -> meshes, and what of a layer is kept for the backward pass
    ("hard", "v5e-256"): (
        {"data": 256, **NOTHING},
        {"fsdp": 256, **NOTHING},
        {"fsdp": 64, "model": 4, **NOTHING},
        {"fsdp": 64, "sequence": 4, **NOTHING},
        {"data": 16, "fsdp": 16, **NOTHING},
        {"fsdp": 256, **ALL},
    ),
    ("hard", "8 H200"): (
        {"data": 8, **NOTHING},
        {"fsdp": 8, **NOTHING},
        {"data": 2, "model": 4, **NOTHING},
        {"data": 8, **ALL},
    ),
    ("lora", "v5e-256"): (
        {"fsdp": 256, **NOTHING},
        {"fsdp": 64, "model": 4, **NOTHING},
        {"fsdp": 16, "task": 16, **NOTHING},
        {"fsdp": 16, "model": 16, **NOTHING},
    ),
    ("lora", "8 H200"): (
        {"data": 8, **NOTHING},
        {"fsdp": 8, **NOTHING},
        {"fsdp": 4, "model": 2, **NOTHING},
        {"model": 8, **NOTHING},
    ),
}


class Plan(NamedTuple):
    """What a compiled step takes and moves on a device: bytes, but for `flops`; `moved` by kind, of what it sends."""

    state: float
    peak: float
    moved: dict[str, float]
    flops: float

    def further(self, other: Plan, layers: float) -> Plan:
        """This plan and so many times what `other` has more."""
        numbers = [a + layers * (b - a) for a, b in zip(self.numbers(), other.numbers(), strict=True)]
        return Plan(numbers[0], numbers[1], dict(zip(COLLECTIVE_KINDS, numbers[3:], strict=True)), numbers[2])

    def numbers(self) -> list[float]:
        return [self.state, self.peak, self.flops, *(self.moved[kind] for kind in COLLECTIVE_KINDS)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiler", choices=("tpu", "cpu"), default="tpu")
    parser.add_argument("--machine", default=",".join(MACHINES))
    parser.add_argument("--workload", default=",".join(WORKLOADS))
    parser.add_argument("--layers", default="2,3", help="of the programs that are compiled: two numbers")
    parser.add_argument("--meshes", type=int, default=99, help="so many of each list")
    parser.add_argument("--tasks", type=int, help="compile with so many: a further one adds a head")
    parser.add_argument("--effort", type=float, default=-1.0, help="of the compiler for TPUs, from -1 to 1")
    parser.add_argument("--small", action="store_true", help="tiny shapes, to try the command")
    options = parser.parse_args()
    jax.config.update("jax_exec_time_optimization_effort", options.effort)
    tables, numbers, claims = {}, [], []
    for name in options.workload.split(","):
        for machine in options.machine.split(","):
            plans = _plans(options, name, machine)
            title = f"{name} on {machine}"
            tables[title] = _table(options, plans)
            numbers += [{"workload": name, "machine": machine, **plan} for plan in plans]
            claims.append(_best(title, plans, MACHINES[machine]))
    notes = f"Planned by the compiler for {options.compiler}, not measured."
    save("on_paper_small" if options.small else "on_paper", claims, tables, numbers, notes)


def _plans(options, name: str, machine_name: str) -> list[dict]:
    workload, machine = (SMALL if options.small else WORKLOADS)[name], MACHINES[machine_name]
    workload = workload._replace(tasks=options.tasks or workload.tasks)
    devices = _devices(options.compiler, machine)
    few, more = map(int, options.layers.split(","))
    results = []
    for settings in MESHES[name, machine_name][: options.meshes]:
        mesh = {axis: settings[axis] for axis in AXES if axis in settings}
        began = time.perf_counter()
        row = {"mesh": " × ".join(f"{axis} {n}" for axis, n in mesh.items()), "kept": settings["remat_policy"]}
        try:
            small, large = (_plan(workload, machine_name, settings, devices, layers) for layers in (few, more))
            plan = small.further(large, (workload.layers - few) / (more - few))
            sent, products = sum(plan.moved.values()), plan.flops
            row |= plan._asdict() | {
                "wire_seconds": sent / (1e9 * machine.gbytes),
                "product_seconds": products / (0.5e12 * machine.tflops),
                "fits": plan.peak <= machine.gib * GIB,
            }
        except jax.errors.JaxRuntimeError as error:
            if "hbm" not in str(error).lower():
                raise
            row |= {"refused": (re.search(r"\d[\d.]*[GM]\b", str(error)) or ["?"])[0], "fits": False}
        row["compile_seconds"] = time.perf_counter() - began
        print(name, machine_name, row, file=sys.stderr, flush=True)
        results.append(row)
    return results


def _devices(compiler: str, machine: Machine):
    if compiler == "cpu":
        return jax.devices()[: machine.devices]
    try:
        return topologies.get_topology_desc(machine.topology, platform="tpu").devices
    except (RuntimeError, jax.errors.JaxRuntimeError) as error:
        raise SystemExit(f"there is no compiler for TPUs ({error}); pip install libtpu, or --compiler=cpu") from None


def _plan(workload: Workload, machine: str, settings, devices, layers: int) -> Plan:
    shapes = workload._replace(rows=workload.rows[machine])
    experiment = _experiment(shapes, settings["remat_policy"], layers)
    sizes = [settings.get(axis, 1) for axis in AXES]
    mesh = Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))
    placement = mesh_placement(mesh, experiment.spec.slices, len(experiment.tasks), False)
    state = abstract_arrays(jax.eval_shape(lambda: experiment.init(0)), placement)
    rows = PartitionSpec(None, None, ("data", "fsdp"))

    def abstract(leaf):
        sharding = NamedSharding(mesh, rows if leaf.ndim > 1 else PartitionSpec())
        return jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype, sharding=sharding)

    batch = jax.tree.map(abstract, experiment.batches(0).batch(0))
    step = placement.train(lambda s, b, h, axis: train_step(experiment.spec, s, b, h, axis))
    compiled = step.lower(state, batch, experiment.hyper).compile()
    plan, cost = compiled.memory_analysis(), compiled.cost_analysis()
    peak = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes + plan.temp_size_in_bytes
    shards = [leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(state)]
    locked = sum(np.prod(s) * leaf.dtype.itemsize for s, leaf in zip(shards, jax.tree.leaves(state), strict=True))
    moved = dict.fromkeys(COLLECTIVE_KINDS, 0.0)
    for one in collectives(compiled.as_text()):
        moved[one.kind] += one.times * one.sent(len(mesh.devices.flat))
    jax.clear_caches()
    return Plan(float(locked), float(peak), moved, float(cost["flops"]))


@functools.lru_cache(maxsize=2)  # the meshes of a workload have it in common
def _experiment(workload: Workload, remat_policy: str, layers: int):
    """`workload.rows` is a number here."""
    config = default.get_config()
    for k in range(workload.tasks):
        fields = {"kind": "text", "features": 100, "tokens": 12, "noise": 0.05, "rho": 0.6, "task": k}
        fields |= {"examples": {"train": 40, "dev": 10, "test": 10}}
        default.add_dataset(config, f"data_{k}", reader="synthetic", words="words", options=fields)
        default.add_task(config, f"task_{k}", kind="classification", dataset=f"data_{k}", label="label")
    config.tokenizer = ConfigDict({**config.tokenizer.to_dict(), "kind": "words"})
    config.model.num_layers, config.model.hidden_size = layers, workload.hidden_size
    config.model.num_heads, config.model.intermediate_size = workload.num_heads, workload.intermediate_size
    config.model.dtype = "bfloat16"
    config.model.remat_policy = remat_policy
    config.data.row_length, config.data.rows_per_block = workload.row_length, workload.rows
    if workload.drawn_blocks:
        config.data.mixing, config.data.blocks_per_batch = "size", workload.drawn_blocks
    if workload.lora:
        config.sharing.adapter = "lora"
        config.model.column_execution = "vmap"  # as "auto" is on accelerators
        config.sharing.adapter_options = ConfigDict({"rank": workload.lora})
        config.optimizer.freeze = ("^embed/", "^layer_")
    checks.check(config)
    architecture = Bert(
        model_type="bert",
        layers=layers,
        width=workload.hidden_size,
        heads=workload.num_heads,
        intermediate=workload.intermediate_size,
        activation="gelu",
        layer_norm_eps=1e-12,
        vocab_size=workload.vocabulary,
        max_positions=workload.row_length,
        type_vocab=2,
        pad_token=0,
        initializer_range=0.02,
    )
    return assemble(config, build(config).corpus, architecture, None)


def _table(options, plans) -> list[tuple[str, ...]]:
    header = ("mesh", "kept", "state GiB", "peak GiB", *(f"{kind} MiB" for kind in COLLECTIVE_KINDS))
    rows = [(*header, "s on the wire", "s of products", "fits")]
    for plan in plans:
        if "refused" in plan:
            rows.append((plan["mesh"], plan["kept"], "", plan["refused"], *[""] * (len(COLLECTIVE_KINDS) + 2), "no"))
            continue
        moved = [f"{plan['moved'][kind] / 2**20:,.0f}" for kind in COLLECTIVE_KINDS]
        memory = [f"{plan[field] / GIB:.2f}" for field in ("state", "peak")]
        seconds = [f"{plan[field]:.3f}" for field in ("wire_seconds", "product_seconds")]
        rows.append((plan["mesh"], plan["kept"], *memory, *moved, *seconds, "yes" if plan["fits"] else "no"))
    return rows


def _best(title: str, plans, machine: Machine) -> Claim:
    """The mesh that fits and takes the least time, if what is sent overlaps with nothing."""
    fitting = [plan for plan in plans if plan["fits"]]
    if not fitting:
        return Claim(f"{title}: a mesh that fits", f"≤ {machine.gib} GiB", 0.0, 0.0, 0.0, False)
    best = min(fitting, key=lambda plan: plan["wire_seconds"] + plan["product_seconds"])
    peak = best["peak"] / GIB
    what = f"{title}: peak GiB of the best mesh, {best['mesh']} ({best['kept']})"
    return Claim(what, f"≤ {machine.gib} GiB", peak, peak, peak, True)


if __name__ == "__main__":
    main()
