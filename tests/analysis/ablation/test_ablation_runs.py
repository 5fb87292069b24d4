"""Whole ablations: what they leave, killed and gone on with, halved, learned; scores against the plain evaluator."""

import csv
import json
import pathlib
import re
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from mtl_jax import checks
from mtl_jax.analysis.ablation import lane_program, lanes, plan, results, scores
from mtl_jax.analysis.ablation.runner import ablate
from mtl_jax.config import default
from mtl_jax.config.plain import from_plain, to_plain
from mtl_jax.errors import UserError
from mtl_jax.evaluation.scores import make_evaluator, placement_from_config
from mtl_jax.runs import train
from mtl_jax.runs.evaluate import evaluate
from mtl_jax.storage import workdir as folders

ROOT = pathlib.Path(__file__).parents[3]
pytestmark = pytest.mark.usefixtures("standard_promotion")


def check(config):
    checks.check(config, "ablate")


def grid(tiny, crf=False, **changes):
    """Two strengths for two seeds. Tags are without a CRF unless asked for: it takes most of the time to compile."""
    crf = {"tasks__tags__options__crf": crf}
    config = tiny(sharing__trunk="none", model__layer_type="cnn", model__dropout=0.2, **crf, **changes)
    default.add_penalty(config, "l2", kind="l2_to_mean", strength=0.1, proximal=True)
    default.add_sweep(config, "strength", field="penalties.l2.strength", points=(0.1, 10.0))
    config.ablation.num_seeds = 2
    config.ablation.limits = False
    return config


def launch(env, config, file, workdir, kill_after=None, send=signal.SIGKILL, shard=None):
    """Runs launch.py; sends it a signal once a checkpoint of that step or a later one is there. Returns status and
    output.
    """
    file.with_suffix(".json").write_text(json.dumps(to_plain(config)))
    file.write_text(
        "import json, pathlib\nfrom mtl_jax.config.plain import from_plain\n"
        f"FILE = pathlib.Path({str(file.with_suffix('.json'))!r})\n"
        "def get_config():\n    return from_plain(json.loads(FILE.read_text()))\n"
    )
    command = [sys.executable, "launch.py", f"--config={file}", f"--workdir={workdir}", "--mode=ablate"]
    command += [f"--shard={shard.index}/{shard.count}"] if shard else []
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 180
    while kill_after and process.poll() is None and time.monotonic() < deadline:
        saved = ((shard.folder(workdir) if shard else workdir) / "programs").glob("*/turn_*/checkpoints/*")
        if any(folder.name.isdigit() and int(folder.name) >= kill_after for folder in saved):
            process.send_signal(send)
            break
        time.sleep(0.002)
    output, _ = process.communicate(timeout=180)
    return process.returncode, output


def test_killed_in_the_middle_it_ends_with_the_same_table(tiny, tmp_path, launch_environment):
    config = grid(tiny, training__steps=60, training__eval_every=20, training__checkpoint_every=7)
    config.ablation.max_lanes = 2  # two turns
    status, output = launch(launch_environment, config, tmp_path / "config.py", tmp_path / "whole")
    assert status == 0 and "1 programs, 4 lanes (2 seeds)" in output and "the others after them" in output, output
    status, output = launch(launch_environment, config, tmp_path / "config.py", tmp_path / "cut", 14, signal.SIGTERM)
    assert status == 128 + signal.SIGTERM and "stopped by a signal, saved" in output, output
    status, output = launch(launch_environment, config, tmp_path / "config.py", tmp_path / "cut", kill_after=28)
    assert status == -signal.SIGKILL and not (tmp_path / "cut" / "ablation.csv").exists(), output
    status, output = launch(launch_environment, config, tmp_path / "config.py", tmp_path / "cut")
    assert status == 0, output
    for name in ("ablation.csv", "ablation.json"):
        whole, cut = ((tmp_path / run / name).read_text() for run in ("whole", "cut"))
        # how long a step takes is of the machine
        whole, cut = (re.sub(r'"step_seconds": [^,}\n]*', "", text) for text in (whole, cut))
        assert whole == cut, name
    rows = list(csv.DictReader((tmp_path / "cut" / "ablation.csv").open()))
    assert {(row["strength"], row["seed"]) for row in rows} == {(s, n) for s in ("0.1", "10.0") for n in ("0", "1")}
    assert (tmp_path / "cut" / "report.html").exists() and not list((tmp_path / "cut" / "programs").glob("*/turn_*"))


def test_a_signal_while_lanes_are_scored_is_made_up_for(tiny, tmp_path, monkeypatch):
    config = grid(tiny, training__steps=4, training__eval_every=2, training__checkpoint_every=0)
    ablate(config, folders.prepare(tmp_path / "whole"), check)
    score, splits = scores.LaneScores.score, []

    def interrupted(lanes_scores, params, split, listen, *more):
        splits.append(split)
        if len(splits) in stops:
            signal.raise_signal(signal.SIGTERM)
        return score(lanes_scores, params, split, listen, *more)

    monkeypatch.setattr(scores.LaneScores, "score", interrupted)
    for stops in ((1,), (2,), (5,), ()):  # at step 2, while that is made up for, and in the scores at the end
        stopped = ablate(config, folders.prepare(tmp_path / "cut"), check) is None
        assert stopped == bool(stops)
    for name in ("ablation.csv", "ablation.json"):
        whole, cut = ((tmp_path / run / name).read_text() for run in ("whole", "cut"))
        assert re.sub(r'"step_seconds": [^,}\n]*', "", whole) == re.sub(r'"step_seconds": [^,}\n]*', "", cut), name


