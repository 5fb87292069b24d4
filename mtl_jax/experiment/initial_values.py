"""The parameters before the first step: random values, partly replaced by pretrained ones."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
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
from mtl_jax.tasks import TASK_KINDS
from mtl_jax.tasks.base import Task
from mtl_jax.tasks.groups import TaskGroup, pad_stacked
from mtl_jax.training.parameter_paths import flatten


def pretrained_layers(model: Model, shapes: Collection[str]) -> tuple[str, ...]:
    """The layers all of whose values are pretrained; `shapes` has the paths of all parameters."""
    leaves = {path: set(flatten({path: values})) for path, values in (model.pretrained or {}).items()}
    return tuple(path for path in leaves if leaves[path] >= {leaf for leaf in shapes if leaf.startswith(f"{path}/")})


def random_params(
    net: Network, groups: Sequence[TaskGroup], key: jax.Array, known: Collection[str] = ()
) -> dict[str, Any]:
    """Random initial values: layers keyed by path, heads by the names of their tasks. Zeros in the layers `known`.

    The heads of a group are leaves [K_g, ...]; those of equal shapes are drawn at once.
    """
    heads, readouts = (jax.random.fold_in(key, ownership.name_key(name)) for name in ("heads", "reads"))

    def drawn(name: str, task: Task, salt: jax.Array) -> dict[str, Any]:
        params = task.init(jax.random.fold_in(heads, salt), net.width[name])
        return {**params, **net.init_head(name, jax.random.fold_in(readouts, salt))}

    def stacked(group: TaskGroup) -> Any:
        alike: dict[int, list[int]] = {}  # tasks by the number of their classes, on which alone shapes depend
        for index, task in enumerate(group.tasks.values()):
            alike.setdefault(len(task.names), []).append(index)
        parts = []
        for indices in alike.values():
            names = [list(group.tasks)[index] for index in indices]
            draw = functools.partial(drawn, names[0], group.tasks[names[0]])
            salts = jnp.asarray([ownership.name_key(name) for name in names], jnp.uint32)
            one = len(names) == 1
            heads = jax.tree.map(lambda leaf: leaf[None], draw(salts[0])) if one else jax.lax.map(draw, salts)
            parts.append(pad_stacked(group, heads))
        order = np.argsort([index for indices in alike.values() for index in indices])
        return jax.tree.map(lambda *leaves: _ordered(jnp.concatenate(leaves), order), *parts)

    return {**net.init(key, known), "heads": {group.name: stacked(group) for group in groups}}


def _ordered(leaf: jax.Array, order: np.ndarray) -> jax.Array:
    return leaf if np.array_equal(order, np.arange(len(order))) else leaf[order]


def insert_pretrained(config: Config, model: Model, data: Corpus, params: dict[str, Any]) -> dict[str, Any]:
    """The random values, replaced by those of the pretrained encoder, word vectors and ViT patches in every column.

    Under `jax.eval_shape` word vectors are not read: a finished run does not need their file.
    """
    if model.pretrained is not None:
        for path in params.keys() & model.pretrained.keys():
            params[path] = _placed(params[path], model.pretrained[path])
        _insert_lm_heads(config, model.pretrained, params["heads"])
    if config.model.word_vectors and not isinstance(table := params["embed"]["word"]["embedding"], jax.core.Tracer):
        matrix, found = read_vectors(config.model.word_vectors, data.tokenizer.vocabulary)
        if matrix.shape[1] != table.shape[-1]:
            raise UserError(
                f"config.model.hidden_size: {table.shape[-1]}, but the vectors of {config.model.word_vectors} have "
                f"{matrix.shape[1]} features"
            )
        params["embed"]["word"]["embedding"] = jnp.where(found[None, :, None], matrix[None], table)
    return params


def _insert_lm_heads(config: Config, pretrained: Mapping[str, Any], heads: dict[str, Any]) -> None:
    """The published LM head in those that tasks have of their own."""
    for name, entry in config.tasks.items():
        if TASK_KINDS[entry.kind].continues and "output" in heads.get(name, {}):
            if "lm_head" not in pretrained:
                raise UserError(
                    f"config.tasks.{name}: {config.model.pretrained} has no tensor lm_head.weight, and by its "
                    "config.json (tie_word_embeddings) the LM head is not the table of words"
                )
            stack = heads[name]["output"]["kernel"]
            kernel = pretrained["lm_head"]["kernel"][:, : stack.shape[-1]]
            heads[name] = {**heads[name], "output": {"kernel": _to_all(kernel, stack)}}


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
