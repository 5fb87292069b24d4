"""Keys and values of an owner, to which every token attends."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from mtl_jax.models.adapters.base import HIGHEST, Adapter
from mtl_jax.models.attention import Prefix
from mtl_jax.models.dense import ADAPTER
from mtl_jax.models.mixers.base import require_integer

_PLACE = "attention/prefix"


def prefix(length: int = 16, hidden: int = 0) -> Adapter:
    """Keys and values before those of every text, which all its tokens attend to (prefix tuning: Li & Liang 2021,
    equations 3, 4).

    They have no position: nothing rotates them, and biases of distances are zero. Unlike other adapters they change
    what a layer computes from the start.

    Args:
      length: P, number of keys.
      hidden: width of the inner layer of a map tanh(P W₁ + b₁) W₂ + b₂ from which keys and values come, as in the paper
        (there one map for all layers, here one for each); 0: they are parameters themselves.

    Params: attention/prefix/{key [P, D], value [P, D]}; with `hidden` {embedding [P, D], first/{kernel, bias},
    second/{kernel, bias}}.

    Raises:
      ValueError: at `init`, for a layer without attention; for options that are out of range.
    """
    require_integer("length", length, 1)
    require_integer("hidden", hidden, 0)

    def init(key, place):
        kernels = flatten_dict(place.params, sep="/")
        widths = {name: kernels.get(f"attention/{name}/kernel") for name in ("key", "value")}
        if not getattr(place.module, "attends", False) or None in widths.values():
            raise ValueError("prefix: the layers have no attention whose keys and values could have a prefix")
        widths = {name: kernel.shape[1] for name, kernel in widths.items()}
        keys = dict(zip(("key", "value", "embedding", "first", "second"), jax.random.split(key, 5), strict=True))

        def normal(name, *shape):
            return 0.02 * jax.random.normal(keys[name], shape, jnp.float32)

        if not hidden:
            leaves = {name: normal(name, length, width) for name, width in widths.items()}
        else:
            total = sum(widths.values())
            leaves = {
                "embedding": normal("embedding", length, place.width),
                "first/kernel": normal("first", place.width, hidden),
                "first/bias": jnp.zeros((hidden,), jnp.float32),
                "second/kernel": normal("second", hidden, total),
                "second/bias": jnp.zeros((total,), jnp.float32),
            }
        return unflatten_dict({f"{_PLACE}/{name}": leaf for name, leaf in leaves.items()}, sep="/")

    def bind(params, layer, module=None, noise=None):
        del noise
        if module is None:
            raise ValueError("a prefix is no kernel of a layer")
        leaves = params["attention"]["prefix"]
        if hidden:
            inner = jnp.tanh(_affine(leaves["first"], leaves["embedding"]))
            width = layer["attention"]["key"]["kernel"].shape[-1]
            made = _affine(leaves["second"], inner)
            leaves = {"key": made[:, :width], "value": made[:, width:]}
        attention = {**layer["attention"], ADAPTER: Prefix(leaves["key"], leaves["value"])}
        return {**layer, "attention": attention}

    return Adapter(init, bind)


def _affine(params, x):
    return jnp.matmul(x, params["kernel"], precision=HIGHEST) + params["bias"][None]
