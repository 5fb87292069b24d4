"""Mixers of the tasks' columns: the features of each column become a combination of those of all columns."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.models.mixers.base import LEVELS, NEVER, Mixer, Params, features_at_level, require_choice, require_integer

_HIGHEST = jax.lax.Precision.HIGHEST


def cross_stitch(tasks: int, blocks: int = 1, own: float = 0.9) -> Mixer:
    """h̃_i = Σ_j α_ij h_j, with an α for each block of channels (Misra et al. 2016, equation 1).

    Args:
      tasks: K.
      blocks: number of blocks of channels, each with an α of its own; 1 = one α, D = one per channel.
      own: initial α_ii, the weight of a column's own features; the others share 1 − own equally. 1 starts from the
        identity, which is single-task training for as long as α is frozen.

    Params: alpha float32[blocks, K, K].

    Raises:
      ValueError: at `init`, where D is not a multiple of `blocks`; for options that are out of range.
    """
    _require_own("blocks", blocks, own)

    def init(key, place):
        del key
        _require_parts("blocks", blocks, place.width)
        alpha = np.broadcast_to(_near_identity(tasks, own), (blocks, tasks, tasks))
        return {"alpha": jnp.asarray(alpha, jnp.float32)}

    def apply(params, outputs, inputs, segment):
        del inputs, segment
        parts = outputs.reshape(*outputs.shape[:-1], blocks, -1)
        mixed = jnp.einsum("bij,jrtbc->irtbc", params["alpha"].astype(outputs.dtype), parts, precision=_HIGHEST)
        return mixed.reshape(outputs.shape)

    axes = {"alpha": ("", "task", "task")}
    return Mixer(init, apply, tuple(range(tasks)), tasks, axes=axes, absent={"alpha": 0.0})


def sluice(tasks: int, subspaces: int = 2, own: float = 0.9) -> Mixer:
    """Each column's channels are cut into subspaces, and every subspace of every task is mixed with all others:
    h̃_{i,s} = Σ_j Σ_u α_{(i,s),(j,u)} h_{j,u} (Ruder et al. 2019, equation 3).

    The orthogonality of the subspaces (equation 5) is a penalty, `sharing.structured.subspace_orthogonality`.

    Args:
      tasks: K.
      subspaces: number of subspaces of the D channels.
      own: initial weight of a subspace's own features; all others share 1 − own equally.

    Params: alpha float32[K·S, K·S], S = subspaces; row (i, s) is i·S + s.

    Raises:
      ValueError: as `cross_stitch`.
    """
    _require_own("subspaces", subspaces, own)

    def init(key, place):
        del key
        _require_parts("subspaces", subspaces, place.width)
        return {"alpha": jnp.asarray(_near_identity(tasks * subspaces, own), jnp.float32)}

    def apply(params, outputs, inputs, segment):
        del inputs, segment
        parts = outputs.reshape(*outputs.shape[:-1], subspaces, outputs.shape[-1] // subspaces)
        alpha = params["alpha"].reshape(tasks, subspaces, tasks, subspaces).astype(outputs.dtype)
        return jnp.einsum("isju,jrtuc->irtsc", alpha, parts, precision=_HIGHEST).reshape(outputs.shape)

    axes = {"alpha": ("task", "task")}
    return Mixer(init, apply, tuple(range(tasks)), tasks, axes=axes, absent={"alpha": 0.0})


def attention(tasks: int, level: str = "token", own: float = 0.9) -> Mixer:
    """h̃_i = Σ_j α_i[j] h_j with α_i = softmax(W_i [h_1 … h_K] + b_i), with separate weights per task.

    One W for all tasks would give them all the same features. Initially W is small and b such that α_i[i] = `own`.

    Args:
      tasks: K.
      level: "token": an α per token, from its features | "sequence": one per text, from the means over its tokens.
      own: α_i[i] where W is zero, in (0, 1).

    Params: kernel float32[K, K·D, K], bias float32[K, K]; the first axis is i.
    """
    require_choice("level", level, LEVELS)
    if not 0.0 < own < 1.0:
        raise ValueError(f"own must lie in (0, 1), not {own}")

    def init(key, place):
        odds = own * max(tasks - 1, 1) / (1.0 - own)  # against each of the others
        kernel = 0.02 * jax.random.normal(key, (tasks, tasks * place.width, tasks), jnp.float32)
        return {"kernel": kernel, "bias": jnp.asarray(np.log(odds) * np.eye(tasks), jnp.float32)}

    def apply(params, outputs, inputs, segment):
        del inputs
        weights = attention_weights(params, outputs, segment, level).astype(outputs.dtype)
        return jnp.einsum("irtj,jrtd->irtd", weights, outputs, precision=_HIGHEST)

    axes = {"kernel": ("task", "task", "task"), "bias": ("task", "task")}
    return Mixer(init, apply, tuple(range(tasks)), tasks, axes=axes, absent={"kernel": 0.0, "bias": NEVER})


def attention_weights(params: Params, outputs: jax.Array, segment: jax.Array, level: str = "token") -> jax.Array:
    """The weights of `attention`: float32[K, R, T, K], the weight of column j for column i at a token; sums to 1.

    Args:
      params: of the mixer.
      outputs: [K, R, T, D].
      segment: int32[R, T].
      level: of the mixer.
    """
    features = features_at_level(outputs, segment, level)
    joined = jnp.moveaxis(features, 0, 2).reshape(*segment.shape, -1)  # [R, T, K·D]
    scores = jnp.einsum("rtf,ifj->irtj", joined, params["kernel"], precision=_HIGHEST)
    return jax.nn.softmax(scores + params["bias"][:, None, None, :], axis=-1)


def _near_identity(count: int, own: float) -> np.ndarray:
    """`own` on the diagonal; the remainder to 1 in equal parts off it."""
    other = (1.0 - own) / (count - 1) if count > 1 else 0.0
    return np.full((count, count), other) + np.diag(np.full(count, 1.0 - other * count))


def _require_own(name: str, parts: Any, own: float) -> None:
    require_integer(name, parts, 1)
    if not 0.0 <= own <= 1.0:
        raise ValueError(f"own must lie in [0, 1], not {own}")


def _require_parts(name: str, parts: int, width: int) -> None:
    if width % parts:
        raise ValueError(f"{width} channels cannot be cut into {parts} {name}")
