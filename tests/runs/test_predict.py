"""Prediction and export from the checkpoints of a run."""

import io
import json

import jax
import numpy as np
import pytest

from mtl_jax.config import default
from mtl_jax.errors import Stopped, UserError
from mtl_jax.evaluation import evaluator, inference, input_records
from mtl_jax.runs import export, train
from mtl_jax.runs.build import build
from mtl_jax.runs.predict import predict as predict_file
from mtl_jax.storage import artifacts, checkpoint
from mtl_jax.storage import workdir as folders

pytestmark = pytest.mark.usefixtures("standard_promotion")


def predicted(config, workdir, source, which=("best",)):
    target = workdir / "predicted.jsonl"
    predict_file(config, workdir, which, str(source), str(target))
    return [json.loads(line) for line in target.read_text().splitlines()]


def test_lines_and_objects_and_what_no_task_can_read(tiny, tmp_path, monkeypatch, capsys):
    config, workdir = tiny(), folders.prepare(tmp_path / "run")
    train.train(config, workdir)
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

    for content, message in (
        ('w1\n{"text": ', "input:2: broken JSON"),
        ('{"txt": "w1"}', "input:1: no task can read this line.*'text' or 'words'"),
        ('{"text": ""}', "input:1: the text 'text' is empty"),
        ('{"words": "w1"}', "input:1: .*list of words"),
        ("\n", "no records in it"),
    ):
        source.write_text(content)
        with pytest.raises(UserError, match=message):
            predicted(config, workdir, source)
    source.write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(UserError, match=r"input:1: byte 3 is not utf-8"):
        predicted(config, workdir, source)
    with pytest.raises(UserError, match="nowhere: no such file"):
        predicted(config, workdir, tmp_path / "nowhere")
    with pytest.raises(UserError, match="is the input"):
        predict_file(config, workdir, ["best"], str(source), str(source))
    monkeypatch.setattr("sys.stdin", io.StringIO("red\n"))
    capsys.readouterr()
    predict_file(config, workdir, ["last"], "-", "")
    assert json.loads(capsys.readouterr().out)["line"] == 1
    with pytest.raises(UserError, match="no checkpoint '7'"):
        predicted(config, workdir, tmp_path / "texts.test.jsonl", ["7"])

    experiment = build(config)
    placement = inference.placement_over_devices(experiment)
    params = [
        jax.device_get(inference.average_params(experiment, placement, workdir, which))
        for which in (["8"], ["12"], ["8", "12"])
    ]
    assert inference.restore_params(experiment, placement, workdir, "last").step == 12
    jax.tree.map(lambda a, b, mean: np.testing.assert_allclose((a + b) / 2, mean, atol=1e-6), *params)
    lines = export.export(config, workdir, ["best"], tmp_path / "export")
    assert "no Hugging Face model: config.model.layer_type = 'bilstm' is of no model family" in lines[0]
    assert "bilstm" in (tmp_path / "export" / "color" / "README.md").read_text()


def test_export_writes_each_column_so_that_it_loads_again(tiny, tmp_path):
    from mtl_jax.models import pretrained
    from mtl_jax.training.parameter_paths import flatten

    config = tiny(
        model__layer_type="transformer",
        model__num_heads=2,
        model__intermediate_size=16,
        sharing__trunk="none",
        model__column_init="independent",
        training__steps=1,
    )
    workdir = folders.prepare(tmp_path / "run")
    experiment = build(config)
    folders.claim(workdir, config)
    artifacts.save(workdir, experiment.corpus, experiment.model.architecture)
    with checkpoint.Checkpoints(workdir, 1, experiment.spec.objective.groups) as checkpoints:
        checkpoints.save(experiment.init(0), {})
    export.export(config, workdir, ["last"], tmp_path / "export")
    params = inference.average_params(experiment, inference.placement_over_devices(experiment), workdir, ["last"])
    stacked = flatten({path: jax.device_get(tree) for path, tree in params.items() if path != "heads"})
    for k, task in enumerate(("color", "tags", "long")):
        column = flatten(pretrained.load(tmp_path / "export" / task).params)
        assert column.keys() == stacked.keys()
        for path, leaf in column.items():
            np.testing.assert_array_equal(leaf, stacked[path][k], err_msg=f"{task} {path}")
    assert np.abs(stacked["embed/word/embedding"][0] - stacked["embed/word/embedding"][1]).max() > 0


