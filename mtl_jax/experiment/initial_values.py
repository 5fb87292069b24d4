"""The parameters before the first step: random values, partly replaced by pretrained ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.config.sections import Config
from mtl_jax.data.corpus import Corpus
from mtl_jax.data.tokenizers.word_vectors import read_vectors
from mtl_jax.errors import UserError
from mtl_jax.experiment.model import Model
from mtl_jax.models import ownership
from mtl_jax.models.network import Network
from mtl_jax.tasks.base import Task
from mtl_jax.training.parameter_paths import flatten


def pretrained_layers(model: Model, shapes: Collection[str]) -> tuple[str, ...]:
    """The layers all of whose values are pretrained; `shapes` has the paths of all parameters."""
    leaves = {path: set(flatten({path: values})) for path, values in (model.pretrained or {}).items()}
    return tuple(path for path in leaves if leaves[path] >= {leaf for leaf in shapes if leaf.startswith(f"{path}/")})


def random_params(
    net: Network, tasks: Mapping[str, Task], key: jax.Array, known: Collection[str] = ()
) -> dict[str, Any]:
    """Random initial values: layers keyed by path, heads by the name of their task. Zeros in the layers `known`."""
    heads, readouts = (jax.random.fold_in(key, ownership.name_key(name)) for name in ("heads", "reads"))

    def head(name: str, task: Task) -> dict[str, Any]:
        params = task.init(jax.random.fold_in(heads, ownership.name_key(name)), net.width[name])
        return {**params, **net.init_head(name, jax.random.fold_in(readouts, ownership.name_key(name)))}

    return {**net.init(key, known), "heads": {name: head(name, task) for name, task in tasks.items()}}


def insert_pretrained(config: Config, model: Model, data: Corpus, params: dict[str, Any]) -> dict[str, Any]:
    """The random values, replaced by those of the pretrained encoder, word vectors and ViT patches in every column.

    Under `jax.eval_shape` word vectors are not read: a finished run does not need their file.
    """
    if model.pretrained is not None:
        for path in params.keys() & model.pretrained.keys():
            params[path] = _placed(params[path], model.pretrained[path])
    if config.model.word_vectors and not isinstance(table := params["embed"]["word"]["embedding"], jax.core.Tracer):
        matrix, found = read_vectors(config.model.word_vectors, data.tokenizer.vocabulary)
        if matrix.shape[1] != table.shape[-1]:
            raise UserError(
                f"config.model.hidden_size: {table.shape[-1]}, but the vectors of {config.model.word_vectors} have "
                f"{matrix.shape[1]} features"
            )
        params["embed"]["word"]["embedding"] = jnp.where(found[None, :, None], matrix[None], table)
    return params


def _placed(stacks: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`stacks` with leaves [O, ...] in which each owner has the value of the same path; leaves without one stay."""
    placed = dict(stacks)
    for key, value in values.items():
        stack = stacks[key]
        is_tree = isinstance(value, Mapping)
        placed[key] = _placed(stack, value) if is_tree else _to_all(value, stack)
    return placed


def _to_all(value: Any, stack: jax.Array) -> jax.Array:
    """`value` for each owner, broadcast on the host, where nothing has to be compiled."""
    return jax.device_put(np.broadcast_to(np.asarray(value, stack.dtype), stack.shape))
