"""Lists written into one cell, and what is made of them in words, labels, choices and answers."""

import csv
import os
import string

import numpy as np
import pytest

from mtl_jax.config import default
from mtl_jax.data import corpus, datasets, string_values
from mtl_jax.data.labels.label_spec import LabelSpec
from mtl_jax.data.readers import READERS
from mtl_jax.data.readers.options import select_options
from mtl_jax.data.records import Record, field
from mtl_jax.data.tokenizers import WordVocabulary
from mtl_jax.errors import UserError
from mtl_jax.evaluation.input_records import RecordReading
from mtl_jax.storage.artifacts import Artifacts

FUZZ = int(os.environ.get("FUZZ", 100))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("['a', 'b']", ["a", "b"]),
        ('["a", "b"]', ["a", "b"]),
        ("['a' 'b']", ["a", "b"]),  # NumPy; Python would join them
        ("['a'\n 'b']", ["a", "b"]),
        ("array(['a', 'b'], dtype=object)", ["a", "b"]),
        ("('a',)", ["a"]),
        ("{'a', 'b'}", ["a", "b"]),
        ("frozenset({'a'})", ["a"]),
        ("set()", []),
        (" [] ", []),
        ("()", []),
        ("[0, 3]", [0, 3]),
        ("[0 3]", [0, 3]),
        ("[0. 1.5]", [0.0, 1.5]),
        ("[new york, la]", ["new york", "la"]),
        ("""['it\\'s', "o'k", 'a\\u00e9']""", ["it's", "o'k", "aé"]),
        ("['\\ud83d\\ude00']", ["😀"]),
        ("[None, True, 'None']", [None, True, "None"]),
        ("[['B', 'O'], ['O']]", [["B", "O"], ["O"]]),
        ("{'text': array(['S'], dtype=object), 'at': array([5], dtype=int32)}", {"text": ["S"], "at": [5]}),
        ("['a' ... 'b']", None),
        ("['it's']", None),
        ("['a', 'b", None),
        ("(unknown)", None),
        ("{a}", None),
        ("a, b", None),
        ("", None),
        ("[" * 1000, None),
        ("[" * 1000 + "]" * 1000, None),
    ],
)
def test_parse(text, value):
    assert string_values.parse_literal(text) == value
    assert string_values.looks_like_list(text) or value is None


def test_names_without_quotes():
    for text in ("{a,b c}", "(a, b c)", "[a, b c]"):
        assert string_values.parse_literal(text, names=True) == ["a", "b c"]
    assert string_values.parse_literal("{a}", names=True) == ["a"] and string_values.parse_literal("{a,b c}") is None
    assert string_values.parse_literal("(a)", names=True) is string_values.parse_literal("{a: b}", names=True) is None


def test_what_python_and_json_write_comes_back():
    rng = np.random.default_rng(0)
    letters = [*string.printable, "é", "я", "中", "\u200d", "😀", "\x00", "\x85", "\u2028", "\udc80"]
    for _ in range(FUZZ):
        items = ["".join(rng.choice(letters, rng.integers(0, 6))) for _ in range(rng.integers(0, 5))]
        whole = [item.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for item in items]
        assert string_values.parse_literal(repr(items)) in (items, whole), items
        string_values.parse_literal("".join(rng.choice([*"[](){}'\",:. \\", *letters], rng.integers(0, 12))))
        if len(set(whole)) == len(items) and items:
            assert set(string_values.parse_literal(repr(set(whole)))) == set(whole)


