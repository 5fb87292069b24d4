"""What a mixer is: it stands after a layer and combines the features of its columns.

A mixer reads the outputs of all columns of a layer for the rows of one block, [C, R, T, D], and returns the streams of
the tasks. Every block passes through all columns below a mixer, whichever tasks read it; but if a task needs only the
shared columns and its own, those of other tasks are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Params = Mapping[str, jax.Array]
LEVELS = ("token", "sequence")
NEVER = -1e9  # a score whose softmax is 0
_HIGHEST = jax.lax.Precision.HIGHEST


class MixerPlace(NamedTuple):
    """Where a mixer stands.

    inputs    D', features of the inputs of the columns
    width     D, features of their outputs
    top       whether it is the topmost mixer
    datasets  number of data sets
    """

    inputs: int
    width: int
    top: bool
    datasets: int


class Mixer(NamedTuple):
    """Combines the C columns of a layer. Pure functions; their results have the dtype of `outputs`.

    init            (key, place) -> params, float32
    apply           (params, outputs [C, R, T, D], inputs [G, R, T, D'], segment int32[R, T]) -> [G, R, T, D], at the
                    top [K, R, T, widen(D)]. `outputs` are those of the columns. `inputs` are those of the experts since
                    the last mixer: the streams of the K tasks and, if G = K + 1, that of the shared columns; for
                    columns of the tasks they are `outputs` again
    columns         for each column the task that owns it, None where it is shared
    streams         G
    experts         whether columns are experts; else they are the layer's K columns of the tasks
    default_layers  after which layers it is placed unless a config says: "each" that has columns | the "top" one
    widen           D -> features that heads read
    losses          (params, outputs, inputs, segment, dataset int32, progress float32) -> {name: float32[R, T]}, losses
                    in addition to those of the tasks: at each token; averaged over the texts, within a text over its
                    tokens. `dataset` is the block's, `progress` = step / steps
    auxiliary       the names in `losses`, each with its default factor
    apply_to_task   `apply` for a single task, if the mixer stands at the top only: (params, task int32,
                    shared [S, R, T, D], private [P, R, T, D], input [R, T, D'], segment) -> [R, T, widen(D)], from the
                    shared columns and those of the task. The columns of a task are then computed in its blocks only,
                    and `apply` is not called; it is None if the mixer stands nowhere else
    task_losses     then in place of `losses`: (params, task, shared, private, input, segment, dataset, progress),
                    averaged over the tasks that read labels of the block's data set
    axes            {leaf: for each of its axes "task" (K, or several units of each task), "stream" (K tasks, then the
                    shared one), "column" (the C columns), "dataset", or "" where indices mean the same for any K}; the
                    first "task" or "stream" is what reads
    absent          {leaf: value of its entries for a column that is not mixed in}
    """

    init: Callable[[jax.Array, MixerPlace], Params]
    apply: Callable[[Params, jax.Array, jax.Array, jax.Array], jax.Array] | None
    columns: tuple[int | None, ...]
    streams: int
    experts: bool = False
    default_layers: str = "each"
    widen: Callable[[int], int] = lambda width: width
    losses: Callable[..., dict[str, jax.Array]] | None = None
    auxiliary: Mapping[str, float] = {}
    apply_to_task: Callable[..., jax.Array] | None = None
    task_losses: Callable[..., dict[str, jax.Array]] | None = None
    axes: Mapping[str, tuple[str, ...]] = {}
    absent: Mapping[str, float] = {}


def features_at_level(features: jax.Array, segment: jax.Array, level: str) -> jax.Array:
    """float32 [C, R, T, D]: the features of each token, or for level "sequence" their means over its text."""
    features = features.astype(jnp.float32)
    if level == "token":
        return features
    mask = same_text_mask(segment)
    weights = mask / mask.sum(axis=-1, keepdims=True)
    return jnp.einsum("rts,crsd->crtd", weights, features, precision=_HIGHEST)


def same_text_mask(segment: jax.Array) -> jax.Array:
    """float32 [R, T, T], 1 for two tokens of one text; the padding counts as a text."""
    return (segment[:, :, None] == segment[:, None, :]).astype(jnp.float32)


def require_integer(name: str, value: Any, lowest: int) -> None:
    """Raises ValueError unless `value` is an integer ≥ `lowest`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise ValueError(f"{name} must be a whole number ≥ {lowest}, not {value!r}")


def require_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