def untrained(tmp_path, config, name="run"):
    """A workdir with the initial parameters of a config, as a run would leave them."""
    workdir = folders.prepare(tmp_path / name)
    experiment = build(config)
    folders.claim(workdir, config)
    artifacts.save(workdir, experiment.corpus, experiment.model.architecture)
    with checkpoint.Checkpoints(workdir, 1, experiment.spec.objective.groups) as checkpoints:
        checkpoints.save(experiment.init(0), {})
    return workdir, experiment


def test_what_was_written_is_gone_on_with(tiny, tmp_path, monkeypatch, capsys):
    config = tiny()
    workdir, _ = untrained(tmp_path, config)
    monkeypatch.setattr("mtl_jax.runs.predict.CHUNK", 8)
    source, whole, cut = tmp_path / "texts.test.jsonl", tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    (tmp_path / "short.jsonl").write_text("".join(source.read_text().splitlines(keepends=True)[:21]))
    source = tmp_path / "short.jsonl"

    def predict(target, which=("last",), source=source, **options):
        capsys.readouterr()
        predict_file(config, workdir, which, str(source), str(target), **options)
        return capsys.readouterr()

    assert "21 predictions in" in predict(whole).out
    lines = inference.Predictor.predict
    calls = []

    def interrupted(model, records, given):
        calls.append(len(records))
        if len(calls) == 3:
            raise Stopped(15)
        return lines(model, records, given)

    with monkeypatch.context() as patch:
        patch.setattr(inference.Predictor, "predict", interrupted)
        with pytest.raises(Stopped):
            predict(cut)
        assert cut.read_bytes() == b"".join(whole.read_bytes().splitlines(keepends=True)[:16])
        with cut.open("ab") as torn:
            torn.write(b'{"line": 17, "color": {"la')
        assert "resuming after 16 lines" in predict(cut).err
        assert calls == [8, 8, 5, 8, 5]  # the first lines are compared, and the last ones made
    assert cut.read_bytes() == whole.read_bytes()

    predict(cut)
    assert cut.read_bytes() == whole.read_bytes()  # complete: nothing changes
    cut.write_bytes(whole.read_bytes() + b'{"line": 22}\n')
    predict(cut)
    assert cut.read_bytes() == whole.read_bytes()  # of a longer input
    other = [json.loads(line) for line in whole.read_text().splitlines()]
    for line in other:
        line["color"]["probabilities"] = dict.fromkeys(line["color"]["probabilities"], 0.5)
    cut.write_text("".join(json.dumps(line) + "\n" for line in other))
    assert "it is overwritten" in predict(cut).err  # of another model
    assert cut.read_bytes() == whole.read_bytes()


