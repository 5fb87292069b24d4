"""What stands between the layers of K columns: each column's features become a mix of all columns' features.

A mixer sees what a layer gives out in all columns, for the rows of one block, [C, R, T, D], and returns the streams of
the tasks. With one behind a layer every block passes through all columns up to there, whichever tasks read it; but
where a task takes of shared columns and its own alone, those of other tasks are left out. The names of a config stand
in `models.mixing`; columns that no task owns alone in `models.experts`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Params = Mapping[str, jax.Array]
_HIGHEST = jax.lax.Precision.HIGHEST


class MixerPlace(NamedTuple):
    """Where a mixer stands.

    inputs    D', features of what goes into the columns
    width     D, features of what they give out
    top       whether no column stands above it
    datasets  number of the data sets
    """

    inputs: int
    width: int
    top: bool
    datasets: int


class Mixer(NamedTuple):
    """What stands behind a layer of C columns. Pure functions; what they return has the dtype of `outputs`.

    init     (key, place) -> params, float32
    apply    (params, outputs [C, R, T, D], inputs [G, R, T, D'], segment int32[R, T]) -> [G, R, T, D], at the top
             [K, R, T, widen(D)]. `outputs` is what the columns give out. `inputs` is what went into experts since the
             last mixer: the streams of the K tasks, then, where G = K + 1, that of the shared columns; for columns
             of the tasks it is `outputs` again
    columns  for each column the task that owns it, None where it is shared
    streams  G
    experts  whether columns are experts; else they are the layer's K columns of the tasks
    default_layers  after which layers it is placed unless a config says: "each" that has columns | the "top" one
    widen    D -> features that heads read
    losses   (params, outputs, inputs, segment, dataset int32, progress float32) -> {name: float32[R, T]}, what is
             added to the objective besides the losses of the tasks: at each token; mean over the texts, of a text
             over its tokens. `dataset` is the block's, `progress` = step / steps
    auxiliary  the names in `losses`, each with the factor it has unless a config says
    apply_to_task  what `apply` is to a single task, where the mixer stands at the top alone: (params, task int32,
             shared [S, R, T, D], own [P, R, T, D], input [R, T, D'], segment) -> [R, T, widen(D)], from the shared
             columns and the task's own. With it a task's columns are computed in the blocks of that task only, `apply`
             is not asked, and None where the mixer stands nowhere else
    task_losses  then in the place of `losses`: (params, task, shared, own, input, segment, dataset, progress), of
             which the mean over the tasks that read labels of the block's data set is added
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


def cross_stitch(tasks: int, blocks: int = 1, own: float = 0.9) -> Mixer:
    """h̃_i = Σ_j α_ij h_j, with an α for each block of channels (Misra et al. 2016, equation 1).

    Args:
      tasks: K.
      blocks: D is cut into so many blocks of channels, each with an α of its own; 1 = one α, D = one a channel.
      own: what a column keeps of its own at the start, α_ii; the others share 1 − own equally. 1 starts from the
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

    return Mixer(init, apply, tuple(range(tasks)), tasks)


def sluice(tasks: int, subspaces: int = 2, own: float = 0.9) -> Mixer:
    """Each column's channels are cut into subspaces, and every subspace of every task is mixed with all others:
    h̃_{i,s} = Σ_j Σ_u α_{(i,s),(j,u)} h_{j,u} (Ruder et al. 2019, equation 3).

    The orthogonality of the subspaces (equation 5) is a penalty, `sharing.structured.subspace_orthogonality`.

    Args:
      tasks: K.
      subspaces: D is cut into so many.
      own: what a subspace keeps of its own at the start; all others share 1 − own equally.

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

    return Mixer(init, apply, tuple(range(tasks)), tasks)


def attention(tasks: int, level: str = "token", own: float = 0.9) -> Mixer:
    """h̃_i = Σ_j α_i[j] h_j with α_i = softmax(W_i [h_1 … h_K] + b_i), weights of each task's own.

    One W for all tasks would give them all the same features. At the start W is small and b such that α_i[i] = `own`.

    Args:
      tasks: K.
      level: "token": α for each token from its own features | "sequence": one for each text, from the means over its
        tokens.
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

    return Mixer(init, apply, tuple(range(tasks)), tasks)


def attention_weights(params: Params, outputs: jax.Array, segment: jax.Array, level: str = "token") -> jax.Array:
    """What `attention` mixes by: float32[K, R, T, K], how much column i takes of column j at a token; sums to 1.

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


def features_at_level(features: jax.Array, segment: jax.Array, level: str) -> jax.Array:
    """float32 [C, R, T, D]: each token's features, or with level "sequence" the means over the tokens of its text."""
    features = features.astype(jnp.float32)
    if level == "token":
        return features
    same = same_text_mask(segment)
    share = same / same.sum(axis=-1, keepdims=True)
    return jnp.einsum("rts,crsd->crtd", share, features, precision=_HIGHEST)


def same_text_mask(segment: jax.Array) -> jax.Array:
    """float32 [R, T, T], 1 for two tokens of one text; padding is a text of its own."""
    return (segment[:, :, None] == segment[:, None, :]).astype(jnp.float32)


def require_integer(name: str, value: Any, lowest: int) -> None:
    """ValueError unless `value` is a whole number from `lowest`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
        raise ValueError(f"{name} must be a whole number ≥ {lowest}, not {value!r}")


def require_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def _near_identity(count: int, own: float) -> np.ndarray:
    """`own` on the diagonal, the rest of 1 in equal parts beside it."""
    other = (1.0 - own) / (count - 1) if count > 1 else 0.0
    return np.full((count, count), other) + np.diag(np.full(count, 1.0 - other * count))


def _require_own(name: str, parts: Any, own: float) -> None:
    require_integer(name, parts, 1)
    if not 0.0 <= own <= 1.0:
        raise ValueError(f"own must lie in [0, 1], not {own}")


def _require_parts(name: str, parts: int, width: int) -> None:
    if width % parts:
        raise ValueError(f"{width} channels cannot be cut into {parts} {name}")


LEVELS = ("token", "sequence")
