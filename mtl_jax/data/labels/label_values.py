"""The labels of a split as read: the different ones once, and a number for each label."""

from __future__ import annotations

import marshal
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

_STEP = 1 << 16  # values of a loop through all


class CodedValues(Sequence):
    """Labels that repeat.

    table  [V] the different labels, in the order in which they first occur; None = missing
    codes  int[n], the index in it of each label
    """

    def __init__(self, table: Sequence[Any], codes: np.ndarray):
        self.table, self.codes = list(table), codes

    @classmethod
    def encode(cls, values: Iterable[Any]) -> CodedValues:
        """The same values, coded."""
        numbers: dict[Hashable, int] = {}
        table: list[Any] = []
        codes = np.asarray([_number(value, numbers, table) for value in values], np.int32)
        return cls(table, codes)

    @classmethod
    def join(cls, parts: Sequence[CodedValues]) -> CodedValues:
        """The values of all parts, one after the other."""
        numbers: dict[Hashable, int] = {}
        table: list[Any] = []
        translations = [np.asarray([_number(v, numbers, table) for v in part.table], np.int64) for part in parts]
        codes = np.empty(sum(map(len, parts)), np.min_scalar_type(max(len(table) - 1, 0)))
        begin = 0
        for translation, part in zip(translations, parts, strict=True):
            codes[begin : begin + len(part)] = translation[part.codes] if len(part) else 0
            begin += len(part)
        return cls(table, codes)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.table[code] for code in self.codes[index].tolist()]
        return self.table[int(self.codes[index])]

    def __iter__(self) -> Iterator[Any]:
        for begin in range(0, len(self), _STEP):
            yield from map(self.table.__getitem__, self.codes[begin : begin + _STEP].tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None

    def counts(self) -> list[int]:
        """[V], how often each label occurs."""
        return np.bincount(self.codes, minlength=len(self.table)).tolist()

    def satisfying(self, condition: Callable[[Any], bool]) -> np.ndarray:
        """int64, the indices of the labels that meet a condition."""
        is_met = np.fromiter(map(condition, self.table), bool, len(self.table))
        return np.flatnonzero(is_met[self.codes]) if is_met.any() else np.zeros(0, np.int64)

    def mapped(self, function: Callable[[Any], Any]) -> CodedValues:
        """`function` of each label."""
        return CodedValues([function(value) for value in self.table], self.codes)

    @property
    def none_known(self) -> bool:
        """Whether every label is missing."""
        return all(value is None for value in self.table)


class NumberValues(Sequence):
    """Labels that are numbers: float64[n], NaN = missing."""

    def __init__(self, numbers: np.ndarray):
        self.numbers = numbers

    @classmethod
    def encode(cls, values: Iterable[float | None]) -> NumberValues:
        """The same values as an array."""
        return cls(np.asarray([np.nan if value is None else value for value in values], np.float64))

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return list(NumberValues(self.numbers[index]))
        value = float(self.numbers[index])
        return None if np.isnan(value) else value

    def __iter__(self) -> Iterator[float | None]:
        for begin in range(0, len(self), _STEP):
            for value in self.numbers[begin : begin + _STEP].tolist():
                yield None if value != value else value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None

    def satisfying(self, condition: Callable[[Any], bool]) -> np.ndarray:
        """int64, the indices of the labels that meet a condition."""
        return np.flatnonzero(np.fromiter(map(condition, self), bool, len(self)))

    @property
    def none_known(self) -> bool:
        """Whether every label is missing."""
        return bool(np.isnan(self.numbers).all())


def packed_table(values: CodedValues) -> str:
    """The table as a string for JSON."""
    return marshal.dumps(values.table, 2).hex()


def unpacked_table(packed: str) -> list[Any]:
    """The table that `packed_table` wrote."""
    return marshal.loads(bytes.fromhex(packed))


def hashable(value: Any) -> Hashable:
    """A key that equal labels share: sets and distributions in any order."""
    if isinstance(value, dict):
        return frozenset(value.items())
    return frozenset(value) if isinstance(value, tuple) else value


def _number(value: Any, numbers: dict[Hashable, int], table: list[Any]) -> int:
    """The number of a value, a new one for a value that is not in the table."""
    key = value if type(value) is str else (type(value), tuple(value.items()) if isinstance(value, dict) else value)
    number = numbers.setdefault(key, len(table))
    if number == len(table):
        table.append(value)
    return number
