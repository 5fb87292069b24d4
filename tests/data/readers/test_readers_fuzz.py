"""Whatever stands in a file, a reader gives records or a UserError; and the words of records stand in the file.

No record is lost without a word: records in = records out + records counted as lost.

    FUZZ=1000 python -m pytest tests/data/readers/test_readers_fuzz.py tests/checks/test_checks_fuzz.py  # 14,000 inputs
"""

import itertools
import json
import os
import pathlib
import tempfile

import hypothesis
import pytest
from hypothesis import strategies as st

from mtl_jax.data.files import location
from mtl_jax.data.readers import READERS
from mtl_jax.data.records import Note, Record
from mtl_jax.errors import UserError

PIECES = st.sampled_from(
    [
        "\n",
        "\r\n",
        "\r",
        "\t",
        " ",
        ",",
        '"',
        "{",
        "}",
        "[",
        "]",
        ":",
        '"a"',
        "1",
        "1-2",
        "_",
        "O",
        "B-X",
        "I-Y",
        "E-X",
        "-",
        "go.01",
        "# k = v\n",
        "train",
        "\x00",
        "\ufeff",
        "\u2028",
        "é",
        "\\ud800",
        "NaN",
        "1e999",
        "0\ta\tb\tc\t-\n",
        "1\ta\ta\tX\tY\t_\t0\tr\t_\t_\n",
        '{"train": [["a", "b"]]}',
        "a O\n",
        "-DOCSTART- O\n",
        '{"data": [{"paragraphs": [{"context": "a b", "qas": [{"question": "q", "answers": []}]}]}]}',
        "T1\tX 0 1\n",
        '{"text": "a b", "spans": [[0, 1, "X"]]}\n',
        "(X*",
        "*)",
        "*",
        "\x1f\x8b\x08",
        "PAR1",
        "ARROW1",
        '{"turns": ["a", 1]}\n',
        '{"turns": ["a", "b"]}\n',
        '{"sentence": "a", "label": "true", "identifier": "1-0", "directory": "0", ',
        '"structured_rep": [[], [{"color": "Black"}], []]}\n',
        '"structured_rep": [[], [{"color": "Black"',
        ', "type": "square"',
        ', "x_loc": 1, "y_loc": 1, "size": 1',
        "}], []]}\n",
        "\x00\x00\x08\x01\x00\x00\x00\x01\x05",
        '<a b="1">',
        "</a>",
        "<b>",
        "</b>",
        "<!DOCTYPE a [",
        "]>",
        '<!ENTITY a "b">',
        "&a;",
        "&amp;",
    ]
)
CONTENT = st.binary(max_size=60) | st.lists(PIECES, max_size=30).map(lambda pieces: "".join(pieces).encode())
FOLDERS = {  # reader: files of the folder that it reads, the same content in each
    "parallel": ("a", "b"),
    "folders": ("label/c", "other/d"),
    "nlvr": ("dev/dev.json", "dev/images/0/dev-1-0-0.png"),
    "idx": ("f", "g"),
    "brat": ("f.txt", "f.ann"),
}
OPTIONS = {
    "json_splits": {"split": "train"},
    "conll": {"columns": ("words", "tags")},
    "parallel": {"files": {"words": "a", "slots": "b"}},
    "idx": {"labels": "g"},
    "lines": {"pattern": r"(?P<text>\S+)\s?(?P<rest>.*)", "lists": {"rest": "a"}},
    "xml": {"record": "a", "lists": ("b",)},
    "derived": {"way": "infill", "reader": "conll", "options": {"columns": ("words", "tags")}},
}
EXAMPLES = int(os.environ.get("FUZZ", "100"))


SETTINGS = hypothesis.settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="FUZZ" not in os.environ,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize("reader", sorted(set(READERS) - {"synthetic", "tfds", "hub"}))
@SETTINGS
@hypothesis.given(content=CONTENT, encoding=st.sampled_from(["utf-8", "utf-16", "latin-1", "utf-8|cp1252"]))
def test_records_or_user_error(tmp_path, reader, content, encoding):
    for name in FOLDERS.get(reader, ("f",)):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(content)
    places = {"parallel": "", "folders": "", "brat": "", "nlvr": "dev/images/0"}
    place = tmp_path / places.get(reader, "f")
    try:
        items = list(READERS[reader](location.local_path(place), encoding, **OPTIONS.get(reader, {})))
    except UserError as error:
        assert str(tmp_path) in str(error)
        return
    decoded = [content.decode(name, "replace") for name in encoding.split("|")]
    for item in items:
        assert isinstance(item, Record | Note)
        if isinstance(item, Record) and "words" in item.fields:
            lists = [v for k, v in item.fields.items() if k in ("words", "tags", "slots", "upos", "heads")]
            assert len({len(values) for values in lists}) == 1
            for word in item.fields["words"] if reader in ("conll", "conllu", "srl", "parallel") else ():
                assert any(word in text for text in decoded), word


