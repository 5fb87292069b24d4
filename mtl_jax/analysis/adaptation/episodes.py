"""One new task as arrays: its examples, one in each row, and random supports of k examples of each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mtl_jax.data.batch import Batch, PackedRows
from mtl_jax.data.corpus import Corpus
from mtl_jax.data.sampler import permutation
from mtl_jax.errors import UserError
from mtl_jax.evaluation.metric_inputs import gold_and_predicted
from mtl_jax.tasks.metrics import METRICS
from mtl_jax.training.objective import Objective

SCORED_ROWS = 128  # of a batch
OTHER_FIELDS = ("labels", "hidden", "patch", "pixels")  # fields of rows that are not arrays [N, ...], or are None


class Episode(NamedTuple):
    """A new task.

    name     of the task
    rows     {split: rows}, one record in each row in the order of the records, cut to the longest text
    gold     {split: int[records]}: class, −1 where there is no label
    """

    name: str
    rows: dict[str, PackedRows]
    gold: dict[str, np.ndarray]


def make_episode(corpus: Corpus, task: str) -> Episode:
    """The task of a corpus that was loaded with one example in each row.

    Raises:
      UserError: a split that is missing; labels that are distributions.
    """
    dataset = corpus.specs[task].dataset
    if missing := [split for split in ("train", "dev", "test") if split not in corpus.rows[dataset]]:
        raise UserError(
            f"data set {dataset}: --mode=adapt draws examples from train, chooses on dev and scores on test; there is "
            f"no {missing[0]} (config.datasets.{dataset}.splits, or {missing[0]}_fraction)"
        )
    if corpus.layout.datasets.index(dataset) in corpus.layout.pictured:
        raise UserError(f"data set {dataset}: --mode=adapt reads text; these examples have pictures")
    if corpus.vocabularies[task].soft:
        raise UserError(f"task {task}: labels are distributions; --mode=adapt draws examples of each class")
    rows, gold = {}, {}
    for split, packed in corpus.rows[dataset].items():
        encoded = corpus.splits[dataset][split].encoded
        order = np.argsort(encoded.record[packed.example[:, 0]], kind="stable")
        rows[split] = _indexed(packed._replace(labels={task: packed.labels[task]}), order)
        label = encoded.labels[task]
        gold[split] = np.where(label.known, label.value, -1)
    longest = max(int(split_rows.length.max()) for split_rows in rows.values())
    length = longest + -longest % 8
    return Episode(task, {split: _truncated(split_rows, length) for split, split_rows in rows.items()}, gold)


def draw_supports(
    episode: Episode, classes: Sequence[str], shots: int, *, draws: int, seed: int, purpose: str
) -> np.ndarray:
    """int32[draws, C·shots]: rows of train, `shots` of each class, drawn without replacement.

    They depend on (seed, purpose, task, class, draw) only, and not on what is adapted.

    Raises:
      UserError: a class with fewer examples.
    """
    result = []
    for number, name in enumerate(classes):
        rows = np.flatnonzero(episode.gold["train"] == number)
        if len(rows) < shots:
            raise UserError(
                f"task {episode.name}: class {name!r} has {len(rows)} examples in train, config.adaptation.shots asks "
                f"for {shots}"
            )
        key = f"{purpose} {episode.name} {name}"
        result.append(np.stack([rows[permutation(len(rows), seed, key, draw)[:shots]] for draw in range(draws)]))
    return np.concatenate(result, axis=1).astype(np.int32)


def single_block(rows: PackedRows) -> Batch:
    """Rows [R, ...] as the single block of a batch [1, R, ...]; jax or numpy."""
    fields = {name: value[None] for name, value in rows._asdict().items() if name not in OTHER_FIELDS}
    labels = {task: {name: value[None] for name, value in arrays.items()} for task, arrays in rows.labels.items()}
    count = rows.tokens.shape[0]
    return Batch(np.zeros((1,), np.int32), np.arange(count, dtype=np.int32)[None], **fields, labels=labels)


def as_chunks(rows: PackedRows) -> PackedRows:
    """All rows as leaves [chunks, SCORED_ROWS, ...]; the last row is repeated to fill."""
    count = len(rows.tokens)
    index = np.minimum(np.arange(count + -count % SCORED_ROWS), count - 1).reshape(-1, SCORED_ROWS)
    return _indexed(rows, index)


def score(corpus: Corpus, objective: Objective, task: str, split: str, predicted: np.ndarray) -> float:
    """The task's first metric of predictions int[records]."""
    gold, predicted = gold_and_predicted(corpus, objective, task, corpus.specs[task].dataset, split, predicted)
    metric = METRICS[objective.tasks[task].metrics[0]]
    return float(metric.value(metric.statistics(gold, predicted, corpus.vocabularies[task].all_names)))


def _indexed(rows: PackedRows, index: np.ndarray) -> PackedRows:
    fields = {name: value[index] for name, value in rows._asdict().items() if name not in OTHER_FIELDS}
    labels = {task: {name: value[index] for name, value in arrays.items()} for task, arrays in rows.labels.items()}
    return PackedRows(**fields, labels=labels)


def _truncated(rows: PackedRows, length: int) -> PackedRows:
    names = ("tokens", "segment", "position", "token_type")
    return rows._replace(**{name: getattr(rows, name)[:, :length] for name in names})
