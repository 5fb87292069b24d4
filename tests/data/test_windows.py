"""Texts read through windows: what each holds, which of them has the answer, and what is said of the whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_jax.data.corpus import load
from mtl_jax.data.datasets import ReadData
from mtl_jax.data.encoding.encode import encode
from mtl_jax.data.encoding.record_inputs import extract_inputs
from mtl_jax.data.labels import answer_spans
from mtl_jax.data.labels.label_spec import LabelSpec
from mtl_jax.data.records import Record
from mtl_jax.data.sampler import Mixing
from mtl_jax.data.tokenizers import WordTokenizer, WordVocabulary
from mtl_jax.errors import UserError

SPAN = LabelSpec("answer", "d", "answers", "span", "span")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))


def devlin(length, size, stride):
    """(begin, length) of each window, as in the loop published with BERT."""
    spans, offset = [], 0
    while offset < length:
        taken = min(length - offset, size)
        spans.append((offset, taken))
        if offset + taken == length:
            break
        offset += min(taken, stride)
    return spans


def context(n, length, answer=None):
    """Words of a text, and its record: the answer is (first, last) word, () for none, None for no label."""
    words = [f"r{n}w{i}" for i in range(length)]
    label = answer
    if answer:
        first, last = answer
        label = [
            {"text": " ".join(words[first : last + 1]), "answer_start": len(" ".join(words[:first])) + (first > 0)}
        ]
    return words, Record({"q": "which one ?", "c": " ".join(words), "answers": label}, "f", n)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(8, 20), st.integers(0, 25))
def test_windows_are_those_of_bert(lengths, room, stride):
    texts = [context(n, length) for n, length in enumerate(lengths)]
    inputs = extract_inputs([record for _, record in texts], text=("q", "c"), aligned=True)
    tokenizer = WordTokenizer.build([r.fields["c"] for _, r in texts] + ["which one ?"])
    split = encode(inputs, tokenizer, room, "windows", stride)
    size = room - 4  # the question and [SEP]
    wanted = [(n, *w) for n, length in enumerate(lengths) for w in devlin(length, size, stride or size // 2)]
    assert list(zip(split.record, split.first_word, split.example_words, strict=True)) == wanted
    for example, (n, begin, count) in enumerate(wanted):
        span = slice(split.token_offsets[example], split.token_offsets[example + 1])
        message = [tokenizer.id_to_token(t) for t in split.tokens[span]]
        assert message == ["which", "one", "?", "[SEP]", *texts[n][0][begin : begin + count]]
        at = split.word_token[split.word_offsets[example] : split.word_offsets[example + 1]]
        assert [message[t] for t in at] == message[4:]
    assert split.words.tolist() == lengths and split.overlong[0] == sum(length > size for length in lengths)
    assert split.is_first_example.sum() == len(lengths)


def test_a_long_question_leaves_half_of_the_room_and_words_overlap_too():
    record = Record({"q": " ".join(f"q{i}" for i in range(30)), "c": "a b c d e f g"}, "f", 1)
    inputs = extract_inputs([record], text=("q", "c"), aligned=True)
    tokenizer = WordTokenizer.build([record.fields["q"], record.fields["c"]])
    split = encode(inputs, tokenizer, 11, "windows", 3)
    assert split.example_words.tolist() == [5, 4] and split.lengths.tolist() == [11, 10]  # 5 + [SEP] + 5
    assert split.overlong.tolist() == [1, 25, 0]
    words = extract_inputs([Record({"w": list("abcdefgh")}, "f", 1)], words="w")
    split = encode(words, tokenizer, 4, "windows", 3)
    assert [(int(a), int(n)) for a, n in zip(split.first_word, split.example_words, strict=True)] == [
        (0, 4),
        (3, 4),
        (6, 2),
    ]


def corpus_of(records, dev=(), **options):
    entry = {"text": ("q", "c")}
    splits = {"train": records} | ({"dev": dev} if dev else {})
    read = lambda name, entry, seed: ReadData(splits, {s: len(r) for s, r in splits.items()}, [], "")  # noqa: E731
    return load({"d": entry}, [SPAN], WordVocabulary(), read=read, mixing=Mixing(), row_length=24, **options)


@pytest.mark.parametrize("packed", [True, False])
def test_each_window_has_the_answer_or_none(packed):
    places = [(3, 5), (18, 22), (), None, (40, 41), (0, 0), (17, 25)]
    texts = [context(n, 50 if n != 5 else 4, place) for n, place in enumerate(places)]
    corpus = corpus_of([record for _, record in texts], pack=packed, stride=7)
    assert corpus.vocabularies["answer"].names == ("answer", "no answer")
    rows, seen = corpus.rows["d"]["train"], {}
    actual = rows.labels["answer"]
    for row in range(len(rows.tokens)):
        for segment in range(1, actual["segment"][row].max() + 1):
            at = np.flatnonzero(actual["segment"][row] == segment)
            tokens = [corpus.tokenizer.id_to_token(t) for t in rows.tokens[row, actual["token"][row, at[1:]]]]
            n = int(tokens[0][1:].split("w")[0])
            begin = int(tokens[0].split("w")[1])
            assert tokens == texts[n][0][begin : begin + len(tokens)]
            assert actual["word"][row, at].tolist() == [-1, *range(begin, begin + len(tokens))]
            value, place = actual["value"][row, at], places[n]
            assert actual["mask"][row, at].all() == (place is not None)
            inside = bool(place) and begin <= place[0] and place[1] < begin + len(tokens)
            seen.setdefault(n, []).append(inside)
            if inside:
                assert [int(np.flatnonzero(value & bit)[0]) - 1 + begin for bit in (1, 2)] == list(place)
            elif place is not None:
                assert value[0] == 3 and not value[1:].any()
    windows = len(devlin(50, 20, 7))
    assert {n: len(w) for n, w in seen.items()} == {n: windows if n != 5 else 1 for n in range(7)}
    assert all(any(inside) == bool(places[n]) for n, inside in seen.items())
    assert any(f"read through windows, {6 * (windows - 1)} more examples" in note for note in corpus.notes)


def test_windows_without_the_answer_do_not_make_questions_unanswerable():
    asked = [context(n, 30, (n, n)) for n in range(4)]
    corpus = corpus_of([record for _, record in asked], dev=[context(9, 30, (2, 2))[1], context(8, 30, ())[1]])
    assert corpus.vocabularies["answer"].names == ("answer", answer_spans.ELSEWHERE)
    assert any("no unanswerable question" in note for note in corpus.notes)  # dev has one
    assert corpus.rows["d"]["train"].labels["answer"]["mask"].any()
    short = corpus_of([context(n, 15, (n, n))[1] for n in range(4)])
    assert short.vocabularies["answer"].names == ("answer",)
    # an answer longer than a window is in none of them: it is counted, and not learned from
    long = corpus_of([context(0, 60, (3, 40))[1], context(1, 60, (3, 4))[1]])
    assert any("1 of 2 answers are cut off" in note for note in long.notes)
    rows, encoded = long.rows["d"]["train"], long.splits["d"]["train"].encoded
    actual = rows.labels["answer"]
    row, at = np.nonzero(actual["word"] < 0)
    real = actual["segment"][row, at] > 0
    record = encoded.record[rows.example[row, actual["slot"][row, at]]][real]
    assert (actual["mask"][row, at][real] == (record == 1)).all()


def test_windows_are_refused_by_name_where_they_cannot_be():
    with pytest.raises(UserError, match="overflow: 'window' is none of"):
        corpus_of([context(0, 30, (1, 1))[1]], overflow="window")
