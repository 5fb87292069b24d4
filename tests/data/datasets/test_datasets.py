"""Entries of the config: which records come out, and what is said about wrong entries."""

import json
import pathlib

import ml_collections
import numpy as np
import pytest

from mtl_jax.data import datasets
from mtl_jax.data.records import Record, field
from mtl_jax.data.splits import subsets
from mtl_jax.errors import UserError


def write(folder, name, texts, **more):
    rows = [{"text": text, "n": i, **more} for i, text in enumerate(texts)]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def entry(tmp_path):
    write(tmp_path, "train", [f"train {i}" for i in range(100)])
    write(tmp_path, "test", [f"test {i}" for i in range(10)])
    splits = {"train": "train.jsonl", "test": "test.jsonl"}
    return {"reader": "jsonl", "path": str(tmp_path), "splits": splits, "text": ("text",)}


def texts(data, split):
    return [record.fields["text"] for record in data.splits[split]]


def test_config_dict(entry):
    more = {"wheel": {}, "options": {}, "max_examples": {"train": 7}, "dev_fraction": 0.1}
    config = ml_collections.ConfigDict({**entry, **more})
    data = datasets.read_dataset("d", config, 0)
    assert {split: len(records) for split, records in data.splits.items()} == {"train": 7, "dev": 10, "test": 10}
    assert data.notes == ["train: 7 of 90 records (max_examples)"]
    assert data == datasets.read_dataset("d", ml_collections.FrozenConfigDict(config), 0)


def test_carving_is_a_partition_keyed_by_name_and_seed(entry):
    def carved(name="d", seed=0, **more):
        return datasets.read_dataset(name, {**entry, "splits": {"train": "train.jsonl"}, **more}, seed)

    data = carved(dev_fraction=0.2, test_fraction=0.1)
    parts = [texts(data, split) for split in ("train", "dev", "test")]
    assert [len(part) for part in parts] == [70, 20, 10]
    assert sorted(text for part in parts for text in part) == sorted(f"train {i}" for i in range(100))
    for split in data.splits:
        assert np.all(np.diff([r.line for r in data.splits[split]]) > 0)  # the order of the file
    assert texts(carved(test_fraction=0.1), "test") == parts[2]  # whatever is done with dev
    assert texts(carved(dev_fraction=0.2, test_fraction=0.1, name="e"), "test") != parts[2]
    assert texts(carved(dev_fraction=0.2, test_fraction=0.1, seed=1), "test") != parts[2]


def test_limits_are_nested_and_do_not_depend_on_the_machine(entry):
    small, large = (
        texts(datasets.read_dataset("d", {**entry, "max_examples": {"train": n}}, 0), "train") for n in (5, 20)
    )
    assert set(small) < set(large) and large == sorted(large, key=lambda text: int(text.split()[1]))
    assert subsets.subset(1000, 3, "d/train", 0).tolist() == [256, 725, 935]  # of this version, for ever
    assert len(datasets.read_dataset("d", {**entry, "max_examples": {"train": 500}}, 0).splits["train"]) == 100


def test_drop_duplicates(entry, tmp_path):
    write(tmp_path, "train", ["a", "b", "b", "x", " x", "y"])
    write(tmp_path, "dev", ["c", "b", "z"])
    write(tmp_path, "test", ["x", "z"])
    splits = {split: f"{split}.jsonl" for split in ("train", "dev", "test")}
    data = datasets.read_dataset("d", {**entry, "splits": splits, "drop_duplicates": "train"}, 0)
    assert [texts(data, split) for split in splits] == [["a", "y"], ["c", "b"], ["x", "z"]]
    assert data.notes == [
        "dev: 1 records removed, their text is in test",
        "train: 2 records removed, their text is in test",
        "train: 2 records removed, their text is in dev",
    ]
    pair = {"splits": splits, "text": ("text", "n"), "drop_duplicates": "train"}
    with pytest.raises(UserError, match="has to be a string, found '0'"):
        datasets.read_dataset("d", {**entry, **pair}, 0)


def test_fingerprint_follows_content_and_choice_not_place(entry, tmp_path):
    base = datasets.read_dataset("d", entry, 0).fingerprint
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("train.jsonl", "test.jsonl"):
        (moved / name).write_bytes((tmp_path / name).read_bytes())
    assert datasets.read_dataset("d", {**entry, "path": str(moved)}, 0).fingerprint == base
    assert datasets.read_dataset("d", entry, 1).fingerprint == base  # the seed chooses nothing here
    limited = {**entry, "max_examples": {"train": 5}}
    others = [datasets.read_dataset("d", limited, seed).fingerprint for seed in (0, 1)]
    (moved / "test.jsonl").write_text('{"text": "other"}\n')
    others.append(datasets.read_dataset("d", {**entry, "path": str(moved)}, 0).fingerprint)
    assert len({base, *others}) == 4


