"""Blanks between words: a text comes back as it was.

FUZZ=10000 python -m pytest tests/data/encoding/test_word_spacing.py
"""

import os
import re

import hypothesis
import pytest
from hypothesis import strategies as st

from mtl_jax import unicode
from mtl_jax.data.encoding import word_spacing
from mtl_jax.data.tokenizers import WordTokenizer

EXAMPLES = int(os.environ.get("FUZZ", "100"))
PIECES = st.sampled_from([*" \n\u200b.,;:!?-/'\"()[]“”‘’«»$%#@¿…", "a", "Bé", "10", "है", "।", "北", "ケー", "。", "👍"])


@hypothesis.settings(max_examples=EXAMPLES, deadline=None, derandomize="FUZZ" not in os.environ)
@hypothesis.given(text=st.lists(PIECES, max_size=24).map("".join) | st.text(max_size=24))
def test_a_text_comes_back(text):
    words, blanks = WordTokenizer.split_with_blanks(text, lower=False)
    assert words == WordTokenizer.split_words([text], lower=False)[0] and len(blanks) == len(words)
    actual = word_spacing.join_words(word_spacing.mark_blanks(words, blanks))
    # each word is composed by itself: what is left of a text is composed once more
    assert unicode.nfc(actual) == unicode.nfc(re.sub(r"[\s\u200b]+", " ", text).strip(" "))


def test_usual_blanks_need_no_token():
    for text in (
        'Hello, world! She said: "Well, (almost) all of it." It costs $5, e-mail and/or phone; “fine”…',
        "प्रधानमंत्री सुरभिका राठौर दिल्ली में हैं।",
        "我今天去北京大学。（你呢？）",
        "¿Qué? «sí»",
        "Don't",
    ):
        assert not set(word_spacing.MARKERS) & set(
            word_spacing.mark_blanks(*WordTokenizer.split_with_blanks(text, False))
        ), text
    marked = word_spacing.mark_blanks(*WordTokenizer.split_with_blanks("3.14 is 3 % - U.S.", False))
    assert marked == [
        "3",
        ".",
        "[NO BLANK]",
        "14",
        "is",
        "3",
        "[BLANK]",
        "%",
        "[BLANK]",
        "-",
        "[BLANK]",
        "U",
        ".",
        "[NO BLANK]",
        "S",
        ".",
    ]


@pytest.mark.parametrize("tokens", [[], ["[BLANK]"], ["[NO BLANK]", "a", "[BLANK]", "[NO BLANK]", "b", "[BLANK]"]])
def test_markers_that_a_model_may_write_anywhere(tokens):
    assert word_spacing.join_words(tokens) == ("ab" if "a" in tokens else "")
