"""Fields of records by path, and notes."""

import json

import pytest

from mtl_jax.data import datasets
from mtl_jax.data.encoding.record_inputs import extract_inputs
from mtl_jax.data.labels.label_spec import LabelSpec
from mtl_jax.data.labels.raw_labels import collect_labels
from mtl_jax.data.records import Note, Record, field, find_field, summarize_notes
from mtl_jax.errors import UserError


def test_paths_to_items_of_lists():
    queries = [{"query": "a"}, {"query": "b", "at": [[1, 2], [3]]}]
    value = {"q": queries, "q.0": {"x": 1}, "0": {"0": "z"}, "e": [], "n": None}
    record = Record({"a": value, "a.l.0": "literal", "l": ["l"], "c": ("first", "last"), "t": "text"}, "f", 3)
    right = {
        "a.q.0.query": "a",
        "a.q.1.at.0.1": 2,
        "a.q.-1.at.-1.0": 3,
        "a.q.0.x": 1,
        "a.q.0": {"x": 1},
        "a.0.0": "z",
        "a.l.0": "literal",
        "l.0": "l",
        "c.1": "last",
        "c.-2": "first",
    }
    for find_it in (field, find_field):
        assert {name: find_it(record, name) for name in right} == right
    for name, why in {
        "a.q.2.query": r"'a\.q' is a list of 2 items, counted from 0, which has no 2;",
        "a.q.-3": r"'a\.q' is a list of 2 items, counted from 0, which has no -3;",
        "a.e.0": r"'a\.e' is a list of 0 items",
        "l.1": r"'l' is a list of 1 item,",
        "a.q.1.no": r"'a\.q\.1' has the keys query, at;",
        "t.0": "'t' is a string, which has no '0' in it;",
        "a.n.b": r"'a\.n' is empty",
    }.items():
        with pytest.raises(UserError, match=f"f:3: there is no field '{name}': {why}"):
            field(record, name)
        assert find_field(record, name) is None
    for find_it in (field, find_field):
        for name in ("a.q.query", "a.q.01x", "a.q."):
            with pytest.raises(
                UserError, match=r"'a\.q' is a list of 2 items; 'a\.q\.0\..*' reads its first item, 'a\.q\.-1\."
            ):
                find_it(record, name)


def test_paths_in_an_entry(tmp_path):
    (tmp_path / "d.jsonl").write_text(
        "".join(
            json.dumps({"q": [{"text": f"a{i}", "y": "zy"[i % 2]}, {"words": ["b", str(i)]}], "o": [["x", "y"]]}) + "\n"
            for i in range(4)
        )
    )
    entry = {"reader": "jsonl", "path": str(tmp_path / "d.jsonl"), "filter": {"q.0.y": "y"}}
    data = datasets.read_dataset("d", {**entry, "text": ("q.0.text",)}, 0)
    assert [field(r, "q.0.text") for r in data.splits["train"]] == ["a1", "a3"]
    assert [label for label in collect_labels(data.splits["train"], LabelSpec("t", "d", "q.0.y")).values] == ["y", "y"]
    (_, second) = extract_inputs(data.splits["train"], text=("q.0.text",), choices=("o.-1",)).choices
    assert second == ["x", "y"]
    data = datasets.read_dataset("d", {**entry, "words": "q.1.words", "text": ()}, 0)
    assert extract_inputs(data.splits["train"], words="q.1.words").words == [["b", "1"], ["b", "3"]]
    with pytest.raises(UserError, match=r"'q' is a list of 2 items; 'q\.0\.text' reads its first item"):
        datasets.read_dataset("d", {**entry, "text": ("q.text",)}, 0)
    with pytest.raises(UserError, match=r"'q' is a list of 2 items; 'q\.0\.y'"):
        datasets.read_dataset("d", {**entry, "text": ("q.0.text",), "filter": {"q.y": "y"}}, 0)


def test_notes_are_summed():
    notes = [
        Note("lines skipped", "f", 3, count=990, lost=988),
        Note("lines skipped", "f", 9, lost=1),
        Note("x", "f", 0),
    ]
    lines = ["train: 991 lines skipped, 989 records lost; first at f:3", "train: 1 x; first at f"]
    assert summarize_notes("train", notes) == lines
    assert summarize_notes("dev", [Note("records dropped", "g", 1, lost=1)]) == ["dev: 1 records dropped; first at g:1"]
