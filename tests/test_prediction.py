"""Prediction and export from the checkpoints of a run."""

import io
import json

import jax
import numpy as np
import pytest

from mtl_jax.errors import UserError
from mtl_jax.training import artifacts, checkpoint, loop, prediction
from mtl_jax.training import workdir as folders
from mtl_jax.training.experiment import build

pytestmark = pytest.mark.usefixtures("standard_promotion")


def predicted(config, workdir, source, which=("best",)):
    target = workdir / "predicted.jsonl"
    prediction.predict(config, workdir, which, str(source), str(target))
    return [json.loads(line) for line in target.read_text().splitlines()]


def test_lines_and_objects_and_what_no_task_can_read(tiny, tmp_path, monkeypatch, capsys):
    config, workdir = tiny(), folders.prepare(tmp_path / "run")
    loop.train(config, workdir)
    source = tmp_path / "input"
    source.write_text('w1 red w2\n\n{"words": ["w1", "red", "w2"]}\n{"text": "w1 red w2"}\n')
    text, words, plain = predicted(config, workdir, source)
    assert (text["line"], words["line"], plain["line"]) == (1, 3, 4)
    assert set(text) == {"line", "color", "tags", "long"}
    assert set(words) == {"line", "tags", "long"} and set(plain) == {"line", "color"}
    assert len(text["tags"]["tags"]) == 3
    assert sum(text["color"]["probabilities"].values()) == pytest.approx(1.0, abs=1e-5)
    for task, line in (("color", plain), ("long", words)):
        assert text[task]["label"] == line[task]["label"]
        assert text[task]["probabilities"] == pytest.approx(line[task]["probabilities"], abs=1e-5)

    # what evaluation scores is what prediction says
    test = [json.loads(line) for line in (tmp_path / "texts.test.jsonl").read_text().splitlines()]
    lines = predicted(config, workdir, tmp_path / "texts.test.jsonl")
    right = np.mean([line["color"]["label"] == record["color"] for line, record in zip(lines, test, strict=True)])
    summary = folders.read_summary(workdir)
    assert right == pytest.approx(summary["tasks"]["color"]["test"]["accuracy"])

    for content, said in (
        ('w1\n{"text": ', "input:2: broken JSON"),
        ('{"txt": "w1"}', "input:1: no task can read this line.*'text' or 'words'"),
        ('{"text": ""}', "input:1: .*empty text"),
        ('{"words": "w1"}', "input:1: .*list of words"),
        ("\n", "no text in it"),
    ):
        source.write_text(content)
        with pytest.raises(UserError, match=said):
            predicted(config, workdir, source)
    source.write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        predicted(config, workdir, source)
    with pytest.raises(UserError, match="No such file"):
        predicted(config, workdir, tmp_path / "nowhere")
    with pytest.raises(UserError, match="is the input"):
        prediction.predict(config, workdir, ["best"], str(source), str(source))
    monkeypatch.setattr("sys.stdin", io.StringIO("red\n"))
    capsys.readouterr()
    prediction.predict(config, workdir, ["last"], "-", "")
    assert json.loads(capsys.readouterr().out)["line"] == 1
    with pytest.raises(UserError, match="no checkpoint '7'"):
        predicted(config, workdir, tmp_path / "texts.test.jsonl", ["7"])

    experiment = build(config)
    placement = prediction.all_devices(experiment)
    params = [
        jax.device_get(prediction.average_params(experiment, placement, workdir, which))
        for which in (["8"], ["12"], ["8", "12"])
    ]
    assert checkpoint.load_params(workdir, "last", prediction.abstract_params(experiment, placement)).step == 12
    jax.tree.map(lambda a, b, mean: np.testing.assert_allclose((a + b) / 2, mean, atol=1e-6), *params)
    with pytest.raises(UserError, match=r"config\.model\.layer = 'bilstm'"):
        prediction.export(config, workdir, ["best"], tmp_path / "export")


def test_export_writes_each_column_so_that_it_loads_again(tiny, tmp_path):
    from mtl_jax.models import pretrained
    from mtl_jax.training.paths import flatten

    config = tiny(
        model__layer="transformer", model__heads=2, model__intermediate=16, sharing__trunk="none",
        model__column_init="independent", training__steps=1,
    )  # fmt: skip
    workdir = folders.prepare(tmp_path / "run")
    experiment = build(config)
    folders.claim(workdir, config)
    artifacts.save(workdir, experiment.corpus, experiment.model.architecture)
    with checkpoint.Checkpoints(workdir, 1) as checkpoints:
        checkpoints.save(experiment.init(0), {})
    lines = prediction.export(config, workdir, ["last"], tmp_path / "export")
    assert len(lines) == 3
    params = prediction.average_params(experiment, prediction.all_devices(experiment), workdir, ["last"])
    stacked = flatten({path: jax.device_get(tree) for path, tree in params.items() if path != "heads"})
    for k, task in enumerate(("color", "tags", "long")):
        column = flatten(pretrained.load(tmp_path / "export" / task).params)
        assert column.keys() == stacked.keys()
        for path, leaf in column.items():
            np.testing.assert_array_equal(leaf, stacked[path][k], err_msg=f"{task} {path}")
    assert np.abs(stacked["embed/word/embedding"][0] - stacked["embed/word/embedding"][1]).max() > 0