def test_tasks_are_chosen_and_options_of_the_data_set_count(tiny, tmp_path, capsys):
    config = tiny()
    config.datasets.texts.filter = {"genre": ("news", "mail")}
    config.datasets.texts.options = {"empty": "drop"}
    for name in ("train", "dev", "test"):
        file = tmp_path / f"texts.{name}.jsonl"
        file.write_text(
            "".join(json.dumps(json.loads(line) | {"genre": "news"}) + "\n" for line in file.read_text().splitlines())
        )
    workdir, _ = untrained(tmp_path, config)
    source = tmp_path / "input.txt"
    source.write_text(
        'w1 red\n{"text": "w1", "genre": "talk"}\n{"text": "w1", "genre": "mail"}\n{"text": " "}\n'
        '{"text": "w2"}\n{"words": ["w1"]}\n'
    )

    def predict(**options):
        predict_file(config, workdir, ["last"], str(source), str(tmp_path / "out.jsonl"), **options)
        return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]

    keys = [set(line) - {"line"} for line in predict()]
    assert keys == [{"color", "tags", "long"}, set(), {"color"}, set(), {"color"}, {"tags", "long"}]
    notes = capsys.readouterr().err
    assert "input: 1 records that no data set takes (where); first at" in notes and "input.txt:2" in notes
    assert "records without text dropped (options.empty); first at" in notes and "input.txt:4" in notes
    source.write_text("w1 red\n")
    assert set(predict(tasks=["long"])[0]) == {"line", "long"}
    with pytest.raises(UserError, match=r"no task 'colour'; it has: color, tags, long. Did you mean 'color'"):
        predict(tasks=["colour"])
    (tmp_path / "cells.csv").write_text("words\n\"['w1', 'red']\"\n")  # a list, as pandas writes it
    source, text = tmp_path / "cells.csv", source
    assert len(predict()[0]["tags"]["tags"]) == 2
    source = text
    source.write_text('{"text": "a"}\n{"text": "\\ud83d"}\n')
    with pytest.raises(UserError, match=r"input\.txt:2: field 'text' has half a surrogate pair"):
        predict()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sharing__trunk": "none", "model__column_init": "independent"},
        {"sharing__mixer": "cross_stitch", "sharing__trunk": "none", "model__column_init": "independent"},
    ],
)
def test_data_sets_that_read_alike_are_read_once(tiny, tmp_path, monkeypatch, changes):
    """One pass for all of them says what a pass for each says, and the trunk that is shared runs once."""
    config = tiny(**changes)
    default.add_dataset(
        config,
        "again",
        reader="jsonl",
        path=str(tmp_path),
        text=("text",),
        splits={name: f"texts.{name}.jsonl" for name in ("train", "dev", "test")},
    )
    default.add_task(config, "hue", kind="classification", dataset="again", label="color")
    workdir, _ = untrained(tmp_path, config)
    assert [group.datasets for group in inference.Predictor(config, workdir, ["last"]).reading.groups] == [
        ("texts", "again"),
        ("sentences",),
    ]
    source = tmp_path / "texts.test.jsonl"
    together = predicted(config, workdir, source, ["last"])
    groups = input_records._groups

    def apart(config, by_dataset):
        return [group for name, specs in by_dataset.items() for group in groups(config, {name: specs})]

    monkeypatch.setattr(input_records, "_groups", apart)
    (workdir / "predicted.jsonl").unlink()
    for one, other in zip(together, predicted(config, workdir, source, ["last"]), strict=True):
        assert one.keys() == other.keys() == {"line", "color", "hue"}
        for task in ("color", "hue"):
            assert one[task]["probabilities"] == pytest.approx(other[task]["probabilities"], abs=1e-5)


def test_one_program_predicts_all_records(tiny, tmp_path, monkeypatch):
    """Chunks of other lengths have the shapes of the first one: as many label positions, masks and example slots."""
    config = tiny()
    default.add_dataset(
        config,
        "plain",
        reader="jsonl",
        path=str(tmp_path),
        text=("text",),
        splits={name: f"texts.{name}.jsonl" for name in ("train", "dev", "test")},
    )
    default.add_task(config, "hidden", kind="masked_lm", dataset="plain")
    workdir, _ = untrained(tmp_path, config)
    monkeypatch.setattr("mtl_jax.runs.predict.CHUNK", 4)
    source = tmp_path / "input.txt"
    long = ["w1 [MASK] w2 [MASK] red [MASK] w3"] * 4
    source.write_text("\n".join([*long, *["red [MASK]", "w1", "w2 w3", "blue"], *["w1"] * 3]) + "\n")
    traced = []
    program = evaluator.evaluation_program

    def counting(*arguments):
        run = program(*arguments)

        def counted(params, batch):
            traced.append(batch.tokens.shape)
            return run(params, batch)

        return counted

    monkeypatch.setattr(evaluator, "evaluation_program", counting)
    lines = predicted(config, workdir, source, ["last"])
    assert len(lines) == 11 and len(lines[0]["hidden"]) == 3 and len(lines[4]["hidden"]) == 1
    assert len(traced) == len(inference.Predictor(config, workdir, ["last"]).reading.groups) == 3
