"""Exact optima to compare a trained curve with, in float64 NumPy and without JAX.

`REFERENCES[name](config, corpus, kind, strength)` -> `Optimum`.

"linear" is the optimum over W [V, K] of

    Σ_k α_k/n_k ‖X_k w_k − y_k‖² + λ·Ω(W)

for the models that are linear in bags of words: `model.num_layers = 0`, `model.hidden_size = 1`, regression with head
"none".
X_k [n_k, V] holds each example's word counts divided by its length, computed from the packed rows of the model; y_k are
the scaled targets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtl_jax.config.sections import Config
from mtl_jax.data.corpus import Corpus
from mtl_jax.errors import UserError
from mtl_jax.models.layers import LAYERS
from mtl_jax.storage.summary import MetricValues, SplitScores
from mtl_jax.tasks import make_task
from mtl_jax.tasks.metrics import evaluate
from mtl_jax.tasks.regression import Regression

_EXACT = 1e-11  # largest change in a proximal gradient step, relative to W
_MAX_STEPS = 200_000


class Optimum(NamedTuple):
    """An exact optimum.

    scores     {task: {split: {metric: value, "loss": mean loss}}} for `config.evaluation.splits`
    weights    float64[K, V], one for each id of the tokenizer, in the scale of the targets as learned
    objective  Σ_k α_k/n_k ‖X_k w_k − y_k‖² + λ·Ω(W) at the optimum
    notes      sentences: where the optimum is not unique (the W of least norm is taken), or not found exactly
    """

    scores: SplitScores
    weights: np.ndarray
    objective: float
    notes: list[str]


class Problem(NamedTuple):
    """One least-squares problem for each of K tasks: designs [n_k, V], targets [n_k], weights of the tasks α [K]."""

    designs: Sequence[np.ndarray]
    targets: Sequence[np.ndarray]
    alpha: Sequence[float]

    def loss(self, weights: np.ndarray) -> float:
        """Σ_k α_k/n_k ‖X_k w_k − y_k‖² for weights [V, K]."""
        return float(sum(a * np.mean((x @ w - y) ** 2) for x, y, a, w in zip(*self, weights.T, strict=True)))

    def normal(self) -> tuple[np.ndarray, np.ndarray]:
        """(A [K, V, V], b [V, K]) with loss = Σ_k w_kᵀA_k w_k − 2·b_kᵀw_k + constant."""
        scaled = [(x * (a / len(x)), x, y) for x, y, a in zip(*self, strict=True)]
        return np.stack([s.T @ x for s, x, _ in scaled]), np.stack([s.T @ y for s, _, y in scaled], axis=1)


def linear(config: Config, corpus: Corpus, kind: str, strength: float) -> Optimum:
    """The exact optimum of a linear model.

    Args:
      config: of an experiment; its tasks are those in `corpus`.
      corpus: its data.
      kind: "l2_to_mean" | "l2_pairwise" | "trace_norm" (with `center` of the config's penalty of that kind) | "tied"
        (one w for all tasks, for any strength; hard sharing has the same optimum).
      strength: λ ≥ 0.

    Raises:
      UserError: the config is not linear, or its objective has terms that are not in the formula.
    """
    _require_linear(config)
    names = corpus.layout.tasks
    tasks = {name: _task(config, corpus, name) for name in names}
    data = {
        name: {split: _arrays(corpus, name, split, tasks[name].scaling) for split in rows}
        for name, rows in ((n, corpus.rows[corpus.specs[n].dataset]) for n in names)
    }
    problem = Problem(*zip(*((*data[n]["train"][:2], float(config.tasks[n].weight)) for n in names), strict=True))
    notes: list[str] = []
    center = _center(config, kind)
    if kind == "tied":
        weights, omega = _tied(problem, notes), 0.0
    elif strength == 0:
        weights, omega = _separate(problem, names, notes), 0.0
    elif kind in QUADRATIC:
        matrix = QUADRATIC[kind](len(names))
        weights = quadratic(problem, strength * matrix)
        omega = float(np.sum(matrix * (weights.T @ weights)))
    elif kind == "trace_norm":
        weights, exact = trace_norm(problem, strength, center)
        omega = float(np.linalg.svd(_centred(weights, center), compute_uv=False).sum())
        if not exact:
            notes.append(f"trace norm, λ = {strength:g}: not exact after {_MAX_STEPS:,} steps")
    else:
        known = ", ".join([*QUADRATIC, "trace_norm", "tied"])
        raise UserError(f"config.ablation.exact_optimum: 'linear' has no optimum for {kind!r}; it has those of {known}")
    scores = {
        name: {
            split: _scores(tasks[name], w, data[name][split])
            for split in config.evaluation.splits
            if split in data[name]
        }
        for name, w in zip(names, weights.T, strict=True)
    }
    objective = problem.loss(weights) + strength * omega
    return Optimum(scores, weights.T, objective, notes)


REFERENCES: dict[str, Callable[[Config, Corpus, str, float], Optimum]] = {"linear": linear}

# kind -> (K) -> M, of penalties tr(M·WᵀW)
QUADRATIC: dict[str, Callable[[int], np.ndarray]] = {
    "l2_to_mean": lambda count: np.eye(count) - 1.0 / count,
    "l2_pairwise": lambda count: count * np.eye(count) - 1.0,
}


def quadratic(problem: Problem, matrix: np.ndarray) -> np.ndarray:
    """argmin of the loss + tr(M·WᵀW), float64[V, K], by a linear system of K·V equations.

    `matrix` is M [K, K], symmetric and positive semidefinite. Of several optima the one of least norm.
    """
    gram, right = problem.normal()
    tasks, words = gram.shape[:2]
    system = np.kron(matrix, np.eye(words))  # acts on the concatenated w_k
    for k in range(tasks):
        block = slice(k * words, (k + 1) * words)
        system[block, block] += gram[k]
    return np.linalg.lstsq(system, right.T.ravel(), rcond=None)[0].reshape(tasks, words).T


def trace_norm(problem: Problem, strength: float, center: str | None = None) -> tuple[np.ndarray, bool]:
    """argmin of the loss + λ·Σ_i σ_i(W), float64[V, K], and whether it was reached.

    Accelerated proximal gradient (Beck & Teboulle 2009) with restarts where the momentum points uphill (O'Donoghue &
    Candès 2015), until a step from W changes it by less than 1e-11 of its norm. `center` = "mean": σ of W − its mean.
    """
    gram, right = problem.normal()
    step = 0.5 / max(np.linalg.norm(g, 2) for g in gram)

    def forward_backward(weights: np.ndarray) -> np.ndarray:
        gradient = 2.0 * (np.einsum("kvu,uk->vk", gram, weights) - right)
        moved = weights - step * gradient
        deviation = _centred(moved, center)
        left, sigma, right_vectors = np.linalg.svd(deviation, full_matrices=False)
        return moved - deviation + (left * np.maximum(sigma - step * strength, 0.0)) @ right_vectors

    weights = extrapolated = np.zeros_like(right)
    momentum = 1.0
    for _ in range(_MAX_STEPS):
        new = forward_backward(extrapolated)
        if np.sum((extrapolated - new) * (new - weights)) > 0:
            momentum, extrapolated = 1.0, weights
            new = forward_backward(weights)
        change = np.linalg.norm(new - extrapolated)
        following = 0.5 * (1.0 + np.sqrt(1.0 + 4.0 * momentum**2))
        extrapolated = new + (momentum - 1.0) / following * (new - weights)
        weights, momentum = new, following
        if change <= _EXACT * np.linalg.norm(new) and np.linalg.norm(forward_backward(new) - new) <= _EXACT * max(
            np.linalg.norm(new), step * strength
        ):
            return weights, True
    return weights, False


def _centred(weights: np.ndarray, center: str | None) -> np.ndarray:
    return weights - weights.mean(axis=1, keepdims=True) if center == "mean" else weights


def _tied(problem: Problem, notes: list[str]) -> np.ndarray:
    """One w for all tasks, [V, K]."""
    roots = [np.sqrt(a / len(x)) for x, a in zip(problem.designs, problem.alpha, strict=True)]
    design = np.concatenate([r * x for r, x in zip(roots, problem.designs, strict=True)])
    target = np.concatenate([r * y for r, y in zip(roots, problem.targets, strict=True)])
    w, _, rank, _ = np.linalg.lstsq(design, target, rcond=None)
    _note_rank("all tasks together", design, rank, notes)
    return np.repeat(w[:, None], len(problem.designs), axis=1)


def _separate(problem: Problem, names: Sequence[str], notes: list[str]) -> np.ndarray:
    """Least squares of each task by itself, [V, K]."""
    columns = []
    for name, x, y in zip(names, problem.designs, problem.targets, strict=True):
        w, _, rank, _ = np.linalg.lstsq(x, y, rcond=None)
        _note_rank(name, x, rank, notes)
        columns.append(w)
    return np.stack(columns, axis=1)


def _note_rank(subject: str, design: np.ndarray, rank: int, notes: list[str]) -> None:
    used = int(np.any(design != 0, axis=0).sum())
    if rank < used:
        notes.append(
            f"{subject}: {used} words but rank {rank}: least squares has many solutions, and this is the one of least "
            "norm; the result of training depends on its initial values and its end"
        )


class _Examples(NamedTuple):
    """X [n, V], scaled targets [n] and targets [n], float64."""

    design: np.ndarray
    scaled: np.ndarray
    target: np.ndarray


def _arrays(corpus: Corpus, task: str, split: str, scaling: tuple[float, float]) -> _Examples:
    """The labelled examples in the packed rows."""
    rows = corpus.rows[corpus.specs[task].dataset][split]
    labels = rows.labels[task]
    count, slots = rows.start.shape
    counts = np.zeros((count, slots + 1, corpus.tokenizer.size))
    np.add.at(counts, (np.arange(count)[:, None], rows.segment, rows.tokens), 1.0)  # segment 0 is the padding
    known = np.asarray(labels["mask"], bool)
    design = counts[:, 1:][known] / rows.length[known][:, None]
    target = labels["value"][known].astype(np.float64)
    offset, unit = scaling
    return _Examples(design, (target - offset) / unit, target)


def _scores(task: Regression, weights: np.ndarray, examples: _Examples) -> MetricValues:
    offset, unit = task.scaling
    predicted = examples.design @ weights
    metrics = {metric: evaluate(metric, examples.target, predicted * unit + offset, ()) for metric in task.metrics}
    return metrics | {"loss": float(np.mean((predicted - examples.scaled) ** 2)) if len(examples.scaled) else None}


def _task(config: Config, corpus: Corpus, name: str) -> Regression:
    """The task as in the model: targets without a configured scale are standardised by train."""
    entry = config.tasks[name]
    settings = {"kind": entry.kind, "metrics": tuple(entry.metrics), **entry.options.to_dict()}
    if not settings.keys() & {"low", "high", "mean", "scale"}:
        train = corpus.statistics["tasks"][name]["train"]
        settings |= {"mean": train["mean"], "scale": train["std"] or 1.0}
    return make_task(name, settings, "text")


def _center(config: Config, kind: str) -> str | None:
    """The option `center` of the config's penalty of this kind; UserError for one that is not of the formula."""
    options: Mapping[str, Any] = {}
    for name, entry in config.penalties.items():
        if entry.kind == kind:
            wrong = {
                "params": not re.search(entry.params, "embed/word/embedding"),
                "by_layer": len(entry.by_layer) > 0,
                "schedule": entry.schedule != "constant",
                "options": bool(set(entry.options) - ({"center"} if kind == "trace_norm" else set())),
            }
            for field in (field for field, is_wrong in wrong.items() if is_wrong):
                raise UserError(f"config.penalties.{name}.{field}: the reference 'linear' is λ·Ω of all weights")
            options = entry.options
    center = options.get("center") or None
    if center not in (None, "mean"):
        raise UserError(f"config.penalties: the reference 'linear' has no center {center!r}")
    return center


def _require_linear(config: Config) -> None:
    """Raises UserError, naming the field, unless the config's model is linear and its optimum that of the formula."""
    wanted = {
        "model.num_layers": (config.model.num_layers, 0),
        "model.hidden_size": (config.model.hidden_size, 1),
        "model.pretrained": (config.model.pretrained, ""),
        "model.dropout": (config.model.dropout, 0),
        "optimizer.weight_decay": (config.optimizer.weight_decay, 0),
        "loss_weights.method": (config.loss_weights.method, "equal"),
    }
    for name, entry in config.tasks.items():
        wanted[f"tasks.{name}.kind"] = entry.kind, "regression"
        wanted[f"tasks.{name}.options.head"] = entry.options.get("head", "dense"), "none"
        wanted[f"tasks.{name}.options.pool"] = entry.options.get("pool", "mean"), "mean"
    if LAYERS[config.model.layer_type].positions:
        raise UserError(
            f"config.model.layer_type: embeddings for {config.model.layer_type!r} have positions and layer norms; "
            "the reference "
            "'linear' needs another layer"
        )
    for field, (value, required) in wanted.items():
        if value != required:
            raise UserError(f"config.{field}: {value!r}, but the reference 'linear' needs {required!r}")
