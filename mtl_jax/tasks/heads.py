"""Parameters and application of the heads: an optional pooler and hidden layer before the classes. All float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mtl_jax.tasks.base import Params
from mtl_jax.tasks.features import gather_tokens

_INNER = jax.nn.initializers.lecun_normal()
_OUTER = jax.nn.initializers.normal(0.02)  # as BERT's own heads: the first predictions are near uniform


def dense_init(key: jax.Array, width: int, out: int, initializer=_OUTER) -> Params:
    """{"kernel": [D, out], "bias": [out]}, float32."""
    return {"kernel": initializer(key, (width, out), jnp.float32), "bias": jnp.zeros((out,), jnp.float32)}


def inner_init(key: jax.Array, width: int, out: int) -> Params:
    """As `dense_init`, for a layer that another one follows."""
    return dense_init(key, width, out, _INNER)


def dense(params: Params, x: jax.Array) -> jax.Array:
    """x [..., D] -> float32 [..., out], whatever the dtype of x."""
    y = x.astype(jnp.float32) @ params["kernel"]
    return y + jnp.broadcast_to(params["bias"], y.shape)


def init_head(key: jax.Array, width: int, out: int, hidden: int = 0, pooler: bool = False) -> Params:
    """A head from width D to `out`. `pooler` adds BERT's tanh layer [D, D], `hidden` > 0 a GELU layer of that width."""
    pooler_key, hidden_key, output_key = jax.random.split(key, 3)
    params = {"output": dense_init(output_key, hidden or width, out)}
    if pooler:
        params["pooler"] = dense_init(pooler_key, width, width, _INNER)
    if hidden:
        params["hidden"] = dense_init(hidden_key, width, hidden, _INNER)
    return params


def apply_head(params: Params, x: jax.Array) -> jax.Array:
    """x [..., D] -> float32 [..., out] through the layers that `init_head` made."""
    if "pooler" in params:
        x = jnp.tanh(dense(params["pooler"], x))
    if "hidden" in params:
        x = jax.nn.gelu(dense(params["hidden"], x))
    return dense(params["output"], x)


def predicate_init(key: jax.Array, width: int, out: int, hidden: int, distance: int) -> Params:
    """A head over [word; predicate; distance]: `hidden` = 0 is linear, `distance` = 0 leaves the distance out."""
    word_key, predicate_key, distance_key, output_key = jax.random.split(key, 4)
    joined = hidden or out
    params = {
        "word": dense_init(word_key, width, joined, _INNER if hidden else _OUTER),
        "predicate": {"kernel": (_INNER if hidden else _OUTER)(predicate_key, (width, joined), jnp.float32)},
    }
    if distance:
        params["distance"] = {"embedding": _OUTER(distance_key, (2 * distance + 1, joined), jnp.float32)}
    if hidden:
        params["output"] = dense_init(output_key, hidden, out)
    return params


def predicate_apply(params: Params, hidden: jax.Array, token: jax.Array, predicate: jax.Array) -> jax.Array:
    """hidden [R, T, D], token and predicate int32[R, Q] -> float32 [R, Q, out].

    An affine map of the joined vectors is the sum of maps of its parts. The parts are taken once for each token,
    before the gathers, since Q runs over predicates × words.
    """
    x = gather_tokens(dense(params["word"], hidden), token)
    x += gather_tokens(hidden.astype(jnp.float32) @ params["predicate"]["kernel"], predicate)
    if "distance" in params:
        reach = params["distance"]["embedding"].shape[0] // 2
        x += params["distance"]["embedding"][jnp.clip(token - predicate, -reach, reach) + reach]
    return dense(params["output"], jax.nn.gelu(x)) if "output" in params else x
