"""Trackers show the numbers of metrics.jsonl: what MLflow and W&B have stored is read back and compared."""

import json
import os
import signal
import struct

import pytest

from mtl_jax import checks
from mtl_jax.analysis.ablation.runner import ablate
from mtl_jax.config import default
from mtl_jax.errors import UserError
from mtl_jax.runs import train
from mtl_jax.runtime import distributed
from mtl_jax.storage import tracking
from mtl_jax.storage import workdir as folders
from mtl_jax.storage.metrics_log import read_metrics
from mtl_jax.storage.trackers import TRACKERS, TrackedRun, Tracker

pytestmark = pytest.mark.usefixtures("standard_promotion")


class Memory(Tracker):
    """Keeps what it is given."""

    runs: list = []  # noqa: RUF012
    fail_after = None

    def __init__(self, run: TrackedRun, *, label: str = ""):
        self.run, self.label, self.calls = run, label, []
        self.identity, self.location = run.identity or f"run {len(self.runs)}", "in memory"
        self.runs.append(self)

    def _add(self, *call):
        if self.fail_after is not None and len(self.calls) >= self.fail_after:
            raise RuntimeError("the line is dead")
        self.calls.append(call)

    def scalars(self, step, values):
        self._add("scalars", step, dict(values))

    def summary(self, step, values):
        self._add("summary", step, dict(values))

    def table(self, name, columns, rows):
        self._add("table", name, len(rows))

    def figure(self, name, file):
        self._add("figure", name)

    def artifact(self, path):
        self._add("artifact", path.name)

    def close(self, completed):
        self._add("close", completed)


@pytest.fixture
def memory(monkeypatch):
    """A tracker of one's own, registered by one line."""
    kind = type("OneMemory", (Memory,), {"runs": []})
    monkeypatch.setitem(TRACKERS, "memory", kind)
    return kind


def small(tiny, **changes):
    """One task; a run of a second."""
    config = tiny(train_tasks=("color",), training__steps=4, training__eval_every=2, **changes)
    checks.check(config)
    return config


def expected(workdir):
    """{(name, step): value} of metrics.jsonl."""
    return {
        (name, line["step"]): value
        for line in read_metrics(workdir)
        for name, value in tracking.flat_numbers({k: v for k, v in line.items() if k != "step"}, line["kind"])
    }


def interrupt(monkeypatch, at):
    """The run stops by a signal after some steps, as it would by SIGTERM."""
    report = train.TrainingLoop._report_step

    def reporting(loop, step, metrics, bar):
        report(loop, step, metrics, bar)
        if step == at:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(train.TrainingLoop, "_report_step", reporting)


def test_a_tracker_of_one_s_own_sees_everything_and_goes_on(tiny, memory, tmp_path, monkeypatch):
    config = small(tiny, training__trackers=("memory",), training__tracker_options={"memory": {"label": "x"}})
    workdir = folders.prepare(tmp_path / "run")
    with monkeypatch.context() as patch:
        interrupt(patch, at=2)
        assert train.train(config, workdir) is None
    assert memory.runs[0].label == "x" and memory.runs[0].calls[-1] == ("close", False)
    train.train(config, workdir, lambda *_: (workdir / "figures").mkdir())
    first, second = memory.runs
    assert second.run.identity == first.identity and second.run.step == first.calls[-2][1] > 0
    assert second.run.config["training"]["steps"] == 4 and second.calls[-1] == ("close", True)
    seen = {
        (name, step): value
        for run in memory.runs
        for kind, step, values in (call for call in run.calls if call[0] == "scalars")
        for name, value in values.items()
    }
    assert seen == expected(workdir)
    summary = json.loads((workdir / "summary.json").read_text())
    (final,) = (call for call in second.calls if call[0] == "summary")
    assert final[1] == summary["step"]
    assert final[2]["final/color/test/accuracy"] == summary["tasks"]["color"]["test"]["accuracy"]
    assert {call[1] for call in second.calls if call[0] == "artifact"} >= {"config.json", "summary.json"}
    assert tracking.locations(workdir) == {"memory": "in memory"}
    assert not (workdir / "events").exists()


