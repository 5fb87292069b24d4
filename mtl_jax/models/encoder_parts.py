"""Parameters that several layers of an encoder read: what belongs to it as a whole, and weights tied across depth.

A layer may read sub-trees of its parameters from paths of their own, with owners of their own: the table of relative
positions of all layers, `relative`, or the normalisation after the top one, `final_norm`. It names them in
`encoder_parts`. In an encoder with tied layers (ALBERT) the layers of one owner have one set of weights, at the path of
the lowest of them; where columns begin above a trunk, they have another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from mtl_jax.models.apply_owned import select_owners
from mtl_jax.models.gradient_taps import Taps, TapSpec
from mtl_jax.models.ownership import Owner, layer_path, layer_paths
from mtl_jax.models.task_streams import Owners


def encoder_parts(module: nn.Module) -> tuple[str, ...]:
    """Names of the sub-trees of a layer's parameters that stand at paths of their own."""
    return getattr(module, "encoder_parts", ())


def layer_params(module: nn.Module, params: Mapping[str, Any], path: str) -> dict[str, Any]:
    """All parameters of the layer whose own are at `path`."""
    return {**params[path], **{name: params[name] for name in encoder_parts(module)}}


def part_owners(owners: Mapping[str, Owner], layers: Sequence[nn.Module]) -> dict[str, Owner]:
    """{path of a part of the encoder as a whole: its owner}, that of the lowest layer that reads it."""
    parts: dict[str, Owner] = {}
    for number, module in enumerate(layers):
        for name in encoder_parts(module):
            parts.setdefault(name, owners[layer_path(number)])
    return parts


def weight_paths(owners: Mapping[str, Owner], layers: int, tied: bool) -> dict[str, str]:
    """{path of a layer: path of its parameters}. `tied`: those of the lowest layer with the same owner."""
    every = layer_paths(layers)
    if not tied:
        return {path: path for path in every}
    lowest: dict[Owner, str] = {}
    return {"embed": "embed", **{path: lowest.setdefault(owners[path], path) for path in every[1:]}}


class TappedParts(NamedTuple):
    """A tapped layer with all parameters that it reads: stacks of owners, and the owner of each stream in them."""

    params: dict[str, Any]
    owners: Owners
    taps: Taps
    spec: TapSpec


def tapped_parts(
    path: str,
    sources: Mapping[str, str],
    params: Mapping[str, Any],
    owners: Sequence[Owners],
    taps: Taps,
    spec: TapSpec,
) -> TappedParts:
    """The parameters and taps that the layer at `path` reads from several paths, as those of that layer.

    Args:
      path: of the layer.
      sources: sub-tree of its parameters -> the path where it stands; "" for its own.
      params, taps, spec: of the network. A tap that several layers read collects the sum of their gradients.
      owners: for each source the owner of each stream.
    """
    if list(sources.values()) == [path]:
        return TappedParts(params[path], owners[0], taps, spec)
    known = np.column_stack([part.known for part in owners])
    drawn = (known < 0).any(axis=1)  # each of those is a combination of its own
    rows = np.column_stack([np.where(drawn, 1 + np.arange(len(known)), 0), known])
    _, first, number = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    number = number.reshape(-1)
    merged, leaf_taps, leaves = {}, {}, []
    for part, (name, source) in zip(owners, sources.items(), strict=True):
        tree = select_owners(params[source], part.take(first))
        merged |= {name: tree} if name else tree
        for leaf in spec.layers.get(source, ()):
            leaves.append(f"{name}/{leaf}" if name else leaf)
            leaf_taps[leaves[-1]] = taps.layers[source][leaf]
    layers = {path: tuple(leaves)} if leaves else {}
    taps, spec = taps._replace(layers={path: leaf_taps}), spec._replace(layers=layers)
    return TappedParts(merged, Owners(number, number), taps, spec)
