"""(seed, step) -> batch: pure functions, so that resuming needs the number of the step only.

A data set's n-th draw of R rows is rows [nR, (n+1)R) of its endless sequence of epochs, each a permutation of all
rows keyed by (seed, name of the data set, epoch), which other data sets do not influence.

Mixing. "all": every data set has a block of its own in every batch. Otherwise a batch has `blocks` blocks, each of a
drawn data set. Draws come in cycles of fixed length in which each data set occurs a fixed number of times, in an order
keyed by (seed, cycle), so that the earlier draws of a data set can be counted without replaying them. Shares: "size"
p ∝ n rows, "temperature" p ∝ n^(1/τ), "weights" p given, "round_robin" equal, in a fixed order.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Self

import numpy as np

from mtl_jax.data.batch import Batch, BatchLayout, PackedRows
from mtl_jax.data.batch_gathering import blank_labels, gather_batch, with_equal_slots
from mtl_jax.errors import UserError

MIXINGS = ("all", "size", "temperature", "weights", "round_robin")


@dataclasses.dataclass(frozen=True)
class Mixing:
    """How data sets share the batches; see the head of this file.

    kind         "all" | "size" | "temperature" | "weights" | "round_robin"
    blocks       blocks of a batch where data sets are drawn
    temperature  τ of "temperature": 1 = by size, larger = more even
    weights      (data set, weight) pairs of "weights", one for each data set
    """

    kind: str = "all"
    blocks: int = 1
    temperature: float = 1.0
    weights: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in MIXINGS:
            raise UserError(f"mixing {self.kind!r} is none of {', '.join(MIXINGS)}")
        if self.blocks < 1:
            raise UserError(f"mixing: blocks should be at least 1, found {self.blocks}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UserError(f"mixing: temperature should be above 0, found {self.temperature}")
        if any(not math.isfinite(weight) or weight <= 0 for _, weight in self.weights):
            raise UserError(f"mixing: weights should be above 0, found {dict(self.weights)}")

    def sampling_shares(self, datasets: Sequence[str], rows: Sequence[int]) -> np.ndarray:
        """float64[data sets], the share of the draws of each data set; they sum to 1."""
        if self.kind in ("size", "temperature"):
            log = np.log(np.asarray(rows, np.float64))
            log = log if self.kind == "size" else log / self.temperature
            share = np.exp(log - log.max())
        elif self.kind == "weights":
            given = dict(self.weights)
            if set(given) != set(datasets):
                raise UserError(f"mixing: weights name {sorted(given)}, the data sets are {sorted(datasets)}")
            share = np.asarray([given[name] for name in datasets], np.float64)
        else:
            share = np.ones(len(datasets))
        return share / share.sum()


def make_layout(
    datasets: Sequence[str],
    tasks: Sequence[str],
    dataset_of: Sequence[int],
    mixing: Mixing,
    pictured: Sequence[int] = (),
    untrained: Sequence[int] = (),
) -> BatchLayout:
    """The static layout of training batches under `mixing`; none has rows of the data sets `untrained`."""
    everything = tuple(d for d in range(len(datasets)) if d not in untrained)
    candidates = tuple((d,) for d in everything) if mixing.kind == "all" else (everything,) * mixing.blocks
    return BatchLayout(tuple(datasets), tuple(tasks), tuple(dataset_of), candidates, tuple(pictured))


def evaluation_layout(layout: BatchLayout, dataset: str) -> BatchLayout:
    """The layout of batches with one block, of `dataset`; tasks of other data sets read no block."""
    return dataclasses.replace(layout, candidates=((layout.datasets.index(dataset),),))


class IndexSampler:
    """Which rows of which data set are in the batch of a step: a pure function of (seed, step), for rows of any kind.

    Its only mutable attribute is a cache of permutations.
    """

    def __init__(self, counts: Mapping[str, int], rows_per_block: int, seed: int = 0, mixing: Mixing | None = None):
        """
        Args:
          counts: number of rows of each data set.
          rows_per_block: R.
          seed: of the order.
          mixing: by default a block of every data set in every batch.

        Raises:
          UserError: no rows in a block, or in a data set.
        """
        mixing = mixing or Mixing()
        if rows_per_block < 1:
            raise UserError(f"rows_per_block should be at least 1, found {rows_per_block}")
        for name, count in counts.items():
            if not count:
                raise UserError(f"data set {name}: no rows to train on")
        self.seed, self.rows_per_block = seed, rows_per_block
        self.datasets = tuple(counts)
        self.blocks = len(counts) if mixing.kind == "all" else mixing.blocks
        self._counts = list(counts.values())
        self._cycle = None
        if mixing.kind != "all":
            self._cycle = _apportion(mixing.sampling_shares(self.datasets, self._counts))
        self._in_order = mixing.kind == "round_robin"
        self._permutations: collections.OrderedDict[tuple, np.ndarray] = collections.OrderedDict()

    def with_seed(self, seed: int) -> Self:
        """A sampler with another seed, over the same rows."""
        other = copy.copy(self)
        other.seed, other._permutations = seed, collections.OrderedDict()
        return other

    def steps_per_epoch(self, dataset: str) -> float:
        """The mean number of steps in which every row of a data set is drawn once."""
        index = self.datasets.index(dataset)
        draws = self._counts[index] / self.rows_per_block
        if self._cycle is None:
            return draws
        return draws * self._cycle.sum() / (self._cycle[index] * self.blocks)

    def indices(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(int32[B] data set of each block, int32[B, R] indices of its rows) of a step >= 0."""
        draws = [self._draw(step, block, self.blocks) for block in range(self.blocks)]
        rows = [self._take(dataset, number) for dataset, number in draws]
        return np.asarray([dataset for dataset, _ in draws], np.int32), np.stack(rows).astype(np.int32)

    def _draw(self, step: int, block: int, blocks: int) -> tuple[int, int]:
        """(data set, number of its earlier draws) of a block."""
        if self._cycle is None:
            return block, step
        cycle, at = divmod(step * blocks + block, int(self._cycle.sum()))
        order, earlier = self._orders(cycle)
        dataset = int(order[at])
        return dataset, cycle * int(self._cycle[dataset]) + int(earlier[at])

    def _orders(self, cycle: int) -> np.ndarray:
        """int64[2, cycle length]: the data set of each draw, and the number of its earlier draws in the cycle."""

        def make() -> np.ndarray:
            order = np.repeat(np.arange(len(self._cycle)), self._cycle)
            if not self._in_order:
                order = order[permutation(len(order), self.seed, "mixing", cycle)]
            earlier = np.empty_like(order)
            for dataset, count in enumerate(self._cycle):
                earlier[order == dataset] = np.arange(count)
            return np.stack([order, earlier])

        return self._cached(("order", "", 0 if self._in_order else cycle), make)

    def _take(self, dataset: int, number: int) -> np.ndarray:
        """Rows [nR, (n+1)R) of the endless sequence of a data set's epochs."""
        count, name = self._counts[dataset], self.datasets[dataset]
        begin = number * self.rows_per_block
        end = begin + self.rows_per_block
        parts = []
        while begin < end:
            epoch, at = divmod(begin, count)
            length = min(end - begin, count - at)
            order = self._cached(
                ("rows", name, epoch), lambda e=epoch: permutation(count, self.seed, f"rows {name}", e).astype(np.int32)
            )
            parts.append(order[at : at + length])
            begin += length
        return np.concatenate(parts)

    def _cached(self, key: tuple, make: Callable[[], np.ndarray]) -> np.ndarray:
        if key not in self._permutations:
            self._permutations[key] = make()
            if len(self._permutations) > 4 * len(self._counts) + 4:
                self._permutations.popitem(last=False)
        self._permutations.move_to_end(key)
        return self._permutations[key]


