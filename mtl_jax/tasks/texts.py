"""Metrics of written texts: BLEU and ROUGE by the packages that papers use, and what teacher forcing tells.

Gold are N texts. A prediction is `Written`, or a list of N texts.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Written(NamedTuple):
    """texts   N texts
    sums    float64 [3] over all targets, given the tokens before: likeliest tokens, Σ -log p, tokens; None where
            they are not known
    """

    texts: Sequence[str]
    sums: np.ndarray | None = None


def bleu_statistics(
    gold: Any, written: Written | Sequence[str], names: Sequence[str], lower: bool = False
) -> dict[str, np.ndarray]:
    """n-gram counts [4] that are right and in all, and lengths, of sacrebleu (Post 2018; tokenization 13a)."""
    from sacrebleu.metrics import BLEU

    zeros = np.zeros(4, np.int64)
    if not len(gold):
        return {"right": zeros, "all": zeros, "length": np.int64(0), "gold": np.int64(0)}
    score = BLEU(lowercase=lower, force=True).corpus_score(list(_texts(written)), [list(gold)])
    return {
        "right": np.asarray(score.counts, np.int64),
        "all": np.asarray(score.totals, np.int64),
        "length": np.int64(score.sys_len),
        "gold": np.int64(score.ref_len),
    }


def bleu(s: Any) -> float:
    """Corpus BLEU (Papineni et al. 2002), 0 ... 1, with sacrebleu's exponential smoothing."""
    from sacrebleu.metrics import BLEU

    if not s["length"]:
        return 0.0
    lengths = int(s["length"]), int(s["gold"])
    found = BLEU.compute_bleu(s["right"].tolist(), s["all"].tolist(), *lengths, smooth_method="exp")
    return float(found.score / 100.0)


def rouge(gold: Any, written: Written | Sequence[str], names: Sequence[str], which: str) -> dict[str, np.ndarray]:
    """Summed F of ROUGE (Lin 2004; the package rouge-score, with stemming), and the number of texts."""
    scorer = _scorer(which)
    total = sum(scorer.score(g, w)[which].fmeasure for g, w in zip(gold, _texts(written), strict=True))
    return {"right": np.float64(total), "total": np.int64(len(gold))}


def exact(gold: Any, written: Written | Sequence[str], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Texts that are the gold text, blanks aside, and the number of texts."""
    right = sum(g.split() == w.split() for g, w in zip(gold, _texts(written), strict=True))
    return {"right": np.int64(right), "total": np.int64(len(gold))}


def tokens(gold: Any, written: Written | Sequence[str], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Likeliest tokens, Σ -log p, tokens."""
    sums = written.sums if isinstance(written, Written) else None
    right, nll, total = np.zeros(3) if sums is None else sums
    return {"right": np.float64(right), "nll": np.float64(nll), "total": np.float64(total)}


def perplexity(s: Any) -> float:
    """exp of the mean -log p of a token; 0 without tokens."""
    return float(np.exp(min(s["nll"] / s["total"], 700.0))) if s["total"] > 0 else 0.0


def _texts(written: Written | Sequence[str]) -> Sequence[str]:
    return written.texts if isinstance(written, Written) else written


@functools.cache
def _scorer(which: str):
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer([which], use_stemmer=True)
