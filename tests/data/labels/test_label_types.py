"""Answers, choices and marked spans: read off records, put among tokens, packed into rows; dirt is counted."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_jax.data.corpus import load
from mtl_jax.data.datasets import ReadData
from mtl_jax.data.encoding import marked_spans
from mtl_jax.data.encoding.encode import encode
from mtl_jax.data.encoding.record_inputs import extract_inputs
from mtl_jax.data.files import location
from mtl_jax.data.labels import answer_spans, choices
from mtl_jax.data.labels.label_spec import LabelSpec
from mtl_jax.data.readers import READERS
from mtl_jax.data.records import Note, Record
from mtl_jax.data.sampler import Mixing
from mtl_jax.data.tokenizers import PretrainedTokenizer, WordTokenizer, WordVocabulary
from mtl_jax.errors import UserError

SPAN = LabelSpec("answer", "d", "answers", "span", "span")
CONTEXT = "The cat, an old one, sat on the old mat."


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))


def words_of(*texts, **options):
    return WordTokenizer.build(texts, **options)


def asked(label, context=CONTEXT, spec=SPAN, **fields):
    """(raw value, gold value, notes) of one question."""
    record = Record({"question": "Where?", "context": context, spec.field: label, **fields}, "f", 1)
    inputs = extract_inputs([record], text=("question", "context"), aligned=True)
    raw, read = answer_spans.collect_answers(inputs, spec)
    split = encode(inputs, words_of(context, "where ?"), 64)
    gold, fitted = answer_spans.encode_answers(raw, split)
    actual = raw.values[0] and tuple(a.begin for a in raw.values[0])
    return actual, tuple(gold.value[0].tolist()), [note.what.split(",")[0] for note in (*read, *fitted)]


@pytest.mark.parametrize(
    "label",
    [
        {"text": ["old mat"], "answer_start": [32]},
        {"text": "old mat", "answer_start": 32},
        [{"text": "old mat", "answer_start": 32}],
        [{"answer_start": 32, "text": " old mat "[1:-1]}],
        {"start": 32, "end": 39},
        [32, 39],
    ],
)
def test_every_form_of_an_answer_is_the_same_span(label):
    assert CONTEXT[32:39] == "old mat"
    # the tokens: The cat , an old one , sat on the old mat .
    assert asked(label) == ((32,), (10, 11), [])


def test_answers_in_two_fields():
    for field, fields, wanted in (
        ("a+s", {"a": "old mat", "s": 32}, (10, 11)),
        ("s+e", {"s": "32", "e": "39"}, (10, 11)),
        ("s+e", {"s": -1, "e": -1}, (-1, -1)),
        ("a+s", {"a": "", "s": -1}, (-1, -1)),
    ):
        spec = LabelSpec("answer", "d", field, "span", "span")
        record = Record({"context": CONTEXT, **fields}, "f", 1)
        inputs = extract_inputs([record], text="context", aligned=True)
        gold, _ = answer_spans.encode_answers(
            answer_spans.collect_answers(inputs, spec)[0], encode(inputs, words_of(CONTEXT), 64)
        )
        assert tuple(gold.value[0].tolist()) == wanted and gold.known[0]


def test_dirt_is_mended_or_left_out_and_counted():
    moved = "answers are not at their offsets"
    assert asked([{"text": "old", "answer_start": 30}]) == ((32,), (10, 10), [moved])  # the nearer one of two
    assert asked([{"text": "old", "answer_start": 10}]) == ((12,), (4, 4), [moved])
    assert asked([{"text": " old mat", "answer_start": 31}]) == ((32,), (10, 11), [])  # blanks around it are none of it
    assert asked([{"text": "OLD  Mat", "answer_start": 30}]) == ((32,), (10, 11), [moved])  # other case, other blanks
    assert asked([{"text": "on\u00a0the", "answer_start": 0}])[1:] == ((8, 9), [moved])
    assert asked([{"text": "dog", "answer_start": 4}])[1:] == ((-2, -2), ["answers do not occur in the text"])
    assert asked([{"text": "dog", "answer_start": 4}, {"text": "cat", "answer_start": 4}])[1] == (1, 1)
    assert asked([{"text": "ca", "answer_start": 4}])[1:] == ((1, 1), ["answers begin or end inside a token"])
    assert asked([]) == ((), (-1, -1), []) and asked(None)[0] is None
    assert asked({"text": [], "answer_start": []})[1] == (-1, -1)
    for wrong, message in (
        ("mat", "objects with text"),
        ([{"text": "mat"}], "has text"),
        ([[3, 99]], "no characters 3 to 99"),
        ({"text": ["a", "b"], "answer_start": [1]}, "different lengths"),
        ([{"text": 3, "answer_start": 1}], "should be a string"),
        ([{"text": "a", "answer_start": "x"}], "an integer"),
    ):
        with pytest.raises(UserError, match=f"f:1: task answer: .*({message})"):
            asked(wrong)


def test_an_answer_may_be_spelled_in_other_characters_than_its_text():
    context = "Le cafe\u0301 où प्रधानमंत्री दिल्ली। में"  # é in two characters: offsets count both
    inputs = extract_inputs(
        [
            Record({"q": "?", "c": context, "answers": label}, "f", 1)
            for label in (
                [{"text": "café", "answer_start": 3}],
                [{"text": "café où", "answer_start": 5}],
                [{"text": "प्रधानमंत्री", "answer_start": context.index("प्र")}],
            )
        ],
        text=("q", "c"),
        aligned=True,
    )
    raw, notes = answer_spans.collect_answers(inputs, SPAN)
    assert [(a.begin, a.end) for (a,) in raw.values] == [(3, 8), (3, 11), (12, 24)] and len(notes) == 1
    split = encode(inputs, words_of(context), 64)
    gold, fitted = answer_spans.encode_answers(raw, split)
    assert gold.value.tolist() == [[1, 1], [1, 2], [3, 3]] and not fitted
    assert [answer_spans.answer_text(context, split, m, *gold.value[m].tolist()) for m in (0, 2)] == [
        "cafe\u0301",
        "प्रधानमंत्री",
    ]


def test_answers_among_words():
    record = Record({"words": CONTEXT.split(), "answers": [7, 8]}, "f", 1)
    inputs = extract_inputs([record], words="words")
    gold, _ = answer_spans.encode_answers(
        answer_spans.collect_answers(inputs, SPAN)[0], encode(inputs, words_of(CONTEXT), 64)
    )
    assert gold.value.tolist() == [[7, 8]]
    record.fields["answers"] = [8, 10]
    with pytest.raises(UserError, match="no words 8 to 10 among 10"):
        answer_spans.collect_answers(inputs, SPAN)


TEXTS = ["Ein Café, das İstanbul's old name’s got?", "a  b\tc", "…", " ", "the [MASK] sat", "İİ i"]


@pytest.mark.parametrize("lower", [True, False])
def test_offsets_are_those_of_the_tokens(lower):
    tokenizer = words_of(*TEXTS, lower=lower, extra=("[MASK]",))
    for text, ids, offsets in zip(TEXTS, tokenizer.encode_texts(TEXTS), tokenizer.offsets(TEXTS), strict=True):
        assert len(ids) == len(offsets)
        for index, (a, b) in zip(ids, offsets, strict=True):
            if index >= 4:
                token, shown = tokenizer.id_to_token(index), text[a:b].lower() if lower else text[a:b]
                # in lower case "İ" is two characters, of which the second is a token of its own
                assert token in shown if "İ" in text else token.lower() == shown.lower()


def test_offsets_of_a_published_tokenizer(tmp_path):
    """Byte-level tokens begin with their blank, which is no part of an answer."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    for pre in (pre_tokenizers.ByteLevel(add_prefix_space=True), pre_tokenizers.Whitespace()):
        vocabulary = {"[UNK]": 0, "Ġa": 1, "Ġcat": 2, "a": 3, "cat": 4, "[MASK]": 5, "s": 6}
        backend = Tokenizer(models.BPE(vocabulary, [("Ġ", "a")] if False else [], unk_token="[UNK]"))
        if isinstance(pre, pre_tokenizers.Whitespace):
            backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
        backend.pre_tokenizer = pre
        backend.save(str(tmp_path / "tokenizer.json"))
        tokenizer = PretrainedTokenizer(str(tmp_path))
        assert tokenizer.mask_id == 5 and tokenizer.token_to_id("cat") == 4 and tokenizer.token_to_id("dog") is None
        (ids,), (offsets,) = tokenizer.encode_texts(["a cat"]), tokenizer.offsets(["a cat"])
        assert len(ids) == len(offsets) and all("a cat"[a:b].strip() == "a cat"[a:b] for a, b in offsets)


