"""Whatever two texts are, a metric of texts is a number from 0 to 1, and 1 for the text itself.

FUZZ=10000 python -m pytest tests/tasks/test_text_metrics_fuzz.py
"""

import os
import unicodedata

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from mtl_jax import unicode
from mtl_jax.tasks.metrics import METRICS, evaluate
from mtl_jax.tasks.text_metrics import GeneratedTexts

EXAMPLES = int(os.environ.get("FUZZ", "100"))
SETTINGS = hypothesis.settings(max_examples=EXAMPLES, deadline=None, derandomize="FUZZ" not in os.environ)
TEXTS_METRICS = sorted(n for n, m in METRICS.items() if "texts" in m.predictions and not m.from_sums)
WORDS = st.sampled_from(
    [
        "the",
        "A",
        "cats",
        "running",
        "don't",
        "3.14",
        "U.S.",
        "-",
        "...",
        "привет",
        "мир",
        "प्रधानमंत्री",
        "।",
        "北京",
        "です",
        "ケース",
        "cafe\u0301",
        "café",
        "ภาษา",
        "👍🏽",
        "&amp;",
        "<skipped>",
        "\u200b",
        "\x00",
        "_",
        "ʼ",
        "“x”",
        "\n",
        "\ufeff",
        "５",
        "ﬁ",
    ]
)
TEXT = st.text(max_size=40) | st.lists(WORDS, max_size=12).map(" ".join) | st.lists(WORDS, max_size=8).map("".join)
WORD = unicode.pattern(False, False)


@pytest.mark.parametrize("name", TEXTS_METRICS)
@SETTINGS
@hypothesis.given(pairs=st.lists(st.tuples(TEXT, TEXT), max_size=3))
def test_metrics_of_texts(name, pairs):
    gold, written = [g for g, _ in pairs], [w for _, w in pairs]
    value = evaluate(name, gold, written, ())
    assert 0.0 <= value <= 1.0 and np.isfinite(value)
    metric = METRICS[name]
    parts = [metric.statistics([g], GeneratedTexts([w]), ()) for g, w in pairs] or [metric.statistics([], [], ())]
    merged = parts[0]
    for part in parts[1:]:
        merged = metric.merge(merged, part)
    assert metric.value(merged) == pytest.approx(value, abs=1e-9)
    # ROUGE reads words alone, ROUGE-2 pairs of them, BLEU nothing of what sacrebleu takes for markup
    least = {"rouge1": 1, "rougeL": 1, "rouge2": 2}.get(name, 0)
    full = [g for g in gold if sum(w[0].isalnum() and w.strip("_") != "" for w in _words(g)) >= least]
    full = [g for g in full if name == "exact_match" or (g.split() and "<skipped>" not in g and "&" not in g)]
    if full:
        again = [unicodedata.normalize("NFD", g) for g in full]
        assert evaluate(name, full, full, ()) == evaluate(name, full, again, ()) == pytest.approx(1.0, abs=1e-12)


@SETTINGS
@hypothesis.given(gold=st.lists(TEXT, min_size=1, max_size=3), written=TEXT)
def test_metrics_of_answers(gold, written):
    exact, overlap = (evaluate(name, [gold], [written], ()) for name in ("answer_exact", "answer_f1"))
    assert 0.0 <= exact <= overlap <= 1.0
    for answer in gold:
        for name in ("answer_exact", "answer_f1"):
            assert evaluate(name, [[answer]], [unicodedata.normalize("NFD", answer)], ()) == 1.0


@SETTINGS
@hypothesis.given(gold=st.text(st.characters(max_codepoint=127), max_size=40), written=st.text("ab cd's.-_1\n"))
def test_on_ascii_rouge_is_that_of_the_package_and_answers_are_those_of_squad(gold, written):
    import collections
    import re
    import string

    from rouge_score import rouge_scorer

    for name in ("rouge1", "rouge2", "rougeL"):
        scorer = rouge_scorer.RougeScorer([name], use_stemmer=True)
        assert evaluate(name, [gold], [written], ()) == scorer.score(gold, written)[name].fmeasure

    def squad(answer):  # evaluate-v2.0.py
        answer = "".join(c for c in answer.lower() if c not in set(string.punctuation))
        return re.sub(r"\b(a|an|the)\b", " ", answer).split()

    first, second = squad(gold), squad(written)
    same = (collections.Counter(first) & collections.Counter(second)).total()
    wanted = float(first == second) if not first or not second else 2 * same / (len(first) + len(second))
    assert evaluate("answer_f1", [[gold]], [written], ()) == pytest.approx(wanted, abs=1e-12)


def _words(text):
    return [match[0] for match in WORD.finditer(text)]
