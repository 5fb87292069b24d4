"""Names by which a config chooses a penalty or a proximal operator. A new one is a function and a line here."""

from __future__ import annotations

from collections.abc import Callable

import jax

from mtl_jax.sharing.distances import kernel, l2_pairwise, l2_to_anchor, l2_to_mean, laplacian
from mtl_jax.sharing.gram import Tree
from mtl_jax.sharing.proximal import (
    prox_group_lasso,
    prox_kernel,
    prox_l2_pairwise,
    prox_l2_to_anchor,
    prox_l2_to_mean,
    prox_laplacian,
    prox_mtrl,
    prox_subspace,
    prox_trace_norm,
)
from mtl_jax.sharing.spectral import log_det, mtrl, schatten, subspace, trace_norm
from mtl_jax.sharing.structured import group_lasso, low_rank, orthogonality, subspace_orthogonality

PENALTIES: dict[str, Callable[..., jax.Array]] = {
    "l2_pairwise": l2_pairwise,
    "l2_to_mean": l2_to_mean,
    "l2_to_anchor": l2_to_anchor,
    "laplacian": laplacian,
    "kernel": kernel,
    "trace_norm": trace_norm,
    "subspace": subspace,
    "mtrl": mtrl,
    "schatten": schatten,
    "log_det": log_det,
    "low_rank": low_rank,
    "group_lasso": group_lasso,
    "orthogonality": orthogonality,
    "subspace_orthogonality": subspace_orthogonality,
}

PROXIMAL: dict[str, Callable[..., Tree]] = {
    "l2_pairwise": prox_l2_pairwise,
    "l2_to_mean": prox_l2_to_mean,
    "l2_to_anchor": prox_l2_to_anchor,
    "laplacian": prox_laplacian,
    "kernel": prox_kernel,
    "trace_norm": prox_trace_norm,
    "subspace": prox_subspace,
    "mtrl": prox_mtrl,
    "group_lasso": prox_group_lasso,
}

# what a function of the inner products of the tasks' matrices is, or of those of their columns: it acts on products of
# factors without forming them
OF_PRODUCTS = (
    "l2_pairwise",
    "l2_to_mean",
    "l2_to_anchor",
    "laplacian",
    "kernel",
    "trace_norm",
    "subspace",
    "mtrl",
    "schatten",
    "log_det",
    "orthogonality",
)

__all__ = ["PENALTIES", "PROXIMAL", *PENALTIES, *(operator.__name__ for operator in PROXIMAL.values())]
