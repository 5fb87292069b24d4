"""Names of files: literal before patterns and variables. Line ends and byte order marks."""

import functools
import gzip
import zipfile

import numpy as np
import pytest

from mtl_jax.data import datasets
from mtl_jax.data.files import location
from mtl_jax.data.pictures import image_store
from mtl_jax.data.readers import READERS
from mtl_jax.data.records import Record
from mtl_jax.errors import UserError

ODD = (
    "data[1].csv",
    "train[v2].csv",
    "a*.csv",
    "a?.csv",
    "pri$es.csv",
    "${x}.csv",
    "~x",
    "~x.csv",
    "d[1]/e*.csv",
    "[a-c]/$d/**/x.csv",
)
DECOYS = ("data1.csv", "ab.csv", "ac.csv", "d1/ef.csv", "a/d/x.csv", "a/d/e/x.csv")


def fill(write):
    for name in (*ODD, *DECOYS):
        write(name, f"text\n{name}\n")


@pytest.fixture(params=["disk", "archive"])
def top(request, tmp_path):
    """A folder with odd names beside those that they match as patterns."""
    if request.param == "archive":
        with zipfile.ZipFile(tmp_path / "w.whl", "w") as whl:
            fill(whl.writestr)
        return location.archive_root(tmp_path / "w.whl")

    def write(name, content):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)

    fill(write)
    return location.local_path(tmp_path)


@pytest.mark.parametrize("name", ODD)
def test_a_name_that_is_there_is_that_file(top, name):
    (actual,) = top.glob(name)
    assert actual.text("utf-8") == f"text\n{name}\n"
    assert top.child(name).text("utf-8") == f"text\n{name}\n"


def test_patterns_where_no_name_is_there(top):
    def found(pattern):
        return [place.name.removeprefix(f"{top.name}/") for place in top.glob(pattern)]

    assert found("data[0-9].csv") == ["data1.csv"]
    assert found("[a-c]b.csv") == ["ab.csv"]
    assert found("d[1]/*.csv") == ["d[1]/e*.csv"]  # the folder of that name, and a pattern in it
    assert found("a/**/x.csv") == ["a/d/x.csv", "a/d/e/x.csv"]
    assert found("data[2].csv") == []
    assert not top.child("data[2].csv").exists()


