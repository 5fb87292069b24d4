"""How much each parameter matters for earlier tasks: the diagonal of the empirical Fisher information."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Collection

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.data.batch import Batch
from mtl_jax.data.sampler import evaluation_batches
from mtl_jax.errors import UserError
from mtl_jax.experiment.assemble import Experiment
from mtl_jax.runtime import distributed
from mtl_jax.training import objective as terms
from mtl_jax.training.objective import FlatParams, Objective, Params
from mtl_jax.training.parameter_paths import flatten, with_leaves
from mtl_jax.training.token_corruption import corrupt_for_evaluation

ROWS = 1024  # of each data set, at most
ROWS_PER_BATCH = 16


def fisher_information(experiment: Experiment, params: Params, tasks: Collection[str]) -> dict[str, np.ndarray]:
    """{path of layers: float32 [O, ...]}, Σ over rows of the squared gradient of the loss of a row, over the number of
    labelled examples: the mean squared gradient of an example where the gradients of examples in one row do not agree.

    The loss is that of the gold labels of train, of all `tasks` on a data set together.

    Raises:
      UserError: none of the tasks has training data.
    """
    corpus = experiment.corpus
    chosen = [task for task in tasks if "train" in corpus.rows.get(corpus.specs[task].dataset, {})]
    if not chosen:
        raise UserError(
            "config.penalties: importance = 'fisher' is measured on the training data of earlier tasks, but none of "
            f"them is read here ({', '.join(tasks) or 'there are none'}); name their data sets, or leave it out"
        )
    total, count = None, 0.0
    for name in dict.fromkeys(corpus.specs[task].dataset for task in chosen):
        layout = dataclasses.replace(corpus.layout, candidates=((corpus.layout.datasets.index(name),),))
        objective = experiment.objective_for(layout)
        numbers = [
            k for k, task in enumerate(experiment.tasks) if task in chosen and corpus.specs[task].dataset == name
        ]
        squares = jax.jit(functools.partial(_squares, objective, experiment.hyper, np.asarray(numbers)))
        batches = evaluation_batches(corpus.rows[name]["train"], layout, ROWS_PER_BATCH)
        for batch in itertools.islice(batches, ROWS // ROWS_PER_BATCH):
            added, examples = squares(params, batch)
            total = added if total is None else jax.tree.map(jnp.add, total, added)
            count += float(examples)
    return {path: np.asarray(leaf) / max(count, 1.0) for path, leaf in distributed.to_host(total).items()}


def _squares(
    objective: Objective, hyper: terms.Hyperparameters, numbers: np.ndarray, params: Params, batch: Batch
) -> tuple[FlatParams, jax.Array]:
    """Σ over rows of the squared gradients by path of layers, and the number of examples."""
    objective = objective._replace(dropout=False, attention_dropout=False)
    batch = corrupt_for_evaluation(objective, batch)
    flat = flatten(params)
    layers = {path: leaf for path, leaf in flat.items() if not path.startswith("heads/")}
    ones = jnp.ones((len(objective.tasks),), jnp.float32)

    def loss(layers: FlatParams, row: Batch) -> jax.Array:
        whole = with_leaves(params, {**flat, **layers})
        return terms.loss_contributions(objective, whole, row, hyper, None, ones)[numbers].sum()

    def add(total: FlatParams, number: jax.Array) -> tuple[FlatParams, None]:
        row = jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, number, 1, axis=1), batch._replace(dataset=())
        )
        gradient = jax.grad(loss)(layers, row._replace(dataset=batch.dataset))
        return jax.tree.map(lambda t, g: t + jnp.square(g), total, gradient), None

    rows = jnp.arange(batch.tokens.shape[1])
    total, _ = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, layers), rows)
    return total, terms.loss_denominators(objective, batch, hyper)[numbers].sum()
