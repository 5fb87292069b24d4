"""Removal of prepared data: by when it was read last, downloads and what is in use stay."""

import os
import time

import numpy as np
import pytest

from mtl_jax.data.files import array_cache, array_shards, cache_cleaning
from mtl_jax.errors import UserError
from mtl_jax.runs import data_clean

DAY = 86400


def make(number):
    return {"x": np.full(3, number)}, None


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Arrays on disk and in a file, as if made 40 days ago, beside a download of that age."""
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path))
    job = array_shards.Job("rows", {"of": "test"}, make)
    array_shards.make(job, [(1,), (2,)], True)
    array_cache.store({"of": "test"}, {"x": np.zeros(5)})
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels/a.whl").write_bytes(b"1234")
    for path in tmp_path.rglob("*"):
        os.utime(path, (time.time() - 40 * DAY,) * 2)
    array_shards.open_arrays.cache_clear()
    return job


def test_removes_what_was_not_read(job, tmp_path, capsys):
    assert not cache_cleaning.unused_entries(41)
    size = sum(entry.size for entry in cache_cleaning.unused_entries(39))
    data_clean.clean(39)
    assert f"2 prepared arrays, {size / 1e3:.1f} kB" in capsys.readouterr().out
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.whl"]
    assert array_shards.make(job, [(1,), (2,)], True).arrays["x"].tolist() == [1, 1, 1, 2, 2, 2]


def test_what_was_read_stays(job):
    array_shards.make(job, [(1,), (2,)], True)
    assert array_cache.load({"of": "test"}) is not None
    data_clean.clean(39)
    assert array_shards.exists(job) and array_cache.load({"of": "test"}) is not None


def test_mapped_arrays_outlive_their_files(job):
    mapped = array_shards.make(job, [(1,), (2,)], True).arrays["x"]
    data_clean.clean(0)
    assert not array_shards.exists(job) and mapped.tolist() == [1, 1, 1, 2, 2, 2]


def test_negative_days():
    with pytest.raises(UserError, match="--days=-1 should be 0 or more"):
        data_clean.clean(-1)


def test_every_kind_of_prepared_data_is_known(tmp_path, monkeypatch):
    """What a run leaves in the cache is either prepared data or one of the folders that stay."""
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path))
    monkeypatch.setattr(array_shards, "IN_MEMORY", 2)
    from mtl_jax.data import corpus
    from mtl_jax.data.labels.label_spec import LabelSpec
    from mtl_jax.data.tokenizers import WordVocabulary

    (tmp_path / "r.jsonl").write_text('{"text": "one two", "label": "a"}\n{"text": "three", "label": "b"}\n' * 20)
    entry = {"reader": "jsonl", "path": str(tmp_path / "r.jsonl"), "text": ("text",), "dev_fraction": 0.2}
    corpus.load({"d": entry}, [LabelSpec("t", "d", "label")], WordVocabulary(), row_length=8)
    folders = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert "rows" in folders and folders <= set(cache_cleaning.PREPARED)
