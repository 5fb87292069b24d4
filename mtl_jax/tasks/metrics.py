"""Metrics from statistics that merge, so that data in chunks or on several hosts give the value of the whole.

`METRICS[name].statistics(gold, predicted, names)` gives arrays, `merge` joins those of two chunks, `value` makes the
figure (a share is 0 ... 1). Host-side numpy. Gold labels and predictions of N records, by the kind of predictions:

    ids     int [N] class ids, predicted -1 = no prediction. Gold distributions [N, C] count as their likeliest class
    sets    0/1 [N, C]; the prediction may have fewer columns (labels that train lacks)
    values  float [N]
    tags    N sequences of tag ids. Gold -1 = unknown: left out of accuracy, O in spans. Predicted -1 = no prediction:
            wrong in accuracy, O in spans
    texts   N texts; a prediction may also be `texts.GeneratedTexts`
    answers N lists of right answers, one for each of several people; N predicted answers: texts ("" = no answer), or
            tuples of word indices
    hidden  int [n] hidden tokens, float [n, 2]: likeliest token, log-probability of the hidden one

`names` are the class names, those that train lacks last. Where a figure is 0/0 (no data, a correlation with something
constant) it is 0, never NaN.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import numpy as np

from mtl_jax.tasks import answer_metrics, tags, text_metrics

Statistics = Mapping[str, np.ndarray]


def add(left: Statistics, right: Statistics) -> dict[str, np.ndarray]:
    """Sums, key by key."""
    return {k: left[k] + right[k] for k in left}


def concatenate(left: Statistics, right: Statistics) -> dict[str, np.ndarray]:
    """One after the other, key by key: for what cannot be summed."""
    return {k: np.concatenate([left[k], right[k]]) for k in left}


class Metric(NamedTuple):
    """statistics(gold, predicted, names) -> arrays; value(arrays) -> float; merge(arrays, arrays) -> arrays.

    predictions  which predictions it reads: a subset of {"ids", "sets", "values", "tags", "texts", "answers", "hidden"}
    increasing  whether more is better
    spans       whether it compares spans, which tags have to mark
    binary      whether it is that of the second of two classes
    blanks      whether words are what stands between blanks
    from_sums   whether it is read off the sums of `Task.metric_sums` in place of the texts
    """

    statistics: Callable[[Any, Any, Sequence[str]], dict[str, np.ndarray]]
    value: Callable[[Statistics], float]
    predictions: frozenset[str]
    merge: Callable[[Statistics, Statistics], dict[str, np.ndarray]] = add
    increasing: bool = True
    spans: bool = False
    binary: bool = False
    blanks: bool = False
    from_sums: bool = False


def _ratio(numerator: Any, denominator: Any) -> float:
    return float(numerator / denominator) if denominator > 0 else 0.0


def _same_length(gold: Sequence, predicted: Sequence) -> None:
    if len(gold) != len(predicted):
        raise ValueError(f"{len(gold)} gold labels, {len(predicted)} predictions")


def _ids(gold: Any, predicted: Any) -> tuple[np.ndarray, np.ndarray]:
    """Flat int64 arrays of gold and predicted ids, from ids, distributions or sequences of tags."""
    _same_length(gold, predicted)
    if len(gold) and np.ndim(predicted[0]):
        for g, p in zip(gold, predicted, strict=True):
            _same_length(g, p)
        gold, predicted = (np.concatenate([np.asarray(s, np.int64) for s in x]) for x in (gold, predicted))
        return gold[gold >= 0], predicted[gold >= 0]
    gold = np.asarray(gold)
    return (gold.argmax(-1) if gold.ndim == 2 else gold).astype(np.int64), np.asarray(predicted, np.int64)


def _sets(gold: Any, predicted: Any, width: int) -> tuple[np.ndarray, np.ndarray]:
    """bool [N, width] of gold and predicted sets."""
    _same_length(gold, predicted)
    out = []
    for x in (gold, predicted):
        x = np.asarray(x).reshape(len(x), np.shape(x)[1] if len(x) else width) > 0.5
        out.append(np.pad(x, ((0, 0), (0, width - x.shape[1]))))
    return out[0], out[1]


def _right_ids(gold: Any, predicted: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    gold, predicted = _ids(gold, predicted)
    return {"right": np.int64((gold == predicted).sum()), "total": np.int64(len(gold))}


def _equal_sets(gold: Any, predicted: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    gold, predicted = _sets(gold, predicted, len(names))
    return {"right": np.int64((gold == predicted).all(1).sum()), "total": np.int64(len(gold))}


def _accuracy(s: Statistics) -> float:
    return _ratio(s["right"], s["total"])


def _counts(gold: Any, predicted: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Per class [C] of ids or sets: both gold and predicted, gold, predicted."""
    if len(predicted) and np.ndim(predicted[0]):
        gold, predicted = _sets(gold, predicted, len(names))
        return {"both": (gold & predicted).sum(0), "gold": gold.sum(0), "predicted": predicted.sum(0)}
    return _word_counts(gold, predicted, names)


