"""JSON in the forms in which data sets have it, and what is said where a form could be several."""

import json

import pytest

from mtl_jax.data import datasets
from mtl_jax.data.files import location
from mtl_jax.data.readers import READERS
from mtl_jax.errors import UserError

ROWS = [{"text": f"t {n}", "label": "ab"[n % 2], "n": n} for n in range(4)]


def read(tmp_path, content, reader="jsonl", name="f.json", **options):
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return list(READERS[reader](location.local_path(tmp_path / name), "utf-8", **options))


FORMS = {
    "lines": "".join(json.dumps(row) + "\n" for row in ROWS),
    "lines of windows": "".join(json.dumps(row) + "\r\n\r\n" for row in ROWS),
    "lines of old macs": "".join(json.dumps(row) + "\r" for row in ROWS),
    "pretty-printed": "".join(json.dumps(row, indent=2) + "\n" for row in ROWS),
    "one after the other": "".join(json.dumps(row) for row in ROWS),
    "some over lines": "".join(json.dumps(row, indent=2 if row["n"] % 2 else None) + "\n" for row in ROWS),
    "list": ROWS,
    "pretty list": json.dumps(ROWS, indent=1),
    "under a key": {"data": ROWS},
    "under keys": {"data": {"train": ROWS}},
    "under a key, pretty": json.dumps({"test_data_annotation": ROWS}, indent=2),
    "beside an empty one": {"train": ROWS, "dev": []},
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_that_are_found_out(tmp_path, form):
    actual = read(tmp_path, FORMS[form])
    assert [record.fields for record in actual] == ROWS
    assert len({(record.file, record.line) for record in actual}) == len(ROWS)  # each has a place of its own


def test_lines_are_where_values_begin(tmp_path):
    assert [r.line for r in read(tmp_path, FORMS["pretty-printed"])] == [1, 6, 11, 16]
    assert [r.line for r in read(tmp_path, FORMS["some over lines"])] == [1, 2, 7, 8]
    assert [(r.file, r.line) for r in read(tmp_path, FORMS["under keys"])][1] == (f"{tmp_path}/f.json:data.train", 2)


@pytest.mark.parametrize(
    "around", [lambda keyed: keyed, lambda keyed: {"data": keyed}, lambda keyed: {"a": {"b": keyed}}]
)
def test_records_by_key(tmp_path, around):
    keyed = {f"id{n}": row | {"annotators": [{"label": "x"}]} for n, row in enumerate(ROWS)}  # HateXplain
    right = [{"key": name, **row} for name, row in keyed.items()]
    for indent in (None, 1):
        assert [r.fields for r in read(tmp_path, json.dumps(around(keyed), indent=indent))] == right
    named = [{"id": r.pop("key"), **r} for r in right]
    if around(keyed) == keyed:
        assert [r.fields for r in read(tmp_path, keyed, key="id")] == named
        one = dict(list(keyed.items())[:1])
        assert [r.fields for r in read(tmp_path, one, key="id")] == named[:1]
    with pytest.raises(
        UserError, match=r"f\.json.*:1: key 'id0': the record already has a field 'n', 0; .*options\.key"
    ):
        read(tmp_path, keyed, key="n")
    same = {str(n): row for n, row in enumerate(ROWS)}
    assert [r.fields for r in read(tmp_path, same, key="n")] == ROWS  # it is the same as the key


@pytest.mark.parametrize(
    ("content", "options", "right"),
    [
        ({"version": "1", "data": ROWS}, {"records": "data"}, ROWS),
        ({"a": {"train": ROWS, "test": ROWS[:1]}}, {"records": "a.test"}, ROWS[:1]),
        ({"text": "t", "spans": [{"a": 1}]}, {"records": "."}, [{"text": "t", "spans": [{"a": 1}]}]),
        ({"only": {"a": 1}}, {"records": "."}, [{"only": {"a": 1}}]),
        ({"only": {"a": 1}}, {"key": "k"}, [{"k": "only", "a": 1}]),
        ({"x": {"only": {"a": 1}}, "y": 2}, {"records": "x", "key": "k"}, [{"k": "only", "a": 1}]),
        ({"train": [["a", "b"], ["c", "d"]]}, {"columns": ("x", "y")}, [{"x": "a", "y": "b"}, {"x": "c", "y": "d"}]),
        ('["a", "b"]\n["c", "d"]\n', {"columns": ("x", "y")}, [{"x": "a", "y": "b"}, {"x": "c", "y": "d"}]),
        ([["a", "b"]], {"columns": ("x", "y")}, [{"x": "a", "y": "b"}]),
        (
            {"i": ["a", "b"], "j": ["c", "d"]},
            {"columns": ("x", "y"), "key": "k"},
            [{"k": "i", "x": "a", "y": "b"}, {"k": "j", "x": "c", "y": "d"}],
        ),
        ('{"q": [{"a": 1}, {"a": 2}]}\n{"q": [{"a": 3}]}\n', {"records": "q"}, [{"a": 1}, {"a": 2}, {"a": 3}]),
        ({"columns": ["x"], "data": [["a", "b"]]}, {"records": "data", "columns": ("x", "y")}, [{"x": "a", "y": "b"}]),
        ({"x": {"0": "a", "3": "b"}, "y": {"0": [1], "3": 2}}, {}, [{"x": "a", "y": [1]}, {"x": "b", "y": 2}]),
        (["a", "b"], {"columns": ("x",)}, [{"x": "a"}, {"x": "b"}]),
        ('"a"\n"b"\n', {"columns": ("x",)}, [{"x": "a"}, {"x": "b"}]),
        ({"i": "a", "j": "b"}, {"columns": ("x",), "key": "k"}, [{"k": "i", "x": "a"}, {"k": "j", "x": "b"}]),
        # one record alone
        ({"text": "t", "words": ["a", "b"]}, {}, [{"text": "t", "words": ["a", "b"]}]),
        ({"words": ["a", "b"], "tags": ["O", "O"]}, {}, [{"words": ["a", "b"], "tags": ["O", "O"]}]),
        ({"text": "t", "meta": {"id": 1}}, {}, [{"text": "t", "meta": {"id": 1}}]),
        ("", {}, []),
        ("{}", {}, [{}]),
    ],
)
def test_options_say_where_the_records_are(tmp_path, content, options, right):
    assert [record.fields for record in read(tmp_path, content, **options)] == right


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (
            {"version": "1", "data": ROWS},
            {},
            r"""with objects under 'data', and 'version' next to .* options\.records='data' .*"\." the""",
        ),
        (
            {"train": ROWS, "test": ROWS},
            {},
            r"""records under 'train', 'test'; name one as options\.records, or .*splits={"train": 'train'""",
        ),
        ({"a": {"train": {"1": ROWS[0], "2": ROWS[1]}, "dev": ROWS}}, {}, r"records under 'a\.train', 'a\.dev'"),
        (
            {"train": [["a", "b"]], "dev": []},
            {},
            r"lists of lists under 'train'; .*options\.records='train' and options\.columns",
        ),
        ({"only": {"a": 1}}, {}, r"""one object under one key, 'only'; options\.records="\." .*options\.key"""),
        (
            {"data": {"rows": [["a", "x"], ["b", "y"]], "columns": ["text", "label"]}},
            {},
            r"lists of lists under 'data\.rows'; .*options\.records='data\.rows'",
        ),
        (
            {"columns": ["text", "label"], "data": [["a", "x"], ["b", "y"]]},
            {"fields": ("text",)},
            r"lists of lists under 'data'; .*options\.columns",
        ),
        ({"data": ROWS}, {"records": "dta"}, r"there is no field 'dta'; known fields: data\. Did you mean 'data'"),
        ({"data": ROWS}, {"records": "data.train"}, r"'data' is a list of 4 items"),
        ({"data": 3}, {"records": "data"}, r"f\.json:data: has to be a list of items, or an object .*found a number"),
        ({"data": [1]}, {"records": "data"}, r"f\.json:data:1: an item has to hold a JSON object .*found a number"),
        (ROWS, {"records": "data"}, r"f\.json:1: options\.records='data' is a path in an object, found a list"),
        (
            {"a": {"x": 1}, "b": 3},
            {"key": "k"},
            r"f\.json:2: the value of each key \(here 'b'\) has to hold .*found a number",
        ),
        ('{"a": 1}\n{"a": 2\n{"a": 3}\n', {}, r"f\.json:2: broken JSON: .*column 8"),
        ('{"a": 1\n{"a": 2}\n', {}, r"f\.json:1: broken JSON: .*column 8"),
        ('{\n"a": 1\n}\n{\n"a" 2\n}\n', {}, r"f\.json:5: broken JSON: .*column 5 \(the value begins at line 4\)"),
        ('{\n"a": 1,\n"a": 2\n}', {}, r"f\.json:1: broken JSON: the key 'a' occurs twice"),
        ('{"a": 1}\n3\n', {}, r"f\.json:2: each line has to hold a JSON object"),
        ('["a"]\n["c", "d"]\n', {"columns": ("x", "y")}, r"f\.json:1: "),
    ],
)
def test_forms_that_could_be_several(tmp_path, content, options, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path, content, **options)


