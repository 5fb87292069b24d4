"""Adapters: small parameters per task on layers that tasks share. A new kind is one function and one line in
`ADAPTERS`.

Initially they change nothing. Their leaves are [K, ...] at paths `adapter_03`, so that penalties on "^adapter_" act on
them only, and `optimizer.freeze` = ("^embed/", "^layer_") trains nothing else of the encoder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from mtl_jax.models.dense import FACTORS
from mtl_jax.models.mixers.base import require_choice, require_integer

Params = Mapping[str, Any]
_HIGHEST = jax.lax.Precision.HIGHEST


class Adapter(NamedTuple):
    """Pure functions; one of the last two, the other is None.

    init   (key, params of the layer, width of its output) -> params of one task, float32
    bind   (params, params of the layer, the layer) -> params that the layer is applied with; without the layer its
           parameters as they would be without an adapter
    after  (params, output [R, T, D]) -> [R, T, D], in its dtype
    """

    init: Callable[[jax.Array, Params, int], Params]
    bind: Callable[..., Params] | None
    after: Callable[[Params, jax.Array], jax.Array] | None


def bottleneck(size: int = 32, activation: str = "relu") -> Adapter:
    """h + W_up act(W_down LayerNorm(h)) after a layer (Bapna & Firat 2019, equations 2 to 4), of any kind.

    Args:
      size: width of the bottleneck.
      activation: "relu" | "gelu".

    Params: layer_norm/{scale, bias} [D], down/{kernel [D, size], bias}, up/{kernel [size, D], bias}; up starts at zero.

    Raises:
      ValueError: for options that are out of range.
    """
    require_integer("size", size, 1)
    require_choice("activation", activation, ("relu", "gelu"))
    act = getattr(jax.nn, activation)

    def init(key, layer, width):
        del layer
        down = jax.nn.initializers.lecun_normal()(key, (width, size), jnp.float32)
        return {
            "layer_norm": {"scale": jnp.ones((width,), jnp.float32), "bias": jnp.zeros((width,), jnp.float32)},
            "down": {"kernel": down, "bias": jnp.zeros((size,), jnp.float32)},
            "up": {"kernel": jnp.zeros((size, width), jnp.float32), "bias": jnp.zeros((width,), jnp.float32)},
        }

    def after(params, output):
        x = output.astype(jnp.float32)
        centred = x - x.mean(axis=-1, keepdims=True)
        x = centred * jax.lax.rsqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
        norm = params["layer_norm"]
        x = x * jnp.broadcast_to(norm["scale"], x.shape) + jnp.broadcast_to(norm["bias"], x.shape)
        x = act(_map(params["down"], x.astype(output.dtype)))
        return output + _map(params["up"], x)

    return Adapter(init, None, after)


def lora(rank: int = 8, alpha: float = 16.0, params: str = "(query|value|input)/kernel$") -> Adapter:
    """W + (α / r) A B in place of chosen kernels W (Hu et al. 2022, equation 3).

    For kernels of a layer's `dense` modules the sum is not formed: a token costs r·(inputs + outputs) products more,
    and no gradient has the size of W.

    Args:
      rank: r.
      alpha: α.
      params: regex found in the paths of kernels inside the layer; the default are query and value of a transformer,
        and the input kernels of recurrent layers.

    Params: <path of kernel>/{a [inputs, r], b [r, outputs]}; b starts at zero.

    Raises:
      ValueError: at `init`, where no kernel matches; for options that are out of range.
    """
    require_integer("rank", rank, 1)
    try:
        chosen = re.compile(params)
    except re.error as error:
        raise ValueError(f"params: {params!r} is not a regular expression: {error}") from None

    def init(key, layer, width):
        del width
        flat = flatten_dict(layer, sep="/")
        kernels = {path: leaf for path, leaf in flat.items() if chosen.search(path) and leaf.ndim == 2}
        if not kernels:
            raise ValueError(f"params: {params!r} finds no kernel of a layer; there are {', '.join(flat)}")
        factors = {}
        for number, (path, leaf) in enumerate(kernels.items()):
            inputs, outputs = leaf.shape
            a = jax.random.normal(jax.random.fold_in(key, number), (inputs, rank), jnp.float32) / inputs**0.5
            factors[f"{path}/a"], factors[f"{path}/b"] = a, jnp.zeros((rank, outputs), jnp.float32)
        return unflatten_dict(factors, sep="/")

    def bind(params, layer, module=None):
        flat, factors = dict(flatten_dict(layer, sep="/")), flatten_dict(params, sep="/")
        for kernel in [path.removesuffix("/a") for path in factors if path.endswith("/a")]:
            a, b = factors[f"{kernel}/a"], (alpha / rank) * factors[f"{kernel}/b"]
            owner = kernel.removesuffix("/kernel")
            if owner in getattr(module, "dense", ()):
                flat[f"{owner}/{FACTORS}/a"], flat[f"{owner}/{FACTORS}/b"] = a, b
            else:
                flat[kernel] = flat[kernel] + jnp.matmul(a, b, precision=_HIGHEST)
        return unflatten_dict(flat, sep="/")

    return Adapter(init, bind, None)


def _map(params, x):
    y = jnp.matmul(x, params["kernel"].astype(x.dtype))
    return y + jnp.broadcast_to(params["bias"].astype(x.dtype), y.shape)


ADAPTERS: dict[str, Callable[..., Adapter]] = {"bottleneck": bottleneck, "lora": lora}
