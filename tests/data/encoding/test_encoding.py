import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_jax.data.encoding.encode import copy_for_predicates, encode, overlong_note, select_examples
from mtl_jax.data.encoding.record_inputs import extract_inputs
from mtl_jax.data.records import Record
from mtl_jax.data.tokenizers import Template
from mtl_jax.errors import UserError


class Letters:
    """A sub-word tokenizer for tests: a letter is a token; specials 1 before, 2 between, 3 after."""

    single = Template(((1, 0),), (), ((3, 0),), (0, 1))
    pair = Template(((1, 0),), ((2, 0),), ((3, 1),), (0, 1))
    size = 200
    fingerprint = "letters"

    def encode_texts(self, texts):
        return [[ord(c) for c in text] for text in texts]

    def encode_words(self, sentences):
        return [self.encode_texts(words) for words in sentences]

    def id_to_token(self, index):
        return chr(index)


def texts(*values):
    fields = ("a", "b")[: len(values[0])]
    return extract_inputs(
        [Record(dict(zip(fields, v, strict=True)), "f.tsv", n) for n, v in enumerate(values, 1)], text=fields
    )


def sentences(*values, predicates=None):
    predicates = predicates or [[] for _ in values]
    return extract_inputs(
        [
            Record({"w": list(v), "predicates": p}, "f.conll", n)
            for n, (v, p) in enumerate(zip(values, predicates, strict=True), 1)
        ],
        words="w",
        predicates="predicates",
    )


def example(split, n):
    return "".join(map(chr, split.tokens[split.token_offsets[n] : split.token_offsets[n + 1]])).translate(
        {1: "<", 2: "|", 3: ">"}
    )


def test_single_and_pair():
    split = encode(texts(("ab", "c"), ("d", "efg")), Letters(), 20)
    assert [example(split, n) for n in range(2)] == ["<ab|c>", "<d|efg>"]
    assert split.token_type.tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 1, 1]
    assert not split.overlong.any() and overlong_note("x", split) is None


@pytest.mark.parametrize(
    "a, b, expected",
    [
        ("aaaaaa", "b", "<aaaa|b>"),
        ("a", "bbbbbb", "<a|bbbb>"),
        ("aaaa", "bbbb", "<aaa|bb>"),
        ("aa", "bbbb", "<aa|bbb>"),
    ],
)
def test_the_longer_text_of_a_pair_loses_tokens_first(a, b, expected):
    assert example(encode(texts((a, b)), Letters(), 8), 0) == expected


def test_truncation_is_counted():
    split = encode(texts(("abcdef",), ("ab",)), Letters(), 6)
    assert [example(split, n) for n in range(2)] == ["<abcd>", "<ab>"]
    assert split.overlong.tolist() == [1, 2, 0]
    assert overlong_note("d/train", split) == "d/train: 1 of 2 (50.0%) too long, truncated, 2 tokens left out"
    with pytest.raises(UserError, match=r"f\.tsv:1: 8 tokens"):
        encode(texts(("abcdef",), ("ab",)), Letters(), 6, "error")


def test_split_at_words():
    split = encode(sentences(["ab", "c", "de", "f"], ["x"]), Letters(), 5, "split")
    assert [example(split, n) for n in range(3)] == ["<abc>", "<def>", "<x>"]
    assert split.record.tolist() == [0, 0, 1] and split.first_word.tolist() == [0, 2, 0]
    assert split.example_words.tolist() == [2, 2, 1] and split.word_token.tolist() == [1, 3, 1, 3, 1]
    assert "split, 1 more examples" in overlong_note("d", split) and split.overlong.tolist() == [1, 0, 0]


def test_truncated_words_and_a_word_that_is_too_long():
    split = encode(sentences(["ab", "c", "de", "f"]), Letters(), 5, "truncate")
    assert example(split, 0) == "<abc>" and split.overlong.tolist() == [1, 3, 2] and split.words.tolist() == [4]
    split = encode(sentences(["a", "bcdefg", "h"]), Letters(), 5, "split")
    assert [example(split, n) for n in range(3)] == ["<a>", "<bcd>", "<h>"] and split.overlong.tolist() == [1, 3, 0]


