"""Whole runs: killed, stopped, gone on with, complete; what they leave behind."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from mtl_jax.config import default
from mtl_jax.config.plain import to_plain
from mtl_jax.errors import UserError
from mtl_jax.evaluation import scores
from mtl_jax.evaluation.evaluator import Evaluator
from mtl_jax.runs import evaluate, train, training_loop
from mtl_jax.runs.build import build
from mtl_jax.storage import checkpoint
from mtl_jax.storage import workdir as folders
from mtl_jax.storage.metrics_log import read_metrics

ROOT = pathlib.Path(__file__).parents[2]


pytestmark = pytest.mark.usefixtures("standard_promotion")


def write_config(file, config):
    """A config file that launch.py reads."""
    (file.with_suffix(".json")).write_text(json.dumps(to_plain(config)))
    file.write_text(
        "import json, pathlib\nfrom mtl_jax.config.plain import from_plain\n"
        f"FILE = pathlib.Path({str(file.with_suffix('.json'))!r})\n"
        "def get_config():\n    return from_plain(json.loads(FILE.read_text()))\n"
    )
    return file


def launch(env, config_file, workdir, until=None, send=None):
    """Runs launch.py; sends it a signal once metrics.jsonl has reached a step. Returns status and output."""
    command = [sys.executable, "launch.py", f"--config={config_file}", f"--workdir={workdir}"]
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 120
    while send and process.poll() is None and time.monotonic() < deadline:
        if any(line["step"] >= until for line in read_metrics(workdir)):
            process.send_signal(send)
            break
        time.sleep(0.002)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def last_state(config, workdir):
    """All arrays of the newest checkpoint by path, and the progress of the loop less its seconds."""
    experiment = build(config)
    with checkpoint.Checkpoints(workdir, 2, experiment.spec.objective.groups) as checkpoints:
        shapes = scores.abstract_arrays(
            jax.eval_shape(lambda: experiment.init(0)), scores.placement_from_config(experiment)
        )
        state = checkpoints.restore(checkpoints.latest_step, shapes)
        progress = checkpoints.metadata(checkpoints.latest_step)["progress"]
    del progress["seconds"]
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(state))
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}, progress


def test_a_run_that_is_asked_to_stop_makes_no_further_step(tiny, tmp_path, monkeypatch):
    def log(run, step, metrics, bar):
        if step == 5:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(training_loop.TrainingLoop, "_report_step", log)
    assert train.train(tiny(training__steps=30, training__checkpoint_every=0), tmp_path / "run") is None
    with checkpoint.Checkpoints(tmp_path / "run", 2) as checkpoints:
        assert checkpoints.latest_step == 6


def test_a_signal_in_an_evaluation_stops_it_and_the_next_start_makes_it(tiny, tmp_path, monkeypatch):
    config = tiny(training__checkpoint_every=0)
    whole = train.train(config, folders.prepare(tmp_path / "whole"))
    score = Evaluator.score

    def interrupted(evaluator, params, split, progress, remark):
        def first_batch(rows):
            signal.raise_signal(signal.SIGTERM)
            progress(rows)
            raise AssertionError("no further batch is scored")

        return score(evaluator, params, split, first_batch, remark)

    workdir = folders.prepare(tmp_path / "cut")
    for _ in range(2):  # the second time while the evaluation is made up for
        with monkeypatch.context() as patch:
            patch.setattr(Evaluator, "score", interrupted)
            assert train.train(config, workdir) is None
        with checkpoint.Checkpoints(workdir, 2) as checkpoints:
            assert checkpoints.latest_step == 6 and checkpoints.metadata(6)["progress"]["unscored"]
    cut = train.train(config, workdir)
    assert whole | {"seconds": 0} == cut | {"seconds": 0}
    logs = [read_metrics(tmp_path / name) for name in ("whole", "cut")]
    assert logs[0] == logs[1] and [line["step"] for line in logs[0] if line["kind"] == "dev"] == [6, 12]


def test_killed_and_stopped_runs_end_bitwise_as_the_one_that_was_not(tiny, tmp_path, launch_environment):
    config = tiny(
        model__layer_type="cnn",
        sharing__trunk="none",
        model__dropout=0.2,
        training__steps=120,
        training__eval_every=40,
        training__checkpoint_every=9,
    )
    file = write_config(tmp_path / "config.py", config)
    status, output = launch(launch_environment, file, tmp_path / "whole")
    assert status == 0, output

    status, output = launch(launch_environment, file, tmp_path / "cut", until=3, send=signal.SIGTERM)
    assert status == 128 + signal.SIGTERM and "stopped by a signal" in output, output
    at = random.randrange(40, 100)
    status, output = launch(launch_environment, file, tmp_path / "cut", until=at, send=signal.SIGKILL)
    assert status == -signal.SIGKILL, output
    assert not (tmp_path / "cut" / "summary.json").exists()
    status, output = launch(launch_environment, file, tmp_path / "cut")
    assert status == 0 and "resuming from step" in output, output

    whole, cut = (last_state(config, tmp_path / name) for name in ("whole", "cut"))
    assert whole[0].keys() == cut[0].keys() and whole[1] == cut[1]
    for path, leaf in whole[0].items():
        np.testing.assert_array_equal(leaf, cut[0][path], err_msg=f"killed at {at}: {path}")
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "cut")]
    assert lines[0] == lines[1], f"killed at {at}"
    assert [line["step"] for line in read_metrics(tmp_path / "cut") if line["kind"] == "train"] == [*range(1, 121)]
    summaries = [folders.read_summary(tmp_path / name) for name in ("whole", "cut")]
    for summary in summaries:
        del summary["seconds"]
    assert summaries[0] == summaries[1]


@pytest.mark.parametrize(
    ("name", "rate", "options"),
    [("lion", 0.02, {}), ("adafactor", 0.5, {"min_dim_size_to_factor": 4}), ("muon", 0.1, {"ns_steps": 4})],
)
def test_any_optimizer_learns_and_resumes_bitwise(name, rate, options, tiny, tmp_path, monkeypatch):
    config = tiny(
        model__layer_type="cnn",
        sharing__trunk="embed",
        train_tasks=("color", "long"),
        optimizer__name=name,
        optimizer__learning_rate=rate,
        training__steps=24,
        optimizer__param_groups={"heads": {"params": "^heads/", "lr_multiplier": 2.0}},
        training__grad_accum_steps=2,
        training__checkpoint_every=0,
        training__eval_every=0,
    )
    config.optimizer.options = options
    default.add_penalty(config, "l2", kind="l2_to_mean", strength=0.1, proximal=True)
    train.train(config, folders.prepare(tmp_path / "whole"))

    def stop(run, step, metrics, bar):
        if step == 5:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(training_loop.TrainingLoop, "_report_step", stop)
        assert train.train(config, folders.prepare(tmp_path / "cut")) is None
    train.train(config, tmp_path / "cut")
    whole, cut = (last_state(config, tmp_path / folder)[0] for folder in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    for path, leaf in whole.items():
        np.testing.assert_array_equal(leaf, cut[path], err_msg=path)
    lines = [line for line in read_metrics(tmp_path / "whole") if line["kind"] == "train"]
    losses = [line["loss"]["color"] for line in lines]
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])


def test_a_run_leaves_what_it_says(tiny, tmp_path, capsys):
    config, workdir = tiny(), folders.prepare(tmp_path / "run")
    summary = train.train(config, workdir)
    assert set(summary) >= {"tasks", "step", "seconds"}
    for task, metrics in (("color", {"accuracy", "macro_f1", "loss"}), ("tags", {"entity_f1", "accuracy", "loss"})):
        actual = {split: set(values) for split, values in summary["tasks"][task].items()}
        assert actual == {"dev": metrics, "test": metrics}
    assert json.loads((workdir / "summary.json").read_text()) == summary
    # the scores kept from training are those of the parameters that were saved
    again = evaluate.evaluate(config, workdir, "best")
    assert again["step"] == summary["step"] and again["examples"] == summary["examples"]
    for task, splits in summary["tasks"].items():
        for split, values in splits.items():
            assert again["tasks"][task][split] == pytest.approx(values, abs=1e-6)
    assert _event_steps(workdir, "train/loss/color") == list(range(1, 13))
    assert _event_steps(workdir, "dev/score") == [6, 12]
    assert not [file for file in workdir.rglob("*") if "tmp" in file.name]
    assert train.train(config, workdir) == summary and "complete" in capsys.readouterr().out


def _event_steps(workdir, tag):
    from tensorboardX.proto.event_pb2 import Event

    steps = []  # a record: length, its checksum, data, their checksum
    for file in (workdir / "events").iterdir():
        data = file.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            steps += [event.step for value in event.summary.value if value.tag == tag]
            data = data[16 + size :]
    return sorted(steps)


def test_early_stop_is_not_run_past_when_started_again(tiny, tmp_path):
    config = tiny(
        training__early_stopping_patience=1, training__eval_every=1, optimizer__learning_rate=0.0, training__log_every=1
    )
    workdir = folders.prepare(tmp_path / "run")
    train.train(config, workdir)
    lines = (workdir / "metrics.jsonl").read_text()
    assert [line["step"] for line in read_metrics(workdir) if line["kind"] == "dev"] == [1, 2]
    (workdir / "summary.json").unlink()
    assert train.train(config, workdir)["step"] == 2  # of equal scores and losses the later one
    assert (workdir / "metrics.jsonl").read_text() == lines


def test_other_config_and_other_data_are_refused_and_damage_is_gone_round(tiny, tmp_path, capsys):
    config, workdir = tiny(), folders.prepare(tmp_path / "run")
    first = train.train(config, workdir)
    with pytest.raises(UserError, match=r"another config.*\n  config.optimizer.clip_norm: 1.0 there, 2.0 here"):
        train.train(tiny(optimizer__clip_norm=2.0), workdir)
    assert train.train(tiny(training__log_every=5), workdir)["step"]  # what is seen of the run may change

    texts = tmp_path / "texts.train.jsonl"
    whole = texts.read_text()
    (workdir / "summary.json").unlink()
    texts.write_text("\n".join(whole.splitlines()[:-1]) + "\n")
    for function in (lambda: train.train(config, workdir), lambda: evaluate.evaluate(config, workdir, "best")):
        with pytest.raises(UserError, match=r"other data.*texts, train: \d+ rows, 96 examples then, \d+ rows, 95"):
            function()
    texts.write_text(whole)
    steps = sorted(int(folder.name) for folder in (workdir / "checkpoints").iterdir())
    for file in (workdir / "checkpoints" / str(steps[-1])).rglob("*"):
        if file.is_file() and file.parent.name != str(steps[-1]):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    again = train.train(config, workdir)
    assert f"resuming from step {steps[-2]}." in capsys.readouterr().out
    assert again["tasks"] == first["tasks"] and again["distances"] == first["distances"]


def test_a_config_that_does_not_run_claims_no_folder(tiny, tmp_path):
    workdir = folders.prepare(tmp_path / "run")
    with pytest.raises(UserError, match=r"config\.sharing\.trunk"):
        train.train(tiny(sharing__trunk="layer_05"), workdir)
    assert not (workdir / "config.json").exists()


def test_steps_in_a_row_that_are_not_finite_end_the_run(tiny, tmp_path):
    config = tiny(training__max_nonfinite_steps=3, optimizer__learning_rate=1e38, optimizer__weight_decay=0.0)
    with pytest.raises(UserError, match="3 steps in a row"):
        train.train(config, folders.prepare(tmp_path / "run"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"):
        folders.prepare(tmp_path / "run")


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        folders.prepare(tmp_path / "run")
