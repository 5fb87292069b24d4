"""What adapters of K tasks on one frozen trunk cost: CPU seconds of a step, by how columns are executed.

    python benchmarks/adapters.py [K]

A transformer of two layers of width 256 with LoRA of rank 8; each task has a block of 4 rows of 64 tokens. A step is
the gradient of the mean square of all features with respect to the adapters; "trunk" is the forward pass without
adapters and the gradient with respect to its inputs, which no way can do without. The rounds of all ways interleave.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.data.batch import Batch, BatchLayout
from mtl_jax.models import ownership
from mtl_jax.models.adapters import ADAPTERS
from mtl_jax.models.embeddings import WordEmbeddings
from mtl_jax.models.layers import LAYERS
from mtl_jax.models.network import network
from mtl_jax.models.network_spec import SharingSpec

WIDTH, ROWS, TOKENS, ROUNDS = 256, 4, 64, 5
KINDS = {"lora": {}, "mtl_lora": {}, "lora_experts": {"experts": 4}}


def step_of(count: int, kind: str, execution: str):
    """A compiled step, () -> its gradient; `kind` "" for the trunk alone."""
    names = tuple(f"t{k}" for k in range(count))
    layout = BatchLayout(names, names, tuple(range(count)), tuple((k,) for k in range(count)), groups=(names,))
    owners = ownership.assign_owners(names, 2)
    paths = ownership.layer_paths(2)[1:]
    adapters = {path: ADAPTERS[kind](**KINDS[kind]) for path in paths} if kind else {}
    for path in adapters:
        owners |= {ownership.adapter_path(path): tuple(range(count)), ownership.shared_adapter_path(path): (0,) * count}
    layers = [LAYERS["transformer"](WIDTH, 8, 4 * WIDTH)] * 2
    net = network(
        WordEmbeddings(100, WIDTH),
        layers,
        owners,
        layout,
        column_execution=execution,
        sharing=SharingSpec({}, adapters),
    )
    params = dict(jax.jit(net.init)(jax.random.key(0)))
    trained = {path for path in params if path.startswith("adapter_")} or {"embed"}
    shape = (count, ROWS, TOKENS)
    ids, slots = np.random.default_rng(0).integers(0, 100, shape).astype(np.int32), np.zeros((*shape[:2], 1), np.int32)
    segment = np.ones(shape, np.int32)
    batch = Batch(
        np.arange(count, dtype=np.int32), slots[..., 0], ids, segment, segment, segment, slots, slots, slots, {}
    )

    @jax.jit
    def step(params, batch):
        def loss(part):
            return sum(jnp.square(array).mean() for array in net.apply({**params, **part}, batch).features.arrays)

        return jax.grad(loss)({path: params[path] for path in trained})

    jax.block_until_ready(step(params, batch))
    return lambda: jax.block_until_ready(step(params, batch))


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    ways = {("trunk", "vmap"): step_of(count, "", "vmap")}
    ways |= {("lora", execution): step_of(count, "lora", execution) for execution in ("vmap", "unroll")}
    ways |= {(kind, "vmap"): step_of(count, kind, "vmap") for kind in KINDS if kind != "lora"}
    seconds = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, step in ways.items():
            start = time.process_time()
            step()
            seconds[way].append(time.process_time() - start)
    base = np.median(seconds["trunk", "vmap"])
    for (kind, execution), values in seconds.items():
        print(f"{kind:14s} {execution:7s} {np.median(values):.3f} CPU s, {np.median(values) / base:.2f} of the trunk")


if __name__ == "__main__":
    main()