def test_the_fields_of_the_texts_tell(tmp_path):
    """What could be several forms is the one whose records have the fields that the data set names."""

    def rows(content, **entry):
        (tmp_path / "f.json").write_text(json.dumps(content))
        data = datasets.read_dataset("d", {"reader": "jsonl", "path": str(tmp_path / "f.json"), **entry}, 0)
        return [{name: v for name, v in r.fields.items() if name != "file"} for r in data.splits["train"]]

    one = {"q": [{"query": "a b", "answer": "c d"}]}
    assert rows(one, text=("q.0.query",)) == [one]  # a file of one line that holds a list: a record
    assert rows(one, text=("query",)) == one["q"]
    with pytest.raises(UserError, match=r"f\.json:1: .* 'q\.query': 'q' is a list of 1 item; 'q\.0\.query'"):
        rows(one, text=("q.query",))
    version = {"version": "1", "data": ROWS, "authors": [{"name": "x"}]}
    assert rows(version, text=("text",)) == ROWS
    assert rows(version, text=("version",)) == [version]
    with pytest.raises(UserError, match=r"with objects under 'data', 'authors', and 'version' next to them"):
        rows(version, text=("title",))
    spans = {"words": ["a", "b"], "spans": [{"start": 0}]}
    assert rows(spans, words="words") == [spans]
    with pytest.raises(UserError, match=r"records under 'train', 'test'; name one"):
        rows({"train": ROWS, "test": ROWS}, text=("text",))
    options = {"reader": "jsonl", "way": "infill", "words": "text"}
    (tmp_path / "f.json").write_text(json.dumps(version))
    assert len(list(READERS["derived"](location.local_path(tmp_path / "f.json"), "utf-8", **options))) == len(ROWS)


