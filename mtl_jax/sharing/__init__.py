"""Ω: penalties that draw the tasks' parameters together, on pytrees with leaves `[K, ...]`; usable without the rest.

from mtl_jax import sharing
loss = task_loss(params) + strength * sharing.trace_norm(params["encoder"], center="mean")
"""

from mtl_jax.sharing.curvature import CURVATURE, curvature
from mtl_jax.sharing.distances import kernel, l2_pairwise, l2_to_anchor, l2_to_mean, laplacian
from mtl_jax.sharing.gram import contrast_gram, gram, normalised_gram
from mtl_jax.sharing.proximal import (
    as_transform,
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
from mtl_jax.sharing.registry import PENALTIES, PROXIMAL
from mtl_jax.sharing.select import SCOPES, build, build_proximal, flatten_paths
from mtl_jax.sharing.spectral import log_det, mtrl, mtrl_covariance, schatten, subspace, trace_norm
from mtl_jax.sharing.structured import group_lasso, low_rank, orthogonality

__all__ = [
    "CURVATURE",
    "PENALTIES",
    "PROXIMAL",
    "SCOPES",
    "as_transform",
    "build",
    "build_proximal",
    "contrast_gram",
    "curvature",
    "flatten_paths",
    "gram",
    "group_lasso",
    "kernel",
    "l2_pairwise",
    "l2_to_anchor",
    "l2_to_mean",
    "laplacian",
    "log_det",
    "low_rank",
    "mtrl",
    "mtrl_covariance",
    "normalised_gram",
    "orthogonality",
    "prox_group_lasso",
    "prox_kernel",
    "prox_l2_pairwise",
    "prox_l2_to_anchor",
    "prox_l2_to_mean",
    "prox_laplacian",
    "prox_mtrl",
    "prox_subspace",
    "prox_trace_norm",
    "schatten",
    "subspace",
    "trace_norm",
]