@pytest.mark.parametrize("calls", [0, 3])
def test_a_tracker_that_fails_is_left_out_with_one_warning(tiny, memory, tmp_path, capsys, calls):
    memory.fail_after = calls
    config = small(tiny, training__trackers=("memory", "tensorboard"))
    workdir = folders.prepare(tmp_path / "run")
    assert train.train(config, workdir)
    errors = capsys.readouterr().err
    assert errors.count("tracker 'memory' failed") == 1 and "the line is dead" in errors
    assert len(memory.runs[0].calls) == calls
    assert list((workdir / "events").iterdir()) and {line["step"] for line in read_metrics(workdir)} == {1, 2, 3, 4}


def test_only_the_first_process_tracks(tiny, memory, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "is_first", lambda: False)
    config = small(tiny, training__trackers=("memory",))
    with tracking.tracked(config, TrackedRun(tmp_path, "run", {})) as trackers:
        trackers.scalars(1, {"a": 1.0})
    assert not memory.runs and not (tmp_path / tracking.FILE).exists()


def test_mistakes_in_the_config(tiny, memory):
    for changes, message in (
        ({"trackers": ("wand",)}, r"trackers: 'wand' is none of .* did you mean 'wandb'"),
        ({"tracker_options": {"memory": {}}}, r"tracker_options.memory: 'memory' is not one of"),
        ({"trackers": ("memory",), "tracker_options": {"memory": {"labels": 1}}}, r"'labels' is none of 'label'"),
    ):
        with pytest.raises(UserError, match=message):
            small(tiny, **{f"training__{field}": value for field, value in changes.items()})


def test_a_tracker_that_cannot_work_here_is_named_before_anything_is_read(tiny, memory, tmp_path):
    memory.problem = staticmethod(lambda: "no login: `memory login`")
    workdir = folders.prepare(tmp_path / "run")
    with pytest.raises(UserError, match="'memory': no login: `memory login`; or leave 'memory' out"):
        train.train(small(tiny, training__trackers=("memory",)), workdir)
    assert not list(workdir.iterdir())


def ablation(tiny, *trackers, **options):
    config = tiny(train_tasks=("color", "long"), training__steps=4, training__eval_every=2, sharing__trunk="none")
    config.model.layer_type, config.training.trackers, config.training.tracker_options = "cnn", trackers, options
    default.add_penalty(config, "l2", kind="l2_to_mean", strength=0.1)
    default.add_sweep(config, "strength", field="penalties.l2.strength", points=(0.1, 10.0))
    config.ablation.num_seeds, config.ablation.intervals, config.ablation.limits = 1, False, False
    return config


def test_lanes_are_runs_of_a_group(tiny, memory, tmp_path):
    config, workdir = ablation(tiny, "memory", "tensorboard"), folders.prepare(tmp_path / "grid")
    for _ in range(2):  # the second time nothing is trained, and nothing is tracked twice
        grid = ablate(config, workdir, lambda c: checks.check(c, "ablate"))
    lanes = [run for run in memory.runs if run.run.job == "lane"]
    assert len(lanes) == len(grid.lanes) == 2
    whole = next(run for run in memory.runs if run.run.job == "lanes")
    for run, lane in zip(lanes, grid.lanes, strict=True):
        assert run.run.group == "grid" and run.run.parent == whole.identity
        assert run.run.config["lane"]["values"] == lane.values
        points = [call for call in run.calls if call[0] == "scalars"]
        assert [call[1] for call in points] == [point["step"] for point in lane.curve]
        assert points[0][2]["train/loss/color"] == pytest.approx(lane.curve[0]["loss"]["color"])
        final = next(call[2] for call in run.calls if call[0] == "summary")
        assert final["final/long/dev/accuracy"] == lane.scores["long"]["dev"]["accuracy"]
    tables = [call for run in memory.runs for call in run.calls if call[:2] == ("table", "lanes")]
    assert tables and tables[0][2] >= 2