def test_predicates_follow_their_word():
    split = encode(sentences(["ab", "c", "de"], predicates=[[2, 0]]), Letters(), 5, "split")
    assert split.sequence.tolist() == [1, 0] and split.sequence_offsets.tolist() == [0, 1, 2]


def test_examples_in_another_order():
    split = encode(sentences("abc", "xy", ["de"], predicates=[[0, 2], [], [0]]), Letters(), 9)
    taken = select_examples(split, np.asarray([2, 0]))
    assert [example(taken, n) for n in range(2)] == ["<de>", "<abc>"] and taken.record.tolist() == [2, 0]
    assert taken.word_token.tolist() == [1, 1, 2, 3] and taken.sequence.tolist() == [0, 0, 1]
    assert taken.sequence_offsets.tolist() == [0, 1, 3] and taken.words.tolist() == split.words.tolist()


def test_copies_for_many_predicates():
    split = encode(sentences("abc", "xy", "z", predicates=[[0, 1, 2], [1], []]), Letters(), 9)
    copied = copy_for_predicates(split, 6)
    assert copied.record.tolist() == [0, 0, 1, 2] and copied.copy.tolist() == [False, True, False, False]
    assert [example(copied, n) for n in range(4)] == ["<abc>", "<abc>", "<xy>", "<z>"]
    assert copied.sequence.tolist() == [0, 1, 2, 0] and copied.sequence_offsets.tolist() == [0, 2, 3, 4, 4]
    assert copied.word_token.tolist() == [1, 2, 3, 1, 2, 3, 1, 2, 1]
    assert copied.is_first_example.tolist() == [True, False, True, True]
    assert len(copy_for_predicates(split, 1).record) == 5  # never without a predicate
    assert copy_for_predicates(split, 9) is split


@pytest.mark.parametrize(
    "fields, kwargs, message",
    [
        ({"a": " "}, {"text": "a"}, r"f:7: field 'a': empty text"),
        ({"a": 3}, {"text": "a"}, r"f:7: field 'a' should be a string"),
        ({"text": "x"}, {"text": "texts"}, r"f:7: .*no field 'texts'.*'text'"),
        ({"w": []}, {"words": "w"}, r"f:7: field 'w': empty text"),
        ({"w": "a b"}, {"words": "w"}, r"f:7: field 'w' should be a list of words"),
        ({"w": ["a", None]}, {"words": "w"}, r"f:7: field 'w' should be a list of words"),
        ({"w": ["a"], "p": [1]}, {"words": "w", "predicates": "p"}, r"f:7: field 'p' should list word indices"),
        ({"w": ["a"]}, {}, "either `text`"),
        ({"w": ["a"]}, {"words": "w", "text": "w"}, "either `text`"),
    ],
)
def test_bad_records(fields, kwargs, message):
    with pytest.raises(UserError, match=message):
        extract_inputs([Record(fields, "f", 7)], **kwargs)


def test_bad_settings():
    with pytest.raises(UserError, match="no room"):
        encode(texts(("a", "b")), Letters(), 4)
    with pytest.raises(UserError, match="cut"):
        encode(texts(("a",)), Letters(), 9, "cut")
    with pytest.raises(UserError, match="between words"):
        encode(texts(("a",)), Letters(), 9, "split")


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.text("abc", min_size=1, max_size=9), min_size=1, max_size=12), max_size=6), st.integers(3, 12)
)
def test_every_word_is_in_one_example(values, max_length):
    split = encode(sentences(*values), Letters(), max_length, "split")
    assert (split.lengths <= max_length).all()
    actual = [[] for _ in values]
    for n, record in enumerate(split.record):
        body = example(split, n)[1:-1]
        starts = split.word_token[split.word_offsets[n] : split.word_offsets[n + 1]] - 1
        assert split.first_word[n] == len(actual[record])
        actual[record] += [body[a:b] for a, b in zip(starts, [*starts[1:], len(body)], strict=True)]
    assert actual == [[word[: max_length - 2] for word in value] for value in values]
    lost = sum(max(len(word) - max_length + 2, 0) for value in values for word in value)
    assert split.overlong[1] == lost and split.overlong[2] == 0


def test_nothing_to_encode():
    assert len(encode(extract_inputs([], words="w"), Letters(), 5).record) == 0
    assert np.diff(encode(extract_inputs([], text="a"), Letters(), 5).token_offsets).size == 0