def test_several_files_and_the_path_itself(entry, tmp_path):
    assert len(datasets.read_dataset("d", {**entry, "splits": {"train": "t*.jsonl"}}, 0).splits["train"]) == 110
    both = {"train": ["test.jsonl", "train.jsonl"]}
    assert texts(datasets.read_dataset("d", {**entry, "splits": both}, 0), "train")[0] == "test 0"
    alone = {**entry, "path": str(tmp_path / "test.jsonl"), "splits": {}}
    assert len(datasets.read_dataset("d", alone, 0).splits["train"]) == 10


def test_empty_texts(entry, tmp_path):
    write(tmp_path, "train", ["a", " ", "b", ""])
    with pytest.raises(UserError, match=r"data set 'd': .*train\.jsonl:2: the text 'text' is empty; options.empty="):
        datasets.read_dataset("d", entry, 0)
    data = datasets.read_dataset("d", {**entry, "options": {"empty": "drop"}}, 0)
    assert texts(data, "train") == ["a", "b"]
    assert data.notes[0].startswith("train: 2 records without text dropped") and "train.jsonl:2" in data.notes[0]
    write(tmp_path, "train", ["", " "])
    with pytest.raises(UserError, match="split 'train' has no records left"):
        datasets.read_dataset("d", {**entry, "options": {"empty": "drop"}}, 0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", " "], "word 2 of 'words' is empty"),
        ([], "list of words 'words' is empty"),
        (["a", 1], "has to be a list of words"),
        ("a b", r"is a string, not a list of words; name it in text=\('words',\)"),
        (["\ud800"], "half a surrogate pair"),
    ],
)
def test_wrong_words(entry, tmp_path, words, message):
    write(tmp_path, "train", ["x"], words=words)
    with pytest.raises(UserError, match=rf"train\.jsonl:1: .*{message}"):
        datasets.read_dataset("d", {**entry, "splits": {"train": "train.jsonl"}, "text": (), "words": "words"}, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reader": "json"}, "'json' is not one of .*Did you mean 'jsonl'"),
        ({"text": ()}, "exactly one of text .* none is given"),
        ({"words": "w"}, "both are given"),
        ({"text": ("a", "b", "c")}, "one or two names"),
        ({"text": ("txt",)}, r"train\.jsonl:1: there is no field 'txt'; known fields: file, n, text\. Did you"),
        ({"splits": {"valid": "train.jsonl"}}, "splits.valid: splits are called train, dev, test. Did you mean 'dev'"),
        ({"splits": {"train": 3}}, "has to be a name or a list of names"),
        ({"splits": {"train": "*.csv"}}, r"nothing matches '\*\.csv'"),
        ({"splits": {"train": "tran.jsonl"}}, r"no such file or folder.*train\.jsonl"),
        ({"splits": {"test": "test.jsonl"}, "dev_fraction": 0.1}, "names no train"),
        ({"path": ""}, "path is empty"),
        ({"path": 3}, "path has to be a string"),
        ({"options": {"emty": "drop"}}, "options.emty: .* it has: columns, empty, key, .* Did you mean 'empty'"),
        ({"options": {"empty": "keep"}}, '"error" or "drop"'),
        (
            {"reader": "csv", "options": {"columns": "text"}},
            "options.columns should be a list with a string for each item",
        ),
        ({"reader": "csv", "options": {"skip_after_header": -1}}, "should be an integer from 0"),
        ({"reader": "json_splits", "splits": {}}, "needs the name of each split"),
        ({"dev_fraction": 1.5}, "dev_fraction has to be a number"),
        ({"dev_fraction": 0.001, "splits": {"train": "one.jsonl"}}, "too few to carve out"),
        ({"splits": {"train": "train.jsonl"}, "dev_fraction": 0.5, "test_fraction": 0.5}, "leave nothing for train"),
        ({"max_examples": {"train": 0}}, "max_examples.train: has to be a whole number from 1"),
        ({"max_examples": {"dev": 5}}, "max_examples.dev: there is no split 'dev'"),
        ({"max_examples": {"trian": 5}}, "Did you mean 'train'"),
        ({"max_examples": 5}, "max_examples has to be"),
        ({"encoding": "no-such"}, "encoding='no-such' is not known"),
        ({"wheel": {"name": "x"}}, r"hold name, version and sha256; look at \['sha256', 'version'\]"),
        ({"splits": {"train": "empty.jsonl"}}, r"empty\.jsonl: no records in it"),
    ],
)
def test_wrong_entries(entry, tmp_path, change, message):
    write(tmp_path, "one", ["a"])
    write(tmp_path, "empty", [])
    with pytest.raises(UserError, match=f"data set 'd': .*{message}"):
        datasets.read_dataset("d", {**entry, **change}, 0)