def test_mlflow_has_the_numbers_of_metrics_jsonl(tiny, tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="MLflow is not installed")
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # the database needs SQLAlchemy
    uri = f"file:{tmp_path / 'mlflow'}"
    config = small(tiny, training__trackers=("mlflow",))
    config.training.tracker_options = {"mlflow": {"tracking_uri": uri, "experiment": "tiny"}}
    workdir = folders.prepare(tmp_path / "run")
    with monkeypatch.context() as patch:
        interrupt(patch, at=2)
        assert train.train(config, workdir) is None
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert run.info.status == "KILLED"
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    with tracking.tracked(config, TrackedRun(workdir, "run", {}, 1)) as trackers:  # killed before its last checkpoint
        for line in map(json.loads, lines[1:]):
            values = {k: v for k, v in line.items() if k != "step"}
            trackers.scalars(line["step"], dict(tracking.flat_numbers(values, line["kind"])))
    train.train(config, workdir)
    (run,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert run.info.status == "FINISHED" and run.data.params["training.steps"] == "4"
    history = [point for name in run.data.metrics for point in client.get_metric_history(run.info.run_id, name)]
    seen = [((point.key, point.step), point.value) for point in history if not point.key.startswith("final/")]
    assert len(seen) == len(dict(seen)) and dict(seen) == expected(workdir)
    summary = json.loads((workdir / "summary.json").read_text())
    accuracy = summary["tasks"]["color"]["test"]["accuracy"]
    assert run.data.metrics["final/color/test/accuracy"] == accuracy
    names = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert names >= {"config.json", "summary.json", "metrics.jsonl", "tables"}
    child = TrackedRun(workdir, "lane", {}, group="g")
    with tracking.tracked(config, child, "lane/0"):
        pass
    runs = client.search_runs([run.info.experiment_id], "tags.`mlflow.parentRunId` != ''")
    assert [r.data.tags["mlflow.parentRunId"] for r in runs] == [run.info.run_id]


def wandb_records(file):
    """The records of a W&B file: a log of LevelDB, blocks of 32 KiB, whose records are protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    raw, at, parts = file.read_bytes(), 7, b""
    while at < len(raw):
        left = 2**15 - at % 2**15
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", raw[at : at + 7])
        parts += raw[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # complete, or its last part
            yield Record.FromString(parts)
            parts = b""


def wandb_history(file):
    """{(name, step): value} of the numbers in a W&B file."""
    points = {}
    for record in wandb_records(file):
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            step = items["_step"]
            points |= {(k, step): v for k, v in items.items() if not k.startswith("_") and isinstance(v, int | float)}
    return points


def test_wandb_offline_has_the_numbers_of_metrics_jsonl(tiny, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="W&B is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = small(tiny, training__trackers=("wandb",))
    config.training.tracker_options = {"wandb": {"project": "tiny"}}
    workdir = folders.prepare(tmp_path / "run")
    with monkeypatch.context() as patch:
        interrupt(patch, at=2)
        assert train.train(config, workdir) is None
    train.train(config, workdir)
    wandb.teardown()  # waits until its own process has written everything
    files = sorted(workdir.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime)
    assert len(files) == 2 and len({file.name for file in files}) == 1  # one run, started twice
    points = wandb_history(files[0]) | wandb_history(files[1])
    metrics = {key: value for key, value in points.items() if not key[0].startswith(("final", "curves"))}
    assert metrics == pytest.approx(expected(workdir))
    kinds = [record.WhichOneof("record_type") for record in wandb_records(files[1])]
    assert "artifact" in kinds
    run = next(record.run for record in wandb_records(files[0]) if record.WhichOneof("record_type") == "run")
    assert run.project == "tiny" and run.display_name == "run"
    assert {entry.key: entry.value_json for entry in run.config.update}["seed"] == "0"
    final = [
        entry
        for record in wandb_records(files[1])
        if record.WhichOneof("record_type") == "summary"
        for entry in record.summary.update
        if entry.key == "final/color/test/accuracy"
    ]
    summary = json.loads((workdir / "summary.json").read_text())
    assert float(final[-1].value_json) == summary["tasks"]["color"]["test"]["accuracy"]


def test_wandb_without_login_is_one_sentence(tiny, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="W&B is not installed")
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(UserError, match=r"'wandb': W&B has no login on this machine: `wandb login`"):
        tracking.require_ready(small(tiny, training__trackers=("wandb",)))
