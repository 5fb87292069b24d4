"""One new task as arrays: its examples, one in each row, and random supports of k examples of each class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mtl_jax.data.batch import Batch, PackedRows
from mtl_jax.data.corpus import Corpus
from mtl_jax.data.sampler import permutation
from mtl_jax.errors import UserError
from mtl_jax.evaluation.label_levels import LEVELS
from mtl_jax.evaluation.metric_inputs import gold_and_predicted, metric_arguments, metric_values
from mtl_jax.training.objective import Objective

SCORED_ROWS = 128  # of a batch
OTHER_FIELDS = ("labels", "hidden", "patch", "pixels")  # fields of rows that are not arrays [N, ...], or are None

Score = Callable[[np.ndarray, np.ndarray], float]  # (predictions [rows, ...], sums [S]) -> the task's first metric


class Episode(NamedTuple):
    """A new task.

    name     of the task
    rows     {split: rows}, in the order of the records, cut to the longest text
    numbers  {split: int32[rows]}, their numbers in the corpus, which key what a task draws in a row
    names    of the classes that supports are drawn from; ("",) where examples are of no class
    classes  int[rows of train]: index in `names`, −1 for rows that are not drawn
    """

    name: str
    rows: dict[str, PackedRows]
    numbers: dict[str, np.ndarray]
    names: tuple[str, ...]
    classes: np.ndarray


def make_episode(corpus: Corpus, task: str) -> Episode:
    """The task of a corpus that was loaded with one example in each row.

    Supports have k examples of each class, where an example is of one; otherwise k examples. A record that takes
    several rows (a window of its text in each, or a part of the sentence) is drawn by the first one with a label.

    Raises:
      UserError: a split that is missing; pictures.
    """
    dataset = corpus.specs[task].dataset
    if missing := [split for split in ("train", "dev", "test") if split not in corpus.rows[dataset]]:
        raise UserError(
            f"data set {dataset}: --mode=adapt draws examples from train, chooses on dev and scores on test; there is "
            f"no {missing[0]} (config.datasets.{dataset}.splits, or {missing[0]}_fraction)"
        )
    if corpus.layout.datasets.index(dataset) in corpus.layout.pictured:
        raise UserError(f"data set {dataset}: --mode=adapt reads text; these examples have pictures")
    rows, records, numbers = {}, {}, {}
    for split, packed in corpus.rows[dataset].items():
        record = corpus.splits[dataset][split].encoded.record[packed.example[:, 0]]
        order = np.argsort(record, kind="stable")
        rows[split] = _indexed(packed._replace(labels={task: packed.labels[task]}), order)
        records[split], numbers[split] = record[order], order.astype(np.int32)
    longest = max(int((split_rows.segment > 0).sum(axis=1).max()) for split_rows in rows.values())
    length = min(longest + -longest % 8, rows["train"].tokens.shape[1])
    names, classes = _classes(corpus, task, rows["train"], records["train"])
    if not LEVELS[corpus.specs[task].level].drawn:  # what is drawn in a row depends on its length
        rows = {split: _truncated(split_rows, length) for split, split_rows in rows.items()}
    return Episode(task, rows, numbers, names, classes)


def _classes(corpus: Corpus, task: str, rows: PackedRows, record: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """See `Episode`; `record` of each row."""
    spec, vocabulary = corpus.specs[task], corpus.vocabularies[task]
    if spec.kind == "class" and spec.level in ("text", "pair"):
        label = corpus.splits[spec.dataset]["train"].encoded.labels[task]
        value = label.value.argmax(axis=-1) if vocabulary.soft else label.value
        names, classes = vocabulary.names, np.where(label.known, value, -1)[record]
    else:
        labels = rows.labels[task]
        known = labels["mask"] if "mask" in labels else labels["maskable"]
        names, classes = ("",), np.where(known.reshape(len(record), -1).any(axis=1), 0, -1)
    drawn = np.flatnonzero(classes >= 0)
    first = drawn[np.unique(record[drawn], return_index=True)[1]]
    return names, np.where(np.isin(np.arange(len(record)), first), classes, -1)


def draw_supports(episode: Episode, shots: int, *, draws: int, seed: int, purpose: str) -> np.ndarray:
    """int32[draws, C·shots]: rows of train, `shots` of each class, drawn without replacement.

    They depend on (seed, purpose, task, class, draw) only, and not on what is adapted.

    Raises:
      UserError: a class with fewer examples.
    """
    result = []
    for number, name in enumerate(episode.names):
        rows = np.flatnonzero(episode.classes == number)
        if len(rows) < shots:
            what = (
                f"class {name!r} has {len(rows)} examples" if name else f"there are {len(rows)} examples with a label"
            )
            raise UserError(f"task {episode.name}: {what} in train, config.adaptation.shots asks for {shots}")
        key = f"{purpose} {episode.name} {name}"
        result.append(np.stack([rows[permutation(len(rows), seed, key, draw)[:shots]] for draw in range(draws)]))
    return np.concatenate(result, axis=1).astype(np.int32)


def single_block(rows: PackedRows, numbers: np.ndarray) -> Batch:
    """Rows [R, ...] as the single block of a batch [1, R, ...]; jax or numpy.

    `numbers` int32[R] of the rows in their split, -1 for an empty row.
    """
    fields = {name: value[None] for name, value in rows._asdict().items() if name not in OTHER_FIELDS}
    labels = {task: {name: value[None] for name, value in arrays.items()} for task, arrays in rows.labels.items()}
    return Batch(np.zeros((1,), np.int32), numbers[None], **fields, labels=labels)


def as_chunks(rows: PackedRows, numbers: np.ndarray) -> tuple[PackedRows, np.ndarray]:
    """All rows as leaves [chunks, SCORED_ROWS, ...] with their numbers; the last chunk ends with empty rows."""
    count = len(rows.tokens)
    padding = -count % SCORED_ROWS
    chunks = _indexed(rows, np.concatenate([np.arange(count), np.zeros(padding, np.int64)]))
    numbers = np.concatenate([numbers, np.full(padding, -1, np.int32)])
    for array in (
        *(getattr(chunks, name) for name in PackedRows._fields if name not in OTHER_FIELDS),
        *_arrays(chunks),
    ):
        array[count:] = 0
    chunks.example[count:] = -1
    shape = (-1, SCORED_ROWS)

    def split(array: np.ndarray) -> np.ndarray:
        return array.reshape(*shape, *array.shape[1:])

    fields = {n: split(getattr(chunks, n)) for n in PackedRows._fields if n not in OTHER_FIELDS}
    labels = {task: {n: split(a) for n, a in arrays.items()} for task, arrays in chunks.labels.items()}
    return PackedRows(**fields, labels=labels), split(numbers)


def make_score(corpus: Corpus, objective: Objective, episode: Episode, split: str) -> Score:
    """The function that scores predictions for all rows of a split."""
    name, rows = episode.name, episode.rows[split]
    dataset, task = corpus.specs[name].dataset, objective.tasks[name]
    level, labels, encoded = LEVELS[task.level], rows.labels[name], corpus.splits[dataset][split].encoded
    to_arguments = metric_arguments(corpus, objective, name, dataset, split)

    def score(values: np.ndarray, sums: np.ndarray) -> float:
        gathered = level.gather(encoded, rows.example, labels, "value", values[: len(rows.tokens)])
        gold, predicted = gold_and_predicted(corpus, objective, name, dataset, split, gathered)
        gold, predicted = to_arguments(gold, predicted, np.asarray(sums[2:], np.float64))
        metrics = metric_values(task.with_attributes(metrics=task.metrics[:1]), gold, predicted, names)
        return metrics[task.metrics[0]]

    names: Sequence[str] = corpus.vocabularies[name].all_names
    return score


def _arrays(rows: PackedRows) -> list[np.ndarray]:
    return [array for arrays in rows.labels.values() for array in arrays.values()]


def _indexed(rows: PackedRows, index: np.ndarray) -> PackedRows:
    fields = {name: value[index] for name, value in rows._asdict().items() if name not in OTHER_FIELDS}
    labels = {task: {name: value[index] for name, value in arrays.items()} for task, arrays in rows.labels.items()}
    return PackedRows(**fields, labels=labels)


def _truncated(rows: PackedRows, length: int) -> PackedRows:
    names = ("tokens", "segment", "position", "token_type")
    return rows._replace(**{name: getattr(rows, name)[:, :length] for name in names})