def test_choices_and_their_labels():
    spec = LabelSpec("right", "d", "label", "choice", "choice")

    def number(label, offered=("red", "blue", "B"), spec=spec):
        record = Record({"text": "x", "choices": list(offered), "label": label}, "f", 1)
        return choices.collect_choices(extract_inputs([record], text="text", choices=("choices",)), spec).values[0]

    assert [number(v) for v in (1, "blue", "A", "2", "C", None, "")] == [1, 1, 0, 2, 2, None, None]
    assert number("1", spec=LabelSpec("right", "d", "label", "choice", "choice", classes=("1", "2", "3"))) == 0
    for label, message in (
        (3, "none of the 3"),
        ("green", "none of the 3"),
        (-1, "none"),
        ("B", r"can mean .*\[1, 2\]"),
    ):
        with pytest.raises(UserError, match=f"f:1: task right: .*{message}"):
            number(label)
    record = Record({"text": "x", "a": "red", "b": "blue", "c": ""}, "f", 1)
    assert extract_inputs([record], text="text", choices=("a", "b", "c")).choices == [["red", "blue"]]
    with pytest.raises(UserError, match="f:1: a, c: at least two choices"):
        extract_inputs([record], text="text", choices=("a", "c"))


def test_marks_in_fields_and_in_the_text_are_the_same():
    words = "the old cat sat on the mat".split()
    text = " ".join(words)
    by_words = {"words": words, "a": [1, 2], "b": 6}
    by_text = {"text": text, "a": [4, 11], "b": {"start": 23, "end": 26}}
    inline = {"words": "the <a> old cat </a> sat on the <b> mat </b>".split(), "text": text}
    inline["marked"] = "the <a>old cat</a> sat on the <b>mat</b>"
    tags = ("<a>", "</a>", "<b>", "</b>")
    tokenizer = words_of(text, extra=marked_spans.MARKERS)
    shown = "the [E1] old cat [/E1] sat on the [E2] mat [/E2]"
    for fields, options in (
        (by_words, {"words": "words", "marked": ("a", "b")}),
        (by_text, {"text": "text", "marked": ("a", "b")}),
        (inline, {"words": "words", "marked": tags}),
        (inline, {"text": "marked", "marked": tags}),
    ):
        split = encode(extract_inputs([Record(fields, "f", 1)], **options), tokenizer, 32)
        assert " ".join(map(tokenizer.id_to_token, split.tokens)) == shown
        assert split.mark_token.tolist() == [[1, 4, 8, 10]]
        if "words" in options:
            assert [tokenizer.id_to_token(split.tokens[t]) for t in split.word_token] == words
    # numbers in fields of their own (TACRED), also as a table has them; ends of words excluded, of characters included
    numbers = {"words": words, "text": text, "s": 1, "e": 2, "t": {"s": "6", "e": 6.0}, "a+b": [1, 2]}
    excluded = numbers | {"e": 3, "t": {"s": 6, "e": 7}, "d": 6}
    characters = numbers | {"s": 4, "e": 10, "t": {"s": "23", "e": 25}}
    for fields, marked, options in (
        (numbers, ("s+e", "t.s+t.e"), {"words": "words"}),
        (numbers | {"t": 6}, ("a+b", "t"), {"words": "words"}),
        (numbers, ("s+e", "t.s+t.e"), {"words": "words", "marked_ends": "included"}),
        (excluded, ("s+e", "t.s+t.e"), {"words": "words", "marked_ends": "excluded"}),
        (excluded, ("s+e", "d"), {"words": "words", "marked_ends": "excluded"}),
        (characters, ("s+e", "t.s+t.e"), {"text": "text", "marked_ends": "included"}),
    ):
        split = encode(extract_inputs([Record(fields, "f", 1)], marked=marked, **options), tokenizer, 32)
        assert " ".join(map(tokenizer.id_to_token, split.tokens)) == shown
    with pytest.raises(UserError, match=r"f:1: field 's\+e': no such span, \(1, 1\) \(the last word excluded, see"):
        one = Record(numbers | {"e": 1}, "f", 1)
        extract_inputs([one], words="words", marked=("s+e", "t.s+t.e"), marked_ends="excluded")
    # one in the other, and the same word twice
    for a, b, wanted in (
        ([1, 2], [2, 2], "the [E1] old [E2] cat [/E2] [/E1] sat"),
        (1, 1, "the [E2] [E1] old [/E1] [/E2] cat"),
    ):
        inputs = extract_inputs([Record({"words": words, "a": a, "b": b}, "f", 1)], words="words", marked=("a", "b"))
        assert " ".join(map(tokenizer.id_to_token, encode(inputs, tokenizer, 32).tokens)).startswith(wanted)
    cut = encode(extract_inputs([Record(by_words, "f", 1)], words="words", marked=("a", "b")), tokenizer, 8)
    assert cut.mark_token.tolist() == [[1, 4, -1, -1]]
    for change, message in (
        ({"a": [1, 9]}, "no such span"),
        ({"a": [2, 1]}, "no such span"),
        ({"a": "cat"}, "first and the last"),
    ):
        with pytest.raises(UserError, match=f"f:1: .*{message}"):
            extract_inputs([Record(by_words | change, "f", 1)], words="words", marked=("a", "b"))
    with pytest.raises(UserError, match="'\\[E1\\]' is not in the vocabulary"):
        encode(extract_inputs([Record(by_words, "f", 1)], words="words", marked=("a", "b")), words_of(text), 32)
    own = extract_inputs(
        [Record(by_words, "f", 1)], words="words", marked=("a", "b"), markers=("on", "on", "the", "the")
    )
    assert "the on old cat on sat" in " ".join(map(tokenizer.id_to_token, encode(own, tokenizer, 32).tokens))


