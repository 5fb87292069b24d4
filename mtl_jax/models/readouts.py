"""How a head reads the layers: the topmost, a weighted sum of all, or task-specific attention on each. A new readout is
one function and one line in `READOUTS`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_HIGHEST = jax.lax.Precision.HIGHEST


class Readout(NamedTuple):
    """Pure functions over the layers that a head may read: the embeddings first, then one layer after the other.

    init   (key, widths of the layers) -> params of a task, float32; part of its head
    apply  (params of the head, layers [R, T, D] each) -> input of the head, [R, T, D']
    reads_all  whether it reads layers below the topmost
    """

    init: Callable[[jax.Array, Sequence[int]], dict[str, Any]]
    apply: Callable[[Any, Sequence[jax.Array]], jax.Array]
    reads_all: bool


def top() -> Readout:
    """The topmost layer only."""
    return Readout(lambda key, widths: {}, lambda params, layers: layers[-1], reads_all=False)


def mixture() -> Readout:
    """Σ_l β_l h_l over the layers above the embeddings, with weights per task, initially equal (sluice networks:
    Ruder et al. 2019, equation 4).

    Params: layers float32[L].
    """

    def init(key, widths):
        del key
        if len(set(widths[1:])) != 1:
            raise ValueError(
                f"layers of one width can be mixed, these have {', '.join(map(str, widths[1:])) or 'none'}"
            )
        return {"layers": jnp.full((len(widths) - 1,), 1.0 / (len(widths) - 1), jnp.float32)}

    def apply(params, layers):
        stacked = jnp.stack(layers[1:])
        return jnp.tensordot(params["layers"].astype(stacked.dtype), stacked, 1, precision=_HIGHEST)

    return Readout(init, apply, reads_all=True)


def attention(hidden: int = 0) -> Readout:
    """MTAN: each task picks features out of every layer of the trunk (Liu, Johns & Davison 2019, equations 1, 2).

    With u the layer's input and p its output: a_l = σ(W₂ relu(W₁ [u; f(â_{l−1})])), â_l = a_l ⊙ p, f affine with
    relu; at the first layer there is no â. Convolutions of the paper are affine maps of each token here, and batch
    normalisation, which would mix texts, is left out. The masks start near 1/2.

    Args:
      hidden: width of the inner layer; 0 = that of the layer's output.

    Params: attention/<number of layer>/{first, second, pass}/{kernel, bias}.
    """

    def init(key, widths):
        layers = {}
        for number, (below, width) in enumerate(itertools.pairwise(widths)):
            inner, passed = hidden or width, widths[number] if number else 0
            keys = jax.random.split(jax.random.fold_in(key, number), 3)
            layers[f"{number:02d}"] = {
                "first": _affine(keys[0], below + passed, inner),
                "second": _affine(keys[1], inner, width),
                **({"pass": _affine(keys[2], passed, passed)} if number else {}),
            }
        if not layers:
            raise ValueError("there is no layer above the embeddings to attend to")
        return {"attention": layers}

    def apply(params, layers):
        picked = None
        for number, (u, p) in enumerate(itertools.pairwise(layers)):
            maps = params["attention"][f"{number:02d}"]
            if picked is not None:
                u = jnp.concatenate([u, jax.nn.relu(_map(maps["pass"], picked))], axis=-1)
            mask = jax.nn.sigmoid(_map(maps["second"], jax.nn.relu(_map(maps["first"], u))))
            picked = mask * p
        return picked

    return Readout(init, apply, reads_all=True)


def _affine(key, inputs, out):
    kernel = jax.nn.initializers.lecun_normal()(key, (inputs, out), jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros((out,), jnp.float32)}


def _map(params, x):
    y = jnp.matmul(x, params["kernel"].astype(x.dtype))
    return y + jnp.broadcast_to(params["bias"].astype(x.dtype), y.shape)


READOUTS: dict[str, Callable[..., Readout]] = {"top": top, "mixture": mixture, "attention": attention}