def test_splits_by_path_and_in_several_files(tmp_path):
    keyed = {f"id{n}": row for n, row in enumerate(ROWS)}
    assert [r.fields for r in read(tmp_path, {"data": {"train": ROWS}}, "json_splits", split="data.train")] == ROWS
    assert [r.fields["key"] for r in read(tmp_path, {"train": keyed}, "json_splits", split="train")] == list(keyed)
    assert [r.fields["id"] for r in read(tmp_path, {"a:b": keyed}, "json_splits", split="a:b", key="id")] == list(keyed)
    with pytest.raises(UserError, match=r"no split 'trian'; there are: train\. Did you mean 'train'"):
        read(tmp_path, {"train": ROWS}, "json_splits", split="trian")
    with pytest.raises(UserError, match=r"'data' has the keys train"):
        read(tmp_path, {"data": {"train": ROWS}}, "json_splits", split="data.test")

    for part in (1, 2):
        whole = {"train": ROWS[part : part + 1], "dev": ROWS[:1]}
        (tmp_path / f"part{part}.json").write_text(json.dumps(whole))
    entry = {"reader": "json_splits", "path": str(tmp_path), "text": ("text",), "splits": {"train": "part*.json:train"}}
    one = datasets.read_dataset("d", entry, 0)
    assert [r.fields["n"] for r in one.splits["train"]] == [1, 2]
    two = {"train": ("part1.json:train", "part2.json:train"), "dev": "part2.json:dev"}
    data = datasets.read_dataset("d", {**entry, "splits": two}, 0)
    assert [r.fields["n"] for r in data.splits["train"]] == [1, 2] and len(data.splits["dev"]) == 1
    (tmp_path / "other.json").write_text("{}")
    assert datasets.read_dataset("d", entry, 0).fingerprint == one.fingerprint
    (tmp_path / "part2.json").write_text(json.dumps({"train": ROWS[3:]}))
    assert datasets.read_dataset("d", entry, 0).fingerprint != one.fingerprint
    for splits, message in {
        "train": r"is a folder; .*'FILES\.json:train'",
        "x*.json:train": r"nothing matches 'x\*",
    }.items():
        with pytest.raises(UserError, match=message):
            datasets.read_dataset("d", {**entry, "splits": {"train": splits}}, 0)


def test_texts_with_spans_and_dialogues_know_their_records(tmp_path):
    one = {"text": "a b", "spans": [{"start": 0, "end": 1, "label": "X"}]}
    for content in (one, [one], {"data": [one]}, {"i": one, "j": one}):
        assert all(r.fields["tags"] == ["B-X", "O"] for r in read(tmp_path, content, "spans"))
    turns = {"turns": [{"text": "a"}, {"text": "b"}]}
    for content in (turns, {"dialogues": [turns]}, {"i": {"n": 1, **turns}, "j": {"n": 2, **turns}}):
        assert all(r.fields["reply"] == "b" for r in read(tmp_path, content, "dialogue"))
    assert read(tmp_path, {"x": 1, "d": [turns]}, "dialogue", records="d")[0].fields["context"] == "a"