def test_lanes_score_as_the_plain_run_does(tiny, tmp_path):
    """A lane's table is that of `--mode=train` with its config: best step, dev and test, all metrics."""
    config = grid(tiny, crf=True, training__steps=24, training__eval_every=8)
    config.ablation.keep = "chosen"
    actual = ablate(config, folders.prepare(tmp_path / "grid"), check)
    kept = {tmp_path / "grid" / lane.run: lane for lane in actual.lanes if lane.run}
    assert len(kept) == 2 and set((tmp_path / "grid" / "programs" / "sharing" / "runs").iterdir()) == set(kept)
    folder, of_lane = next(iter(kept.items()))
    again = evaluate(from_plain(folders.read_config(folder)), folder, "best")
    assert again["step"] == of_lane.step == folders.read_summary(folder)["step"]
    for task, splits in again["tasks"].items():
        for split, metrics in splits.items():
            assert metrics == pytest.approx(of_lane.scores[task][split], abs=1e-6)
    # the config of the run trains the lane again, and the folder is that of a finished run
    assert train.train(from_plain(folders.read_config(folder)), folder) == folders.read_summary(folder)
    config.ablation.keep = ""
    lane = next(lane for lane in actual.lanes if lane.values == {"strength": 10.0} and lane.seed == 1)
    config.seed, config.penalties.l2.strength = 1, 10.0
    summary = train.train(config, folders.prepare(tmp_path / "solo"))
    assert summary["step"] == lane.step and lane.status == "finished" and lane.steps == 24
    for task, splits in summary["tasks"].items():
        for split, metrics in splits.items():
            for metric, value in metrics.items():
                assert lane.scores[task][split][metric] == pytest.approx(value, abs=1e-6), (task, split, metric)
    relative = [pair["relative"] for pair in summary["distances"].values()]
    assert lane.distance == pytest.approx(np.mean(relative), rel=1e-3)
    steps = [line["step"] for line in lane.curve if "dev" in line]
    assert steps == [8, 16, 24]
    written = results.read_grid(tmp_path / "grid")
    assert written.lanes == actual.lanes


def test_scores_of_data_sets_of_unlike_size_and_absent_splits(tiny, tmp_path):
    config = grid(tiny)
    config.datasets.texts.max_examples = ConfigDict({"dev": 5, "test": 5})
    del config.datasets.sentences.splits["test"]
    (one,) = plan.make_plan(config, check).programs
    built = lane_program.build(one, lane_program.Sources())
    params = built.experiment.init_params(0)
    shape = lanes.shape_of(1, 1, "map")
    stacked = jax.tree.map(lambda x: np.broadcast_to(x, (shape.seeds, shape.lanes, *x.shape)), params)
    evaluator = make_evaluator(built.experiment, placement_from_config(built.experiment))
    for split in ("dev", "test"):
        actual = scores.LaneScores(built.experiment, shape).score(stacked, split, lambda: None)[0][0]
        wanted = evaluator.score(params, split)
        assert list(actual) == list(wanted)
        for task, metrics in wanted.items():
            assert actual[task] == pytest.approx(metrics, abs=1e-6)


@pytest.mark.parametrize("method", ["halving", "hypergradient"])
def test_beyond_the_grid(tiny, tmp_path, method):
    config = grid(tiny, training__steps=20, training__eval_every=10)
    config.ablation.method = method
    if method == "halving":
        config.ablation.sweeps.strength.points = (0.1, 1.0, 10.0, 100.0)
        config.ablation.options = ConfigDict({"eta": 2, "min_steps": 5})
    actual = ablate(config, folders.prepare(tmp_path / "grid"), check)
    by_setting = {}
    for lane in actual.lanes:
        by_setting.setdefault(lane.values["strength"], []).append((lane.status, lane.steps))
    if method == "halving":
        assert sorted(v[0] for v in by_setting.values()) == [
            ("dropped", 5),
            ("dropped", 5),
            ("dropped", 10),
            ("finished", 20),
        ]
        assert all(len(set(lanes)) == 1 for lanes in by_setting.values())  # all seeds of a setting go together
    else:
        assert len(by_setting) == 4 and all(
            value not in (0.1, 10.0) for value in by_setting
        )  # every lane learned its own
        assert all(lane.curve[-1]["values"] == lane.values for lane in actual.lanes if lane.step == lane.steps)


def test_swept_strength_without_columns_is_refused(tiny, tmp_path):
    config = grid(tiny)
    config.sharing.trunk = "all"
    with pytest.raises(UserError, match="no task has parameters of its own"):
        ablate(config, folders.prepare(tmp_path / "grid"), check)


def test_a_folder_is_of_a_run_or_of_an_ablation(tiny, tmp_path):
    config = grid(tiny)
    (tmp_path / "grid" / "programs").mkdir(parents=True)
    with pytest.raises(UserError, match="folder of an ablation"):
        train.train(config, tmp_path / "grid")
