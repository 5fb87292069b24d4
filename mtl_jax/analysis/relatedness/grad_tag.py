"""Grad-TAG: gains of tasks from each other, estimated by one joint run instead of a run for each pair.

Around the parameters θ* of a joint run the log-odds of each example's labels are linearised (Li, Sharma & Zhang
2024, "Scalable Multitask Learning Using Gradient-based Estimation of Task Affinity", section 3):

    m_x(θ* + δ) ≈ m_x + ⟨∇m_x, δ⟩,    loss_x = log(1 + exp(−m_x)),
    m_x = log p_x − log(1 − p_x),    p_x = exp(−loss_x)

so that training on any group of tasks is a logistic regression on gradients, projected to few dimensions, and its dev
loss is read off without a step of the model. With two classes this is the published method; for more classes, words and
sequences p_x is the probability of the example's labels (of an average word), which makes it one method for every task
whose loss is a mean negative logarithm of a probability; other losses are taken as such.

The projection is a count sketch (Charikar et al. 2002; Weinberger et al. 2009): each parameter is added, with a random
sign, to one of d sums. Inner products are kept in expectation as by the dense random matrix of the paper, without one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.data.batch import Batch
from mtl_jax.data.sampler import evaluation_batches, evaluation_layout
from mtl_jax.errors import UserError
from mtl_jax.experiment.assemble import Experiment
from mtl_jax.runtime import distributed
from mtl_jax.training import objective as terms
from mtl_jax.training.objective import Objective, Params
from mtl_jax.training.parameter_paths import flatten, with_leaves
from mtl_jax.training.token_corruption import corrupt_for_evaluation

SMALLEST_LOSS = 1e-4  # of an example: p < 1, so that its log-odds are finite
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # relative to the mean squared length of the gradients; chosen on dev
NEWTON_STEPS = 12
TRAIN, DEV = "train", "dev"


class Linearised(NamedTuple):
    """The examples of one task in one split, around θ*.

    odds      float32[N], m_x
    gradient  float32[N, d], sketches of ∇m_x
    """

    odds: np.ndarray
    gradient: np.ndarray


class Linearisation:
    """Linearises the examples of all tasks around parameters. Compiled once for each data set."""

    def __init__(self, experiment: Experiment, dimensions: int, max_examples: int):
        """
        Args:
          experiment: of all tasks.
          dimensions: d, of the projected gradients.
          max_examples: of each data set and split.

        Raises:
          UserError: a data set without dev.
        """
        self._corpus, self._hyper = experiment.corpus, experiment.hyper
        self._rows, self._max = experiment.config.evaluation.rows_per_batch, max_examples
        self._functions, self._key = {}, jax.random.key(0)  # an argument: as a constant the draws would be compiled in
        for dataset, splits in self._corpus.rows.items():
            if DEV not in splits:
                raise UserError(f"config.relatedness.measures: 'grad_tag' reads dev, but data set {dataset!r} has none")
            objective = experiment.objective_for(evaluation_layout(self._corpus.layout, dataset))
            objective = objective._replace(dropout=False, attention_dropout=False)
            tasks = tuple(t for t, spec in self._corpus.specs.items() if spec.dataset == dataset)
            indices = tuple(self._corpus.layout.tasks.index(task) for task in tasks)
            function = _make_features(objective, experiment, indices, dimensions)
            self._functions[dataset] = objective, tasks, jax.jit(function)

    def __call__(self, params: Params) -> dict[str, dict[str, Linearised]]:
        """{task: {split: see `Linearised`}} around `params`."""
        result: dict[str, dict[str, Linearised]] = {}
        for dataset, (objective, tasks, features) in self._functions.items():
            for split in (TRAIN, DEV):
                parts: list[tuple[np.ndarray, ...]] = []
                count = 0
                for batch in evaluation_batches(self._corpus.rows[dataset][split], objective.layout, self._rows):
                    row, slot = np.nonzero(np.asarray(batch.length[0]) > 0)
                    taken = min(len(row), self._max - count)
                    count += taken
                    # as many as the batch has slots, so that one program does for all batches
                    size = batch.length[0].size
                    where = np.zeros((size, 2), np.int32)
                    where[:taken] = np.stack([row, slot], axis=1)[:taken]
                    outputs = features(params, batch, self._hyper, self._key, where, taken)
                    odds, gradient, known = distributed.to_host(outputs)
                    parts.append((odds[:taken], gradient[:taken], known[:taken]))
                    if count >= self._max:
                        break
                for i, task in enumerate(tasks):
                    odds, gradient, known = (np.concatenate([part[n][:, i] for part in parts]) for n in range(3))
                    result.setdefault(task, {})[split] = Linearised(odds[known], gradient[known])
        return result


def _make_features(objective: Objective, experiment: Experiment, tasks: Sequence[int], dimensions: int):
    """(params, batch, hyper, key, where int32[n, 2] rows and slots, count) -> log-odds [n, tasks], sketches
    [n, tasks, d], known bool[n, tasks]; zeros from `count` on."""
    trained = tuple(experiment.spec.multipliers)

    def features(params, batch, hyper, key, where, count):
        batch, flat = corrupt_for_evaluation(objective, batch), flatten(params)
        sketch = _make_sketch({path: flat[path] for path in trained}, dimensions, key)

        def of_example(place):
            single = _only(batch, place[0], place[1])
            total = terms.loss_denominators(objective, single, hyper)

            def losses(leaves):
                changed = with_leaves(params, {**flat, **leaves})
                return terms.loss_contributions(objective, changed, single, hyper, None, total)[jnp.asarray(tasks)]

            loss, pullback = jax.vjp(losses, {path: flat[path] for path in trained})
            gradients = jax.lax.map(lambda unit: sketch(pullback(unit)[0]), jnp.eye(len(tasks), dtype=loss.dtype))
            loss = jnp.maximum(loss, SMALLEST_LOSS)
            wrong = -jnp.expm1(-loss)  # 1 − p
            return -loss - jnp.log(wrong), -gradients / wrong[:, None], total[jnp.asarray(tasks)] > 0

        shapes = jax.eval_shape(of_example, where[0])
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        number = jnp.arange(len(where))
        return jax.lax.map(
            lambda entry: jax.lax.cond(entry[0] < count, of_example, lambda _: blank, entry[1]), (number, where)
        )

    return features


def _only(batch: Batch, row: jax.Array, slot: jax.Array) -> Batch:
    """The batch of one row [1, 1, ...] in which only the labels of one example slot are known."""

    def labels_of(labels: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        taken = {name: jax.lax.dynamic_slice_in_dim(array, row, 1, axis=1) for name, array in labels.items()}
        if "slot" in taken:
            known = taken["slot"] == slot
        elif "group" in taken:  # the choices of a record are one example: that of its first choice
            known = (taken["group"] == taken["group"][..., slot, None]) & (taken["choice"][..., slot, None] == 0)
        else:
            known = (jnp.arange(taken["mask"].shape[2]) == slot)[None, None]
        return {**taken, "mask": taken["mask"] & known}

    def row_of(array: jax.Array | None) -> jax.Array | None:
        return None if array is None else jax.lax.dynamic_slice_in_dim(array, row, 1, axis=1)

    fields = batch._asdict()
    labels, dataset = fields.pop("labels"), fields.pop("dataset")
    rows = {name: row_of(array) for name, array in fields.items()}
    return Batch(dataset=dataset, labels={group: labels_of(of_group) for group, of_group in labels.items()}, **rows)


def _make_sketch(leaves: Mapping[str, jax.Array], dimensions: int, key: jax.Array):
    """Gradients {path: array} -> float32[d], by the same draws for all of them."""
    keys = dict(zip(leaves, jax.random.split(key, len(leaves)), strict=True))
    draws = {}
    for path, leaf in leaves.items():
        place, sign = jax.random.split(keys[path])
        draws[path] = (
            jax.random.randint(place, (leaf.size,), 0, dimensions),
            jax.random.rademacher(sign, (leaf.size,), jnp.float32),
        )

    def sketch(gradients: Mapping[str, jax.Array]) -> jax.Array:
        sums = jnp.zeros((dimensions,), jnp.float32)
        for path, (place, sign) in draws.items():
            sums = sums.at[place].add(gradients[path].reshape(-1).astype(jnp.float32) * sign)
        return sums

    return sketch


def fit(parts: Sequence[Linearised], weights: Sequence[float], ridge: float) -> np.ndarray:
    """float64[d], the projected change δ that minimises Σ_k weight_k · mean loss of part k + ridge / 2 · ‖δ‖², by
    Newton's method with halved steps.

    Args:
      parts: examples of each task in the group.
      weights: of the tasks' losses.
      ridge: > 0.
    """
    x = np.concatenate([part.gradient for part in parts]).astype(np.float64)
    odds = np.concatenate([part.odds for part in parts]).astype(np.float64)
    share = np.concatenate([np.full(len(p.odds), w / len(p.odds)) for p, w in zip(parts, weights, strict=True)])

    def objective(delta: np.ndarray) -> float:
        return float(share @ np.logaddexp(0.0, -(odds + x @ delta)) + ridge / 2 * delta @ delta)

    delta, value = np.zeros(x.shape[1]), objective(np.zeros(x.shape[1]))
    for _ in range(NEWTON_STEPS):
        wrong = np.exp(-np.logaddexp(0.0, odds + x @ delta))  # 1 − p
        gradient = ridge * delta - x.T @ (share * wrong)
        step = _solve(x, share * wrong * (1 - wrong), ridge, gradient)
        scale = 1.0
        while scale > 1e-6 and objective(delta - scale * step) > value:
            scale /= 2
        if scale <= 1e-6:
            break
        delta = delta - scale * step
        previous, value = value, objective(delta)
        if previous - value <= 1e-10 * max(1.0, abs(previous)):
            break
    return delta


def _solve(x: np.ndarray, curvature: np.ndarray, ridge: float, gradient: np.ndarray) -> np.ndarray:
    """(Xᵀ C X + ridge)⁻¹ gradient, in the smaller of the two spaces (Woodbury)."""
    count, dimensions = x.shape
    root = x * np.sqrt(curvature)[:, None]
    if dimensions <= count:
        return np.linalg.solve(root.T @ root + ridge * np.eye(dimensions), gradient)
    inner = np.linalg.solve(root @ root.T + ridge * np.eye(count), root @ gradient)
    return (gradient - root.T @ inner) / ridge


def predicted_gains(examples: Mapping[str, Mapping[str, Linearised]], weights: Sequence[float]) -> np.ndarray:
    """float64[K, K]: [i, j] = estimated fall of the dev loss of task j by training with i instead of alone; 0 on the
    diagonal, NaN where a task has no examples with labels.

    The ridge is that with the smallest mean dev loss of the tasks alone.

    Args:
      examples: see `Linearisation`.
      weights: of the K losses.
    """
    tasks = list(examples)
    known = [all(len(examples[task][split].odds) for split in (TRAIN, DEV)) for task in tasks]
    lengths = [
        np.square(examples[t][TRAIN].gradient).sum(axis=1).mean() for t, k in zip(tasks, known, strict=True) if k
    ]
    gains = np.full((len(tasks), len(tasks)), np.nan)
    if not lengths:
        return gains
    ridges = [max(float(np.mean(lengths)), 1e-12) * ridge for ridge in RIDGES]

    def dev_loss(group: tuple[int, ...], task: int, ridge: float, fits: dict) -> float:
        if (group, ridge) not in fits:
            fits[group, ridge] = fit([examples[tasks[k]][TRAIN] for k in group], [weights[k] for k in group], ridge)
        dev = examples[tasks[task]][DEV]
        return float(np.logaddexp(0.0, -(dev.odds + dev.gradient.astype(np.float64) @ fits[group, ridge])).mean())

    fits: dict = {}
    indices = [k for k in range(len(tasks)) if known[k]]
    alone = {ridge: {k: dev_loss((k,), k, ridge, fits) for k in indices} for ridge in ridges}
    best = min(ridges, key=lambda ridge: sum(alone[ridge].values()))
    for i in indices:
        for j in indices:
            pair = tuple(sorted((i, j)))
            gains[i, j] = 0.0 if i == j else alone[best][j] - dev_loss(pair, j, best, fits)
    return gains