def test_nested_fields():
    record = Record({"a": {"b": 1}, "a.c": 2}, "f", 3)
    assert field(record, "a.b") == 1 and field(record, "a.c") == 2
    with pytest.raises(UserError, match=r"f:3: there is no field 'a\.d': 'a' has the keys b; known fields: a, a\.c\."):
        field(record, "a.d")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Folders of a small TFDS builder, prepared here without TensorFlow: {file format: folder}."""
    import tensorflow_datasets as tfds

    names = tfds.features.ClassLabel(names=["neg", "pos"])
    tags = tfds.features.ClassLabel(names=["O", "B-X"])
    features = tfds.features.FeaturesDict(
        {
            "text": tfds.features.Text(),
            "label": names,
            "score": np.float32,
            "words": tfds.features.Sequence(tfds.features.Text()),
            "tags": tfds.features.Sequence(tags),
            "answers": tfds.features.Sequence({"text": tfds.features.Text(), "start": np.int32}),
            "inner": {"id": tfds.features.Text()},
        }
    )

    def example(i):
        answers = [{"text": "q", "start": 1}, {"text": "r", "start": 2}]
        words = ["a", "ü"] if i != 3 else []
        return {
            "text": f"é {i}",
            "label": i % 2 if i else -1,
            "score": 0.5,
            "words": words,
            "tags": ["O", "B-X"][: len(words)],
            "answers": answers,
            "inner": {"id": str(i)},
        }

    class TinyText(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = pathlib.Path(__file__).parent

        def _info(self):
            return self.dataset_info_from_configs(features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(0, 4), "test": self._generate_examples(4, 6)}

        def _generate_examples(self, first, last):
            yield from ((i, example(i)) for i in range(first, last))

    folders = {}
    for file_format in ("array_record", "parquet"):
        builder = TinyText(data_dir=tmp_path_factory.mktemp(file_format), file_format=file_format)
        builder.download_and_prepare()
        folders[file_format] = str(builder.data_dir)
    return folders


@pytest.mark.parametrize("file_format", ["array_record", "parquet"])
def test_tfds_from_a_prepared_folder(prepared, file_format):
    entry = {"reader": "tfds", "path": prepared[file_format], "text": ("text",)}
    data = datasets.read_dataset("d", {**entry, "splits": {"train": "train", "test": "test"}}, 0)
    assert len(data.splits["train"]) == 4 and len(data.splits["test"]) == 2
    assert data.splits["train"][1].fields == {
        "text": "é 1",
        "label": "pos",
        "score": 0.5,
        "words": ["a", "ü"],
        "tags": ["O", "B-X"],
        "answers": {"text": ["q", "r"], "start": [1, 2]},
        "inner": {"id": "1"},
    }
    assert data.splits["train"][0].fields["label"] is None  # -1 is TFDS's missing label
    assert data.splits["train"][1].line == 2
    with pytest.raises(UserError, match=r"split 'trian': Unknown split 'trian'"):
        datasets.read_dataset("d", {**entry, "splits": {"train": "trian"}}, 0)
    by_words = {**entry, "text": (), "words": "words", "splits": {"train": "train"}}
    with pytest.raises(UserError, match=r"\[train\]:4: the list of words 'words' is empty"):
        datasets.read_dataset("d", by_words, 0)
    assert len(datasets.read_dataset("d", {**by_words, "options": {"empty": "drop"}}, 0).splits["train"]) == 3


def test_tfds_split_expressions(prepared):
    splits = {"train": "train[:75%]", "dev": ["train[75%:]", "test[:1]"]}
    entry = {"reader": "tfds", "path": prepared["array_record"], "text": "text", "splits": splits}
    data = datasets.read_dataset("d", entry, 0)
    assert texts(data, "train") == ["é 0", "é 1", "é 2"] and texts(data, "dev") == ["é 3", "é 4"]
    whole = datasets.read_dataset("d", {**entry, "splits": {"train": "train+test"}}, 0)
    assert len(whole.splits["train"]) == 6
    with pytest.raises(UserError, match="split 'train\\[:75%\\]' has 3 examples, but TFDS gives 4: it does not slice"):
        datasets.read_dataset(
            "d", {**entry, "path": prepared["parquet"]}, 0
        )  # silently the whole split, if not for the check


def test_tfds_unknown_name(tmp_path):
    entry = {"reader": "tfds", "path": "no_such_data_set", "splits": {"train": "train"}, "text": "text"}
    with pytest.raises(UserError, match="split 'train': Dataset no_such_data_set not found"):
        datasets.read_dataset("d", {**entry, "options": {"data_dir": str(tmp_path)}}, 0)