def table(path, header, *rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return {"reader": "csv", "path": str(path)}


def test_words_and_tags_in_cells(tmp_path):
    entry = table(
        tmp_path / "a.csv",
        ("tokens", "tags", "numbers", "note"),
        ("['EU', 'rejects']", "['B-ORG', 'O']", "[3 0]", "(see below)"),
        ('["He"]', "['O']", "[0]", "x"),
    )
    data = datasets.read_dataset("d", {**entry, "words": "tokens"}, 0)
    assert [record.fields for record in data.splits["train"]] == [
        {
            "tokens": ["EU", "rejects"],
            "tags": ["B-ORG", "O"],
            "numbers": [3, 0],
            "note": "(see below)",
            "file": "a.csv",
        },
        {"tokens": ["He"], "tags": ["O"], "numbers": [0], "note": "x", "file": "a.csv"},
    ]
    assert data.notes[0] == "train: 2 records have lists that are written as strings"
    entry = table(tmp_path / "b.csv", ("tokens",), ("['a']",), ("['a', 'b",))
    with pytest.raises(UserError, match=r"b\.csv:3: field 'tokens' looks like a list, but cannot be read"):
        datasets.read_dataset("d", {**entry, "words": "tokens"}, 0)


def test_words_and_tags_between_blanks(tmp_path):
    entry = table(tmp_path / "a.csv", ("tokens", "tags"), ("EU  rejects", "B-ORG,O"), ("He", "O"))
    entry |= {"words": "tokens", "options": {"lists": {"tokens": " ", "tags": ","}}}
    records = [record.fields for record in datasets.read_dataset("d", entry, 0).splits["train"]]
    assert [fields["tokens"] for fields in records] == [["EU", "rejects"], ["He"]]
    assert [fields["tags"] for fields in records] == [["B-ORG", "O"], ["O"]]
    for lists, message in (
        ({"tokens": " ", "tag": " "}, r"options\.lists: no record has a field 'tag'; .*Did you mean 'tags'"),
        ({"tokens": ""}, r"options\.lists has to be such as"),
        ({}, r"field 'tokens' is a string, not a list .*options=\{\"lists\": \{'tokens': \" \"\}\}"),
    ):
        with pytest.raises(UserError, match=message):
            datasets.read_dataset("d", {**entry, "options": {"lists": lists}}, 0)


def test_options_of_every_data_set_are_not_given_to_readers():
    options = {"empty": "drop", "scheme": "iob2", "lists": {"a": ";"}}
    assert select_options(READERS["csv"], {**options, "delimiter": ";"}) == {"delimiter": ";"}
    assert select_options(READERS["lines"], options) == {"lists": {"a": ";"}}  # its own


def load(datasets_, *specs):
    return corpus.load(datasets_, specs, WordVocabulary(1, None, False), row_length=8)


def test_tags_in_cells_are_trained_on_and_predicted(tmp_path):
    rows = [("['EU', 'rejects']", "['I-ORG', 'O']"), ("['He', 'said']", "['O', 'O']")] * 3
    entry = {**table(tmp_path / "a.csv", ("tokens", "tags"), *rows), "words": "tokens"}
    spec = LabelSpec("ner", "d", "tags", level="word")
    data = load({"d": entry}, spec)
    assert data.vocabularies["ner"].names == ("O", "B-ORG")  # IOB1, as it is made of columns of a file
    config = default.get_config()
    default.add_dataset(config, "d", **entry)
    default.add_task(config, "ner", kind="tagging", dataset="d", label="tags")
    remaining = Artifacts(data.tokenizer, None, data.vocabularies, data.statistics["tasks"], None)
    read = RecordReading(config, remaining).read([Record({"tokens": "['He', 'rejects']"}, "in.csv", 1)])
    assert read.corpus.splits["d"]["input"].inputs.words == [["He", "rejects"]]


def test_equal_texts_with_different_labels(tmp_path):
    rows = [("a", 0), ("a", 1), ("b", 0), ("b", 0), ("c", 1), ("c", ""), ("d", 1)]
    entry = {**table(tmp_path / "a.csv", ("text", "y"), *rows), "text": ("text",)}
    table(tmp_path / "b.csv", ("text", "y"), ("a", 0), ("b", 1), ("c", 1), ("e", 1))
    entry |= {"path": str(tmp_path), "splits": {"train": "a.csv", "dev": "b.csv"}}
    notes = load({"d": entry}, LabelSpec("t", "d", "y")).notes
    assert "task t: train: 2 records have a text that train has with another label" in notes
    assert "task t: dev: 2 records have a text that train has with another label" in notes


def test_choices_in_cells(tmp_path):
    entry = table(tmp_path / "a.csv", ("text", "options"), ("['q']", "['yes', 'no']"))
    data = datasets.read_dataset("d", {**entry, "text": ("text",), "choices": ("options",)}, 0)
    assert data.splits["train"][0].fields | {"file": ""} == {"text": "['q']", "options": ["yes", "no"], "file": ""}
    cell = "{'text': array(['yes', 'no'], dtype=object), 'label': array(['A', 'B'], dtype=object)}"
    entry = table(tmp_path / "b.csv", ("pair", "options"), ("{'en': 'q', 'de': 'f'}", cell))
    data = datasets.read_dataset("d", {**entry, "text": ("pair.en",), "choices": ("options.text",)}, 0)
    assert field(data.splits["train"][0], "options.text") == ["yes", "no"]


def test_answers_in_cells(tmp_path):
    cells = ("{'text': ['b'], 'answer_start': [2]}", "{'text': array(['a'], dtype=object), 'answer_start': array([0])}")
    entry = table(tmp_path / "a.csv", ("question", "context", "answers"), *(("q", "a b", cell) for cell in cells))
    entry |= {"text": ("question", "context")}
    actual = load({"d": entry}, LabelSpec("s", "d", "answers", "span", "span"))
    assert not [note for note in actual.notes if "answers" in note]
    assert actual.splits["d"]["train"].encoded.labels["s"].value.tolist() == [[1, 1], [0, 0]]


def test_missing_texts(tmp_path):
    entry = table(tmp_path / "a.csv", ("text", "n"), ("nan", 1), ("a nan", 2), ("NULL", 3), ("b", 4))
    data = datasets.read_dataset("d", {**entry, "text": ("text",)}, 0)
    assert len(data.splits["train"]) == 4 and "train: 2 records whose text is a word for a mi" in data.notes[0]
    dropped = datasets.read_dataset("d", {**entry, "text": ("text",), "options": {"empty": "drop"}}, 0)
    assert [record.fields["n"] for record in dropped.splits["train"]] == ["2", "4"]
    assert dropped.notes[0].startswith("train: 2 records without text dropped")
    (tmp_path / "a.jsonl").write_text('{"text": NaN}\n{"text": "a"}\n')
    entry = {"reader": "jsonl", "path": str(tmp_path / "a.jsonl"), "text": ("text",), "options": {"empty": "drop"}}
    assert len(datasets.read_dataset("d", entry, 0).splits["train"]) == 1
