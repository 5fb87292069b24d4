"""Words in any script: what stays together, what comes apart, one spelling; and no character is lost.

FUZZ=10000 python -m pytest tests/test_unicode.py tests/tasks/test_text_metrics_fuzz.py
"""

import os
import unicodedata

import hypothesis
import pytest
from hypothesis import strategies as st

from mtl_jax import unicode
from mtl_jax.data.tokenizers import WordTokenizer

EXAMPLES = int(os.environ.get("FUZZ", "100"))
SETTINGS = hypothesis.settings(max_examples=EXAMPLES, deadline=None, derandomize="FUZZ" not in os.environ)
# letters with marks, joiners, scripts without blanks, pictures, signs that compose, all blanks that there are
PIECES = st.sampled_from(
    [
        *"aZé'’-_.,\"( \n\t\u00a0\u200b\u2028\x1f",
        "e\u0301",
        "\u0301",
        "क",
        "्",
        "ि",
        "ं",
        "త",
        "ె",
        "ก",
        "ี",
        "ש",
        "ָ",
        "م",
        "ُ",
        "\u200c",
        "\u200d",
        "北",
        "の",
        "が",
        "か\u3099",
        "ケー",
        "\u1100",
        "\u1161",
        "\u11a8",
        "각",
        "👩",
        "🏽",
        "\ufe0f",
        "🇩",
        "İ",
        "Σ",
        "ß",
        "\u212b",
        "\u037e",
        "5",
        "<",
        "\u0338",
        "\ufeff",
        "\u200f",
    ]
)
TEXTS = st.text(max_size=30) | st.lists(PIECES, max_size=20).map("".join)


@pytest.mark.parametrize(
    "text",
    [
        "प्रधानमंत्री सुरभिका राठौर दिल्ली में",
        "వాళ్ళు తెలుగు మాట్లాడుతారు",
        "বাংলা ভাষা ক্ষুদ্র",
        "ที่นี่ ภาษาไทย",
        "مُحَمَّدٌ رَسُول",
        "שָׁלוֹם עֲלֵיכֶם",
        "café nai\u0308ve",
        "می\u200cخواهم",
        "क्\u200dष",
        "தமிழ் மொழி",
        "ខ្មែរ",
        "i\u0307stanbul",
    ],
)
def test_a_word_keeps_its_marks_and_joiners(text):
    (words,) = WordTokenizer.split_words([text], lower=False)
    assert words == [unicodedata.normalize("NFC", word) for word in text.split()]


def test_scripts_without_blanks_and_pictures():
    def cut(text):
        return WordTokenizer.split_words([text], lower=False)[0]

    assert cut("iPhone用のケースは東京、か\u3099") == ["iPhone", "用", "の", "ケース", "は", "東", "京", "、", "が"]
    assert cut("ខ្មែរ\u200bភាសា") == ["ខ្មែរ", "ភាសា"]  # a zero-width space parts words
    assert cut("한국어 조선말!") == ["한국어", "조선말", "!"]
    pictures = ["👩\u200d❤\ufe0f\u200d👨", "🇩🇪", "👍🏽", "1\ufe0f\u20e3", "❤"]
    assert cut(" ".join(pictures)) == cut("".join(pictures)) == pictures
    assert cut("Don't e-mail l’été_2!") == ["Don't", "e", "-", "mail", "l’été_2", "!"]


def test_two_spellings_are_one_word_with_the_offsets_of_the_text_as_it_stands():
    composed, apart = "Der Café İst", "Der Cafe\u0301 I\u0307st"
    tokenizer = WordTokenizer.build([composed])
    assert (
        tokenizer.encode_texts([apart])
        == tokenizer.encode_texts([composed])
        == [[tokenizer.index[w] for w in ("der", "café", "i\u0307st")]]
    )
    assert tokenizer.encode_words([apart.split()]) == tokenizer.encode_words([composed.split()])
    (offsets,) = tokenizer.offsets([apart])
    assert [apart[a:b] for a, b in offsets] == apart.split()


@SETTINGS
@hypothesis.given(text=TEXTS, lower=st.booleans(), apostrophes=st.booleans())
def test_no_character_but_blanks_is_lost(text, lower, apostrophes):
    actual = [match.span() for match in unicode.pattern(apostrophes, text.isascii()).finditer(text)]
    remaining = "".join(text[a:b] for a, b in actual)
    assert remaining == "".join(c for c in text if not c.isspace() and c != "\u200b")
    assert actual == [match.span() for match in unicode.pattern(apostrophes, False).finditer(text)]
    words = WordTokenizer.split_words([text], lower)[0]
    tokenizer = WordTokenizer.build(["a", text], lower=lower)
    assert len(tokenizer.offsets([text])[0]) == len(tokenizer.encode_texts([text])[0]) == max(len(words), 1)
    assert all(word == unicodedata.normalize("NFC", word) for word in words)
    assert not lower or not text.isascii() or words == WordTokenizer.split_words([text.lower()], False)[0]


@SETTINGS
@hypothesis.given(text=TEXTS)
def test_composing_keeps_places(text):
    composed, places = unicode.nfc_with_offsets(text)
    assert composed == unicodedata.normalize("NFC", text) == unicode.nfc(text)
    assert len(places) == len(composed) + 1 and places == sorted(places) and places[-1] == len(text)
    for n, sign in enumerate(composed):  # what stands there makes this character
        assert sign in unicodedata.normalize("NFC", text[places[n] : next(p for p in places[n + 1 :] if p > places[n])])


def test_names_of_files_keep_marks():
    names = ["कि", "की", "a b", "a/b", "cafe\u0301", "x.y"]
    assert list(map(unicode.file_name, names)) == ["कि", "की", "a_b", "a_b", "cafe\u0301", "x_y"]
    assert unicode.file_name("x.y-z w", allowed=".-") == "x.y-z_w"


def test_texts_of_scripts_without_blanks():
    assert all(map(unicode.has_no_blanks, ["我今天去北京。", "ภาษาไทย 2", "これはペンです", "爱 NLP 和机器学习"]))
    assert not any(map(unicode.has_no_blanks, ["", "!", "plain", "प्रधानमंत्री", "한국어", "the 北 of China", "привет"]))
