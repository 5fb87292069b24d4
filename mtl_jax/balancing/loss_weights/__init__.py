"""Weights α of the losses in Σ_k α_k L_k: pairs (init, update) with their state.

A new method is a function that returns a `LossWeights`, and a line in `LOSS_WEIGHTS`. What it reads are fields of
`Signals`, named in `LossWeights.needs`. Options that are numbers may be traced scalars, which can be swept in one
compiled program.
"""

from collections.abc import Callable

from mtl_jax.balancing.loss_weights.base import LossWeights, Signals
from mtl_jax.balancing.loss_weights.gradient_based import DbMtlState, ExcessState, db_mtl, excess_mtl
from mtl_jax.balancing.loss_weights.learned import (
    FamoState,
    GradNormState,
    LearnedState,
    famo,
    gradnorm,
    imtl_l,
    uncertainty,
)
from mtl_jax.balancing.loss_weights.loss_based import DwaState, dwa, gls, stch
from mtl_jax.balancing.loss_weights.prediction_based import DivergenceState, PriorityState, class_divergence, dtp, kl
from mtl_jax.balancing.loss_weights.simple import by_size, equal, fixed, rlw

LOSS_WEIGHTS: dict[str, Callable[..., LossWeights]] = {
    "equal": equal,
    "fixed": fixed,
    "by_size": by_size,
    "dwa": dwa,
    "gls": gls,
    "rlw": rlw,
    "uncertainty": uncertainty,
    "imtl_l": imtl_l,
    "gradnorm": gradnorm,
    "famo": famo,
    "stch": stch,
    "excess_mtl": excess_mtl,
    "db_mtl": db_mtl,
    "kl": kl,
    "dtp": dtp,
}

__all__ = [
    "LOSS_WEIGHTS",
    "DbMtlState",
    "DivergenceState",
    "DwaState",
    "ExcessState",
    "FamoState",
    "GradNormState",
    "LearnedState",
    "LossWeights",
    "PriorityState",
    "Signals",
    "class_divergence",
    *LOSS_WEIGHTS,
]
