"""Which activations of a layer are kept for the backward pass; the others are computed again in it."""

from __future__ import annotations

from collections.abc import Callable

import jax
from jax.ad_checkpoint import checkpoint_name

INPUT = "layer_input"
HOST = ("device", "pinned_host")  # memory kinds: from, to
_policies = jax.checkpoint_policies
REMAT_POLICIES: dict[str, Callable | None] = {  # names of `jax.checkpoint_policies`, and two that use host memory
    "everything_saveable": None,
    "nothing_saveable": _policies.nothing_saveable,
    "dots_saveable": _policies.dots_saveable,
    "dots_with_no_batch_dims_saveable": _policies.dots_with_no_batch_dims_saveable,
    "offload_dots": _policies.offload_dot_with_no_batch_dims(*HOST),
    "offload_inputs": _policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[INPUT],
        offload_src=HOST[0],
        offload_dst=HOST[1],
    ),
}

OFFLOADING = ("offload_dots", "offload_inputs")


def with_remat(function: Callable, policy: str) -> Callable:
    """`function` of (params, inputs, noise) under one of `REMAT_POLICIES`."""
    chosen = REMAT_POLICIES[policy]
    if chosen is None:
        return function

    def named(params, inputs, noise):
        return function(params, (checkpoint_name(inputs[0], INPUT), *inputs[1:]), noise)

    return jax.checkpoint(named, policy=chosen)
