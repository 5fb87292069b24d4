"""How strongly a penalty acts beside the losses: λ has a scale that depends on the model, its effect has none.

In every step (see `metrics_log.MetricsLog`):

    penalty_ratio    by gradient: λ·‖∇Ω‖ / ‖∇L‖ over the leaves that Ω sees, ∇L what the losses give without it; by the
                     proximal operator: ‖u' − u‖ / ‖u‖, how far it moves the optimizer's updates u, relative to them
    column_distance  √(mean over k of ‖Θ_k − Θ̄‖²) / ‖Θ̄‖ over the same leaves

At the end a penalty is said to have hardly acted, or to have tied everything, by the thresholds below.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.sharing.gram import accumulation_dtype, squared_deviations

NEGLIGIBLE_RATIO = 0.001  # mean penalty_ratio below which a penalty hardly acted
WEAK_RATIO = 0.1  # below this too, where besides the columns are farther apart than
KEPT_DISTANCE = 0.8  # of what two of them would be that moved as far, each for itself
TIED_DISTANCE = (
    0.01  # distance that is left, as a share of how far they were apart at the start, or went from there, if more
)


class Effect(NamedTuple):
    """What a penalty did in a run, distances as √(mean over k of ‖·‖²) over its leaves.

    ratio     mean penalty_ratio of the steps; None where none is known
    strength  λ as the config has it
    distance  of the columns from their mean at the end
    initial   the same at the start
    moved     of the columns from where they began
    """

    ratio: float | None
    strength: float
    distance: float
    initial: float
    moved: float


def tree_norm(leaves: Iterable[jax.Array]) -> jax.Array:
    """The norm of all leaves as one vector, with gradient 0 at 0."""
    square = sum((jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in leaves), jnp.float32(0.0))
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), square)


def safe_ratio(part: jax.Array, whole: jax.Array) -> jax.Array:
    """part / whole for numbers ≥ 0: 0 where part is 0, infinity where whole alone is."""
    quotient = part / jnp.where(whole == 0, 1.0, whole)
    return jnp.where(part == 0, jnp.zeros_like(part), jnp.where(whole == 0, jnp.inf, quotient))


def column_distance(stacks: Mapping[str, jax.Array]) -> jax.Array:
    """√(mean over k of ‖Θ_k − Θ̄‖²) / ‖Θ̄‖ of stacks [K, ...], float32."""
    deviation, total, count = _squares(stacks)
    mean = jnp.maximum(total - deviation, 0.0) / count  # Σ‖Θ_k‖² = K‖Θ̄‖² + Σ‖Θ_k − Θ̄‖²
    return safe_ratio(tree_norm([jnp.sqrt(deviation / count)]), jnp.sqrt(mean)).astype(jnp.float32)


def distances(stacks: Mapping[str, jax.Array], initial: Mapping[str, jax.Array]) -> jax.Array:
    """[distance, initial, moved] of `Effect`, float32 [3], from stacks [K, ...] of the end and of the start."""
    steps = {path: leaf - initial[path] for path, leaf in stacks.items()}
    (deviation, _, count), (first, _, _), (_, moved, _) = (_squares(tree) for tree in (stacks, initial, steps))
    return jnp.sqrt(jnp.stack([deviation, first, moved]) / count).astype(jnp.float32)


def _squares(stacks):
    """Σ_k ‖Θ_k − Θ̄‖², Σ_k ‖Θ_k‖², K."""
    dtype = accumulation_dtype(dict(stacks))
    leaves = [jnp.asarray(leaf, dtype) for leaf in stacks.values()]
    return sum(map(squared_deviations, leaves)), sum(jnp.sum(jnp.square(leaf)) for leaf in leaves), len(leaves[0])


def mean_ratio(values: Iterable[float | None]) -> float | None:
    """The mean of those that are finite numbers; None where none is."""
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else None


def is_negligible(effect: Effect) -> bool:
    """Whether the penalty changed little: its ratio is below `NEGLIGIBLE_RATIO`; or below `WEAK_RATIO`, and the
    distance above `KEPT_DISTANCE`
    of √(initial² + ½ moved²), that of two columns which move at right angles. A λ of 0 is meant so.

    The ratio alone does not tell: gradients of the losses change their direction from step to step, that of Ω does not.
    """
    if effect.strength == 0 or effect.ratio is None:
        return False
    free = (effect.initial**2 + effect.moved**2 / 2) ** 0.5
    return effect.ratio < NEGLIGIBLE_RATIO or (effect.ratio < WEAK_RATIO and effect.distance > KEPT_DISTANCE * free > 0)


def ties_columns(effect: Effect) -> bool:
    """Whether the columns are nearly one: their distance is at most `TIED_DISTANCE` of how far they were apart at the
    start, or went from there, whichever is more.
    """
    reference = max(effect.initial, effect.moved)
    return effect.strength > 0 and reference > 0 and effect.distance <= TIED_DISTANCE * reference


def describe(effect: Effect) -> str:
    """A sentence where a penalty hardly acted or tied everything, else ""."""
    numbers = f"distance of the columns from their mean {effect.distance:.3g}, at the start {effect.initial:.3g}, "
    numbers += f"moved {effect.moved:.3g}; ratio to the losses {'unknown' if effect.ratio is None else ''}"
    numbers += "" if effect.ratio is None else f"{effect.ratio:.2g} in the mean"
    if ties_columns(effect):
        return f"λ = {effect.strength:g} tied everything: {numbers}. A smaller λ leaves tasks something of their own"
    if is_negligible(effect):
        return f"λ = {effect.strength:g} hardly acted: {numbers}. A larger λ would"
    return ""
