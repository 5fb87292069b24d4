"""Keys and values that attention has computed before: what decoding one token after another reads.

A pass over complete rows (`NetworkOutputs.keys` with `collect_keys`) leaves those of every token. A decoding pass then
has S sequences in each row, one new token of each, which attends to the prompt of its sequence in those rows and to the
tokens that the sequence has generated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

KEYS = "keys"  # the collection of a module's variables


class KeyMemory(NamedTuple):
    """What a decoding pass of the network reads. B blocks of R rows; of a layer its streams take the place of B.

    prompt   {path of a layer: its `KEYS` of the rows, leaves [B, R, T, heads, features]}
    written  the same of the tokens that each sequence has generated, leaves [B, R, S, L, heads, features]
    segment  int32[B, R, T], of the tokens that are prompts, 0 elsewhere
    number   int32[], how many each sequence has generated
    """

    prompt: Mapping[str, Any]
    written: Mapping[str, Any]
    segment: jax.Array
    number: jax.Array


class LayerMemory(NamedTuple):
    """The same of one layer and stream.

    prompt    leaves [R, T, ...]
    written   leaves [R, S, L, ...]
    segment   int32[R, T]
    position  int32[R, S], the place of the new tokens in their texts
    number    int32[R], the same everywhere
    """

    prompt: Any
    written: Any
    segment: jax.Array
    position: jax.Array
    number: jax.Array


def store(module: nn.Module, **arrays: jax.Array) -> None:
    """Leaves the arrays of a module for the pass that collects them; nothing where none does."""
    for name, array in arrays.items():
        module.sow(KEYS, name, array, reduce_fn=lambda old, new: new, init_fn=lambda: None)


def module_keys(module: nn.Module, memory: LayerMemory) -> tuple[Any, Any]:
    """The entries of a module in the memory of its layer: prompt, written."""
    prompt, written = memory.prompt, memory.written
    for name in module.path:
        prompt, written = prompt[name], written[name]
    return prompt, written


def append(written: jax.Array, new: jax.Array, number: jax.Array) -> jax.Array:
    """written [R, S, L, ...] with new [R, S, ...] in place `number`[0] of L."""
    return jax.lax.dynamic_update_slice_in_dim(written, new[:, :, None].astype(written.dtype), number[0], axis=2)


def empty_written(prompt: Any, sequences: int, length: int) -> Any:
    """Room for `length` tokens of each of so many sequences of a row, from the keys [..., R, T, heads, features]."""

    def empty(leaf: jax.Array) -> jax.Array:
        return jnp.zeros((*leaf.shape[:-3], sequences, length, *leaf.shape[-2:]), leaf.dtype)

    return jax.tree.map(empty, prompt)
