"""LoRA, DoRA and (IA)³ of one owner, trained step by step, against PEFT; see tests/helpers/make_peft_goldens.py."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from mtl_jax.models.adapters import ADAPTERS
from mtl_jax.models.adapters.base import LayerPlace
from mtl_jax.models.layers import LAYERS

GOLDENS = json.loads((pathlib.Path(__file__).parents[1] / "helpers/peft_goldens.json").read_text())
LAYER, RATE = LAYERS["transformer"](8, 2, 12), 0.5
MODULES = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/output": "attention.output.dense",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
}
FACTORS = {"params": "(query|value|intermediate|output)/kernel$", "rank": 2, "alpha": 6.0}
OPTIONS = {
    "lora": FACTORS,
    "dora": FACTORS,
    "ia3": {"params": "(key|value|output)/kernel$", "inputs": "output/kernel$"},
}
LEAVES = {
    "a": "lora_A.default.weight",
    "b": "lora_B.default.weight",
    "magnitude": "lora_magnitude_vector.default.weight",
    "input_scale": "ia3_l.default",
    "output_scale": "ia3_l.default",
}


def numbers(name, *shape):
    return np.sin(sum(name.encode()) + 1.7 * np.arange(np.prod(shape))).reshape(shape) * 0.5


def base_layer():
    x = jnp.zeros((1, 2, 8))
    flat = flatten_dict(LAYER.init(jax.random.key(0), x, jnp.ones((1, 2), jnp.int32))["params"], sep="/")
    for path, leaf in flat.items():
        module, _, name = path.rpartition("/")
        if module in MODULES:
            published = f"{MODULES[module]}.{'weight' if name == 'kernel' else 'bias'}"
            flat[path] = jnp.asarray(numbers(published, *leaf.shape[::-1]).T, jnp.float32)
    return unflatten_dict(flat, sep="/")


@pytest.mark.parametrize("method", OPTIONS)
def test_steps_of_peft(method, differs):
    golden, layer, adapter = GOLDENS[method], base_layer(), ADAPTERS[method](**OPTIONS[method])
    x, target = (jnp.asarray(numbers(name, 2, 5, 8), jnp.float32) for name in ("x", "target"))
    params = flatten_dict(adapter.init(jax.random.key(0), LayerPlace(layer, 8, LAYER)), sep="/")
    for path, leaf in params.items():
        if path.endswith("/a"):
            name = f"{MODULES[path.removesuffix('/kernel/a')]}.lora_A"
            params[path] = jnp.asarray(numbers(name, *leaf.shape[::-1]).T, jnp.float32)
    params, segment = unflatten_dict(params, sep="/"), jnp.ones((2, 5), jnp.int32)

    @jax.jit
    def loss(params):
        output = LAYER.apply({"params": adapter.bind(params, layer, LAYER)}, x, segment)
        return jnp.square(output - target).mean()

    losses = []
    for _ in golden["losses"]:
        value, gradient = jax.value_and_grad(loss)(params)
        losses.append(value)
        params = jax.tree.map(lambda p, g: p - RATE * g, params, gradient)
    differs(f"losses of {method} in PEFT", jnp.stack(losses), np.asarray(golden["losses"]), 1e-5)
    for path, leaf in flatten_dict(params, sep="/").items():
        kernel, _, name = path.rpartition("/")
        module = kernel.removesuffix("/kernel")
        wanted = np.asarray(golden["after"][f"{MODULES[module]}.{LEAVES[name]}"]).T
        if name == "magnitude":
            wanted = wanted.squeeze() - np.linalg.norm(flatten_dict(layer, sep="/")[kernel], axis=0)
        differs(f"{name} of {method} in PEFT", leaf, wanted.reshape(leaf.shape), 2e-5)
    merged = adapter.bind(params, layer)["attention"]["value"]["kernel"]
    differs(f"merged kernel of {method} in PEFT", merged, np.asarray(golden["merged"]).T, 2e-5)
