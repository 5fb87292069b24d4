"""Metrics of texts against the packages themselves, and against figures by hand."""

import numpy as np
import pytest

from mtl_jax.tasks.metrics import METRICS, evaluate
from mtl_jax.tasks.texts import Written

GOLD = ["The cat sat on the mat today .", "He said hello .", "It rains a lot here ."]
SAID = ["the cat sat on a mat today .", "He said hello .", "It rains"]


def test_bleu_and_rouge_are_those_of_the_packages_and_merge():
    import sacrebleu
    from rouge_score import rouge_scorer

    assert evaluate("bleu", GOLD, SAID, ()) == pytest.approx(sacrebleu.corpus_bleu(SAID, [GOLD]).score / 100)
    lower = sacrebleu.corpus_bleu(SAID, [GOLD], lowercase=True).score / 100
    assert evaluate("bleu_lower", GOLD, Written(SAID), ()) == pytest.approx(lower)
    for name in ("rouge1", "rouge2", "rougeL"):
        scorer = rouge_scorer.RougeScorer([name], use_stemmer=True)
        mean = np.mean([scorer.score(g, s)[name].fmeasure for g, s in zip(GOLD, SAID, strict=True)])
        assert evaluate(name, GOLD, SAID, ()) == pytest.approx(mean)
    assert evaluate("exact_match", GOLD, SAID, ()) == pytest.approx(1 / 3)
    for name in ("bleu", "bleu_lower", "rouge1", "rouge2", "rougeL", "exact_match"):
        metric = METRICS[name]
        parts = [metric.statistics(GOLD[a:b], SAID[a:b], ()) for a, b in ((0, 1), (1, 1), (1, 3))]
        merged = metric.merge(metric.merge(parts[0], parts[1]), parts[2])
        assert metric.value(merged) == pytest.approx(evaluate(name, GOLD, SAID, ()), abs=1e-12)


def test_perplexity_and_accuracy_of_tokens():
    written = Written(SAID, np.asarray([3.0, 4 * np.log(2.0), 4.0]))
    assert evaluate("perplexity", GOLD, written, ()) == pytest.approx(2.0)
    assert evaluate("token_accuracy", GOLD, written, ()) == 0.75
