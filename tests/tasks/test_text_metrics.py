"""Metrics of texts against the packages themselves, and against figures by hand."""

import numpy as np
import pytest

from mtl_jax.tasks.metrics import METRICS, evaluate
from mtl_jax.tasks.text_metrics import GeneratedTexts

GOLD = ["The cat sat on the mat today .", "He said hello .", "It rains a lot here ."]
SAID = ["the cat sat on a mat today .", "He said hello .", "It rains"]


def test_bleu_and_rouge_are_those_of_the_packages_and_merge():
    import sacrebleu
    from rouge_score import rouge_scorer

    assert evaluate("bleu", GOLD, SAID, ()) == pytest.approx(sacrebleu.corpus_bleu(SAID, [GOLD]).score / 100)
    lower = sacrebleu.corpus_bleu(SAID, [GOLD], lowercase=True).score / 100
    assert evaluate("bleu_lower", GOLD, GeneratedTexts(SAID), ()) == pytest.approx(lower)
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
    written = GeneratedTexts(SAID, np.asarray([3.0, 4 * np.log(2.0), 4.0]))
    assert evaluate("perplexity", GOLD, written, ()) == pytest.approx(2.0)
    assert evaluate("token_accuracy", GOLD, written, ()) == 0.75


@pytest.mark.parametrize(
    ("gold", "message", "wanted"),
    [
        (["привет мир как дела"], ["привет мир как дела"], 1.0),
        (["привет 5"], ["пока 5"], 0.5),  # not the digit alone
        (["प्रधानमंत्री राठौर"], ["प्रधानमंत्री में"], 0.5),
        (["北京大学"], ["北京"], 2 / 3),  # a Han character is a word
        (["ein Café"], ["ein Cafe\u0301"], 1.0),
        (["naïve running"], ["naïve runs"], 1.0),  # English words have their stem here too
    ],
)
def test_rouge_reads_words_of_any_script(gold, message, wanted):
    assert evaluate("rougeL", gold, message, ()) == evaluate("rouge1", gold, message, ()) == pytest.approx(wanted)


def test_bleu_of_short_texts_and_of_texts_without_blanks():
    import sacrebleu

    for texts in (["yes", "no"], ["two words", "one"], ["a b c"]):  # no text has a 4-gram
        assert evaluate("bleu", texts, texts, ()) == 1.0
    assert evaluate("bleu", ["yes", "no"], ["yes", "yes"], ()) == pytest.approx(0.5)
    assert evaluate("bleu", ["a b c d"], ["a b c"], ()) == 0.0  # as sacrebleu: the gold text has one
    gold, message = ["我今天去北京大学。"], ["我今天去上海大学。"]
    for name, tokenize in (("bleu_zh", "zh"), ("bleu_char", "char")):
        wanted = sacrebleu.corpus_bleu(message, [gold], tokenize=tokenize).score / 100
        assert evaluate(name, gold, message, ()) == pytest.approx(wanted) and 0.3 < wanted < 1.0


def test_exact_match_of_two_spellings():
    assert evaluate("exact_match", ["café"], ["cafe\u0301"], ()) == 1.0