def corpus_of(records, entry, spec, **options):
    """The corpus of one data set, all records in train."""
    read = lambda name, entry, seed: ReadData({"train": records}, {"train": len(records)}, [], "")  # noqa: E731
    options = {"row_length": 24, **options}
    return load({"d": entry}, [spec], options.pop("tokenizer", WordVocabulary()), read=read, mixing=Mixing(), **options)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(2, 4)), min_size=1, max_size=15), st.booleans())
def test_all_choices_of_a_record_stand_in_one_row(shapes, packed):
    rng = np.random.default_rng(len(shapes))
    records = [
        Record(
            {
                "text": " ".join(f"r{n}" for _ in range(length)),
                "choices": [f"c{n} c{i}" for i in range(count)],
                "label": int(rng.integers(count)) if n % 3 < 2 else None,
            },
            "f",
            n,
        )
        for n, (length, count) in enumerate(shapes)
    ]
    spec = LabelSpec("right", "d", "label", "choice", "choice")
    corpus = corpus_of(records, {"text": ("text",), "choices": ("choices",)}, spec, pack=packed)
    rows, encoded = corpus.rows["d"]["train"], corpus.splits["d"]["train"].encoded
    actual, seen = rows.labels["right"], {}
    for row, slot in np.argwhere(rows.example >= 0):
        start, length = rows.start[row, slot], rows.length[row, slot]
        tokens = [corpus.tokenizer.id_to_token(t) for t in rows.tokens[row, start : start + length]]
        record, choice = int(tokens[0][1:]), int(actual["choice"][row, slot])
        at = tokens.index("[SEP]")
        assert tokens[at + 1 :] in ([f"c{record}", f"c{choice}"], [f"c{record}"], [])  # what truncation leaves
        label = records[record].fields["label"]
        assert actual["mask"][row, slot] == (label is not None)
        assert not label is not None or actual["value"][row, slot] == (choice == label)
        seen.setdefault(record, set()).add((int(row), int(actual["group"][row, slot]), choice))
        assert encoded.record[rows.example[row, slot]] == record
    for record, places in seen.items():
        assert len({(row, group) for row, group, _ in places}) == 1 and len(places) == shapes[record][1]
    groups = [(row, group) for places in seen.values() for row, group, _ in places]
    assert len(seen) == len(shapes) and len(set(groups)) == len(shapes)
    assert not actual["mask"][rows.example < 0].any() and not actual["group"][rows.example < 0].any()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=15), st.booleans())
