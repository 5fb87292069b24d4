"""Parallel files: names with the split in them, counts of lines; and the field `file` of every reader of files."""

import gzip
import json
import shutil
import zipfile

import pytest

from mtl_jax.data import datasets
from mtl_jax.data.files import location
from mtl_jax.data.readers import READERS
from mtl_jax.errors import UserError


def write(folder, **contents):
    for name, content in contents.items():
        (folder / name.replace("__", ".")).write_text(content)


def read(folder, **entry):
    return datasets.read_dataset("d", {"reader": "parallel", "path": str(folder), "text": ("text",), **entry}, 0)


TWEETS = {"files": {"text": "{split}_text.txt", "label": "{split}_labels.txt"}}
NAMES = {"train": "train", "dev": "val", "test": "test"}


@pytest.fixture
def tweets(tmp_path):
    for name in NAMES.values():
        write(tmp_path, **{f"{name}_text__txt": f"{name} one\n\n{name} three\n", f"{name}_labels__txt": "0\n1\n2\n"})
    return tmp_path


def test_files_with_the_split_in_their_names(tweets):
    data = read(tweets, splits=NAMES, options={**TWEETS, "empty": "drop"})
    for split, name in NAMES.items():
        file = f"{name}_text.txt"
        assert [(r.fields, r.line) for r in data.splits[split]] == [
            ({"text": f"{name} one", "label": "0", "file": file}, 1),
            ({"text": f"{name} three", "label": "2", "file": file}, 3),
        ]
    assert data.notes[0].startswith("train: 1 records without text dropped")
    with pytest.raises(UserError, match=r"train_text\.txt:2: the text 'text' is empty"):
        read(tweets, splits=NAMES, options=TWEETS)


def test_what_is_read_is_what_the_fingerprint_is_of(tweets):
    entry = {"splits": {"train": "train"}, "options": {**TWEETS, "empty": "drop"}}
    before = read(tweets, **entry).fingerprint
    write(tweets, other__txt="x", val_text__txt="x")
    assert read(tweets, **entry).fingerprint == before
    write(tweets, train_labels__txt="0\n1\n1\n")
    assert read(tweets, **entry).fingerprint != before


