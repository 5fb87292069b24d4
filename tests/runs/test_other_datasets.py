"""A finished run is scored on another test set, and says so."""

import json

import pytest

from mtl_jax.errors import UserError
from mtl_jax.runs import evaluate, other_datasets
from mtl_jax.runs.build import build
from mtl_jax.storage import artifacts, checkpoint
from mtl_jax.storage import workdir as folders
from mtl_jax.storage.data_identity import data_metadata

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_another_test_set_is_scored_and_told(tiny, tmp_path):
    config, run = tiny(), tiny()
    workdir = folders.prepare(tmp_path / "run")
    experiment = build(run)
    folders.claim(workdir, run)
    artifacts.save(workdir, experiment.corpus, experiment.model.architecture)
    with checkpoint.Checkpoints(workdir, 1, experiment.spec.objective.groups) as checkpoints:
        checkpoints.save(experiment.init(0), data_metadata(experiment.corpus))
    own = evaluate.evaluate(run, workdir, "last")
    assert other_datasets.changed_splits(run, config) == {}

    # the same records in another file: the same scores
    (tmp_path / "elsewhere.jsonl").write_bytes((tmp_path / "texts.test.jsonl").read_bytes())
    config.datasets.texts.splits.test = "elsewhere.jsonl"
    splits = other_datasets.changed_splits(config, run)
    assert splits == {"texts": ("test",)}
    actual = other_datasets.evaluate(config, run, splits, workdir, "last")
    assert actual["tasks"].keys() == {"color"} and actual["tasks"]["color"].keys() == {"test"}
    assert actual["tasks"]["color"]["test"] == pytest.approx(own["tasks"]["color"]["test"], abs=1e-5)
    fact = actual["other_data"]["texts"]["test"]
    assert fact["files"] == [str(tmp_path / "elsewhere.jsonl")] and fact["records"] == 32
    assert actual["examples"]["color"]["test"]["scored"] == 32
    name = other_datasets.file_name(actual, "last")
    assert name == f"evaluation_last_on_{fact['fingerprint'][:8]}.json" and "evaluation_last.json" != name
    assert "texts, test: 32 records of" in other_datasets.format_lines(actual)[1]

    # labels that the run lacks are counted, and every such record is wrong
    lines = [json.loads(line) | {"color": "purple"} for line in (tmp_path / "elsewhere.jsonl").read_text().splitlines()]
    (tmp_path / "purple.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config.datasets.texts.splits.test = "purple.jsonl"
    actual = other_datasets.evaluate(config, run, splits, workdir, "last")
    assert actual["tasks"]["color"]["test"]["accuracy"] == 0.0
    (notes,) = [entry["text"] for entry in actual["warnings"] if "purple" in entry["text"]]
    assert "32 labels of test (100.00%) do not occur in train" in notes
    assert other_datasets.file_name(actual, "last") != name

    # records of train are told
    (tmp_path / "seen.jsonl").write_bytes((tmp_path / "texts.train.jsonl").read_bytes())
    config.datasets.texts.splits.test = "seen.jsonl"
    actual = other_datasets.evaluate(config, run, splits, workdir, "last")
    assert any("96 of 96 of test in train" in entry["text"] for entry in actual["warnings"])

    # another folder with the same names, and one data set beside the other
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "texts.test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[:5]))
    config = tiny()
    config.datasets.texts.path = str(tmp_path / "other")
    config.evaluation.splits = ("test",)
    actual = other_datasets.evaluate(config, run, other_datasets.changed_splits(config, run), workdir, "last")
    assert actual["other_data"]["texts"]["test"]["records"] == 5

    for field, value, message in (
        ("splits__train", "elsewhere.jsonl", "splits.train: the run was trained on other data"),
        ("text", ("color",), r"texts\.text: .* other data have to be read in the same way as those of the run"),
        ("splits__test", "", "no other split to score; name one by --config.datasets.texts.splits.test=FILE"),
    ):
        config = tiny()
        node = config.datasets.texts
        *path, last = field.split("__")
        for key in path:
            node = node[key]
        node[last] = value
        with pytest.raises(UserError, match=message):
            other_datasets.changed_splits(config, run)
    with (tmp_path / "texts.train.jsonl").open("a") as train:
        train.write("".join(json.dumps(line) + "\n" for line in lines))
    config = tiny()
    config.datasets.texts.splits.test = "elsewhere.jsonl"
    with pytest.raises(UserError, match="task color: its classes are no longer those of"):
        other_datasets.evaluate(config, run, splits, workdir, "last")
