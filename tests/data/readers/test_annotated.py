"""Formats of annotation tools, of the Hub, and of the CoNLL shared tasks on roles; packed files."""

import bz2
import collections
import datetime
import gzip
import json
import lzma

import pyarrow
import pytest
from pyarrow import ipc, parquet

from mtl_jax.data.files import location
from mtl_jax.data.labels import tag_schemes
from mtl_jax.data.readers import READERS
from mtl_jax.data.records import Note, Record
from mtl_jax.errors import UserError


def run(place, reader, **options):
    """(fields of the records, what the notes say)."""
    items = list(READERS[reader](location.local_path(place), "utf-8", **options))
    notes = [item.what for item in items if isinstance(item, Note)]
    return [item.fields for item in items if isinstance(item, Record)], notes


def written(tmp_path, content, name="f"):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return tmp_path / name


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_packed_files(tmp_path, pack):
    content = "".join(json.dumps({"a": n}) + "\n" for n in range(3000)).encode()
    place = written(tmp_path, pack(content))
    for encoding in ("utf-8", "utf-8|cp1252"):
        actual = list(READERS["jsonl"](location.local_path(place), encoding))
        assert [record.fields["a"] for record in actual] == list(range(3000)) and actual[-1].line == 3000
    with pytest.raises(UserError, match="f: cannot be read"):
        run(written(tmp_path, pack(content)[:-40]), "jsonl")
    with pytest.raises(UserError, match=r"f:2: byte 4 is not utf-8"):
        run(written(tmp_path, pack(b"{}\n \xff")), "jsonl")


def test_a_json_list_of_objects(tmp_path):
    wanted = [{"a": 1}, {"a": [2, 3]}]
    for indent in (None, 2):
        assert run(written(tmp_path, "\n " + json.dumps(wanted, indent=indent)), "jsonl")[0] == wanted
    with pytest.raises(UserError, match=r"f:2: each item has to hold a JSON object"):
        run(written(tmp_path, '[{"a": 1},\n 3]'), "jsonl")
    with pytest.raises(UserError, match=r"f:1: each line has to hold a JSON object \{...\}, found a list"):
        run(written(tmp_path, '["a", 1]\n["b", 2]\n'), "jsonl")
    with pytest.raises(UserError, match=r"f:2: broken JSON: .* column 3 \(the value begins at line 1\)"):
        run(written(tmp_path, '[{"a": 1},\n {'), "jsonl")


TEXT = "Ada Lovelace met Babbage in London."
SPANS = ((0, 12, "PER"), (17, 24, "PER"), (28, 34, "LOC"))


@pytest.mark.parametrize(
    "fields",
    [
        {"label": SPANS},
        {"entities": [{"start": a, "end": b, "label": kind} for a, b, kind in reversed(SPANS)]},
        {"spans": [{"start_offset": a, "end_offset": b, "type": kind} for a, b, kind in SPANS]},
    ],
)
def test_spans_of_annotation_tools(tmp_path, fields):
    place = written(tmp_path, json.dumps({"text": TEXT, **fields}))
    (actual,), notes = run(place, "spans")
    assert actual["words"] == ["Ada", "Lovelace", "met", "Babbage", "in", "London", "."] and not notes
    assert actual["tags"] == ["B-PER", "I-PER", "O", "B-PER", "O", "B-LOC", "O"] and actual["text"] == TEXT
    (actual,), _ = run(place, "spans", scheme="bioes")
    assert actual["tags"] == ["B-PER", "E-PER", "O", "S-PER", "O", "S-LOC", "O"]


def test_spans_of_words_with_marks_and_of_characters(tmp_path):
    def tagged(text, span):
        ((fields,), notes) = run(written(tmp_path, json.dumps({"text": text, "spans": [[*span, "PER"]]})), "spans")
        return list(zip(fields["words"], fields["tags"], strict=True)), notes

    text = "प्रधानमंत्री सुरभिका राठौर में"
    assert tagged(text, (text.index("सु"), text.index(" में"))) == (
        [("प्रधानमंत्री", "O"), ("सुरभिका", "B-PER"), ("राठौर", "I-PER"), ("में", "O")],
        [],
    )
    tags = ["O", "O", "B-PER", "I-PER", "O"]
    assert tagged("总理李强。", (2, 4)) == (list(zip("总理李强。", tags, strict=True)), [])


