"""Weights of the tasks' gradients as functions of their Gram matrix: K×K in, K out, inside the compiled step.

Each method is a function that returns a `Weighting`; `aggregation` makes optax transformations of them. None needs the
gradients themselves. All are `vmap`-able, with finite values and derivatives for zero gradients, rank deficiency,
absent tasks and a single task. A new method is a function in the file of its family, and a line in `WEIGHTINGS`.
"""

from collections.abc import Callable

from mtl_jax.balancing.weightings.base import Weighting
from mtl_jax.balancing.weightings.dual_cone import PcdState, dualproj, pcd, upgrad
from mtl_jax.balancing.weightings.fair import fairgrad, nash_mtl
from mtl_jax.balancing.weightings.linear import mean, sum
from mtl_jax.balancing.weightings.minimum_norm import cagrad, mgda
from mtl_jax.balancing.weightings.projection import gradvac, pcgrad
from mtl_jax.balancing.weightings.robust import krum
from mtl_jax.balancing.weightings.spectral import aligned_mtl, config, imtl_g
from mtl_jax.balancing.weightings.stochastic import SmoothedState, cr_mogm, modo, sdmgrad

WEIGHTINGS: dict[str, Callable[..., Weighting]] = {
    "mean": mean,
    "sum": sum,
    "mgda": mgda,
    "pcgrad": pcgrad,
    "gradvac": gradvac,
    "cagrad": cagrad,
    "imtl_g": imtl_g,
    "nash_mtl": nash_mtl,
    "aligned_mtl": aligned_mtl,
    "fairgrad": fairgrad,
    "dualproj": dualproj,
    "upgrad": upgrad,
    "config": config,
    "pcd": pcd,
    "krum": krum,
    "modo": modo,
    "sdmgrad": sdmgrad,
}

__all__ = ["WEIGHTINGS", "PcdState", "SmoothedState", "Weighting", "cr_mogm", *WEIGHTINGS]
