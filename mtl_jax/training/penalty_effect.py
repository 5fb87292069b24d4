"""How strongly a penalty acts next to the losses: the scale of λ depends on the model, that of its effect does not.

In every step (see `metrics_log.MetricsLog`):

    penalty_ratio    by gradient: λ·‖∇Ω‖ / ‖∇L‖ over the leaves of Ω, ∇L the gradient of the losses alone; by the
                     proximal operator: ‖u' − u‖ / ‖u‖, how far it moves the optimizer's updates u, relative to them
    column_distance  √(mean over k of ‖Θ_k − Θ̄‖²) / ‖Θ̄‖ over the same leaves

The thresholds below decide whether a run reports that a penalty hardly acted, or tied everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.sharing.gram import accumulation_dtype, squared_deviations, total

NEGLIGIBLE_RATIO = 0.001  # mean penalty_ratio below which a penalty hardly acted
# below this it hardly acted if the columns are farther apart than FREE_DISTANCE times columns that move independently
WEAK_RATIO = 0.1
FREE_DISTANCE = 0.8
TIED_DISTANCE = (
    0.01  # remaining distance as a fraction of the initial one, or of how far the columns moved if that is larger
)


class Effect(NamedTuple):
    """The effect of a penalty in a run, distances as √(mean over k of ‖·‖²) over its leaves.

    ratio     mean penalty_ratio of the steps; None where none is known
    strength  λ in the config
    distance  of the columns from their mean at the end
    initial   of the columns from their mean at the start
    moved     of the columns from their initial values
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


def safe_ratio(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """numerator / denominator for numbers ≥ 0: 0 where the numerator is 0, else infinity where the denominator is."""
    quotient = numerator / jnp.where(denominator == 0, 1.0, denominator)
    infinite = jnp.where(denominator == 0, jnp.inf, quotient)
    return jnp.where(numerator == 0, jnp.zeros_like(numerator), infinite)


def column_distance(stacks: Mapping[str, jax.Array]) -> jax.Array:
    """√(mean over k of ‖Θ_k − Θ̄‖²) / ‖Θ̄‖ of stacks [K, ...], float32."""
    deviation, squares, count = _squares(stacks)
    mean = jnp.maximum(squares - deviation, 0.0) / count  # Σ‖Θ_k‖² = K‖Θ̄‖² + Σ‖Θ_k − Θ̄‖²
    return safe_ratio(tree_norm([jnp.sqrt(deviation / count)]), jnp.sqrt(mean)).astype(jnp.float32)


def distances(stacks: Mapping[str, jax.Array], initial: Mapping[str, jax.Array]) -> jax.Array:
    """[distance, initial, moved] of `Effect`, float32 [3], from stacks [K, ...] of the end and of the start."""
    steps = {path: leaf - initial[path] for path, leaf in stacks.items()}
    (deviation, _, count), (first, _, _), (_, moved, _) = (_squares(tree) for tree in (stacks, initial, steps))
    return jnp.sqrt(jnp.stack([deviation, first, moved]) / count).astype(jnp.float32)


def _squares(stacks: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array, int]:
    """Σ_k ‖Θ_k − Θ̄‖², Σ_k ‖Θ_k‖², K."""
    dtype = accumulation_dtype(dict(stacks))
    leaves = [jnp.asarray(leaf, dtype) for leaf in stacks.values()]
    squares = total((jnp.sum(jnp.square(leaf)) for leaf in leaves), dtype)
    return total(map(squared_deviations, leaves), dtype), squares, len(leaves[0])


def mean_ratio(values: Iterable[float | None]) -> float | None:
    """The mean of those that are finite numbers; None where none is."""
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else None


def is_negligible(effect: Effect) -> bool:
    """Whether the penalty changed little: its ratio is below `NEGLIGIBLE_RATIO`; or below `WEAK_RATIO`, with a distance
    above `FREE_DISTANCE` · √(initial² + ½ moved²), the root for columns that move at right angles. λ = 0 is intended.

    The ratio alone does not suffice: gradients of the losses change direction from step to step, that of Ω does not.
    """
    if effect.strength == 0 or effect.ratio is None:
        return False
    free = (effect.initial**2 + effect.moved**2 / 2) ** 0.5
    return effect.ratio < NEGLIGIBLE_RATIO or (effect.ratio < WEAK_RATIO and effect.distance > FREE_DISTANCE * free > 0)


def ties_columns(effect: Effect) -> bool:
    """Whether the columns are nearly equal: their distance is at most `TIED_DISTANCE` times the larger one of the
    initial distance and how far they moved.
    """
    reference = max(effect.initial, effect.moved)
    return effect.strength > 0 and reference > 0 and effect.distance <= TIED_DISTANCE * reference


def describe(effect: Effect) -> str:
    """A sentence where a penalty hardly acted or tied everything, else ""."""
    numbers = f"distance of the columns from their mean {effect.distance:.3g}, at the start {effect.initial:.3g}, "
    mean = "unknown" if effect.ratio is None else f"{effect.ratio:.2g} in the mean"
    numbers += f"moved {effect.moved:.3g}; ratio to the losses {mean}"
    if ties_columns(effect):
        return f"λ = {effect.strength:g} tied everything: {numbers}. A smaller λ lets the tasks differ"
    if is_negligible(effect):
        return f"λ = {effect.strength:g} hardly acted: {numbers}. A larger λ would"
    return ""
