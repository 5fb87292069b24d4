"""What stands between the layers of K columns: each column's features become a mix of all columns' features.

A mixer sees what a layer gives out in all columns, for the rows of one block, [K, R, T, D], and returns as much. With
one behind a layer every block passes through all K columns up to there, whichever tasks read it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Params = Mapping[str, jax.Array]
_HIGHEST = jax.lax.Precision.HIGHEST


class Mixer(NamedTuple):
    """Pure functions.

    init   (key, K, D) -> params, float32
    apply  (params, hidden [K, R, T, D], segment int32[R, T]) -> [K, R, T, D] in the dtype of `hidden`
    """

    init: Callable[[jax.Array, int, int], Params]
    apply: Callable[[Params, jax.Array, jax.Array], jax.Array]


def cross_stitch(blocks: int = 1, own: float = 0.9) -> Mixer:
    """h̃_i = Σ_j α_ij h_j, with an α for each block of channels (Misra et al. 2016, equation 1).

    Args:
      blocks: D is cut into so many blocks of channels, each with an α of its own; 1 = one α, D = one a channel.
      own: what a column keeps of its own at the start, α_ii; the others share 1 − own equally. 1 starts from the
        identity, which is single-task training for as long as α is frozen.

    Params: alpha float32[blocks, K, K].

    Raises:
      ValueError: at `init`, where D is not a multiple of `blocks`; for options that are out of range.
    """
    _require("blocks", blocks, own)

    def init(key, tasks, width):
        del key
        _require_parts("blocks", blocks, width)
        alpha = np.broadcast_to(_near_identity(tasks, own), (blocks, tasks, tasks))
        return {"alpha": jnp.asarray(alpha, jnp.float32)}

    def apply(params, hidden, segment):
        del segment
        parts = hidden.reshape(*hidden.shape[:-1], blocks, -1)
        mixed = jnp.einsum("bij,jrtbc->irtbc", params["alpha"].astype(hidden.dtype), parts, precision=_HIGHEST)
        return mixed.reshape(hidden.shape)

    return Mixer(init, apply)


def sluice(subspaces: int = 2, own: float = 0.9) -> Mixer:
    """Each column's channels are cut into subspaces, and every subspace of every task is mixed with all others:
    h̃_{i,s} = Σ_j Σ_u α_{(i,s),(j,u)} h_{j,u} (Ruder et al. 2019, equation 3).

    Args:
      subspaces: D is cut into so many.
      own: what a subspace keeps of its own at the start; all others share 1 − own equally.

    Params: alpha float32[K·S, K·S], S = subspaces; row (i, s) is i·S + s.

    Raises:
      ValueError: as `cross_stitch`.
    """
    _require("subspaces", subspaces, own)

    def init(key, tasks, width):
        del key
        _require_parts("subspaces", subspaces, width)
        return {"alpha": jnp.asarray(_near_identity(tasks * subspaces, own), jnp.float32)}

    def apply(params, hidden, segment):
        del segment
        tasks, *rows, width = hidden.shape
        parts = hidden.reshape(tasks, *rows, subspaces, width // subspaces)
        alpha = params["alpha"].reshape(tasks, subspaces, tasks, subspaces).astype(hidden.dtype)
        return jnp.einsum("isju,jrtuc->irtsc", alpha, parts, precision=_HIGHEST).reshape(hidden.shape)

    return Mixer(init, apply)


def attention(level: str = "token", own: float = 0.9) -> Mixer:
    """h̃_i = Σ_j α_i[j] h_j with α_i = softmax(W_i [h_1 … h_K] + b_i), weights of each task's own.

    One W for all tasks would give them all the same features. At the start W is small and b such that α_i[i] = `own`.

    Args:
      level: "token": α for each token from its own features | "sequence": one for each text, from the means over its
        tokens.
      own: α_i[i] where W is zero, in (0, 1).

    Params: kernel float32[K, K·D, K], bias float32[K, K]; the first axis is i.
    """
    if level not in LEVELS:
        raise ValueError(f"level must be one of {', '.join(LEVELS)}, not {level!r}")
    if not 0.0 < own < 1.0:
        raise ValueError(f"own must lie in (0, 1), not {own}")

    def init(key, tasks, width):
        odds = own * max(tasks - 1, 1) / (1.0 - own)  # against each of the others
        kernel = 0.02 * jax.random.normal(key, (tasks, tasks * width, tasks), jnp.float32)
        return {"kernel": kernel, "bias": jnp.asarray(np.log(odds) * np.eye(tasks), jnp.float32)}

    def apply(params, hidden, segment):
        weights = attention_weights(params, hidden, segment, level).astype(hidden.dtype)
        return jnp.einsum("irtj,jrtd->irtd", weights, hidden, precision=_HIGHEST)

    return Mixer(init, apply)


def attention_weights(params: Params, hidden: jax.Array, segment: jax.Array, level: str = "token") -> jax.Array:
    """What `attention` mixes by: float32[K, R, T, K], how much column i takes of column j at a token; sums to 1.

    Args:
      params: of the mixer.
      hidden: [K, R, T, D].
      segment: int32[R, T].
      level: of the mixer.
    """
    features = hidden.astype(jnp.float32)
    if level == "sequence":
        features = _means(features, segment)
    joined = jnp.moveaxis(features, 0, 2).reshape(*segment.shape, -1)  # [R, T, K·D]
    scores = jnp.einsum("rtf,ifj->irtj", joined, params["kernel"], precision=_HIGHEST)
    return jax.nn.softmax(scores + params["bias"][:, None, None, :], axis=-1)


def _means(features: jax.Array, segment: jax.Array) -> jax.Array:
    """Each token gets the mean over the tokens of its text; [K, R, T, D]."""
    same = (segment[:, :, None] == segment[:, None, :]).astype(features.dtype)  # [R, T, T]
    share = same / same.sum(axis=-1, keepdims=True)
    return jnp.einsum("rts,krsd->krtd", share, features, precision=_HIGHEST)


def _near_identity(count: int, own: float) -> np.ndarray:
    """`own` on the diagonal, the rest of 1 in equal parts beside it."""
    other = (1.0 - own) / (count - 1) if count > 1 else 0.0
    return np.full((count, count), other) + np.diag(np.full(count, 1.0 - other * count))


def _require(name: str, parts: Any, own: float) -> None:
    if isinstance(parts, bool) or not isinstance(parts, int) or parts < 1:
        raise ValueError(f"{name} must be a whole number ≥ 1, not {parts!r}")
    if not 0.0 <= own <= 1.0:
        raise ValueError(f"own must lie in [0, 1], not {own}")


def _require_parts(name: str, parts: int, width: int) -> None:
    if width % parts:
        raise ValueError(f"{width} channels cannot be cut into {parts} {name}")


LEVELS = ("token", "sequence")
MIXERS: dict[str, Callable[..., Mixer]] = {"cross_stitch": cross_stitch, "sluice": sluice, "attention": attention}
