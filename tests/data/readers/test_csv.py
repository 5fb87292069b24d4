"""Delimited columns with the dirt that they have: stray quotes, other delimiters, what spreadsheets and joins leave."""

import gzip

import pytest

from mtl_jax.data.files import location
from mtl_jax.data.notices import INFORMATION, RECORDS
from mtl_jax.data.readers import READERS
from mtl_jax.data.records import Note, Record, summarize_notes
from mtl_jax.errors import UserError


def run(tmp_path, content, name="f.csv", **options):
    """(records, notes) of a file with this content."""
    (tmp_path / name).write_bytes(content.encode())
    items = list(READERS["csv"](location.local_path(tmp_path / name), "utf-8", **options))
    return [i for i in items if isinstance(i, Record)], [i for i in items if isinstance(i, Note)]


def fields(tmp_path, content, **options):
    return [record.fields for record in run(tmp_path, content, **options)[0]]


@pytest.mark.parametrize(
    ("content", "remaining", "skipped"),
    [
        # a quote that is never closed costs its line, not the rest of the file
        ('a,b\n1,2\n"he said,3\n4,5\n6,7\n', [2, 4, 5], [(3, 1, 1)]),
        # one that another quote closes, where no delimiter follows
        ('a,b\n"x,1\n2,3\n"y",4\n5,6\n', [3, 4, 5], [(2, 1, 1)]),
        # or where one follows: three columns, and its lines are rows by themselves
        ('a,b\n"x,1\n2,3\n",4,5\n6,7\n', [3, 5], [(2, 1, 1), (4, 1, 1)]),
        # a text over three lines in a row with a column too many is left out whole: its lines are no rows
        ('a,b\n"x\ny\nz",1,2\n3,4\n', [5], [(2, 3, 1)]),
        # quotes in quotes in a text over two lines: its end is no row either, though it has two columns
        ('a,b\n"He said "hi" and\nleft",1\n3,4\n', [4], [(2, 1, 1), (3, 1, 1)]),
        ('a,b\n5" pipe,1\n3,4\n', [2, 3], []),
        ('a,b\n"open,1\n', [], [(2, 1, 1)]),
    ],
)
def test_goes_on_behind_the_bad_line(tmp_path, content, remaining, skipped):
    records, notes = run(tmp_path, content, on_bad_line="skip")
    assert [r.line for r in records] == remaining
    assert [(n.line, n.count, n.lost) for n in notes] == skipped
    if skipped:
        with pytest.raises(UserError, match=rf"f\.csv:{skipped[0][0]}: "):
            run(tmp_path, content)


def test_case_of_a_stray_quote(tmp_path):
    rows = "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(1000))
    content = "text,label\n" + rows.replace("text 10,", '"he said,', 1)
    records, notes = run(tmp_path, content, on_bad_line="skip")
    assert len(records) == 999 and [(n.line, n.count, n.lost) for n in notes] == [(12, 1, 1)]
    with pytest.raises(UserError, match=r"f\.csv:12: broken quotes: .* not closed until the end of the file"):
        run(tmp_path, content)


def test_fields_with_line_ends_are_noted(tmp_path):
    content = 'text,label\nfine one,a\n"a lone quote,b\nswallowed 1,a\nswallowed 2,b\n5 inch",a\nlast,b\n'
    records, notes = run(tmp_path, content)
    assert len(records) == 3
    assert summarize_notes("train", notes) == [f"train: 1 fields hold line ends; first at {records[1].file}:3"]
    _, notes = run(tmp_path, 'a,b\n"1\n2","3\r\n4"\n"x","5\n"\n')
    assert [(n.line, n.count) for n in notes] == [(2, 2), (5, 1)]


def test_a_text_over_several_lines_is_no_warning(tmp_path):
    _, notes = run(tmp_path, 'a,b\n"one,\ntwo\nand three",x\n')
    assert [note.kind for note in summarize_notes("train", notes)] == [INFORMATION]
    _, notes = run(tmp_path, 'a,b\n"one,1\ntwo,2\nthree",3\n')  # its lines are rows by themselves
    assert [note.kind for note in summarize_notes("train", notes)] == [RECORDS]


def test_packed_files_have_the_delimiter_of_their_name(tmp_path):
    (tmp_path / "f.tsv.gz").write_bytes(gzip.compress(b"a, b\tc\n1\t2\n"))
    (record,) = READERS["csv"](location.local_path(tmp_path / "f.tsv.gz"), "utf-8")
    assert record.fields == {"a, b": "1", "c": "2"}