def test_spans_of_every_example_are_in_the_rows_once(lengths, packed):
    records = []
    for n, length in enumerate(lengths):
        context = [f"r{n}w{i}" for i in range(length)]
        first = (7 * n + length // 2) % length
        last = min(first + n % 3, length - 1)
        label = (
            []
            if n % 4 == 3
            else [
                {
                    "text": " ".join(context[first : last + 1]),
                    "answer_start": len(" ".join(context[:first])) + (first > 0),
                }
            ]
        )
        fields = {"q": "which one ?", "c": " ".join(context), "answers": None if n % 5 == 4 else label}
        records.append(Record(fields, "f", n))
    corpus = corpus_of(records, {"text": ("q", "c")}, SPAN, pack=packed, overflow="truncate")
    rows = corpus.rows["d"]["train"]
    actual, seen, cut = rows.labels["answer"], set(), 0
    for row in range(len(rows.tokens)):
        for segment in range(1, actual["segment"][row].max() + 1):
            at = np.flatnonzero(actual["segment"][row] == segment)
            slot = actual["slot"][row, at[0]]
            assert (actual["slot"][row, at] == slot).all() and actual["word"][row, at].tolist() == list(
                range(-1, len(at) - 1)
            )
            assert actual["token"][row, at[0]] == rows.start[row, slot]
            tokens = [corpus.tokenizer.id_to_token(t) for t in rows.tokens[row, actual["token"][row, at[1:]]]]
            n = int(tokens[0][1:].split("w")[0])
            assert tokens == [f"r{n}w{i}" for i in range(len(tokens))]
            seen.add(n)
            value, fields = actual["value"][row, at], records[n].fields
            remaining = not fields["answers"] or fields["answers"][0]["text"].split()[-1] in tokens
            assert actual["mask"][row, at].all() == (fields["answers"] is not None and remaining)
            assert len(set(actual["mask"][row, at])) == 1
            cut += not remaining
            if not remaining or fields["answers"] is None:
                assert not value.any()
            elif not fields["answers"]:
                assert value[0] == 3 and not value[1:].any()
            else:
                words = fields["answers"][0]["text"].split()
                begin, end = (int(np.flatnonzero(value & bit)[0]) - 1 for bit in (1, 2))
                assert tokens[begin] == words[0] and tokens[end] == words[-1]
    assert seen == set(range(len(lengths)))
    assert any("cut off" in note for note in corpus.notes) == (cut > 0)
    assert not cut or any(f" {cut} of " in note and "cut off" in note for note in corpus.notes)


def place(tmp_path, content):
    file = tmp_path / "data"
    file.write_text(content)
    return location.local_path(str(file))


def test_squad_files(tmp_path):
    qas = [
        {"id": "1", "question": "q1", "answers": [{"text": "b", "answer_start": 2}] * 2},
        {"id": "2", "question": "q2", "answers": [], "is_impossible": True, "plausible_answers": [{}]},
        {"id": "3", "question": "q3"},
    ]
    whole = {"version": "2.0", "data": [{"title": "t", "paragraphs": [{"context": "a b", "qas": qas}]}]}
    one, two, three = READERS["squad"](place(tmp_path, json.dumps(whole)), "utf-8")
    assert one.fields["answers"] == qas[0]["answers"] and one.fields["context"] == "a b" and one.line == 1
    assert two.fields["answers"] == [] and "answers" not in three.fields
    # dirt: marks by bytes, UTF-16, and what such files should not hold
    odd = [
        {"question": "q1", "answers": [{"text": " ", "answer_start": 0}, {"text": "b", "answer_start": 2}], "id": 7},
        {"question": " ", "answers": []},
        {"question": "q3", "answers": [], "is_impossible": False},
        {"question": "q4", "answers": [{"text": "b", "answer_start": 2}], "is_impossible": True},
        {"question": "q5", "answers": [{"text": "", "answer_start": -1}]},
        {"question": "q6", "answers": None},
        {"question": "q7", "answers": []},
    ]
    text = json.dumps({"data": [{"title": None, "paragraphs": [{"context": "a b", "qas": odd}]}]})
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "marked").write_text(text, encoding)
        actual = list(READERS["squad"](location.local_path(str(tmp_path / "marked")), encoding.removesuffix("-sig")))
        message = {r.fields["question"]: r.fields.get("answers") for r in actual if isinstance(r, Record)}
        assert message == {"q1": odd[0]["answers"][1:], "q3": None, "q4": [], "q5": None, "q6": None, "q7": []}
        assert [note.line for note in actual if not isinstance(note, Record)] == [1, 2, 3, 5]
    for broken, message in (
        (
            {"data": [{"paragraphs": [{"context": "a", "qas": [{"question": "q", "is_impossible": "no"}]}]}]},
            "'is_impossible' has to be true or false, found a string",
        ),
        ([], "object with 'data', found a list"),
        ({"data": {}}, "'data' has to be a list, found an object"),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, r"data\[0\]\.paragraphs\[0\]: 'context' has to be a string"),
        ({"data": [{"paragraphs": [{"context": "a", "qas": [3]}]}]}, r"qas\[0\]: has to be an object"),
    ):
        with pytest.raises(UserError, match=message):
            list(READERS["squad"](place(tmp_path, json.dumps(broken)), "utf-8"))


