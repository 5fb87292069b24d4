"""Tagging schemes against hand examples, seqeval, and each other."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES, Entities

from mtl_jax.data.labels import tag_schemes

SPANS = [("PER", 0, 2), ("PER", 2, 3), ("LOC", 3, 4), ("ORG", 5, 8)]
TAGS = {
    "iob1": "I-PER I-PER B-PER I-LOC O I-ORG I-ORG I-ORG",
    "iob2": "B-PER I-PER B-PER B-LOC O B-ORG I-ORG I-ORG",
    "bioes": "B-PER E-PER S-PER S-LOC O B-ORG I-ORG E-ORG",
    "bilou": "B-PER L-PER U-PER U-LOC O B-ORG I-ORG L-ORG",
    "bmes": "B-PER E-PER S-PER S-LOC O B-ORG M-ORG E-ORG",
}


@pytest.mark.parametrize("scheme", TAGS)
def test_hand_example(scheme):
    tags = TAGS[scheme].split()
    assert [tuple(span) for span in tag_schemes.spans_from_tags(tags, scheme)] == SPANS
    assert tag_schemes.tags_from_spans(tag_schemes.spans_from_tags(tags, scheme), 8, scheme) == tags
    for target in TAGS:
        assert tag_schemes.convert_tags(tags, scheme, target) == TAGS[target].split()


@pytest.mark.parametrize(
    ("tags", "scheme", "word"),
    [
        ("O I-X", "iob2", 1),
        ("B-X I-Y", "iob2", 1),
        ("O B-X", "iob1", 1),
        ("B-X O", "bioes", 1),
        ("O E-X", "bioes", 1),
        ("B-X I-X", "bioes", 1),
        ("B-X E-Y", "bioes", 1),
        ("S-X I-X", "bioes", 1),
        ("O PER", "iob2", 1),
        ("E-X", "iob2", 0),
    ],
)
def test_strict_names_the_word(tags, scheme, word):
    with pytest.raises(tag_schemes.TagError) as error:
        tag_schemes.spans_from_tags(tags.split(), scheme)
    assert error.value.word == word


@given(st.lists(st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y"]), max_size=8))
def test_lenient_is_conlleval(tags):
    actual = tag_schemes.spans_from_tags(tags, "iob2", strict=False)
    assert [(kind, start, end - 1) for kind, start, end in actual] == get_entities(tags)


@pytest.mark.parametrize(("scheme", "peer"), [("iob1", IOB1), ("iob2", IOB2), ("bioes", IOBES), ("bilou", BILOU)])
def test_all_short_sentences_against_seqeval(scheme, peer):
    """Every strictly legal sequence of up to four tags over two types has seqeval's entities."""
    letters = {"bioes": "BIES", "bilou": "BILU"}.get(scheme, "BI")
    tags = ["O", *(f"{letter}-{kind}" for letter in letters for kind in "XY")]
    legal = 0
    for length in range(1, 5):
        for sentence in itertools.product(tags, repeat=length):
            try:
                actual = tag_schemes.spans_from_tags(sentence, scheme)
            except tag_schemes.TagError:
                continue
            legal += 1
            (entities,) = Entities([list(sentence)], peer).entities
            assert [tuple(span) for span in actual] == [(e.tag, e.start, e.end) for e in entities]
            assert tag_schemes.tags_from_spans(actual, length, scheme) == list(sentence)
    # one sequence for each way to lay spans of two types over up to four words, whatever the scheme
    assert legal == 3 + 11 + 41 + 153