def test_absolute_paths_and_variables(tmp_path, monkeypatch):
    for name in (*ODD, *DECOYS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.setenv("FOLDER", str(tmp_path))
    elsewhere = location.local_path("/usr")
    for name in ODD:
        for path in (f"{tmp_path}/{name}", f"$FOLDER/{name}", f"${{FOLDER}}/{name}"):
            (actual,) = elsewhere.glob(path)
            assert (
                actual.text("utf-8")
                == name
                == elsewhere.child(path).text("utf-8")
                == location.local_path(path).text("utf-8")
            )
    assert [p.text("utf-8") for p in elsewhere.glob("$FOLDER/data[0-9].csv")] == ["data1.csv"]
    monkeypatch.setenv("es", "X")
    assert location.local_path(f"{tmp_path}/pri$es.csv").exists()  # there, so it is no variable
    assert elsewhere.child("pri$es.csv").name == "/usr/priX.csv"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert location.local_path("~/data1.csv").text("utf-8") == "data1.csv"
    assert [p.text("utf-8") for p in elsewhere.glob("~/data[0-9].csv")] == ["data1.csv"]
    with pytest.raises(UserError, match=r"no file is called so, and the environment variable \$NO_SUCH is not set"):
        elsewhere.glob("a/$NO_SUCH*.csv")


def test_a_data_set_reads_the_file_that_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    for name in ("data[1].csv", "data1.csv", "a*.csv", "ab.csv", "pri$es.csv", "~x"):
        (tmp_path / name).write_text(f"text\n{name}\n")
    for name in ("data[1].csv", "a*.csv", "pri$es.csv", "~x"):
        entry = {"reader": "csv", "path": str(tmp_path), "text": ("text",), "splits": {"train": name}}
        assert [r.fields["text"] for r in datasets.read_dataset("d", entry, 0).splits["train"]] == [name]


def test_a_file_in_the_folders_of_labels(tmp_path):
    for name in ("pos/a[1].txt", "pos/a1.txt", "neg/a1.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    read = functools.partial(READERS["folders"], location.local_path(tmp_path), "utf-8")

    def texts(pattern):
        return [item.fields["text"] for item in read(pattern=pattern) if isinstance(item, Record)]

    assert texts("a[1].txt") == ["pos/a[1].txt"] and texts("a[0-9].txt") == ["neg/a1.txt", "pos/a1.txt"]


def test_pictures_named_in_records(tmp_path):
    from PIL import Image

    for value, name in enumerate(("pri$es[1].png", "~a.png"), start=1):
        Image.fromarray(np.full((4, 4), value, np.uint8)).save(tmp_path / name)
        record = Record({"image": name}, "f", 1)
        album, _ = image_store.read_images(
            {"train": [record]}, "image", location.local_path(tmp_path), image_store.PatchSpec(4, 1)
        )
        assert album.pixels[1:].tolist() == [[value] * 16]


# lines


def lines(tmp_path, content, encoding="utf-8"):
    (tmp_path / "f").write_bytes(content)
    return list(location.local_path(tmp_path / "f").lines(encoding))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_line_ends(tmp_path, pack):
    three = [(1, "a"), (2, "b"), (3, "c")]
    for content in (b"a\nb\nc", b"a\nb\nc\n", b"a\r\nb\r\nc\r\n", b"a\rb\rc", b"a\rb\rc\r", b"a\r\r\nb\r\r\nc\r\r\n"):
        assert lines(tmp_path, pack(content)) == three
    assert lines(tmp_path, pack(b"a\rb\nc\n")) == [(1, "a\rb"), (2, "c")]  # there is a line end: a CR is a character
    assert lines(tmp_path, pack(b"")) == [] and lines(tmp_path, pack(b"\r")) == [(1, "")]


def test_byte_order_marks(tmp_path):
    bom = "\ufeff".encode()
    assert lines(tmp_path, bom + bom + b"a\n" + bom + b"b\xef\xbb\xbfc\n") == [(1, "a"), (2, "b\ufeffc")]
    assert lines(tmp_path, "\ufeffa\n\ufeffb\n".encode("utf-16-le"), "utf-16-le") == [(1, "a"), (2, "b")]
    assert location.local_path(tmp_path / "f").text("utf-16-le") == "a\n\ufeffb\n"  # characters are counted in a text


def test_utf8_with_a_mark_is_nothing_else(tmp_path):
    for other in ("latin-1", "cp1252", "ascii|cp1252"):
        with pytest.raises(
            UserError, match=r"f:1: it begins with the byte order mark of UTF-8, read as .*perhaps utf-8\)"
        ):
            lines(tmp_path, b"\xef\xbb\xbftext,label\n", other)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark(tmp_path, encoding):
    content = "text,label\nabc,1\n".encode(encoding)
    for other in ("utf-8", "latin-1", "utf-8|cp1252"):
        with pytest.raises(UserError, match=f"f:1: every second character is NUL.*perhaps {encoding}"):
            lines(tmp_path, content, other)
    assert lines(tmp_path, content, encoding) == [(1, "text,label"), (2, "abc,1")]
    marked = "\ufeff".encode(encoding) + content
    for other in ("latin-1", "utf-8|cp1252"):
        with pytest.raises(UserError, match=r"f:1: every second character is NUL.*perhaps utf-16\)"):
            lines(tmp_path, marked, other)
    assert lines(tmp_path, marked, "utf-8|utf-16") == [(1, "text,label"), (2, "abc,1")]
    assert lines(tmp_path, b"a\0b,1\n") == [(1, "a\0b,1")]
