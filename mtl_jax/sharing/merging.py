"""Merging after training: K trees with leaves `[K, ...]` become one with leaves `[...]`, without a further step.

Most methods are defined on task vectors τ_k = Θ_k − Θ_0, where Θ_0 is the common starting point: a pretrained encoder,
or the initial values of one seed. Norms, angles and the largest entries are taken over the tree as one long vector.
A new method is a function (stack, base, *, key, **options) and a line in `MERGING`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from mtl_jax.sharing.gram import Tree, accumulation_dtype, gram, subtract_anchor, task_count

_HIGHEST = jax.lax.Precision.HIGHEST
_OPPOSITE = 1e-6  # cosines this close to −1, and weights this close to 0, are rounding: within 0.1° of opposite
_SLERP_STEPS = 32  # of the mean on the sphere; with two vectors the first is exact


class MergingMethod(NamedTuple):
    """A way to merge.

    merge    (stack, base, *, key, **options) -> tree
    options  {option: values to try}, the published default among them
    """

    merge: Callable[..., Tree]
    options: Mapping[str, tuple[float, ...]]


def linear(
    stack: Tree, base: Tree | None = None, *, key: jax.Array | None = None, weights: Sequence[float] | jax.Array = ()
) -> Tree:
    """Σ_k w_k Θ_k with Σ w = 1; () = equal weights, the uniform soup (Wortsman et al. 2022). `base` is not used.

    Args:
      stack: leaves [K, ...].
      weights: K numbers, divided by their sum.

    Raises:
      ValueError: not K numbers, or their sum is not above 0; traced weights with such a sum give zeros.
    """
    return _weighted(stack, _normalised(stack, weights))


def task_arithmetic(stack: Tree, base: Tree, *, key: jax.Array | None = None, scale: float = 0.4) -> Tree:
    """Θ_0 + λ Σ_k τ_k (Ilharco et al. 2023, eq. 1) with λ = `scale`; 1/K is the mean of the trees.

    Args:
      stack: leaves [K, ...].
      base: Θ_0, leaves [...].
    """
    vectors = subtract_anchor(stack, base)
    return _add_scaled(base, jax.tree.map(lambda leaf: leaf.sum(axis=0), vectors), scale)


def slerp(
    stack: Tree,
    base: Tree | None = None,
    *,
    key: jax.Array | None = None,
    weights: Sequence[float] | jax.Array = (),
    vectors: bool = False,
) -> Tree:
    """Spherical linear interpolation (Shoemake 1985): the direction that divides the angle, of the mean norm.

    Of two trees: with weights (1 − t, t) the direction sin((1 − t)ω)/sin(ω)·Θ_1/‖Θ_1‖ + sin(tω)/sin(ω)·Θ_2/‖Θ_2‖, ω the
    angle between them. Of more: the direction whose weighted squared angles to all are least (Fréchet mean on the
    sphere; Buss & Fillmore 2001), whatever their order.

    Args:
      stack: leaves [K, ...].
      base: Θ_0, leaves [...]; used with `vectors` only.
      weights: as in `linear`.
      vectors: interpolate the task vectors instead of the trees.

    A tree of zeros has no direction and only enters the mean norm; if all are zero, the result is zero, or the base
    with `vectors`.

    Raises:
      ValueError: weights as in `linear`; trees that point in opposite directions, between which there is no mean
        direction, or a sum of directions that is zero. Under `jit`, where values are not known, the result is zero.
    """
    normalised = _normalised(stack, weights)
    trees = subtract_anchor(stack, base) if vectors else stack
    products = gram(_scaled(trees))  # a common factor changes no coefficient, and squares may under- and overflow
    norms = jnp.sqrt(jnp.maximum(jnp.diagonal(products), 0.0))
    inverse = jnp.where(norms > 0, 1.0 / jnp.where(norms > 0, norms, 1.0), 0.0)
    cosines = products * inverse[:, None] * inverse[None, :]
    normalised = normalised.astype(cosines.dtype)
    live = jnp.where(norms > 0, normalised, 0.0)
    direction, is_defined = _direction(cosines, live)
    if not isinstance(is_defined, Tracer) and not is_defined:
        raise ValueError(
            f"slerp of {'task vectors' if vectors else 'trees'} that point in opposite directions: there is no mean "
            "direction between them; take 'linear' or 'task_arithmetic', or other weights"
        )
    merged = _weighted(trees, direction * inverse * jnp.dot(normalised, norms))
    return _add_scaled(base, merged, 1.0) if vectors else merged


def ties(stack: Tree, base: Tree, *, key: jax.Array | None = None, scale: float = 1.0, density: float = 0.2) -> Tree:
    """Θ_0 + λ·τ (TIES; Yadav et al. 2023): trim, elect signs, mean of those that agree.

    Each τ_k keeps the fraction `density` of its entries that is largest in magnitude, over the whole tree. The sign of
    an entry is that of the sum over k; τ is the mean of the entries of this sign that were kept.

    Args:
      stack: leaves [K, ...].
      base: Θ_0, leaves [...].
      scale: λ.
      density: above 0, at most 1.

    Raises:
      ValueError: another density.
    """
    if not 0.0 < density <= 1.0:
        raise ValueError(f"density {density} should be above 0 and at most 1")
    vectors = subtract_anchor(stack, base)
    trimmed = vectors if density == 1.0 else _trimmed(vectors, density)

    def elected(leaf: jax.Array) -> jax.Array:
        agree = (jnp.sign(leaf) == jnp.sign(leaf.sum(axis=0, keepdims=True))) & (leaf != 0)
        count = agree.sum(axis=0).astype(leaf.dtype)
        return jnp.where(agree, leaf, jnp.zeros((), leaf.dtype)).sum(axis=0) / jnp.maximum(count, 1)

    return _add_scaled(base, jax.tree.map(elected, trimmed), scale)


def dare(stack: Tree, base: Tree, *, key: jax.Array, scale: float = 0.4, drop: float = 0.9) -> Tree:
    """Task arithmetic on sparsified task vectors (DARE; Yu et al. 2024): each entry is set to zero with probability p,
    the others are divided by 1 − p.

    Args:
      stack: leaves [K, ...].
      base: Θ_0, leaves [...].
      key: for the draws; each leaf has its own key, derived from its path.
      scale: λ.
      drop: p, from 0 to below 1.

    Raises:
      ValueError: another p.
    """
    if not 0.0 <= drop < 1.0:
        raise ValueError(f"drop {drop} should be from 0 to below 1")

    def thinned(path: tuple, leaf: jax.Array) -> jax.Array:
        name = hashlib.sha256(jax.tree_util.keystr(path).encode()).digest()
        keep = jax.random.bernoulli(jax.random.fold_in(key, int.from_bytes(name[:4], "big")), 1.0 - drop, leaf.shape)
        return jnp.where(keep, leaf / (1.0 - drop), jnp.zeros((), leaf.dtype)).sum(axis=0)

    return _add_scaled(base, jax.tree_util.tree_map_with_path(thinned, subtract_anchor(stack, base)), scale)


_SCALES = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
MERGING: dict[str, MergingMethod] = {
    "linear": MergingMethod(linear, {}),
    "task_arithmetic": MergingMethod(task_arithmetic, {"scale": _SCALES}),
    "slerp": MergingMethod(slerp, {"vectors": (False, True)}),
    "ties": MergingMethod(ties, {"scale": (0.4, 0.7, 1.0, 1.5), "density": (0.2, 0.5, 1.0)}),
    "dare": MergingMethod(dare, {"scale": _SCALES, "drop": (0.5, 0.9)}),
}


def _normalised(stack: Tree, weights: Sequence[float] | jax.Array) -> jax.Array:
    """Weights [K] with sum 1, equal ones for (). ValueError as `linear` says."""
    count, dtype = task_count(stack), accumulation_dtype(stack)
    if not len(weights):
        return jnp.full((count,), 1.0 / count, dtype)
    if len(weights) != count:
        raise ValueError(f"{len(weights)} weights for {count} trees")
    given = jnp.asarray(weights, dtype)
    total = given.sum()
    positive = (total > 0) & jnp.isfinite(total)
    if not isinstance(positive, Tracer) and not positive:
        raise ValueError(f"weights {tuple(given.tolist())} should have a sum above 0")
    return jnp.where(positive, given / jnp.where(positive, total, 1.0), 0.0)


def _scaled(stack: Tree) -> Tree:
    """The tree divided by its largest magnitude, unless that is 0; in the dtype of `accumulation_dtype`."""
    dtype = accumulation_dtype(stack)
    largest = jnp.stack([jnp.max(jnp.abs(leaf), initial=0.0).astype(dtype) for leaf in jax.tree.leaves(stack)]).max()
    factor = jnp.where(largest > 0, largest, 1.0)
    return jax.tree.map(lambda leaf: leaf.astype(dtype) / factor, stack)


def _weighted(stack: Tree, coefficients: jax.Array) -> Tree:
    """Σ_k c_k Θ_k as Θ_0 + Σ_k c_k (Θ_k − Θ_0) + (Σ c − 1) Θ_0: with Σ c = 1, equal trees are returned exactly."""
    excess = (coefficients.sum() - 1.0).astype(coefficients.dtype)

    def combined(leaf: jax.Array) -> jax.Array:
        first = leaf[0]
        change = jnp.tensordot(coefficients.astype(leaf.dtype), leaf - leaf[:1], 1, precision=_HIGHEST)
        return first + change + excess.astype(leaf.dtype) * first

    return jax.tree.map(combined, stack)


def _add_scaled(base: Tree, vector: Tree, scale: float) -> Tree:
    return jax.tree.map(lambda start, step: (start + scale * step).astype(step.dtype), base, vector)


def _direction(cosines: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The weighted mean of unit vectors on the sphere, by fixed-point iteration on their Gram matrix: its coefficients
    [K] over the vectors, and whether there is such a direction; zeros where there is not.
    """

    def squared(c):
        return jnp.maximum(jnp.dot(c, jnp.matmul(cosines, c, precision=_HIGHEST)), 0.0)

    def length(c):
        return jnp.sqrt(jnp.maximum(squared(c), 1e-30))

    def step(_, c):
        cosine = jnp.clip(jnp.matmul(cosines, c, precision=_HIGHEST), -1.0, 1.0)
        angle = jnp.arccos(cosine)
        sine = jnp.sqrt(jnp.maximum(1.0 - cosine**2, 0.0))
        stretch = weights * jnp.where(sine > 1e-4, angle / jnp.where(sine > 1e-4, sine, 1.0), 1.0)
        tangent = stretch - jnp.dot(stretch, cosine) * c  # Σ w_k log(u_k), in coefficients
        norm = length(tangent)
        moved = jnp.cos(norm) * c + jnp.sinc(norm / jnp.pi) * tangent
        return moved / length(moved)

    is_defined = squared(weights) > _OPPOSITE * jnp.sum(jnp.square(weights))
    start = jnp.where(is_defined, weights / jnp.where(is_defined, length(weights), 1.0), 0.0)
    direction = jax.lax.fori_loop(0, _SLERP_STEPS, step, start)
    for mean in (start, direction):
        opposite = jnp.matmul(cosines, mean, precision=_HIGHEST) < _OPPOSITE - 1.0
        is_defined &= ~jnp.any(opposite & (weights != 0))
    is_defined &= jnp.isfinite(direction).all()
    return jnp.where(is_defined, direction, 0.0), is_defined | ~jnp.any(weights != 0)