def _word_counts(gold: Any, predicted: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    gold, predicted = _ids(gold, predicted)
    count = functools.partial(np.bincount, minlength=len(names))
    return {"both": count(gold[gold == predicted]), "gold": count(gold), "predicted": count(predicted[predicted >= 0])}


def _micro_f1(s: Statistics) -> float:
    return _ratio(2 * s["both"].sum(), (s["gold"] + s["predicted"]).sum())


def _macro_f1(s: Statistics) -> float:
    """Mean F1 of the classes that are in gold or predictions (as scikit-learn)."""
    total = s["gold"] + s["predicted"]
    return float((2 * s["both"][total > 0] / total[total > 0]).mean()) if total.any() else 0.0


def _binary_f1(s: Statistics) -> float:
    """F1 of the second class, id 1: of names sorted, "1" of "0" and "1", "yes" of "no" and "yes"."""
    return _ratio(2 * s["both"][1], s["gold"][1] + s["predicted"][1])


def _matthews(s: Statistics) -> float:
    """R_K of Gorodkin (2004), for two classes Matthews (1975). No prediction is one more class of predictions."""
    gold, predicted, both = (s[k].astype(float) for k in ("gold", "predicted", "both"))
    n = gold.sum()
    missing = n - predicted.sum()
    covariance = both.sum() * n - gold @ predicted
    spread = (n * n - gold @ gold) * (n * n - predicted @ predicted - missing**2)
    return _ratio(covariance, np.sqrt(max(spread, 0.0)))


def _pairs(gold: Any, predicted: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    _same_length(gold, predicted)
    values = {"gold": np.asarray(gold, np.float64), "predicted": np.asarray(predicted, np.float64)}
    chex.assert_rank([*values.values()], 1)  # [N] against [N, 1] is a matrix of differences
    return values


def _pearson(s: Statistics) -> float:
    # a constant whose mean is rounded would leave a spread of rounding errors
    if not len(s["gold"]) or np.ptp(s["gold"]) == 0 or np.ptp(s["predicted"]) == 0:
        return 0.0
    x, y = (s[k] - s[k].mean() for k in ("gold", "predicted"))
    x, y = x / np.abs(x).max(), y / np.abs(y).max()  # their squares shall neither overflow nor vanish
    return _ratio(x @ y, np.sqrt((x @ x) * (y @ y)))


def _spearman(s: Statistics) -> float:
    from scipy.stats import rankdata

    return _pearson({k: rankdata(v) for k, v in s.items()})


def _determination(s: Statistics) -> float:
    """R² = 1 − Σ(y − ŷ)² / Σ(y − ȳ)², below 0 for what is worse than the mean."""
    if not len(s["gold"]) or np.ptp(s["gold"]) == 0:
        return 0.0
    return float(1.0 - ((s["gold"] - s["predicted"]) ** 2).sum() / ((s["gold"] - s["gold"].mean()) ** 2).sum())


def _squared(gold: Any, predicted: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    s = _pairs(gold, predicted, names)
    return {"squares": ((s["gold"] - s["predicted"]) ** 2).sum(), "total": np.int64(len(s["gold"]))}


def _span_counts(gold: Any, predicted: Any, names: Sequence[str], without: frozenset[str]) -> dict[str, np.ndarray]:
    _same_length(gold, predicted)
    for g, p in zip(gold, predicted, strict=True):
        _same_length(g, p)
    span_sets = [{s for s in tags.spans(x, names) if s[-1] not in without} for x in (gold, predicted)]
    counts = (len(span_sets[0] & span_sets[1]), len(span_sets[0]), len(span_sets[1]))
    return dict(zip(("both", "gold", "predicted"), map(np.int64, counts), strict=True))


# spans of all types, exact in both ends and type (Tjong Kim Sang & De Meulder 2003; seqeval's default mode)
_entities = functools.partial(_span_counts, without=frozenset())
# the verb itself is given, so it does not count (Carreras & Màrquez 2005). C-X counts as a type of its own
_roles = functools.partial(_span_counts, without=frozenset({"V"}))


def _agreement(gold: Any, predicted: Any, names: Sequence[str], agree: Callable[[Any, Any], float]) -> dict[str, Any]:
    """Each prediction counts as far as it agrees with the best of the right answers."""
    _same_length(gold, predicted)
    best = [
        max(agree(g, p) for g in answer_metrics.comparable_answers(right))
        for right, p in zip(gold, predicted, strict=True)
    ]
    return {"right": np.float64(sum(best)), "total": np.int64(len(best))}


def _hidden(gold: Any, predicted: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    predicted = np.asarray(predicted, np.float64).reshape(len(gold), 2)
    return {
        "right": np.int64((predicted[:, 0] == gold).sum()),
        "surprise": -predicted[:, 1].sum(),
        "total": np.int64(len(gold)),
    }


def _perplexity(s: Statistics) -> float:
    """exp of the mean surprise; capped where it would overflow."""
    if not s["total"]:
        return 0.0
    return float(np.exp(min(_ratio(s["surprise"], s["total"]), 700.0)))


_IDS, _SETS, _VALUES, _TAGS, _TEXTS, _ANSWERS, _HIDDEN = (
    frozenset({of}) for of in ("ids", "sets", "values", "tags", "texts", "answers", "hidden")
)

METRICS: dict[str, Metric] = {
    "accuracy": Metric(_right_ids, _accuracy, _IDS | _TAGS),
    "subset_accuracy": Metric(_equal_sets, _accuracy, _SETS),
    "micro_f1": Metric(_counts, _micro_f1, _IDS | _SETS),
    "macro_f1": Metric(_counts, _macro_f1, _IDS | _SETS),
    "word_macro_f1": Metric(_word_counts, _macro_f1, _TAGS),
    "f1": Metric(_counts, _binary_f1, _IDS, binary=True),
    "matthews": Metric(_counts, _matthews, _IDS),
    "pearson": Metric(_pairs, _pearson, _VALUES, concatenate),
    "spearman": Metric(_pairs, _spearman, _VALUES, concatenate),
    "r2": Metric(_pairs, _determination, _VALUES, concatenate),
    "mse": Metric(_squared, lambda s: _ratio(s["squares"], s["total"]), _VALUES, increasing=False),
    "entity_f1": Metric(_entities, _micro_f1, _TAGS, spans=True),
    "entity_precision": Metric(_entities, lambda s: _ratio(s["both"], s["predicted"]), _TAGS, spans=True),
    "entity_recall": Metric(_entities, lambda s: _ratio(s["both"], s["gold"]), _TAGS, spans=True),
    "span_f1": Metric(_roles, _micro_f1, _TAGS, spans=True),
    "bleu": Metric(text_metrics.bleu_statistics, text_metrics.bleu, _TEXTS, blanks=True),
    "bleu_lower": Metric(
        functools.partial(text_metrics.bleu_statistics, lower=True), text_metrics.bleu, _TEXTS, blanks=True
    ),
    "bleu_zh": Metric(functools.partial(text_metrics.bleu_statistics, tokenize="zh"), text_metrics.bleu, _TEXTS),
    "bleu_char": Metric(functools.partial(text_metrics.bleu_statistics, tokenize="char"), text_metrics.bleu, _TEXTS),
    "rouge1": Metric(functools.partial(text_metrics.rouge, which="rouge1"), _accuracy, _TEXTS),
    "rouge2": Metric(functools.partial(text_metrics.rouge, which="rouge2"), _accuracy, _TEXTS),
    "rougeL": Metric(functools.partial(text_metrics.rouge, which="rougeL"), _accuracy, _TEXTS),
    "exact_match": Metric(text_metrics.exact_matches, _accuracy, _TEXTS),
    "token_accuracy": Metric(text_metrics.token_sums, _accuracy, _TEXTS, from_sums=True),
    "perplexity": Metric(text_metrics.token_sums, text_metrics.perplexity, _TEXTS, increasing=False, from_sums=True),
    "answer_exact": Metric(functools.partial(_agreement, agree=answer_metrics.exact_match), _accuracy, _ANSWERS),
    "answer_f1": Metric(functools.partial(_agreement, agree=answer_metrics.overlap_f1), _accuracy, _ANSWERS),
    "masked_accuracy": Metric(_hidden, _accuracy, _HIDDEN),
    "masked_perplexity": Metric(_hidden, _perplexity, _HIDDEN, increasing=False),
}


def evaluate(name: str, gold: Any, predicted: Any, names: Sequence[str]) -> float:
    """The value of METRICS[name] on one set of records."""
    return METRICS[name].value(METRICS[name].statistics(gold, predicted, names))
