"""Ω: penalties that draw the tasks' parameters together, on pytrees with leaves `[K, ...]`; usable without the rest.

from mtl_jax import sharing
loss = task_loss(params) + strength * sharing.trace_norm(params["encoder"], center="mean")
"""

from mtl_jax.sharing import registry
from mtl_jax.sharing.column_owners import Columns, columns
from mtl_jax.sharing.curvature import CURVATURE, curvature
from mtl_jax.sharing.gram import contrast_gram, gram, normalised_gram
from mtl_jax.sharing.leaf_selection import SCOPES, build, build_proximal, flatten_paths
from mtl_jax.sharing.low_rank_stack import LowRankStack
from mtl_jax.sharing.proximal import as_transform
from mtl_jax.sharing.registry import *  # noqa: F403  every penalty and proximal operator; the registry alone lists them
from mtl_jax.sharing.registry import OF_PRODUCTS
from mtl_jax.sharing.spectral import mtrl_covariance

__all__ = [
    "CURVATURE",
    "LowRankStack",
    "OF_PRODUCTS",
    "SCOPES",
    "Columns",
    "as_transform",
    "build",
    "build_proximal",
    "columns",
    "contrast_gram",
    "curvature",
    "flatten_paths",
    "gram",
    "mtrl_covariance",
    "normalised_gram",
    *registry.__all__,
]