def test_in_folders_archives_and_slices(tweets, tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("train_text.txt", "train_labels.txt"):
        shutil.copy(tmp_path / name, tmp_path / "sub" / name)
    options = {**TWEETS, "empty": "drop"}
    (first, _) = read(tweets, splits={"train": "sub/train"}, options=options).splits["train"]
    assert first.fields["file"] == "sub/train_text.txt"
    both = read(tweets, splits={"train": ("train[:2]", "sub/train[2:]")}, options=options).splits["train"]
    assert [(r.fields["text"], r.fields["file"]) for r in both] == [
        ("train one", "train_text.txt"),
        ("train three", "sub/train_text.txt"),
    ]
    named = {"files": {"text": "{split}/{split}.txt", "label": "{split}/{split}.labels"}}
    (tmp_path / "dev").mkdir()
    write(tmp_path / "dev", dev__txt="a\n", dev__labels="x\n")
    assert read(tweets, splits={"train": "dev"}, options=named).splits["train"][0].fields["label"] == "x"
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        archive.write(tmp_path / "train_text.txt", "d/train_text.txt")
        archive.write(tmp_path / "train_labels.txt", "d/train_labels.txt")
    place = location.archive_root(tmp_path / "w.zip").child("d/train")
    assert len(list(READERS["parallel"](place, "utf-8", **TWEETS))) == 3


def test_pairs_of_translations(tmp_path):
    write(tmp_path, train__en="one\ntwo\n", train__de="eins\nzwei\n", val__en="three\n")
    (tmp_path / "val.de.gz").write_bytes(gzip.compress(b"drei\n"))
    options = {"files": {"source": "{split}.en", "target": "{split}.de"}}
    data = read(tmp_path, text=("source",), splits={"train": "train"}, options=options)
    pairs = [(r.fields["source"], r.fields["target"]) for r in data.splits["train"]]
    assert pairs == [("one", "eins"), ("two", "zwei")]
    with pytest.raises(UserError, match=r"val\.de: no such file or folder\. .* holds: .*val\.de\.gz"):
        read(tmp_path, text=("source",), splits={"train": "train", "dev": "val"}, options=options)
    with pytest.raises(UserError, match=r"validation\.en: no such file"):
        read(tmp_path, text=("source",), splits={"train": "validation"}, options=options)
    for empty in (options["files"], {}):
        with pytest.raises(UserError, match=r"no such file|options\.files is empty"):
            read(tmp_path, text=("source",), splits={}, options={"files": empty})


@pytest.mark.parametrize(
    ("texts", "labels", "actual"),
    [
        ("a\nb\n", "x\ny\n", 2),
        ("a\nb", "x\ny\n", 2),
        ("a\nb\n\n\n", "x\ny\n", 2),  # blank lines at the end of one
        ("a\nb\n", "x\ny\n\n  \n", 2),
        ("a\nb\n\n", "x\ny\nz\n", 3),  # a text that is empty, and has a label: it is the last
        ("a\nb\n", "x\ny\nz\n", (2, 3)),
        ("a\nb\n\nd\n", "x\ny\nz\n", (4, 3)),
        ("", "x\n", (0, 1)),
        ("", "", 0),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_numbers_of_lines(tmp_path, texts, labels, actual, end):
    for name, content in (("a", texts), ("b", labels)):
        (tmp_path / name).write_bytes(content.replace("\n", end).encode())
    place, options = location.local_path(tmp_path), {"files": {"text": "a", "label": "b"}}
    if isinstance(actual, int):
        records = list(READERS["parallel"](place, "utf-8", **options))
        assert len(records) == actual and all(r.fields["label"] for r in records)
    else:
        with pytest.raises(UserError, match=rf"different numbers of lines: {actual[0]} in .*a, {actual[1]} in .*b$"):
            list(READERS["parallel"](place, "utf-8", **options))


# the field `file`


def test_every_reader_of_files_names_them(tmp_path):
    rows = {"train": [{"text": "a", "y": 1}]}
    contents = {
        "csv": ("text,y\na,1\n", "{}/f.csv", {}),
        "jsonl": ('{"text": "a"}\n', "{}/f.jsonl", {}),
        "json_splits": (json.dumps(rows), "{}/f.json:train", {}),
        "lines": ("a\n", "{}/f.pos", {}),
        "xml": ("<d><r><text>a</text></r></d>", "{}/f.xml", {"record": "r"}),
        "conll": ("a O\n", "{}/f.conll", {}),
        "spans": ('{"text": "a", "spans": []}\n', "{}/f.spans", {}),
    }
    for folder in ("one", "two/three"):
        (tmp_path / folder).mkdir(parents=True)
        for content, name, _ in contents.values():
            (tmp_path / name.format(folder).partition(":")[0]).write_text(content)
        (tmp_path / folder / "f.pos.gz").write_bytes(gzip.compress(b"a\n"))
    for reader, (_, name, options) in contents.items():
        what = {"words": "words"} if reader in ("conll", "spans") else {"text": ("text",)}
        entry = {"reader": reader, "path": str(tmp_path), "options": options, **what}
        splits = {"train": name.format("**")}
        data = datasets.read_dataset("d", {**entry, "splits": splits}, 0)
        plain = name.partition(":")[0]
        assert [r.fields["file"] for r in data.splits["train"]] == [plain.format("one"), plain.format("two/three")]
        chosen = datasets.read_dataset("d", {**entry, "splits": splits, "filter": {"file": plain.format("one")}}, 0)
        assert len(chosen.splits["train"]) == 1
    entry = {"reader": "lines", "path": str(tmp_path / "one" / "f.pos.gz"), "text": ("text",)}
    assert datasets.read_dataset("d", entry, 0).splits["train"][0].fields["file"] == "f.pos"
    (tmp_path / "own.jsonl").write_text('{"text": "a", "file": "mine"}\n')
    entry = {"reader": "jsonl", "path": str(tmp_path / "own.jsonl"), "text": ("text",)}
    assert datasets.read_dataset("d", entry, 0).splits["train"][0].fields["file"] == "mine"
    for folder in ("pos", "neg"):
        (tmp_path / "imdb" / folder).mkdir(parents=True)
        (tmp_path / "imdb" / folder / "1.txt").write_text(folder)
    entry = {"reader": "folders", "path": str(tmp_path), "splits": {"train": "imdb"}, "text": ("text",)}
    actual = datasets.read_dataset("d", entry, 0).splits["train"]
    assert [r.fields["file"] for r in actual] == ["imdb/neg/1.txt", "imdb/pos/1.txt"]
