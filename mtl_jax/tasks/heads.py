"""Parameters and application of the heads: an optional pooler and hidden layer before the classes, or the layers of a
published head. All float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.tasks import options
from mtl_jax.tasks.base import Params
from mtl_jax.tasks.features import gather_tokens

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "linear": lambda x: x,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}


class HeadForm(NamedTuple):
    """The layers of a head: an affine map, an activation and a LayerNorm before the scores.

    pool         "first" | "last" | "mean" | "max" token of a text; "" for scores of tokens
    width        features of the affine map; 0: there are scores alone, and the fields below say nothing
    activation   a name in `ACTIVATIONS`
    bias         whether the affine map has one
    norm_eps     ε of the LayerNorm after the activation, None for none
    norm_bias    whether it has an offset
    output_bias  whether the scores have one
    """

    pool: str
    width: int = 0
    activation: str = "linear"
    bias: bool = True
    norm_eps: float | None = None
    norm_bias: bool = True
    output_bias: bool = True


def check_form(task: Any) -> None:
    """Raises UserError for a wrong `head_form`, and for options that a published form has decided."""
    options.require_choice(task.name, "head_form", task.head_form, ("plain", "published"))
    if task.head_form == "plain":
        return
    if task.published_head is None:
        problem = f"'published' is that of a model family, and this model has none for kind {type(task).__name__}"
        raise options.option_error(task.name, "head_form", problem)
    for field in ("pool", "pooler", "hidden"):
        if field in type(task).__dataclass_fields__ and getattr(task, field) not in (False, 0, None, "mean", "last"):
            raise options.option_error(task.name, field, "is decided by head_form = 'published'; leave it out")


def pooling(task: Any) -> str:
    """How the head of a task on texts pools their tokens."""
    return task.published_head.pool if task.published_head else task.pool


def init_form(key: jax.Array, width: int, out: int, form: HeadForm) -> Params:
    """Parameters of a head of this form over features of width D: {"transform", "layer_norm", "output"}."""
    inner_key, output_key = jax.random.split(key)
    params = {"output": dense_init(output_key, form.width or width, out)}
    if form.width:
        params["transform"] = inner_init(inner_key, width, form.width)
        if not form.bias:
            del params["transform"]["bias"]
        if form.norm_eps is not None:
            ones, zeros = jnp.ones((form.width,), jnp.float32), jnp.zeros((form.width,), jnp.float32)
            params["layer_norm"] = {"scale": ones, "bias": zeros} if form.norm_bias else {"scale": ones}
    if not form.output_bias:
        del params["output"]["bias"]
    return params


def apply_transform(params: Params, x: jax.Array, form: HeadForm) -> jax.Array:
    """x [..., D] -> float32 [..., W], what the scores of a head of this form read."""
    x = x.astype(jnp.float32)
    if not form.width:
        return x
    x = ACTIVATIONS[form.activation](dense(params["transform"], x))
    return x if form.norm_eps is None else layer_norm(params["layer_norm"], x, form.norm_eps)


def layer_norm(params: Params, x: jax.Array, eps: float) -> jax.Array:
    """LayerNorm of x float32 [..., W] with a scale and, where there is one, an offset."""
    centred = x - x.mean(-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)
    scaled = normed * jnp.broadcast_to(params["scale"], x.shape)
    return scaled + jnp.broadcast_to(params["bias"], x.shape) if "bias" in params else scaled


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
    return y + jnp.broadcast_to(params["bias"], y.shape) if "bias" in params else y


def init_task_head(task: Any, key: jax.Array, width: int, out: int) -> Params:
    """The head of a task that has `published_head`, `hidden` and perhaps `pooler`, from width D to `out`."""
    if task.published_head:
        return init_form(key, width, out, task.published_head)
    return init_head(key, width, out, task.hidden, getattr(task, "pooler", False))


def apply_task_head(task: Any, params: Params, x: jax.Array) -> jax.Array:
    """x [..., D] -> float32 [..., out] through the layers that `init_task_head` made."""
    if task.published_head:
        return dense(params["output"], apply_transform(params, x, task.published_head))
    return apply_head(params, x)


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