class BatchSampler(IndexSampler):
    """Training batches of packed rows as a pure function of (seed, step).

    rows  the rows of each data set of the layout, all with the same number of example slots; None of those that no
          batch holds
    """

    def __init__(
        self,
        rows: Mapping[str, PackedRows],
        layout: BatchLayout,
        seed: int,
        rows_per_block: int,
        mixing: Mixing | None = None,
    ):
        """`rows` by data set (all that `layout.candidates` name), `rows_per_block` = R over all processes together."""
        self._trained = np.unique(np.concatenate(layout.candidates).astype(np.int32))
        names = [layout.datasets[dataset] for dataset in self._trained]
        super().__init__({name: len(rows[name].tokens) for name in names}, rows_per_block, seed, mixing)
        self.layout, self.blocks = layout, len(layout.candidates)
        padded = dict(zip(self._trained.tolist(), with_equal_slots([rows[name] for name in names]), strict=True))
        self.rows = [padded.get(dataset) for dataset in range(len(layout.datasets))]
        self._blank = blank_labels(self.rows, layout)

    def steps_per_epoch(self, dataset: str) -> float:
        """The mean number of steps in which every row of a data set is drawn once; inf where none is."""
        return super().steps_per_epoch(dataset) if dataset in self.datasets else math.inf

    def indices(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """As `IndexSampler.indices`, with the numbers of data sets in the layout."""
        dataset, rows = super().indices(step)
        return self._trained[dataset], rows

    def batch(self, step: int, process_index: int = 0, process_count: int = 1) -> Batch:
        """The batch of a step; process p of n takes the p-th of n equal parts of the R rows of each block."""
        if self.rows_per_block % process_count:
            raise UserError(f"rows_per_block {self.rows_per_block} is not divisible by {process_count} processes")
        dataset, row = self.indices(step)
        part = self.rows_per_block // process_count
        row = row[:, process_index * part : (process_index + 1) * part]
        return gather_batch(self.rows, self._blank, self.layout, dataset, row)


def evaluation_batches(rows: PackedRows, layout: BatchLayout, rows_per_block: int) -> Iterator[Batch]:
    """All rows of one split in order, R rows in one block a batch; the last batch ends with empty rows (row = -1).

    `layout` is that of `evaluation_layout`.
    """
    ((dataset,),) = layout.candidates
    by_dataset = [rows if d == dataset else None for d in range(len(layout.datasets))]
    blank = blank_labels(by_dataset, layout)
    for begin in range(0, len(rows.tokens), rows_per_block):
        row = np.arange(begin, begin + rows_per_block, dtype=np.int32)
        row[row >= len(rows.tokens)] = -1
        yield gather_batch(by_dataset, blank, layout, np.asarray([dataset], np.int32), row[None])


def joint_evaluation_batches(
    rows: Mapping[str, PackedRows], layout: BatchLayout, rows_per_block: int
) -> Iterator[Batch]:
    """All rows of one split of several data sets in order, R rows in a block of each; the shorter ones end with empty
    rows (row = -1).

    `rows` by data set; `layout` has one block for each of them.
    """
    datasets = [dataset for (dataset,) in layout.candidates]
    block_rows = with_equal_slots([rows[layout.datasets[d]] for d in datasets])
    by_dataset: list[PackedRows | None] = [None] * len(layout.datasets)
    for dataset, dataset_rows in zip(datasets, block_rows, strict=True):
        by_dataset[dataset] = dataset_rows
    blank = blank_labels(by_dataset, layout)
    counts = np.asarray([len(dataset_rows.tokens) for dataset_rows in block_rows])[:, None]
    for begin in range(0, int(counts.max()), rows_per_block):
        row = np.broadcast_to(np.arange(begin, begin + rows_per_block, dtype=np.int32), (len(datasets), rows_per_block))
        yield gather_batch(by_dataset, blank, layout, np.asarray(datasets, np.int32), np.where(row < counts, row, -1))


def _apportion(shares: np.ndarray) -> np.ndarray:
    """int64[data sets], draws of each in a cycle: of the shortest cycle within 1 % of every share, else of the most
    exact one of up to 10,000 draws.

    By largest remainders; every data set is drawn at least once.
    """
    best, best_error = None, math.inf
    for length in range(len(shares), 10_001):
        counts = np.maximum(np.floor(shares * length), 1)
        remainder = length - int(counts.sum())
        if remainder < 0:
            continue
        counts[np.argsort(counts - shares * length, kind="stable")[:remainder]] += 1
        error = np.abs(counts / (length * shares) - 1).max()
        if error < best_error:
            best, best_error = counts.astype(np.int64), error
        if best_error <= 0.01:
            break
    return np.ones(len(shares), np.int64) if best is None else best


def permutation(count: int, seed: int, name: str, number: int) -> np.ndarray:
    """int64[count], a permutation keyed by all arguments.

    From Philox's raw stream, which NumPy guarantees to be stable; the streams of its shuffles may change.
    """
    key = np.frombuffer(hashlib.sha256(f"{seed}\n{name}\n{number}".encode()).digest()[:16], "<u8")
    return np.argsort(np.random.Philox(key=key).random_raw(count), kind="stable")
