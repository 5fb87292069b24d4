"""Hyperparameters as traced arguments of the step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Hyperparameters(NamedTuple):
    """Hyperparameters as arguments of the step: float32 that may be traced, so that one program serves all;
    scalars but for `alpha`.

    learning_rate, weight_decay, dropout, attention_dropout, adapter_dropout   scalars
    alpha         float32 [K], α_k
    strength      {penalty: λ}
    by_layer      {penalty: {layer: factor on λ}}
    proximal      {penalty: bool, whether its proximal operator acts}, of penalties with `mode` = "either"
    auxiliary     {name: factor on what mixers and heads add to the losses of the tasks}
    loss_weights  {option of the method: value}, in place of those that it was built with
    aggregation   {option of the method: value}, likewise
    teaching      {task: weight of its teachers in [0, 1]}; inside the step annealed, see `objective.hyper_at_progress`
    inner_learning_rate    of the inner loop of meta-learning
    tied          bool: columns are replaced by their mean after each update. None: the step has no such code
    """

    learning_rate: jax.Array
    weight_decay: jax.Array
    dropout: jax.Array
    attention_dropout: jax.Array
    adapter_dropout: jax.Array
    alpha: jax.Array
    strength: Mapping[str, jax.Array]
    by_layer: Mapping[str, Mapping[str, jax.Array]]
    proximal: Mapping[str, jax.Array]
    auxiliary: Mapping[str, jax.Array]
    loss_weights: Mapping[str, jax.Array]
    aggregation: Mapping[str, jax.Array]
    teaching: Mapping[str, jax.Array]
    inner_learning_rate: jax.Array
    tied: jax.Array | None


def hyperparameters_from_config(config, tasks: tuple[str, ...], auxiliary: Mapping[str, float]) -> Hyperparameters:
    """The values in a config, as float32 scalars. `auxiliary`: factors that hold where the config has none."""

    def scalar(value):
        return jnp.asarray(value, jnp.float32)

    return Hyperparameters(
        learning_rate=scalar(config.optimizer.learning_rate),
        weight_decay=scalar(config.optimizer.weight_decay),
        dropout=scalar(config.model.dropout),
        attention_dropout=scalar(config.model.attention_dropout),
        adapter_dropout=scalar(config.sharing.adapter_options.get("dropout", 0.0)),
        alpha=jnp.asarray([config.tasks[name].weight for name in tasks], jnp.float32),
        strength={name: scalar(penalty.strength) for name, penalty in config.penalties.items()},
        by_layer={
            name: {layer: scalar(factor) for layer, factor in penalty.by_layer.items()}
            for name, penalty in config.penalties.items()
        },
        proximal={},
        auxiliary={name: scalar(config.auxiliary_loss_weights.get(name, factor)) for name, factor in auxiliary.items()},
        loss_weights={},
        aggregation={},
        teaching={name: scalar(entry.weight) for name, entry in config.distillation.items() if name in tasks},
        inner_learning_rate=scalar(config.meta.inner_learning_rate),
        tied=jnp.asarray(True) if config.sharing.tied else None,
    )
