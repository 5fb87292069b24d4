"""Weights that do not depend on the gradients."""

from __future__ import annotations

from mtl_jax.balancing import options
from mtl_jax.balancing.options import PerTask
from mtl_jax.balancing.weightings.base import Weighting, normalised_preference, stateless


def mean(preference: PerTask | None = None) -> Weighting:
    """1/n for each of the n tasks present; or `preference` [K], ≥ 0, normalised to sum 1 over them."""
    preferred = options.preference_vector(preference)
    return stateless(lambda gram, key, present: normalised_preference(gram, present, preferred))


def sum() -> Weighting:
    """1 for each task present."""
    return stateless(lambda gram, key, present: present.astype(gram.dtype))