SRL = """1\tShe\tPRON\tPRP\t-\tB-ARG0\tB-ARG0
2\tsaid\tVERB\tVBD\tsay.01\tB-V\tO
3\tBo\tPROPN\tNNP\t-\tB-ARG1\tB-ARG2
4\tleft\tVERB\tVBD\tleave.01\tI-ARG1\tB-V
5\ttoday\tNOUN\tNN\t-\tI-ARG1\tB-ARGM-TMP
"""


def test_questions_and_pairs_from_roles(tmp_path):
    actual = list(READERS["srl_questions"](place(tmp_path, SRL), "utf-8", unanswerable=2))
    by_question = {r.fields["question"]: r.fields["answers"] for r in actual}
    assert by_question["Whom or what does it said?"] == {"text": ["Bo left today"], "answer_start": [9]}
    assert by_question["When does it left?"] == {"text": ["today"], "answer_start": [17]}
    joined = list(READERS["srl_questions"](place(tmp_path, SRL + "\n" + SRL + "\n" + SRL), "utf-8", sentences=2))
    assert len(joined) == 3 * 4 and joined[-1].fields["context"] == actual[0].fields["context"]  # one is left over
    (second,) = (r for r in joined if r.fields["question"] == "When does it left (2)?")
    start = second.fields["answers"]["answer_start"][0]
    assert second.fields["context"][start:] == "today" and start > len("She said Bo left today")
    assert (
        len(actual) == 4 + 2 and sum(not r.fields["answers"]["text"] for r in actual) == 2
    )  # of four that are lacking
    pairs = [
        tuple(r.fields[name] for name in ("predicate", "argument", "role"))
        for r in READERS["srl_pairs"](place(tmp_path, SRL), "utf-8")
    ]
    assert pairs == [
        ([1, 1], [0, 0], "ARG0"),
        ([1, 1], [2, 4], "ARG1"),
        ([3, 3], [0, 0], "ARG0"),
        ([3, 3], [2, 2], "ARG2"),
        ([3, 3], [4, 4], "ARGM-TMP"),
    ]
    few = list(READERS["srl_pairs"](place(tmp_path, SRL), "utf-8", roles=("ARG1", "ARG2"), longest=2))
    assert [r.fields["role"] for r in few if isinstance(r, Record)] == ["ARG2"]
    assert Counter(r.what for r in few if isinstance(r, Note)) == {
        "arguments of other roles left out (options.roles)": 3,
        "longer arguments left out (options.longest)": 1,
    }
    with pytest.raises(UserError, match="has to hold"):
        list(READERS["srl_questions"](place(tmp_path, SRL), "utf-8", questions={"ARG0": "Who?"}))


