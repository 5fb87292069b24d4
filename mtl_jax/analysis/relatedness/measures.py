"""Measures of how K tasks relate, each a matrix [K, K]. The first index acts, the second is acted upon, where the two
differ; larger is closer, unless a name says "distance".

All are JAX functions and may run inside a program, except `rsa`, which ranks, and `mutual_information`, which counts.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.sharing.gram import Tree, gram, normalised_gram, task_count

_HIGHEST = jax.lax.Precision.HIGHEST


def gradient_cosine(gradients: Tree) -> jax.Array:
    """Cosines between the tasks' gradients over what they share, float32[K, K] (Yu et al. 2020; Du et al. 2018).

    Args:
      gradients: leaves [K, ...].
    """
    return normalised_gram(gradients)


def parameter_cosine(columns: Tree, anchor: Tree | None = None) -> jax.Array:
    """Cosines between the tasks' parameters, or their changes since `anchor`, float32[K, K].

    Args:
      columns: leaves [K, ...].
      anchor: leaves [...] or [K, ...], such as the initial values; without it deviations from the tasks' mean.
    """
    return normalised_gram(columns, "mean" if anchor is None else anchor)


def mtrl_correlation(columns: Tree) -> jax.Array:
    """Correlations by the task covariance that multi-task relationship learning would learn, float32[K, K].

    Ω = (ΘᵀΘ)^½ / tr (ΘᵀΘ)^½ (Zhang & Yeung 2010, equation 12), divided by the roots of its diagonal.
    """
    products = gram(columns)
    values, vectors = jnp.linalg.eigh(products)
    root = jnp.matmul(vectors * jnp.sqrt(jnp.maximum(values, 0.0))[None, :], vectors.T, precision=_HIGHEST)
    return _scaled(root)


def tag_affinity(losses: jax.Array, after: jax.Array) -> jax.Array:
    """Inter-task affinity of one step: Z[i, j] = 1 − L_j(θ − η g_i) / L_j(θ), float32[K, K] (Fifty et al. 2021,
    equation 1). Take its mean over steps. 0 where the loss of j is not > 0.

    Args:
      losses: L_j(θ), float[K].
      after: [i, j] = loss of j on the same batch after a step on the gradient of i over the shared parameters.
    """
    positive = losses > 0
    return jnp.where(positive[None, :], 1.0 - after / jnp.where(positive, losses, 1.0)[None, :], 0.0)


def fisher_distance(fisher: Tree) -> jax.Array:
    """Task2Vec: cosine distances of diagonal Fisher informations, each normalised by the pair, float32[K, K] in [0, 1].

    d(a, b) = 1 − cos(F_a / (F_a + F_b), F_b / (F_a + F_b)), entries where both are 0 left out (Achille et al. 2019,
    section 3.3).

    Args:
      fisher: mean squared gradients of each task over shared parameters, leaves [K, ...], ≥ 0.
    """
    count = task_count(fisher)
    leaves = [jnp.asarray(leaf, jnp.float32).reshape(count, -1) for leaf in jax.tree.leaves(fisher)]

    def distance(i, j):
        products = jnp.zeros(3)
        for leaf in leaves:
            total = leaf[i] + leaf[j]
            live = total > 0
            a, b = (jnp.where(live, leaf[k] / jnp.where(live, total, 1.0), 0.0) for k in (i, j))
            products = products + jnp.stack([jnp.sum(a * b), jnp.sum(a * a), jnp.sum(b * b)])
        length = jnp.sqrt(products[1] * products[2])
        return jnp.where(length > 0, 1.0 - products[0] / jnp.where(length > 0, length, 1.0), 0.0)

    index = jnp.arange(count)
    return jax.lax.map(lambda i: jax.lax.map(lambda j: distance(i, j), index), index)


def cka(representations: jax.Array) -> jax.Array:
    """Linear centred kernel alignment between columns, float32[K, K] in [0, 1] (Kornblith et al. 2019, section 3).

    CKA(X, Y) = ‖YᵀX‖²_F / (‖XᵀX‖_F ‖YᵀY‖_F), X and Y centred over the inputs. It is invariant to rotation and scaling
    of a column's features.

    Args:
      representations: of the same N inputs by each column, float[K, N, D].
    """
    x = representations.astype(jnp.float32)
    x = x - x.mean(axis=1, keepdims=True)
    kernels = jnp.einsum("knd,kmd->knm", x, x, precision=_HIGHEST)  # ‖YᵀX‖²_F = ⟨XXᵀ, YYᵀ⟩
    return _scaled(jnp.tensordot(kernels, kernels, ((1, 2), (1, 2)), precision=_HIGHEST))


def rsa(representations: jax.Array) -> np.ndarray:
    """Representation similarity analysis: Spearman's correlation between the columns' dissimilarities of pairs of
    inputs, float64[K, K] (Kriegeskorte et al. 2008; between tasks: Dwivedi & Roig 2019). Dissimilarity is 1 − Pearson.

    Args:
      representations: of the same N ≥ 3 inputs by each column, float[K, N, D].

    Raises:
      ValueError: fewer than three inputs.
    """
    from scipy.stats import rankdata  # slow to import, and the checks of configs import this module

    inputs = representations.shape[1]
    if inputs < 3:
        raise ValueError(f"RSA needs at least three inputs, not {inputs}")
    upper = jnp.triu_indices(inputs, 1)
    x = representations.astype(jnp.float32)
    x = x - x.mean(axis=2, keepdims=True)
    products = jnp.einsum("knd,kmd->knm", x, x, precision=_HIGHEST)
    dissimilarities = jax.device_get(1.0 - jax.vmap(_scaled)(products)[:, upper[0], upper[1]])
    ranks = rankdata(dissimilarities, axis=1)
    ranks = ranks - ranks.mean(axis=1, keepdims=True)
    lengths = (ranks**2).sum(axis=1) ** 0.5
    lengths[lengths == 0] = float("inf")
    return (ranks @ ranks.T) / lengths[:, None] / lengths[None, :]


def label_divergence(counts: jax.Array, smoothing: float = 1.0) -> jax.Array:
    """KL(q_i ‖ q_j) in nats between the tasks' label distributions over the same C classes, float32[K, K]; a distance.

    Args:
      counts: how often each class is a label, float[K, C].
      smoothing: added to every count, so that it is finite where a task lacks a class (Laplace).
    """
    q = counts.astype(jnp.float32) + smoothing
    logs = jnp.log(q / q.sum(axis=1, keepdims=True))
    p = jnp.exp(logs)
    negative_entropy = jnp.sum(p * logs, axis=1)
    return negative_entropy[:, None] - jnp.matmul(p, logs.T, precision=_HIGHEST)


def mutual_information(first: np.ndarray, second: np.ndarray) -> float:
    """Normalised mutual information of two tasks' labels on the examples that have both, in [0, 1].

    I(a; b) / √(H(a) H(b)) (Strehl & Ghosh 2002); 0 where a task has a single class. There is no correction for
    chance.

    Args:
      first, second: class ids int[N] on the host; negative = no label.
    """
    from scipy.stats import entropy

    known = (first >= 0) & (second >= 0)
    if not known.any():
        return 0.0
    _, pairs = np.unique(np.stack([first[known], second[known]]), axis=1, return_counts=True)
    entropies = [entropy(np.unique(values[known], return_counts=True)[1]) for values in (first, second)]
    length = float(np.sqrt(entropies[0] * entropies[1]))
    return float(np.clip((sum(entropies) - entropy(pairs)) / length, 0.0, 1.0)) if length > 0 else 0.0


def _scaled(products: jax.Array) -> jax.Array:
    """products[i, j] / √(products[i, i] products[j, j]), 0 where one of these is 0."""
    squares = jnp.diagonal(products)
    live = squares > 0
    inverse = jnp.where(live, jax.lax.rsqrt(jnp.where(live, squares, 1.0)), 0.0)
    return products * inverse[:, None] * inverse[None, :]