@pytest.mark.parametrize(
    ("name", "content", "delimiter", "columns"),
    [
        ("f.csv", "text\tlabel\nit is, well, fine\tx\n", "\\t", "2: text, label"),
        ("f.csv", "text;label;n\nfine;x;1,5\n", ";", "3: text, label, n"),
        ("f.tsv", "text,label\nfine,x\n", ",", "2: text, label"),
        ("f.txt", "text|label\nfine|x\n", "|", "2: text, label"),
    ],
)
def test_another_delimiter(tmp_path, name, content, delimiter, columns):
    with pytest.raises(UserError) as error:
        run(tmp_path, content, name=name)
    assert f"{name}:1: one column; options.delimiter='{delimiter}' makes {columns}. Of a file" in str(error.value)
    with pytest.raises(UserError, match=r"options\.columns names 5"):
        run(tmp_path, content, name=name, columns=tuple("abcde"), header=True)
    wanted = tuple("abc"[: int(columns[0])])
    with pytest.raises(UserError) as error:
        run(tmp_path, content, name=name, columns=wanted, header=True)
    assert f"names {len(wanted)}; options.delimiter='{delimiter}' makes {len(wanted)}" in str(error.value)
    with pytest.raises(UserError) as error:
        run(tmp_path, content, name=name, columns=wanted)
    assert f"another options.delimiter ('{delimiter}' makes {len(wanted)} columns)" in str(error.value)
    records, _ = run(tmp_path, content, name=name, delimiter=delimiter.replace("\\t", "\t"))
    assert len(records) == 1 and list(records[0].fields) == columns[3:].split(", ")


def test_of_one_column(tmp_path):
    assert fields(tmp_path, "text\na; b\n") == [{"text": "a; b"}]
    options = {"columns": ("text",), "header": True}
    assert fields(tmp_path, "name; or alias\na; b\n", **options) == [{"text": "a; b"}]


def test_as_spreadsheets_write_it(tmp_path):
    assert fields(tmp_path, "sep=;\r\na;b\r\n1,5;2\r\n") == [{"a": "1,5", "b": "2"}]
    content = "a,b\n1,2\n,\n  \n3,4\n,\n,,\n"
    records, notes = run(tmp_path, content)
    assert [r.line for r in records] == [2, 5]
    assert [(n.what, n.line) for n in notes] == [("rows of empty cells left out", at) for at in (3, 4, 6, 7)]
    records, notes = run(tmp_path, "a,b\n1,2,\n3,4\n")  # a delimiter behind the last cell
    assert [r.fields for r in records] == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
    assert [(n.what, n.line) for n in notes] == [("rows with empty cells after the last column", 2)]
    assert fields(tmp_path, "a,b,\n1,2\n3,4,\n") == [{"a": "1", "b": "2"}, {"a": "3", "b": "4", "column_3": ""}]
    with pytest.raises(UserError, match=r"f\.csv:2: 1 columns, 3 wanted"):
        run(tmp_path, "a,b,\n1\n")


def test_a_quote_in_the_header(tmp_path):
    records, notes = run(tmp_path, '"a,b\n1",2\n3,4\n')
    assert [r.fields for r in records] == [{"a,b\n1": "3", "2": "4"}]
    assert [(n.what, n.line, n.count) for n in notes] == [("line ends in the names of the header", 1, 1)]


def test_of_joined_files(tmp_path):
    content = "\ufeffa,b\n1,2\n\ufeffa,b\n\ufeff3,4\n"
    for name, text in (("f.csv", content), ("f.tsv", content.replace(",", "\t"))):
        records, notes = run(tmp_path, text, name=name)
        assert [r.fields for r in records] == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
        assert [(n.what, n.line) for n in notes] == [("rows left out that repeat the header", 3)]


@pytest.mark.parametrize("end", ["\r", "\r\n", "\r\r\n"])
@pytest.mark.parametrize("name", ["f.csv", "f.tsv"])
def test_line_ends(tmp_path, name, end):
    content = "a,b\n1,2\n3,4\n".replace(",", "\t" if name == "f.tsv" else ",").replace("\n", end)
    records, notes = run(tmp_path, content, name=name)
    assert [(r.line, *r.fields.values()) for r in records] == [(2, "1", "2"), (3, "3", "4")] and not notes
