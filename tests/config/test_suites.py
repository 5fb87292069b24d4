"""Suites by one line, from a local cache of the Hub."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from mtl_jax.checks import check
from mtl_jax.config import default
from mtl_jax.config.suites import SUITES
from mtl_jax.data import datasets
from mtl_jax.runs.build import build

COMMIT = "b" * 40
CODES = {"ud": ("en_ewt",), "pan_x": ("de",)}


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """(repository, {folder: (features, rows)}, splits) -> in the cache, as the Hub's Parquet branch has them."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))

    def write(repository, configurations, splits):
        top = tmp_path / "hub" / f"datasets--{repository.replace('/', '--')}"
        (top / "refs" / "refs" / "convert").mkdir(parents=True)
        (top / "refs" / "refs" / "convert" / "parquet").write_text(COMMIT)
        for folder, (features, rows) in configurations.items():
            for split in splits:
                place = top / "snapshots" / COMMIT / folder / split
                place.mkdir(parents=True)
                table = pyarrow.Table.from_pylist(rows)
                table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
                parquet.write_table(table, place / "0000.parquet")

    return write


def classes(*names):
    return {"_type": "ClassLabel", "names": list(names)}


def test_every_suite_makes_a_config_that_is_right():
    for name in SUITES:
        config = default.get_config()
        default.use_minilm(config)
        default.add_suite(config, name, only=CODES.get(name, ()))
        check(config)
        assert len(config.tasks) == len(SUITES[name].members) or len(config.tasks) == 1


def test_glue_by_one_line(hub_cache):
    mrpc = {"label": classes("not_equivalent", "equivalent")}
    pairs = [{"sentence1": f"a {n % 3} b", "sentence2": f"c {n}", "label": n % 2} for n in range(20)]
    scores = [{"sentence1": f"a {n}", "sentence2": "b", "label": n / 4} for n in range(20)]
    hub_cache("nyu-mll/glue", {"mrpc": (mrpc, pairs), "stsb": ({}, scores)}, ("train", "validation"))
    config = default.get_config()
    config.tokenizer.kind, config.model.layer_type = "words", "bilstm"
    default.add_suite(config, "glue", only=("mrpc", "stsb"), dev_fraction=0.2)
    check(config)
    experiment = build(config)
    assert experiment.tasks["mrpc"].names == ("not_equivalent", "equivalent")  # F1 is of the second
    assert set(experiment.corpus.rows["stsb"]) == {"train", "dev", "test"}
    config = default.get_config()
    default.add_suite(config, "glue", only=("mrpc",), max_examples={"train": 7})
    data = datasets.read_dataset("mrpc", config.datasets.mrpc, 0)
    assert {split: len(records) for split, records in data.splits.items()} == {"train": 7, "dev": 20}


def test_a_treebank_by_its_code(hub_cache):
    features = {"upos": {"_type": "Sequence", "feature": classes("NOUN", "VERB")}}
    rows = [{"tokens": ["dogs", "bark"], "upos": [0, 1]}] * 4
    repository = SUITES["ud"].repository
    hub_cache(repository, {"en_ewt": (features, rows)}, ("train", "validation", "test"))
    config = default.get_config()
    default.add_suite(config, "ud", only=("en_ewt",))
    data = datasets.read_dataset("en_ewt", config.datasets.en_ewt, 0)
    assert data.splits["test"][0].fields["upos"] == ["NOUN", "VERB"]


def test_mistakes():
    config = default.get_config()
    for arguments, error, message in (
        (("gleu",), KeyError, "there is no suite 'gleu'; there are glue"),
        (("glue", ("cola", "colab")), KeyError, "has no 'colab'; it has cola"),
        (("ud",), ValueError, "name its members by only="),
    ):
        with pytest.raises(error, match=message):
            default.add_suite(config, *arguments)
