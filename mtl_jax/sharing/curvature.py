"""How large λ may be for plain gradient steps: the curvature of the quadratic penalties."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from mtl_jax.sharing.gram import Center
from mtl_jax.sharing.task_matrices import Matrix, kernel_matrix, laplacian_matrix, pairwise_matrix


def curvature(kind: str, options: Mapping[str, Any], tasks: int) -> float | None:
    """The largest eigenvalue of the Hessian of Ω: a gradient step on λ·Ω diverges for lr · λ · curvature > 2.

    Above that, use the proximal operator instead of the gradient; it is stable for any λ.

    Args:
      kind: a name of `PENALTIES`.
      options: arguments of the penalty; matrices as NumPy arrays or lists.
      tasks: K.

    Returns:
      None for a kind that is not in `CURVATURE`: not quadratic, or without a proximal operator. 0.0 where Ω is zero
      for all parameters, as for K = 1: no gradient step diverges.

    Raises:
      ValueError: for a matrix that the penalty itself refuses.
    """
    if kind not in CURVATURE:
        return None
    return CURVATURE[kind](tasks, **options)


def _l2_to_mean(tasks: int) -> float:
    return 2.0 if tasks > 1 else 0.0


def _l2_pairwise(tasks: int, weights: jax.typing.ArrayLike | None = None) -> float:
    return _of_quadratic(pairwise_matrix(np.ones((tasks, tasks)) if weights is None else weights, tasks, np.float64))


def _l2_to_anchor(tasks: int) -> float:
    return 2.0


def _laplacian(tasks: int, adjacency: jax.typing.ArrayLike) -> float:
    return _of_quadratic(laplacian_matrix(adjacency, tasks, np.float64))


def _kernel(tasks: int, kernel: jax.typing.ArrayLike | None = None) -> float:
    return _of_quadratic(kernel_matrix(kernel, tasks, np.float64))


def _subspace(tasks: int, dim: int = 1, center: Center = None) -> float:
    """Ω is ‖Θ‖² minus a convex function, so at most 2; deviations from the mean have K − 1 directions."""
    directions = tasks - 1 if isinstance(center, str) and center == "mean" else tasks
    return 2.0 if dim < directions else 0.0


def _of_quadratic(matrix: Matrix) -> float:
    """The largest eigenvalue of 2M, the Hessian of tr(M G)."""
    return 2.0 * float(np.max(np.linalg.eigvalsh(np.asarray(matrix))))


CURVATURE: dict[str, Callable[..., float]] = {
    "l2_to_mean": _l2_to_mean,
    "l2_pairwise": _l2_pairwise,
    "l2_to_anchor": _l2_to_anchor,
    "laplacian": _laplacian,
    "kernel": _kernel,
    "subspace": _subspace,
}
