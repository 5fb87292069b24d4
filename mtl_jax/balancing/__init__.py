"""α and the combination of gradients: which task counts how much, and what happens where tasks conflict.

from mtl_jax.balancing import aggregation
optimizer = optax.chain(aggregation.cagrad(0.4), optax.adamw(1e-4))  # gradients enter with leaves [K, ...]
"""

from mtl_jax.balancing import aggregation, loss_weights, weightings
from mtl_jax.balancing.aggregation import AGGREGATION, GRADIENT_TRANSFORMS, as_transform, combine, cross_gram
from mtl_jax.balancing.loss_weights import LOSS_WEIGHTS, LossWeights, Signals
from mtl_jax.balancing.weightings import WEIGHTINGS, Weighting

__all__ = [
    "AGGREGATION",
    "GRADIENT_TRANSFORMS",
    "LOSS_WEIGHTS",
    "WEIGHTINGS",
    "LossWeights",
    "Signals",
    "Weighting",
    "aggregation",
    "as_transform",
    "combine",
    "cross_gram",
    "loss_weights",
    "weightings",
]