def _trimmed(vectors: Tree, density: float) -> Tree:
    """Each of the K trees with the fraction `density` of its entries that is largest in magnitude; zeros elsewhere."""
    count = task_count(vectors)
    magnitudes = jnp.concatenate([jnp.abs(leaf).reshape(count, -1) for leaf in jax.tree.leaves(vectors)], axis=1)
    number = max(1, round(density * magnitudes.shape[1]))
    least = jnp.sort(magnitudes, axis=1)[:, magnitudes.shape[1] - number]

    def trimmed(leaf: jax.Array) -> jax.Array:
        return jnp.where(jnp.abs(leaf) >= least.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, jnp.zeros((), leaf.dtype))

    return jax.tree.map(trimmed, vectors)


def first_difference(trees: Mapping[str, Mapping[str, jax.Array]], same_values: bool = False) -> str | None:
    """Where flat trees {path: leaf} of several runs first differ, as a sentence that names the leaf and the runs; None
    if they do not.

    Args:
      trees: {run: tree}.
      same_values: compare values as well as structure and shapes.
    """
    (first, wanted), *others = trees.items()
    for name, tree in others:
        for path in sorted(wanted.keys() | tree.keys()):
            here, there = (t.get(path) for t in (wanted, tree))
            if here is None or there is None:
                return f"{path} is in {name if here is None else first} and not in {first if here is None else name}"
            if here.shape != there.shape:
                return f"{path} has shape {tuple(here.shape)} in {first} and {tuple(there.shape)} in {name}"
            if same_values and not bool(jnp.all(here == there)):
                return f"{path} started from other values in {first} than in {name}"
    return None