def test_derived_sets_of_real_data(data_dir):
    record = next(iter(READERS["srl_questions"](location.local_path(str(data_dir / "ewt_srl/dev.conll")), "utf-8")))
    for text, start in zip(*record.fields["answers"].values(), strict=True):
        assert record.fields["context"][start:].startswith(text)
    whole = location.local_path(str(data_dir / "ewt/en_ewt-ud-dev.conllu"))
    items = list(READERS["conllu_endings"](whole, "utf-8"))
    actual = [r for r in items if isinstance(r, Record)]
    assert len(actual) + sum(n.lost for n in items if isinstance(n, Note)) == 2001
    assert len(actual) == 1222 and all(len(set(r.fields["endings"])) == 4 for r in actual)
    shares = np.bincount([r.fields["label"] for r in actual], minlength=4) / len(actual)
    assert np.abs(shares - 0.25).max() < 0.04
    # halves of one sentence have the same length: it must not tell the true ending from the others
    nearest = [
        np.argmin([abs(len(e.split()) - len(r.fields["beginning"].split()) - 0.1) for e in r.fields["endings"]])
        for r in actual
    ]
    assert np.mean([n == r.fields["label"] for n, r in zip(nearest, actual, strict=True)]) < 0.4
    for record in READERS["conllu_endings"](whole, "utf-8", wrong="reordered"):
        if isinstance(record, Record):
            sorts = {tuple(sorted(e.split())) for e in record.fields["endings"]}
            assert len(sorts) == 1 and len({e.split()[-1] for e in record.fields["endings"]}) == 1
            assert len(set(record.fields["endings"])) == 4
    with pytest.raises(UserError, match="Did you mean 'reordered'"):
        list(READERS["conllu_endings"](whole, "utf-8", wrong="reorderd"))
    assert list(READERS["conllu_endings"](whole, "utf-8")) == items
