"""Generated tasks whose relatedness ρ is known: linear regression on bags of words, and polarity of sentences.

A data set is one task; tasks with the same `seed` and different `task` are related. Random draws are keyed by (seed,
quantity, task, split), so that a larger split begins with the records of a smaller one, and ρ changes neither the
sentences nor the noise, only what is shared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from mtl_jax.data.records import Note, Record, suggestion
from mtl_jax.data.splits.subsets import random_generator
from mtl_jax.errors import UserError

EXAMPLES = {"train": 100, "dev": 100, "test": 500}


def read_synthetic(
    location: None,
    encoding: str,
    *,
    split: str,
    kind: str = "linear",
    task: int = 0,
    rho: float = 0.5,
    examples: Mapping[str, int] = EXAMPLES,
    features: int = 24,
    tokens: int = 5,
    rank: int = 0,
    noise: float = 0.0,
    seed: int = 0,
) -> Iterator[Record | Note]:
    """One record for each sentence of `tokens` words, each drawn uniformly from V = `features` words.

    Fields: words (list), text (the same, blanks between), label: a number for "linear", else "positive" or "negative".

    Args:
      location, encoding: not read; there is no file.
      split: key of `examples`, given by `splits` of the data set.
      kind: "linear": label = tokens^-½ · Σ_v count_v · w_task[v] + noise; the signal has variance 1 but for the mean of
        w. Mean pooling of an embedding of width 1 is exactly this model. "text": the sign of the sum of the words'
        polarities, of the first word's where the sum is 0.
      task: its number, from 0.
      rho: the correlation of what two tasks give a word, 0 to 1; see `weights` and `polarities`.
      examples: split -> number of sentences.
      rank: "linear": weights in a common subspace of so many dimensions; 0 = not so.
      noise: "linear": its standard deviation; "text": the share of labels that are is_flipped round, 0 to 0.5.
      seed: of all that is drawn.

    Raises UserError naming the option.
    """
    _check(
        split=split,
        kind=kind,
        rho=rho,
        examples=examples,
        features=features,
        tokens=tokens,
        rank=rank,
        noise=noise,
    )
    count = examples[split]
    drawn = random_generator(f"synthetic/words/{task}/{split}", seed).integers(features, size=(count, tokens))
    disturbance = random_generator(f"synthetic/{kind} noise/{task}/{split}", seed)
    if kind == "linear":
        signal = weights(task, rho, features, rank, seed)[drawn].sum(axis=1) / np.sqrt(tokens)
        labels = (signal + noise * disturbance.standard_normal(count)).tolist()
    else:
        polarity = polarities(task, rho, features, seed)[drawn]
        sums = polarity.sum(axis=1)
        positive = np.where(sums == 0, polarity[:, 0], sums) > 0
        is_flipped = disturbance.random(count) < noise
        labels = ["positive" if p else "negative" for p in positive ^ is_flipped]
    digits = len(str(features - 1))
    for number, (row, label) in enumerate(zip(drawn, labels, strict=True), start=1):
        words = [f"w{v:0{digits}}" for v in row]
        yield Record({"words": words, "text": " ".join(words), "label": label}, f"synthetic:{split}", number)


def weights(task: int, rho: float, features: int, rank: int = 0, seed: int = 0) -> np.ndarray:
    """w_task = √ρ·w_0 + √(1−ρ)·u_task, float64[V]; w_0, u ~ N(0, I), so that corr(w_i[v], w_j[v]) = ρ.

    With `rank` r > 0 w_task = U·s_task / √r, U ~ N(0, 1) of [V, r] for all tasks, and s_task [r] as w_task above: the
    tasks' weights [V, K] have rank r.
    """
    size = rank or features
    shared, task_weights = (
        random_generator(f"synthetic/weights/{name}/{rank}", seed).standard_normal(size) for name in ("shared", task)
    )
    vector = np.sqrt(rho) * shared + np.sqrt(1.0 - rho) * task_weights
    if not rank:
        return vector
    return (
        random_generator(f"synthetic/subspace/{rank}", seed).standard_normal((features, rank)) @ vector / np.sqrt(rank)
    )


def polarities(task: int, rho: float, features: int, seed: int = 0) -> np.ndarray:
    """±1 for each word, int[V]: with probability √ρ the shared polarity, else the task's own; two correlate by ρ."""
    shared, task_polarities = (
        random_generator(f"synthetic/polarity/{n}", seed).integers(2, size=features) for n in ("shared", task)
    )
    is_shared = random_generator(f"synthetic/polarity is shared/{task}", seed).random(features) < np.sqrt(rho)
    return 2 * np.where(is_shared, shared, task_polarities) - 1


def _check(
    *,
    split: str,
    kind: str,
    rho: float,
    examples: Mapping[str, int],
    features: int,
    tokens: int,
    rank: int,
    noise: float,
) -> None:
    """Raises UserError naming the option that is wrong."""
    if kind not in ("linear", "text"):
        raise UserError(f'options.kind: "linear" or "text", not {kind!r}.{suggestion(kind, ("linear", "text"))}')
    if not 0 <= rho <= 1:
        raise UserError(f"options.rho: a relatedness is 0 to 1, not {rho!r}")
    if split not in examples:
        raise UserError(f"options.examples: has no split {split!r}; there are: {', '.join(examples)}")
    for name, value in (("features", features), ("tokens", tokens), (f"examples.{split}", examples[split])):
        if value < 1:
            raise UserError(f"options.{name}: at least 1, not {value!r}")
    if rank and kind == "text":
        raise UserError('options.rank: polarities have none; it belongs to kind "linear"')
    if rank > features:
        raise UserError(f"options.rank: {rank} dimensions, but there are {features} words")
    if noise < 0 or (kind == "text" and noise > 0.5):
        raise UserError(f"options.noise: {'0 to 0.5' if kind == 'text' else 'at least 0'}, not {noise!r}")
