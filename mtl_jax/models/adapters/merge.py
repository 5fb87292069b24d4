"""The layers of one task with its adapters in their kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from mtl_jax.errors import UserError
from mtl_jax.models.adapters.base import Adapter, joined
from mtl_jax.models.ownership import ExpertColumns, Owners, adapter_path, shared_adapter_path

Params = Mapping[str, Any]


def merged_layers(params: Params, owners: Owners, adapters: Mapping[str, Adapter], task: int) -> dict[str, Params]:
    """{path of a layer: its parameters with the adapter of a task in them}, leaves [1, ...], of layers with an adapter.

    Args:
      params: of the network by path, leaves [O, ...].
      owners: of each path, `Experiment.owners`.
      adapters: path of a layer -> the adapter on it, `SharingSpec.adapters`.
      task: its index.

    Raises:
      UserError: adapters that no kernel expresses, and adapters of experts, which are those of no task.
    """
    merged = {}
    for path, adapter in adapters.items():
        own, shared = adapter_path(path), shared_adapter_path(path)
        if isinstance(owners[path], ExpertColumns):
            raise UserError(f"config.sharing.adapter: the adapters on {path} are those of experts, not of a task")
        if adapter.bind is None:
            raise UserError(f"config.sharing.adapter: what stands after {path} cannot be merged into its kernels")
        parts = [_slice(params[own], owners[own][task]), _slice(params.get(shared, {}), 0)]
        try:
            layer = adapter.bind(joined(*parts), _slice(params[path], owners[path][task]))
        except ValueError as error:
            raise UserError(f"config.sharing.adapter: on {path} it cannot be merged into kernels: {error}") from None
        merged[path] = jax.tree.map(lambda leaf: leaf[None], layer)
    return merged


def _slice(params: Params, owner: int) -> Params:
    return jax.tree.map(lambda leaf: leaf[owner], params)