def items_of(place, reader, /, **options):
    """(records, notes)."""
    items = list(READERS[reader](location.local_path(place), "utf-8", **options))
    return [i for i in items if isinstance(i, Record)], [i for i in items if isinstance(i, Note)]


def lost(notes):
    return sum(note.lost for note in notes)


CELLS = st.lists(
    st.sampled_from(["\n", "\r\n", "\r", ",", "\t", '"', '""', "a", " ", "b c", "\ufeff", ",\n", '"\n', '\n"']),
    max_size=40,
).map("".join)


@pytest.mark.parametrize("options", [{}, {"columns": ("a",)}, {"columns": ("a", "b", "c")}, {"quoting": "none"}])
@SETTINGS
@hypothesis.given(content=CELLS)
def test_every_line_of_a_table_is_in_a_record_or_counted(tmp_path, options, content):
    text = content if "columns" in options else f"a,b\n{content}"
    (tmp_path / "f").write_bytes(text.encode())
    records, notes = items_of(tmp_path / "f", "csv", on_bad_line="skip", **options)
    lines = list(location.local_path(tmp_path / "f").raw_lines("utf-8"))
    end = "\n" if "\n" in text else "\r"
    covered = [] if "columns" in options else [1]
    for record in records:
        ends = sum(value.count(end) for value in record.fields.values())
        covered += range(record.line, record.line + ends + 1)
    for note in notes:
        if note.what not in ("fields hold line ends", "rows with empty cells after the last column"):
            covered += range(note.line, note.line + note.count)
    assert len(set(covered)) == len(covered)
    missing = [lines[n - 1] for n in set(range(1, len(lines) + 1)) - set(covered)]
    assert not [line for line in missing if line.strip("\r\n\ufeff")]
    assert lost(notes) <= sum(note.count for note in notes)


