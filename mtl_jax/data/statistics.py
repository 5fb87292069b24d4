"""Statistics of a split: lengths, packing, counts of labels. Plain numbers, ready for JSON."""

from __future__ import annotations

from typing import Any

import numpy as np

from mtl_jax.data.batch import PackedRows
from mtl_jax.data.encoding.encode import EncodedSplit
from mtl_jax.data.encoding.gold_labels import GoldLabels
from mtl_jax.data.labels.label_spec import LabelSpec
from mtl_jax.data.labels.vocabulary import LabelVocabulary
from mtl_jax.data.packing import fill_ratio


def length_statistics(split: EncodedSplit, rows: PackedRows) -> dict[str, Any]:
    """Numbers of records, examples, rows and tokens of a split, the share of real tokens, percentiles of lengths."""
    lengths = split.lengths
    p50, p90, p99 = np.percentile(lengths, (50, 90, 99)) if len(lengths) else (0, 0, 0)
    return {
        "records": len(split.words),
        "examples": len(split.record),
        "overlong": int(split.overlong[0]),
        "rows": len(rows.tokens),
        "tokens": int(lengths.sum()),
        "real": fill_ratio(rows),
        "length": {"p50": float(p50), "p90": float(p90), "p99": float(p99), "max": int(lengths.max(initial=0))},
    }


def label_counts(gold: GoldLabels, spec: LabelSpec, classes: LabelVocabulary) -> dict[str, Any]:
    """Counts by class (sums of probabilities where labels are distributions); mean, standard deviation and range of
    real labels, and of the lengths of target sequences in tokens.
    """
    if spec.kind == "tokens":
        lengths = np.diff(gold.offsets)
        return _numbers(lengths[lengths > 0], int((lengths == 0).sum()))
    if spec.kind == "real":
        return _numbers(gold.value[gold.known], int((~gold.known).sum()))
    value = gold.value[gold.known]
    result: dict[str, Any] = {"known": int(gold.known.sum()), "missing": int((~gold.known).sum())}
    if value.ndim == 2:
        counts = value.sum(0, dtype=np.float64).tolist()
    else:
        counts = np.bincount(value, minlength=len(classes.all_names)).tolist()
    return result | {"counts": dict(zip(classes.all_names, counts, strict=False))}


def _numbers(value: np.ndarray, missing: int) -> dict[str, Any]:
    result: dict[str, Any] = {"known": len(value), "missing": missing}
    if len(value):
        wide = value.astype(np.float64)
        result |= {name: float(getattr(wide, name)()) for name in ("mean", "std", "min", "max")}
    return result
