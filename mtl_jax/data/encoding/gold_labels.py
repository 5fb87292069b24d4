"""The gold labels of a split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class GoldLabels(NamedTuple):
    """The gold labels of every record of a split, including those of words that truncation cut off.

    value    int32[n] class id (0 where missing) | float32[n] real | float32[n, C] distribution or 0/1 set
    known    bool[n], False where the label is missing; True for labels that train lacks (id >= C)
    offsets  int64[M+1]. Record m has value[offsets[m]:offsets[m+1]]: one label; one for each word; for level
             "predicate" predicates x words labels, the words of the first predicate first; for level "sequence" one
             for each token of the target, none where there is no target
    texts    level "sequence": [M] the complete targets, joined from their tokens; generated texts are compared with
             them
    sources  level "sequence", where the task copies: [M] lists of the input's tokens, see `labels.target_sequences`
    complete level "span": bool[M], whether an example of the record holds its whole answer; None in other levels
    """

    value: np.ndarray
    known: np.ndarray
    offsets: np.ndarray
    texts: Sequence[str] = ()
    sources: Sequence[Sequence[str]] = ()
    complete: np.ndarray | None = None

    def at_record(self, record: int) -> tuple[np.ndarray, np.ndarray]:
        """(value, known) of one record."""
        span = slice(self.offsets[record], self.offsets[record + 1])
        return self.value[span], self.known[span]
