"""Weights that do not look at the gradients."""

from __future__ import annotations

from mtl_jax.balancing import options
from mtl_jax.balancing.weightings.base import Weighting, normalised_preference, stateless


def mean(preference=None) -> Weighting:
    """1/n for each of the n tasks present; or `preference` [K], ≥ 0, normalised to sum 1 over them."""
    preference = options.preference_vector(preference)
    return stateless(lambda gram, key, present: normalised_preference(gram, present, preference))


def sum() -> Weighting:
    """1 for each task present."""
    return stateless(lambda gram, key, present: present.astype(gram.dtype))
