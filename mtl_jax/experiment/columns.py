"""The encoder of one task: its slice of every layer, with or without what adapters add."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from mtl_jax.experiment.assemble import Experiment
from mtl_jax.experiment.sharing import make_adapter
from mtl_jax.models.adapters import lora
from mtl_jax.models.adapters.base import joined
from mtl_jax.models.ownership import adapter_path, shared_adapter_path
from mtl_jax.models.peft import Factors
from mtl_jax.training.objective import Params


def encoder_params(experiment: Experiment, params: Params, task: str, *, merged: bool = True) -> dict[str, Any]:
    """{path: leaves [...]} of layers, embeddings and parts of the encoder as a whole.

    Args:
      experiment: of the run.
      params: of the experiment.
      task: name.
      merged: kernels with what adapters add to them, W + α / r · A B; False: as without adapters.

    Raises:
      ValueError: an adapter that is no change of kernels.
    """
    leaves = {
        path: _slice(experiment, params, path, task)
        for path in experiment.owners
        if not path.startswith(("adapter_", "mixer_"))
    }
    sharing, model = experiment.config.sharing, experiment.model
    if not sharing.adapter or not merged:
        return leaves
    adapter = make_adapter(sharing, len(experiment.tasks))
    if adapter.bind is None:
        raise ValueError(f"the adapter {sharing.adapter!r} stands after its layer and cannot be part of its kernels")
    if model.architecture is not None and model.architecture.tied_layers:
        raise ValueError("layers with one set of weights have adapters of their own")
    for path in [path for path in leaves if adapter_path(path) in experiment.owners]:
        leaves[path] = adapter.bind(_adapter(experiment, params, path, task), leaves[path])
    return leaves


def adapter_leaves(experiment: Experiment, params: Params, task: str) -> dict[str, Any]:
    """{path of an adapter: its leaves [...]} of one task, and of what all have in common."""
    paths = [path for path in experiment.owners if path.startswith("adapter_")]
    return {path: _slice(experiment, params, path, task) for path in paths}


def low_rank_factors(experiment: Experiment, params: Params, task: str) -> tuple[dict[tuple[str, ...], Factors], float]:
    """{path of a kernel: the factors of its LoRA}, of the kind "lora", and their scaling α / r."""
    sharing = experiment.config.sharing
    options = inspect.signature(lora).bind(**sharing.adapter_options.to_dict())
    options.apply_defaults()
    factors: dict[tuple[str, ...], Factors] = {}
    for path in [path for path in experiment.owners if adapter_path(path) in experiment.owners]:
        flat = flatten_dict(_adapter(experiment, params, path, task))
        for kernel in dict.fromkeys(key[:-1] for key in flat):
            names = {leaf[-1]: np.asarray(flat[leaf]) for leaf in flat if leaf[:-1] == kernel}
            a, b = ([names[key] for key in (name, f"shared_{name}") if key in names] for name in "ab")
            factors[(path, *kernel)] = Factors(np.concatenate(a, axis=1), np.concatenate(b))
    return factors, options.arguments["alpha"] / options.arguments["rank"]


def _slice(experiment: Experiment, params: Params, path: str, task: str) -> Any:
    index = int(experiment.owners[path][list(experiment.tasks).index(task)])
    return jax.tree.map(lambda leaf: leaf[index], params[path])


def _adapter(experiment: Experiment, params: Params, path: str, task: str) -> Mapping[str, Any]:
    """The parameters of the adapter of a task on a layer, own and shared."""
    own, shared = _slice(experiment, params, adapter_path(path), task), shared_adapter_path(path)
    return joined(own, _slice(experiment, params, shared, task) if shared in experiment.owners else {})