@SETTINGS
@hypothesis.given(
    rows=st.lists(st.sampled_from(["a", "b c", '"q"', '"x, y"', '"say ""it"""', "5'"]), min_size=1, max_size=12),
    damage=st.sets(st.integers(0, 11), max_size=4),
    what=st.sampled_from(["more", "fewer", "quote", "quotes"]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_records_of_a_damaged_table(tmp_path, rows, damage, what, end):
    whole = [f"{row},{number}" for number, row in enumerate(rows)]
    damage = sorted(at for at in damage if at < len(rows))[: 1 if what == "quote" else None]
    for at in damage:
        whole[at] = {"more": f"{whole[at]},x", "fewer": "z", "quote": f'"z,{at}', "quotes": f'"z"z,{at}'}[what]
    (tmp_path / "f").write_bytes(end.join(["t,n", *whole, ""]).encode())
    records, notes = items_of(tmp_path / "f", "csv", on_bad_line="skip")
    hidden = sum(value.count("\n") for record in records for value in record.fields.values())
    assert len(rows) == len(records) + lost(notes) + hidden
    assert not hidden or (what == "quote" and any(note.what == "fields hold line ends" for note in notes))
    if not hidden:
        assert [r.fields["n"] for r in records] == [str(n) for n in range(len(rows)) if n not in damage]


def objects(count, **more):
    return [{"text": f"t {n}", "n": n, **more} for n in range(count)]


def conllu(count):
    words = "".join(f"{i}\tw{i}\tl\tX\tY\t_\t{i - 1}\tr\t_\t_\n" for i in (1, 2))
    return "".join(f"# sent_id = s-{n}\n{words}\n" for n in range(count))


@pytest.mark.parametrize("size", [0, 1, 2, 3])
@SETTINGS
@hypothesis.given(lines=st.lists(st.sampled_from(["", " ", "a 1", "a 2", "b", "c x", "\x0b"]), max_size=14))
def test_every_line_of_records_is_in_one_or_counted(tmp_path, size, lines):
    (tmp_path / "f").write_text("\n".join(lines))
    pattern = r"(?P<t>a .)" + {0: r"(\n.+)*", 1: "", 2: r"\n(?P<b>b)", 3: r"\n(?P<b>b)\n(?P<c>.+)"}[size]
    records, notes = items_of(tmp_path / "f", "lines", lines_per_record=size, pattern=pattern, on_bad_line="skip")
    blocks = [len(list(block)) for full, block in itertools.groupby(lines, lambda line: bool(line.strip())) if full]
    whole, skipped = sum(blocks), sum(note.count for note in notes)
    if size:
        assert whole == size * len(records) + skipped
        assert all(note.lost == -(-note.count // size) for note in notes)
    else:
        assert len(blocks) == len(records) + lost(notes)
        assert (skipped == 0) == (not notes) and skipped <= whole


QUESTION = {"question": "q", "answers": []}
MADE = {  # reader: (what makes a file of so many records, options)
    "jsonl": (lambda n: "".join(json.dumps(one) + "\n" for one in objects(n)), {}),
    "jsonl pretty": (lambda n: "\n".join(json.dumps(one, indent=1) for one in objects(n)), {}),
    "jsonl list": (lambda n: json.dumps(objects(n), indent=1), {}),
    "jsonl under a key": (lambda n: json.dumps({"a": {"data": objects(n)}}), {}),
    "jsonl by key": (lambda n: json.dumps({f"id{i}": one for i, one in enumerate(objects(n))}), {"key": "key"}),
    "spans": (lambda n: "".join(json.dumps(one) + "\n" for one in objects(n, spans=[[0, 1, "X"]])), {}),
    "lines": (
        lambda n: "".join(f"l{i} text {i}\n" for i in range(n)),
        {"on_bad_line": "skip", "pattern": r"(?P<l>\w+) (?P<t>.+)"},
    ),
    "csv": (lambda n: "t,n\n" + "".join(f"text {i},{i}\n" for i in range(n)), {"on_bad_line": "skip"}),
    "conll": (lambda n: "a O\nb B-X\n\n" * n, {}),
    "conllu": (conllu, {}),
    "srl": (lambda n: "1\ta\tX\tY\tgo.01\tB-V\n2\tb\tX\tY\t-\tO\n\n" * n, {}),
    "xml": (lambda n: "<d>\n" + '<r a="1"><t>text</t></r>\n' * n + "</d>", {"record": "r"}),
    "json_splits": (lambda n: json.dumps({"train": objects(n), "dev": []}), {"split": "train"}),
    "squad": (
        lambda n: json.dumps({"data": [{"paragraphs": [{"context": "a b", "qas": [QUESTION]}]} for i in range(n)]}),
        {},
    ),
}
JSON = ("jsonl", "jsonl pretty", "jsonl list", "jsonl under a key", "jsonl by key", "spans", "json_splits")
SIGNS = st.sampled_from([*"\t ,'\"{}[]:<>&#_-*()\\/x1", "\x00", "\ufeff", "\u2028", "\x0b", "\x85", "\xa0"])


@pytest.mark.parametrize("reader", MADE)
@SETTINGS
@hypothesis.given(
    count=st.integers(1, 4),
    places=st.lists(st.tuples(st.floats(0, 1), SIGNS), max_size=3),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_records_in_are_records_out_and_lost(tmp_path, reader, count, places, end):
    make, options = MADE[reader]
    content = make(count)
    for share, sign in places:
        at = round(share * (len(content) - 1))  # not behind the last line end, where it would make a line
        if content[max(at - 1, 0) : at + 1] != "\n\n":  # nor in the blank line between two sentences
            content = content[:at] + sign + content[at:]
    (tmp_path / "f").write_bytes(content.replace("\n", end).encode())
    try:
        records, notes = items_of(tmp_path / "f", reader.split()[0], **options)
    except UserError as error:
        assert places and str(tmp_path) in str(error)
        return
    if reader in JSON and any("text" not in record.fields for record in records):
        return  # the damage made another value of it; a data set refuses records without a field that it names
    hidden = 0
    if reader == "csv":  # lines in quotes that the damage has made
        hidden = sum(value.count("\n") for record in records for value in record.fields.values())
        hidden += sum(note.count for note in notes if note.what == "line ends in the names of the header")
    assert count == len(records) + lost(notes) + hidden


@SETTINGS
@hypothesis.given(
    questions=st.lists(st.tuples(st.sampled_from(["q", " "]), st.sampled_from(["c", ""])), min_size=1, max_size=6),
    sentences=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    turns=st.lists(st.integers(0, 3), max_size=6),
    names=st.sets(st.sampled_from(["p/1.txt", "p/2.md", "n/3.txt", "u/x/4.txt", "README", "u/5"]), min_size=1),
)
def test_what_is_left_out_is_counted(tmp_path, questions, sentences, turns, names):
    paragraphs = [{"context": c, "qas": [{"question": q, "answers": []}]} for q, c in questions]
    (tmp_path / "f").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    records, notes = items_of(tmp_path / "f", "squad")
    assert len(questions) == len(records) + lost(notes)

    (tmp_path / "f").write_text("".join("a O\n" * n + "\n" for n in sentences))
    options = {"way": "reorder", "reader": "conll", "shortest": 2, "longest": 4, "unchanged": False}
    records, notes = items_of(tmp_path / "f", "derived", **options)
    assert len(sentences) == len(records) + lost(notes)

    (tmp_path / "f").write_text("".join(json.dumps({"turns": ["t"] * n}) + "\n" for n in turns))
    records, notes = items_of(tmp_path / "f", "dialogue")
    assert len(records) == sum(max(n - 1, 0) for n in turns) and lost(notes) == sum(n < 2 for n in turns)

    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        for name in names:
            (pathlib.Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            (pathlib.Path(folder) / name).write_text("x")
        if names != {"README"}:
            labels = tuple({name[0] for name in names} & {"p", "n"})
            records, notes = items_of(folder, "folders", pattern="*.txt", labels=labels)
            assert len(names) == len(records) + sum(note.count for note in notes)


SPANS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)).map(sorted), max_size=5)


@SETTINGS
@hypothesis.given(marks=SPANS, gap=st.sampled_from([" ", "\n", " \n\n"]))
def test_spans_in_are_spans_out_and_counted(tmp_path, marks, gap):
    text = f"ab cd{gap}e, fgh"[:12].ljust(12, ".")
    (tmp_path / "f").write_text(json.dumps({"text": text, "spans": [[*mark, "X"] for mark in marks]}))
    records, notes = items_of(tmp_path / "f", "spans")
    out = [tag for record in records for tag in record.fields["tags"] if tag.startswith("B-")]
    assert len(marks) == len(out) + sum("left out" in note.what for note in notes)

    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        (pathlib.Path(folder) / "f.txt").write_text(text)
        lines = [f"T{n}\tX {begin} {end}\tx\n" for n, (begin, end) in enumerate(marks)]
        (pathlib.Path(folder) / "f.ann").write_text("".join(lines))
        records, notes = items_of(folder, "brat")
        out = [tag for record in records for tag in record.fields["tags"] if tag.startswith("B-")]
        cut = sum("goes on" in note.what for note in notes)
        left_out = sum("left out" in note.what for note in notes)
        assert len(out) + left_out == len(marks) if not cut else len(out) + left_out >= len(marks)


@SETTINGS
@hypothesis.given(
    lines=st.lists(st.sampled_from(["a", "", " ", "b c"]), max_size=6),
    more=st.integers(0, 3),
    ends=st.sampled_from(["", "\n"]),
)
def test_parallel_lines(tmp_path, lines, more, ends):
    labels = [str(number) for number in range(len(lines))]
    (tmp_path / "a").write_text("\n".join(lines) + "\n" * more)
    (tmp_path / "b").write_text("\n".join(labels) + ends)
    try:
        records, notes = items_of(tmp_path, "parallel", files={"text": "a", "label": "b"})
    except UserError as error:  # a text at the end that is not there
        assert "different numbers of lines" in str(error) and lines and not lines[-1].strip()
        return
    assert [record.fields["label"] for record in records] == labels and not notes


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | st.sampled_from(["t", ""]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "data", "0", "1"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@SETTINGS
@hypothesis.given(
    value=VALUES,
    records=st.sampled_from(["", ".", "a", "data.0", "b.a"]),
    key=st.sampled_from(["", "k"]),
    columns=st.sampled_from([(), ("x", "y")]),
    fields=st.sampled_from([(), ("a",), ("a.0.b",)]),
)
def test_any_document_gives_records_or_says_what_to_do(tmp_path, value, records, key, columns, fields):
    (tmp_path / "f").write_text(json.dumps(value))
    try:
        actual, _ = items_of(tmp_path / "f", "jsonl", records=records, key=key, columns=columns, fields=fields)
    except UserError as error:
        assert str(tmp_path) in str(error)
        return
    assert len({(record.file, record.line) for record in actual}) == len(actual)
    assert all(isinstance(record.fields, dict) for record in actual)
    if isinstance(value, list) and records in ("", "."):
        assert len(actual) in (len(value), 1)
