"""Merging after training: K trees with leaves `[K, ...]` become one with leaves `[...]`, without a further step.

Most methods speak of task vectors τ_k = Θ_k − Θ_0, where Θ_0 is the tree that all began from: a pretrained encoder, or
the initial values of one seed. The whole tree is one long vector to them: norms, angles, and what is kept of it.
A new method is a function (stack, base, *, key, **options) and a line in `MERGING`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax.sharing.gram import Tree, accumulation_dtype, gram, less_anchor, task_count

_HIGHEST = jax.lax.Precision.HIGHEST
_OPPOSITE = 1e-6  # cosines so near to −1, and shares so near to 0, are rounding: within 0.1° of opposite
_SLERP_STEPS = 32  # of the mean on the sphere; with two vectors the first is exact


class Method(NamedTuple):
    """A way to merge.

    merge    (stack, base, *, key, **options) -> tree
    options  {option: values worth a try}, the published default among them; () for what takes none
    """

    merge: Callable[..., Tree]
    options: Mapping[str, tuple[float, ...]]


def linear(stack: Tree, base: Tree = None, *, key: jax.Array | None = None, weights: Sequence[float] = ()) -> Tree:
    """Σ_k w_k Θ_k with Σ w = 1; () = equal weights, the uniform soup (Wortsman et al. 2022). `base` is not read.

    Args:
      stack: leaves [K, ...].
      weights: K numbers, divided by their sum.

    Raises:
      ValueError: not K numbers, or their sum is not above 0; of traced weights with such a sum zeros come out.
    """
    return _weighted(stack, _weights(stack, weights))


def task_arithmetic(stack: Tree, base: Tree, *, key: jax.Array | None = None, scale: float = 0.4) -> Tree:
    """Θ_0 + λ Σ_k τ_k (Ilharco et al. 2023, eq. 1) with λ = `scale`; 1/K is the mean of the trees.

    Args:
      stack: leaves [K, ...].
      base: Θ_0, leaves [...].
    """
    vectors = less_anchor(stack, base)
    return _moved(base, jax.tree.map(lambda leaf: leaf.sum(axis=0), vectors), scale)


def slerp(
    stack: Tree,
    base: Tree = None,
    *,
    key: jax.Array | None = None,
    weights: Sequence[float] = (),
    vectors: bool = False,
) -> Tree:
    """Spherical linear interpolation (Shoemake 1985): the direction that divides the angle, of the mean norm.

    Of two trees: with weights (1 − t, t) the direction sin((1 − t)ω)/sin(ω)·Θ_1/‖Θ_1‖ + sin(tω)/sin(ω)·Θ_2/‖Θ_2‖, ω the
    angle between them. Of more: the direction whose weighted squared angles to all are least (Fréchet mean on the
    sphere; Buss & Fillmore 2001), whatever their order.

    Args:
      stack: leaves [K, ...].
      base: Θ_0, leaves [...]; read with `vectors` only.
      weights: as in `linear`.
      vectors: interpolate the task vectors instead of the trees.

    A tree of zeros has no direction: it counts in the mean norm alone, and of nothing but such trees zeros are the
    result, the base with `vectors`.

    Raises:
      ValueError: weights as in `linear`; trees that point in opposite directions, between which there is no mean
        direction, or a sum of directions that is zero. Under `jit`, where values cannot be seen, zeros come out.
    """
    weights = _weights(stack, weights)
    moved = less_anchor(stack, base) if vectors else stack
    products = gram(_scaled(moved))  # a common factor changes no coefficient, and squares may under- and overflow
    norms = jnp.sqrt(jnp.maximum(jnp.diagonal(products), 0.0))
    inverse = jnp.where(norms > 0, 1.0 / jnp.where(norms > 0, norms, 1.0), 0.0)
    cosines = products * inverse[:, None] * inverse[None, :]
    weights_ = weights.astype(cosines.dtype)
    live = jnp.where(norms > 0, weights_, 0.0)
    direction, is_defined = _direction(cosines, live)
    if not isinstance(is_defined, jax.core.Tracer) and not is_defined:
        raise ValueError(
            f"slerp of {'task vectors' if vectors else 'trees'} that point in opposite directions: there is no mean "
            "direction between them; take 'linear' or 'task_arithmetic', or other weights"
        )
    merged = _weighted(moved, direction * inverse * jnp.dot(weights_, norms))
    return _moved(base, merged, 1.0) if vectors else merged


def ties(stack: Tree, base: Tree, *, key: jax.Array | None = None, scale: float = 1.0, density: float = 0.2) -> Tree:
    """Θ_0 + λ·τ (TIES; Yadav et al. 2023): trim, elect signs, mean of those that agree.

    Of each τ_k the share `density` of entries with the largest magnitudes is kept, over the whole tree. The sign of an
    entry is that of the sum over k; τ is the mean of the kept entries of this sign.

    Args:
      stack: leaves [K, ...].
      base: Θ_0, leaves [...].
      scale: λ.
      density: above 0, at most 1.

    Raises:
      ValueError: a density outside of that.
    """
    if not 0.0 < density <= 1.0:
        raise ValueError(f"density {density} should be above 0 and at most 1")
    vectors = less_anchor(stack, base)
    trimmed = vectors if density == 1.0 else _trimmed(vectors, density)

    def elected(leaf):
        agree = (jnp.sign(leaf) == jnp.sign(leaf.sum(axis=0, keepdims=True))) & (leaf != 0)
        count = agree.sum(axis=0).astype(leaf.dtype)
        return jnp.where(agree, leaf, jnp.zeros((), leaf.dtype)).sum(axis=0) / jnp.maximum(count, 1)

    return _moved(base, jax.tree.map(elected, trimmed), scale)


def dare(stack: Tree, base: Tree, *, key: jax.Array, scale: float = 0.4, drop: float = 0.9) -> Tree:
    """Task arithmetic of thinned task vectors (DARE; Yu et al. 2024): each entry is dropped with probability p, the
    others are divided by 1 − p.

    Args:
      stack: leaves [K, ...].
      base: Θ_0, leaves [...].
      key: of what is dropped; each leaf's bits are keyed by its path.
      scale: λ.
      drop: p, from 0 to below 1.

    Raises:
      ValueError: a p outside of that.
    """
    if not 0.0 <= drop < 1.0:
        raise ValueError(f"drop {drop} should be from 0 to below 1")

    def thinned(path, leaf):
        name = hashlib.sha256(jax.tree_util.keystr(path).encode()).digest()
        kept = jax.random.bernoulli(jax.random.fold_in(key, int.from_bytes(name[:4], "big")), 1.0 - drop, leaf.shape)
        return jnp.where(kept, leaf / (1.0 - drop), jnp.zeros((), leaf.dtype)).sum(axis=0)

    return _moved(base, jax.tree_util.tree_map_with_path(thinned, less_anchor(stack, base)), scale)


_SCALES = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)
MERGING: dict[str, Method] = {
    "linear": Method(linear, {}),
    "task_arithmetic": Method(task_arithmetic, {"scale": _SCALES}),
    "slerp": Method(slerp, {"vectors": (False, True)}),
    "ties": Method(ties, {"scale": (0.4, 0.7, 1.0, 1.5), "density": (0.2, 0.5, 1.0)}),
    "dare": Method(dare, {"scale": _SCALES, "drop": (0.5, 0.9)}),
}


def _weights(stack: Tree, weights: Sequence[float]) -> jax.Array:
    count, dtype = task_count(stack), accumulation_dtype(stack)
    if not len(weights):
        return jnp.full((count,), 1.0 / count, dtype)
    if len(weights) != count:
        raise ValueError(f"{len(weights)} weights for {count} trees")
    weights = jnp.asarray(weights, dtype)
    total = weights.sum()
    positive = (total > 0) & jnp.isfinite(total)
    if not isinstance(positive, jax.core.Tracer) and not positive:
        raise ValueError(f"weights {tuple(weights.tolist())} should have a sum above 0")
    return jnp.where(positive, weights / jnp.where(positive, total, 1.0), 0.0)


def _scaled(stack: Tree) -> Tree:
    """The tree divided by its largest magnitude, where that is not 0; in the dtype to accumulate in."""
    dtype = accumulation_dtype(stack)
    largest = jnp.stack([jnp.max(jnp.abs(leaf), initial=0.0).astype(dtype) for leaf in jax.tree.leaves(stack)]).max()
    factor = jnp.where(largest > 0, largest, 1.0)
    return jax.tree.map(lambda leaf: leaf.astype(dtype) / factor, stack)


def _weighted(stack: Tree, coefficients: jax.Array) -> Tree:
    """Σ_k c_k Θ_k. Where Σ c = 1 equal trees give themselves: the first goes ahead, differences are weighed."""
    rest = (coefficients.sum() - 1.0).astype(coefficients.dtype)

    def of(leaf):
        first = leaf[0]
        change = jnp.tensordot(coefficients.astype(leaf.dtype), leaf - leaf[:1], 1, precision=_HIGHEST)
        return first + change + rest.astype(leaf.dtype) * first

    return jax.tree.map(of, stack)


def _moved(base: Tree, vector: Tree, scale: float) -> Tree:
    return jax.tree.map(lambda start, step: (start + scale * step).astype(step.dtype), base, vector)


def _direction(cosines: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Coefficients [K] over the unit vectors of their weighted mean on the sphere, by its fixed point: all of it is a
    function of their Gram matrix. And whether there is one mean direction; zeros where there is not.
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

    found = squared(weights) > _OPPOSITE * jnp.sum(jnp.square(weights))
    start = jnp.where(found, weights / jnp.where(found, length(weights), 1.0), 0.0)
    direction = jax.lax.fori_loop(0, _SLERP_STEPS, step, start)
    for mean in (start, direction):
        against = jnp.matmul(cosines, mean, precision=_HIGHEST) < _OPPOSITE - 1.0
        found &= ~jnp.any(against & (weights != 0))
    found &= jnp.isfinite(direction).all()
    return jnp.where(found, direction, 0.0), found | ~jnp.any(weights != 0)


def _trimmed(vectors: Tree, density: float) -> Tree:
    """The entries of each of the K trees whose magnitudes are among the largest; zeros elsewhere."""
    count = task_count(vectors)
    magnitudes = jnp.concatenate([jnp.abs(leaf).reshape(count, -1) for leaf in jax.tree.leaves(vectors)], axis=1)
    kept = max(1, round(density * magnitudes.shape[1]))
    least = jnp.sort(magnitudes, axis=1)[:, magnitudes.shape[1] - kept]

    def of(leaf):
        return jnp.where(jnp.abs(leaf) >= least.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf, jnp.zeros((), leaf.dtype))

    return jax.tree.map(of, vectors)


def unlike(trees: Mapping[str, Mapping[str, Any]], same_values: bool = False) -> str | None:
    """How flat trees {path: leaf} of several runs differ, as a sentence that names the leaf and the runs; None where
    they do not.

    Args:
      trees: {run: tree}.
      same_values: compare values too, not structure and shapes alone.
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
                return f"{path} began from other values in {first} than in {name}"
    return None
