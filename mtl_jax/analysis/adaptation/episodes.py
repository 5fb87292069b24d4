"""One new task as arrays: its texts, a row each, and random supports of k examples of each class."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from mtl_jax.data.batch import Batch, PackedRows
from mtl_jax.data.corpus import Corpus
from mtl_jax.data.sampler import permutation
from mtl_jax.errors import UserError
from mtl_jax.evaluation.metric_inputs import gold_and_predicted
from mtl_jax.tasks.metrics import METRICS
from mtl_jax.training.objective import Objective

CHUNK_ROWS = 128  # of a batch in scoring
NON_ARRAY_FIELDS = (
    "labels",
    "hidden",
    "patch",
    "pixels",
)  # fields of rows that are not arrays [N, ...], or are not there


class Episode(NamedTuple):
    """A new task.

    name     of the task
    rows     {split: Rows}, one record a row in the order of the records, cut to the longest text
    gold     {split: int[records]}: class, −1 where there is no label
    """

    name: str
    rows: dict[str, PackedRows]
    gold: dict[str, np.ndarray]


def make_episode(corpus: Corpus, task: str) -> Episode:
    """The task of a corpus that was loaded with one example a row.

    Raises:
      UserError: a split that is missing; labels that are distributions.
    """
    dataset = corpus.specs[task].dataset
    if lacking := [split for split in ("train", "dev", "test") if split not in corpus.rows[dataset]]:
        raise UserError(
            f"data set {dataset}: --mode=adapt draws examples from train, chooses on dev and scores on test; there is "
            f"no {lacking[0]} (config.datasets.{dataset}.splits, or {lacking[0]}_fraction)"
        )
    if corpus.layout.datasets.index(dataset) in corpus.layout.pictured:
        raise UserError(f"data set {dataset}: --mode=adapt reads texts; these examples have pictures")
    if corpus.vocabularies[task].soft:
        raise UserError(f"task {task}: labels are distributions; --mode=adapt draws examples of each class")
    rows, gold = {}, {}
    for split, packed in corpus.rows[dataset].items():
        encoded = corpus.splits[dataset][split].encoded
        order = np.argsort(encoded.record[packed.example[:, 0]], kind="stable")
        rows[split] = _taken(packed._replace(labels={task: packed.labels[task]}), order)
        label = encoded.labels[task]
        gold[split] = np.where(label.known, label.value, -1)
    longest = max(int(r.length.max()) for r in rows.values())
    return Episode(task, {split: _cut(r, longest + -longest % 8) for split, r in rows.items()}, gold)


def draw_supports(
    found: Episode, classes: tuple[str, ...], shots: int, draws: int, seed: int, purpose: str
) -> np.ndarray:
    """int32[draws, C·shots]: rows of train, `shots` of each class, drawn without replacement.

    They are keyed by (seed, purpose, task, class, draw): the same whatever is adapted.

    Raises:
      UserError: a class with fewer examples.
    """
    result = []
    for number, name in enumerate(classes):
        own = np.flatnonzero(found.gold["train"] == number)
        if len(own) < shots:
            raise UserError(
                f"task {found.name}: class {name!r} has {len(own)} examples in train, config.adapt.shots asks for "
                f"{shots}"
            )
        key = f"{purpose} {found.name} {name}"
        result.append(np.stack([own[permutation(len(own), seed, key, draw)[:shots]] for draw in range(draws)]))
    return np.concatenate(result, axis=1).astype(np.int32)


def as_batch(rows: Any) -> Batch:
    """Rows [R, ...] as the one block of a batch [1, R, ...]; jax or numpy."""
    fields = {name: value[None] for name, value in rows._asdict().items() if name not in NON_ARRAY_FIELDS}
    labels = {task: {name: value[None] for name, value in own.items()} for task, own in rows.labels.items()}
    count = rows.tokens.shape[0]
    return Batch(np.zeros((1,), np.int32), np.arange(count, dtype=np.int32)[None], **fields, labels=labels)


def as_chunks(rows: PackedRows) -> PackedRows:
    """All rows as leaves [chunks, ROWS, ...]; the last ones are repeated to fill."""
    count = len(rows.tokens)
    index = np.minimum(np.arange(count + -count % CHUNK_ROWS), count - 1).reshape(-1, CHUNK_ROWS)
    return _taken(rows, index)


def score(corpus: Corpus, objective: Objective, task: str, split: str, predicted: np.ndarray) -> float:
    """The task's first metric of predictions int[records]."""
    gold, said = gold_and_predicted(corpus, objective, task, corpus.specs[task].dataset, split, predicted)
    metric = METRICS[objective.tasks[task].metrics[0]]
    return float(metric.value(metric.statistics(gold, said, corpus.vocabularies[task].all_names)))


def _taken(rows: PackedRows, index: np.ndarray) -> PackedRows:
    fields = {name: value[index] for name, value in rows._asdict().items() if name not in NON_ARRAY_FIELDS}
    labels = {task: {name: value[index] for name, value in own.items()} for task, own in rows.labels.items()}
    return PackedRows(**fields, labels=labels)


def _cut(rows: PackedRows, length: int) -> PackedRows:
    names = ("tokens", "segment", "position", "token_type")
    return rows._replace(**{name: getattr(rows, name)[:, :length] for name in names})
