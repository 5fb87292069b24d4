"""Data sets streamed from the Hub: a stand-in for the library `datasets`, which is not installed with the project."""

import sys
import types

import pytest

from mtl_jax.data import datasets
from mtl_jax.data.files import array_shards
from mtl_jax.errors import UserError

ENTRY = {"reader": "hub", "path": "who/what", "splits": {"train": "train", "dev": "test[:2]"}, "text": ("text",)}


class Rows:
    """A split of 10 rows; counts how often it is read."""

    read = 0

    @property
    def features(self):
        names = {"_type": "ClassLabel", "names": ["no", "yes"]}
        return types.SimpleNamespace(to_dict=lambda: {"text": {"_type": "Value"}, "label": names})

    def __iter__(self):
        Rows.read += 1
        yield from ({"text": f"text {n}", "label": n % 3 - 1, "score": float("nan")} for n in range(10))


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def load_dataset(path, name, split, revision, streaming):
        assert path == "who/what" and streaming
        if split not in ("train", "test"):
            raise ValueError(f"Bad split: {split}")
        return Rows()

    api = types.SimpleNamespace(dataset_info=lambda name, revision: types.SimpleNamespace(sha="c0ffee"))
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(HfApi=lambda: api))
    Rows.read = 0


def test_rows_become_records(hub):
    data = datasets.read_dataset("d", ENTRY, 0)
    assert {split: len(records) for split, records in data.splits.items()} == {"train": 10, "dev": 2}
    first, second, third = data.splits["train"][:3]
    assert first.fields == {"text": "text 0", "label": None, "score": None} and first.line == 1
    assert (second.fields["label"], third.fields["label"], third.file) == ("no", "yes", "who/what[train]")


def test_a_stored_split_is_not_read_again(hub, monkeypatch):
    monkeypatch.setattr(array_shards, "IN_MEMORY", 3)
    actual = [datasets.read_dataset("d", ENTRY, 0) for _ in range(2)]
    assert Rows.read == 2  # train and test, once each
    assert list(actual[0].splits["train"]) == list(actual[1].splits["train"])
    assert actual[0].fingerprint == actual[1].fingerprint


def test_what_is_missing_is_said(hub, monkeypatch):
    with pytest.raises(UserError, match=r"Hub data set 'who/what', split 'valid': Bad split"):
        datasets.read_dataset("d", ENTRY | {"splits": {"train": "valid"}}, 0)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install"):
        datasets.read_dataset("d", ENTRY, 0)