def test_dirt_in_spans(tmp_path):
    spans = [[0, 3, "A"], [0, 12, "B"], [16, 23, "C"], [3, 4, "D"], [26, 29, "E"], [5, 5, "F"]]
    (actual, bare), notes = run(
        written(tmp_path, json.dumps([{"text": TEXT, "spans": spans}, {"text": "a", "spans": None}])), "spans"
    )
    assert actual["tags"] == ["B-B", "I-B", "O", "B-C", "B-E", "I-E", "O"] and bare["tags"] is None
    assert collections.Counter(notes) == {
        "spans that begin or end inside a word, taken to its ends": 2,
        "spans that overlap another, as long or longer, left out": 1,
        "spans without a word in them left out": 2,
    }


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"txt": "a", "spans": []}, "f:1: no text in the field 'text'"),
        ({"text": "a"}, "f:1: no field 'spans' or"),
        ({"text": "a", "spans": "x"}, "f:1: the field 'spans' should be a list"),
        ({"text": "a", "spans": [[0, "1", "X"]]}, "is no span"),
        ({"text": "a", "spans": [{"start": 0, "end": 1}]}, "is no span"),
        ({"text": "a", "spans": [[0, 2, "X"]]}, "the span 0 to 2 .X. is not inside the text of 1 characters"),
        ({"text": "a", "spans": [[-1, 1, "X"]]}, "is not inside"),
    ],
)
def test_wrong_spans(tmp_path, record, message):
    with pytest.raises(UserError, match=message):
        run(written(tmp_path, json.dumps(record)), "spans")


def test_brat(tmp_path):
    text = "Ada met\r\n\nCharles Babbage\nin London"
    written(tmp_path, text, "one.txt")
    marks = [("PER", "0 3"), ("PER", "10 25"), ("LOC", "29 35"), ("X", "20 28"), ("LOC", "20 22;23 25")]
    lines = [f"T{n}\t{kind} {at}\tx" for n, (kind, at) in enumerate(marks)]
    written(tmp_path, "\n".join([*lines, "R1\tRel Arg1:T0 Arg2:T1", "#1\tNote T0\tyes"]), "one.ann")
    written(tmp_path, "no marks", "two.txt")
    actual, notes = run(tmp_path, "brat")
    assert [(one["text"], one["document"], one["words"], one["tags"]) for one in actual] == [
        ("Ada met", "one", ["Ada", "met"], ["B-PER", "O"]),
        ("Charles Babbage", "one", ["Charles", "Babbage"], ["B-PER", "I-PER"]),
        ("in London", "one", ["in", "London"], ["B-X", "B-LOC"]),
        ("no marks", "two", ["no", "marks"], None),
    ]
    assert notes.count("lines with an annotation that goes on in another line, cut there") == 2
    assert notes.count("annotations other than of spans (relations, events, attributes) left out") == 1
    assert notes.count("spans in several pieces, taken from their first to their last character") == 1
    written(tmp_path, "T1\tPER 7 8\t\nT2\tPER 0 0\t\nT3\tPER 4 4\t\nT4\tPER 0 3\tAda", "one.ann")
    written(tmp_path, "T1\tPER 0 3\tAda", "lost.ann")
    actual, notes = run(tmp_path, "brat")
    assert actual[0]["tags"] == ["B-PER", "O"] and notes.count("spans without a word in them left out") == 3
    assert notes.count("annotations without a text of their name (.ann without .txt) left out") == 1
    written(tmp_path, "T1\tPER 0 300\tAda", "one.ann")
    with pytest.raises(UserError, match=r"one\.ann:1: the span 0 to 300"):
        run(tmp_path, "brat")
    written(tmp_path, "T1 PER 0 3", "one.ann")
    with pytest.raises(UserError, match=r"one\.ann:1: .* is no annotation"):
        run(tmp_path, "brat")


