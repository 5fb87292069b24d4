"""Metrics of written texts: BLEU and ROUGE by the packages that papers use, and what teacher forcing tells.

Gold are N texts. A prediction is `GeneratedTexts`, or a list of N texts. Two spellings of a character are one (NFC).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mtl_jax import unicode

_ORDER = 4  # of the longest n-grams of BLEU


class GeneratedTexts(NamedTuple):
    """texts   N texts
    sums    float64 [3] over all targets, given the tokens before: likeliest tokens, Σ -log p, tokens; None where
            they are not known
    """

    texts: Sequence[str]
    sums: np.ndarray | None = None


def bleu_statistics(
    gold: Any, written: GeneratedTexts | Sequence[str], names: Sequence[str], lower: bool = False, tokenize: str = "13a"
) -> dict[str, np.ndarray]:
    """n-gram counts [4] that are right, in all, and in the gold texts; lengths. By sacrebleu (Post 2018).

    `tokenize` is a tokenization of sacrebleu: "13a" takes what stands between blanks for words, which texts in Chinese,
    Japanese or Thai do not have; "zh" parts Chinese characters, "char" all.
    """
    from sacrebleu.metrics import BLEU

    zeros = np.zeros(_ORDER, np.int64)
    if not len(gold):
        return {"right": zeros, "all": zeros, "possible": zeros, "length": np.int64(0), "gold": np.int64(0)}
    gold, written = _composed(gold), _composed(_texts(written))
    scorer = BLEU(lowercase=lower, force=True, tokenize=tokenize)
    score = scorer.corpus_score(written, [gold])
    lengths = np.asarray([len(scorer.tokenizer(text.lower() if lower else text).split()) for text in gold])
    return {
        "right": np.asarray(score.counts, np.int64),
        "all": np.asarray(score.totals, np.int64),
        "possible": np.maximum(lengths[:, None] - np.arange(_ORDER), 0).sum(0),
        "length": np.int64(score.sys_len),
        "gold": np.int64(score.ref_len),
    }


def bleu(s: Any) -> float:
    """Corpus BLEU (Papineni et al. 2002), 0 ... 1, with sacrebleu's exponential smoothing.

    Where no gold text has four words, only n-grams as long as the longest has count: else equal texts would have 0.
    """
    from sacrebleu.metrics import BLEU

    order = int((s["possible"] > 0).sum())
    if not s["length"] or not order:
        return 0.0
    counts = (s[name][:order].tolist() for name in ("right", "all"))
    lengths = int(s["length"]), int(s["gold"])
    score = BLEU.compute_bleu(*counts, *lengths, smooth_method="exp", max_ngram_order=order)
    return float(min(score.score / 100.0, 1.0))  # the mean of logarithms is rounded


def rouge(
    gold: Any, written: GeneratedTexts | Sequence[str], names: Sequence[str], which: str
) -> dict[str, np.ndarray]:
    """Summed F of ROUGE (Lin 2004; the package rouge-score, with stemming), and the number of texts.

    Words of other letters than a to z, which the package drops, are read as `mtl_jax.unicode` finds them.
    """
    scorer = _scorer(which)
    total = sum(scorer.score(g, w)[which].fmeasure for g, w in zip(gold, _texts(written), strict=True))
    return {"right": np.float64(total), "total": np.int64(len(gold))}


def exact_matches(gold: Any, written: GeneratedTexts | Sequence[str], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Texts that are the gold text, blanks aside, and the number of texts."""
    pairs = zip(_composed(gold), _composed(_texts(written)), strict=True)
    return {"right": np.int64(sum(g.split() == w.split() for g, w in pairs)), "total": np.int64(len(gold))}


def token_sums(gold: Any, written: GeneratedTexts | Sequence[str], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Likeliest tokens, Σ -log p, tokens."""
    sums = written.sums if isinstance(written, GeneratedTexts) else None
    right, nll, total = np.zeros(3) if sums is None else sums
    return {"right": np.float64(right), "nll": np.float64(nll), "total": np.float64(total)}


def perplexity(s: Any) -> float:
    """exp of the mean -log p of a token; 0 without tokens."""
    return float(np.exp(min(s["nll"] / s["total"], 700.0))) if s["total"] > 0 else 0.0


def _texts(written: GeneratedTexts | Sequence[str]) -> Sequence[str]:
    return written.texts if isinstance(written, GeneratedTexts) else written


def _composed(texts: Sequence[str]) -> list[str]:
    return [unicode.nfc(text) for text in texts]


@functools.cache
def _scorer(which: str):
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer([which], tokenizer=_rouge_words())


@functools.cache
def _rouge_words() -> Any:
    """A tokenizer of rouge-score: on ASCII texts its own with stemming, which is for English words alone."""
    from rouge_score import tokenizers

    english = tokenizers.DefaultTokenizer(use_stemmer=True)
    word = re.compile(unicode.words_and_signs(apostrophes=False)[0])

    class Words(tokenizers.Tokenizer):
        def tokenize(self, text: str) -> list[str]:
            if text.isascii():
                return english.tokenize(text)
            words = word.findall(unicode.nfc(text.lower()).replace("_", " "))
            return [part for w in words for part in (english.tokenize(w) if w.isascii() else (w,))]

    return Words()
