"""The traced program of a pass, and of the initial values, is as long for many tasks and blocks as for a few."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from mtl_jax.data.batch import Batch, BatchLayout
from mtl_jax.models import ownership
from mtl_jax.models.adapters import ADAPTERS
from mtl_jax.models.embeddings import WordEmbeddings
from mtl_jax.models.gradient_taps import TapSpec
from mtl_jax.models.layers import LAYERS
from mtl_jax.models.mixers import MIXERS
from mtl_jax.models.network import network
from mtl_jax.models.network_spec import DropoutRates, SharingSpec
from mtl_jax.models.ownership import ExpertColumns, expert_names
from mtl_jax.models.readouts import READOUTS

pytestmark = pytest.mark.usefixtures("standard_promotion")
TREE = object()
WAYS = {
    "hard": ("all", {}),
    "columns": ("none", {}),
    "tree": (TREE, {}),
    "lora": ("all", {"adapters": {"layer_00": ADAPTERS["lora"](rank=2)}}),
    "experts": ("all", {"adapters": {"layer_00": ADAPTERS["lora_experts"](rank=2)}}),
    "bottleneck": ("all", {"adapters": {"layer_00": ADAPTERS["bottleneck"](size=2)}}),
    "attention": ("all", {"readout": READOUTS["attention"]()}),
    "cross_stitch": ("none", {"mixers": "cross_stitch"}),
    "ple": ("embed", {"mixers": "ple"}),
    "shared_private": ("embed", {"mixers": "shared_private"}),
    "tapped": (TREE, {"taps": TapSpec({"embed": (), "layer_00": ("forward/input/kernel",)}, tokens=True)}),
}


def layout_of(count, drawn):
    names = tuple(f"t{k}" for k in range(count))
    candidates = ((tuple(range(count)),) * count) if drawn else tuple((k,) for k in range(count))
    return BatchLayout(names, names, tuple(range(count)), candidates, groups=(names,))


def make(way, count, drawn):
    trunk, options = WAYS[way]
    layout = layout_of(count, drawn)
    groups = {"layer_00": [layout.tasks[i : i + 2] for i in range(0, count, 2)]} if trunk is TREE else None
    owners = ownership.assign_owners(layout.tasks, 1, "embed" if trunk is TREE else trunk, groups)
    sharing = {name: value for name, value in options.items() if name != "taps"}
    if "mixers" in sharing:
        mixer = MIXERS[sharing["mixers"]](count)
        sharing["mixers"] = {"layer_00": mixer}
        owners["mixer_00"] = (0,) * count
        if mixer.experts:
            owners["layer_00"] = ExpertColumns(mixer.columns, expert_names(layout.tasks, mixer.columns))
    if "adapters" in sharing:
        owners["adapter_00"] = tuple(range(count))
        owners["adapter_shared_00"] = (0,) * count
    layers = [LAYERS["rnn"](hidden_size=4)]
    net = network(
        WordEmbeddings(9, 4), layers, owners, layout, column_init="independent", sharing=SharingSpec(**sharing)
    )
    return net, options.get("taps")


def batch_of(layout):
    shape = (len(layout.candidates), 2, 5)
    slots = np.zeros((*shape[:2], 1), np.int32)
    ids = np.ones(shape, np.int32)
    dataset = np.arange(shape[0], dtype=np.int32)
    return Batch(dataset, slots[..., 0], ids, ids, ids, ids, slots, slots + 5, slots, {})


def equations(jaxpr) -> int:
    """The equations of a program, those of the programs that it calls included."""
    count = 0
    for equation in jaxpr.eqns:
        count += 1 + sum(equations(inner) for inner in jaxprs_in_params(equation.params))
    return count


def lengths(way, count, drawn):
    """(equations of the initial values, of the gradient of a pass with dropout)"""
    net, taps = make(way, count, drawn)
    layout = layout_of(count, drawn)
    batch, key = batch_of(layout), jax.random.key(0)
    params = jax.eval_shape(net.init, key)
    params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), params)
    head = jax.tree.map(lambda leaf: jnp.stack([leaf] * count), net.init_head("t0", key))
    params["heads"] = {name: head for name in layout.entries}

    def loss(params, batch):
        given = () if taps is None else (net.taps(params, batch, taps), taps)
        outputs = net.apply(params, batch, DropoutRates(jnp.float32(0.1), None), key, *given, progress=jnp.float32(0))
        return sum(array.sum() for array in outputs.features.arrays) + sum(outputs.auxiliary.values())

    drawing, pass_ = jax.make_jaxpr(net.init)(key), jax.make_jaxpr(jax.grad(loss))(params, batch)
    return equations(drawing.jaxpr), equations(pass_.jaxpr)


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_the_program_does_not_grow_with_tasks_and_blocks(way, drawn):
    assert lengths(way, 4, drawn) == lengths(way, 8, drawn)
