"""Data sets streamed from the Hub: a stand-in for the library `datasets`, which is not installed with the project."""

import importlib.util
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


def test_an_origin_names_data_set_configuration_and_revision(hub, monkeypatch):
    seen = []

    def load_dataset(path, name, split, revision, streaming):
        seen.append((path, name, split, revision, streaming))
        return Rows()

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    entry = ENTRY | {"origin": "hf://datasets/who/what@v2", "path": "de", "options": {"streaming": False}}
    data = datasets.read_dataset("d", entry | {"splits": {"train": "train"}}, 0)
    assert seen == [("who/what", "de", "train", "v2", False)] and len(data.splits["train"]) == 10
    with pytest.raises(UserError, match=r"options.name: 'fr', but origin and path say 'de'"):
        datasets.read_dataset("d", entry | {"options": {"name": "fr"}}, 0)


def test_folders_that_the_library_saved(tmp_path, monkeypatch):
    if not importlib.util.find_spec("datasets") or not importlib.util.find_spec("datasets").origin:
        pytest.skip("the library datasets is not installed")  # a folder of that name is no library
    library = importlib.import_module("datasets")
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    features = library.Features(
        {
            "tokens": library.Sequence(library.Value("string")),
            "tags": library.Sequence(library.ClassLabel(names=["O", "B-X"])),
            "translation": {"en": library.Value("string"), "de": library.Value("string")},
            "image": library.Image(),
        }
    )
    rows = [
        {"tokens": ["a", "b"], "tags": [0, 1], "translation": {"en": f"n{n}", "de": f"z{n}"}, "image": None}
        for n in range(3)
    ]
    parts = {split: library.Dataset.from_list(rows, features=features) for split in ("train", "test")}
    library.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    entry = {"reader": "hub", "path": str(tmp_path / "saved"), "splits": {"train": "train", "dev": "test[:1]"}}
    data = datasets.read_dataset("d", entry | {"words": "tokens"}, 0)
    record = data.splits["train"][2]
    assert record.fields["tags"] == ["O", "B-X"] and record.fields["translation"]["de"] == "z2"
    assert len(data.splits["dev"]) == 1 and "image" not in record.fields
    assert any("pictures, sound or video left out (image)" in str(note) for note in data.notes)
    with pytest.raises(UserError, match="there is no split 'valid'; there are train, test"):
        datasets.read_dataset("d", entry | {"words": "tokens", "splits": {"train": "valid"}}, 0)
