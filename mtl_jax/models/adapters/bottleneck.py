"""Adapters after a layer, of any kind: a bottleneck with a residual, and attention over several of them."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mtl_jax.models.adapters.base import HIGHEST, Adapter
from mtl_jax.models.mixers.base import require_choice, require_integer


def bottleneck(size: int = 32, activation: str = "relu") -> Adapter:
    """h + W_up act(W_down LayerNorm(h)) after a layer (Bapna & Firat 2019, equations 2 to 4), of any kind.

    Args:
      size: width of the bottleneck.
      activation: "relu" | "gelu".

    Params: layer_norm/{scale, bias} [D], down/{kernel [D, size], bias}, up/{kernel [size, D], bias}; up starts at zero.

    Raises:
      ValueError: for options that are out of range.
    """
    _check(size, activation)
    act = getattr(jax.nn, activation)
    return Adapter(
        lambda key, place: _initial(key, place.width, size),
        after=lambda params, output: output + _change(params, output, act),
    )


def fusion(tasks: int, size: int = 32, activation: str = "relu") -> Adapter:
    """Σ_n softmax_n(h Q · z_n K) z_n V with the outputs z_n of as many bottlenecks as tasks (AdapterFusion: Pfeiffer et
    al. 2021, equations in section 3.2), h the output of the layer.

    All tasks read all bottlenecks; the attention over them is the owner's. In the paper the bottlenecks are trained
    before, each for one task, and frozen then; here they are trained together with it unless `optimizer.freeze` names
    "^adapter_shared_".

    Args:
      tasks: K, number of bottlenecks.
      size, activation: of these, as in `bottleneck`.

    Params: those of `bottleneck` with a leading axis [K, ...] of all, {query, key, value [D, D]} of an owner; value
    starts at the identity, query and key small.

    Raises: as `bottleneck`.
    """
    _check(size, activation)
    act = getattr(jax.nn, activation)

    def init(key, place):
        shape = (place.width, place.width)
        keys = dict(zip(("query", "key"), jax.random.split(key), strict=True))
        maps = {name: 0.02 * jax.random.normal(key, shape, jnp.float32) for name, key in keys.items()}
        return {**maps, "value": jnp.eye(place.width, dtype=jnp.float32)}

    def init_shared(key, place):
        return jax.vmap(lambda key: _initial(key, place.width, size))(jax.random.split(key, tasks))

    def after(params, output):
        bottlenecks = {name: params[name] for name in ("layer_norm", "down", "up")}
        outputs = output[None] + jax.vmap(lambda one: _change(one, output, act))(bottlenecks)  # [K, R, T, D]
        query = jnp.matmul(output, params["query"].astype(output.dtype))
        keys = jnp.matmul(outputs, params["key"].astype(output.dtype))
        scores = jnp.einsum("rtd,krtd->krt", query, keys, preferred_element_type=jnp.float32)
        mixed = jnp.einsum("krt,krtd->rtd", jax.nn.softmax(scores, axis=0).astype(output.dtype), outputs)
        return jnp.matmul(mixed, params["value"].astype(output.dtype), precision=HIGHEST)

    return Adapter(init, after=after, init_shared=init_shared)


def _check(size: int, activation: str) -> None:
    require_integer("size", size, 1)
    require_choice("activation", activation, ("relu", "gelu"))


def _initial(key, width: int, size: int):
    down = jax.nn.initializers.lecun_normal()(key, (width, size), jnp.float32)
    return {
        "layer_norm": {"scale": jnp.ones((width,), jnp.float32), "bias": jnp.zeros((width,), jnp.float32)},
        "down": {"kernel": down, "bias": jnp.zeros((size,), jnp.float32)},
        "up": {"kernel": jnp.zeros((size, width), jnp.float32), "bias": jnp.zeros((width,), jnp.float32)},
    }


def _change(params, output, act):
    """What a bottleneck adds to its input."""
    x = output.astype(jnp.float32)
    centred = x - x.mean(axis=-1, keepdims=True)
    x = centred * jax.lax.rsqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
    norm = params["layer_norm"]
    x = x * jnp.broadcast_to(norm["scale"], x.shape) + jnp.broadcast_to(norm["bias"], x.shape)
    return _map(params["up"], act(_map(params["down"], x.astype(output.dtype))))


def _map(params, x):
    y = jnp.matmul(x, params["kernel"].astype(x.dtype))
    return y + jnp.broadcast_to(params["bias"].astype(x.dtype), y.shape)