def features(**columns):
    return {b"huggingface": json.dumps({"info": {"features": columns}}).encode()}


@pytest.mark.parametrize("form", ["parquet", "file", "stream"])
def test_parquet_and_arrow(tmp_path, form):
    names = {"names": ["no", "yes"], "_type": "ClassLabel"}
    rows = {
        "text": ["a", None, "c"],
        "label": [1, 0, -1],
        "tags": [[0, 1], [], None],
        "score": [0.5, float("nan"), 2.0],
        "day": [datetime.date(2020, 1, 2)] * 3,
        "more": [{"inner": 1, "x": "y"}] * 3,
    }
    table = pyarrow.table(rows).replace_schema_metadata(
        features(label=names, tags={"feature": names, "_type": "Sequence"}, more={"inner": names})
    )
    place = tmp_path / "f"
    if form == "parquet":
        parquet.write_table(table, place)
    else:
        with pyarrow.OSFile(str(place), "wb") as sink:
            with (ipc.new_file if form == "file" else ipc.new_stream)(sink, table.schema) as writer:
                writer.write_table(table)
    actual, _ = run(place, "parquet")
    assert [one["text"] for one in actual] == ["a", None, "c"] and [one["label"] for one in actual] == [
        "yes",
        "no",
        None,
    ]
    assert [one["tags"] for one in actual] == [["no", "yes"], [], None]
    assert [one["score"] for one in actual] == [0.5, None, 2.0]
    assert actual[0]["day"] == "2020-01-02" and actual[0]["more"] == {"inner": "yes", "x": "y"}


def test_parquet_without_names_and_broken(tmp_path):
    place = tmp_path / "f"
    parquet.write_table(pyarrow.table({"label": [1, 2]}), place)
    assert run(place, "parquet")[0] == [{"label": 1}, {"label": 2}]
    parquet.write_table(
        pyarrow.table({"label": [5]}).replace_schema_metadata(features(label={"names": ["a"], "_type": "ClassLabel"})),
        place,
    )
    with pytest.raises(UserError, match="f:1: class 5, but the file names 1 classes"):
        run(place, "parquet")
    for content in (place.read_bytes()[:-9], b"", b"PAR1", b"text"):
        with pytest.raises(UserError, match="cannot be read as Parquet or Arrow"):
            run(written(tmp_path, content), "parquet")


def test_brackets():
    tags = ["(A0*", "*)", "(V*)", "*", "(A1)", "*"]
    assert tag_schemes.is_bracketed(tags) and tag_schemes.is_bracketed(["*", "*"])
    assert not tag_schemes.is_bracketed(["O", "*"]) and not tag_schemes.is_bracketed(["(x)"])
    assert tag_schemes.convert_tags(tags, "brackets", "iob2") == ["B-A0", "I-A0", "B-V", "O", "B-A1", "O"]
    for wrong, word in ((["(A*", "(B*", "*)"], 1), (["*)"], 0), (["(A*", "*"], 1), (["A0"], 0)):
        with pytest.raises(tag_schemes.TagError) as error:
            tag_schemes.spans_from_tags(wrong, "brackets")
        assert error.value.word == word
    assert tag_schemes.convert_tags(["(A*", "(B*", "*", "*)", "*)", "(C*"], "brackets", "iob2", strict=False) == [
        "B-A",
        "B-B",
        "I-B",
        "I-B",
        "O",
        "B-C",
    ]


def test_roles_and_names_in_brackets(tmp_path):
    rows = ["He * - (A0*) * c", "gave (PER* give.01 (V*) * c", "it *) - (A1*) (A0*) c", "up * give.02 * (V*) c"]
    place = written(tmp_path, "\n".join(rows) + "\n")
    columns = ("words", "_", "rolesets")
    (actual,), _ = run(place, "srl", columns=columns, separator=None, columns_after=1)
    assert actual["roles"] == [["B-A0", "B-V", "B-A1", "O"], ["O", "O", "B-A0", "B-V"]] and actual["predicates"] == [
        1,
        3,
    ]
    with pytest.raises(UserError, match="3 columns of roles for 2 predicates"):
        run(place, "srl", columns=columns, separator=None)
