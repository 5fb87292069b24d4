"""Two processes of four devices against one of eight: results, stops, deaths, checkpoints that change hands."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from benchmarks import launching
from mtl_jax.errors import UserError
from mtl_jax.runs import train
from mtl_jax.runtime import distributed
from mtl_jax.storage import workdir as folders
from mtl_jax.storage.metrics_log import read_metrics
from tests.helpers.processes import ended, start

ROOT = pathlib.Path(__file__).parents[2]
STEPS = 24
pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """(folder, config file, config) of a small run."""
    folder = tmp_path_factory.mktemp("processes")
    text = launching.CONFIG.replace(f"= {launching.STEPS}, 20, {launching.EVERY}", f"= {STEPS}, 12, 6")
    assert text != launching.CONFIG
    (folder / "config.py").write_text(text)
    scope = {}
    exec(text, scope)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTL_JAX_CACHE", str(folder / "cache"))
        yield folder, folder / "config.py", scope["get_config"]()


@pytest.fixture(scope="module")
def whole(setting):
    """The run in this process, on eight devices."""
    import jax

    folder, _, config = setting
    with jax.numpy_dtype_promotion("standard"):
        train.train(config, folders.prepare(folder / "whole"))
    return folder / "whole"


def wait_for_step(workdir, step, runs):
    deadline = time.monotonic() + 200
    while not any(line["step"] >= step for line in read_metrics(workdir)):
        assert all(run.poll() is None for run in runs) and time.monotonic() < deadline, ended(runs)
        time.sleep(0.01)


def compare(differs, what, actual, wanted):
    actual, wanted = launching.arrays_of(actual), launching.arrays_of(wanted)
    assert actual.keys() == wanted.keys()
    for path, leaf in wanted.items():
        differs(what, actual[path], leaf, 1e-5)


def test_two_processes_as_one(setting, whole, differs, launch_environment):
    folder, config, _ = setting
    actual = ended(start(launch_environment, config, folder / "two"))
    assert [status for status, _ in actual] == [0, 0], actual
    assert "test" in actual[0][1] and "training" not in actual[1][1] and "test" not in actual[1][1]  # one of them tells
    compare(differs, "two processes of 4 devices against one of 8, AdamW", folder / "two", whole)
    logs = [read_metrics(workdir) for workdir in (folder / "two", whole)]
    losses = [[line["loss"] for line in log if line["kind"] == "train"] for log in logs]
    assert len(losses[0]) == STEPS
    for one, other in zip(*losses, strict=True):
        differs("their losses", list(one.values()), list(other.values()), 1e-5)
    scores = [folders.read_summary(w)["tasks"] for w in (folder / "two", whole)]
    assert scores[0].keys() == scores[1].keys()
    differs("their test losses", *([s["test"]["loss"] for s in tasks.values()] for tasks in scores), 1e-5)

    actual = ended(start(launch_environment, config, folder / "two", "--mode=evaluate"))
    assert [status for status, _ in actual] == [0, 0] and "task_0" in actual[0][1] and "task_0" not in actual[1][1], (
        actual
    )
    (file,) = (folder / "two").glob("evaluation_*.json")
    again = json.loads(file.read_text())["tasks"]
    differs("losses of --mode=evaluate", *([s["test"]["loss"] for s in t.values()] for t in (again, scores[1])), 1e-5)


def test_stopped_then_killed_then_finished_by_one_process(setting, whole, differs, launch_environment):
    folder, config, made = setting
    workdir = folder / "cut"
    runs = start(launch_environment, config, workdir)
    wait_for_step(workdir, 2, runs)
    runs[1].send_signal(signal.SIGTERM)
    actual = ended(runs)
    assert [status for status, _ in actual] == [128 + signal.SIGTERM] * 2, actual
    assert "stopped by a signal" in actual[0][1] and not (workdir / "summary.json").exists()

    stopped = max(line["step"] for line in read_metrics(workdir))
    runs = start(launch_environment, config, workdir, heartbeat=10)  # saved and restored by two processes
    wait_for_step(workdir, stopped + 2, runs)
    os.kill(launching.child_of(runs[1].pid), signal.SIGKILL)
    began = time.monotonic()
    (status, output), (other, _) = ended(runs)
    message = "another process of this run has stopped responding"
    assert status == 3 and message in output and other == 137, (status, output)
    assert time.monotonic() - began < 60
    assert f"resuming from step {stopped} of" in output, output

    train.train(made, workdir)  # saved by two processes of four devices, restored by one of eight
    compare(differs, "stopped and killed with two processes, finished by one", workdir, whole)
    assert [line["step"] for line in read_metrics(workdir) if line["kind"] == "train"] == [*range(1, STEPS + 1)]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
@pytest.mark.parametrize(("saves", "status"), [(False, 128 + signal.SIGTERM), (True, 5)])
def test_a_worker_that_does_not_listen_is_ended_unless_it_saves(monkeypatch, tmp_path, saves, status):
    child = (
        "import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "pathlib.Path(sys.argv[1]).touch(); time.sleep(2); sys.exit(5)"
    )
    monkeypatch.setattr(distributed, "GRACE_SECONDS", 0.1)

    def send():
        wait_until((tmp_path / "ready").exists)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send)
    sender.start()
    assert distributed.supervise(["-c", child, str(tmp_path / "ready")], 10, saves) == status
    sender.join()


def test_a_killed_supervisor_takes_its_process_with_it(tmp_path):
    note = tmp_path / "pid"
    child = "import os, sys, time; from mtl_jax.runtime import distributed; distributed.end_with_parent(); "
    child += "open(sys.argv[1], 'w').write(f'{os.getpid()}\\n'); time.sleep(100)"
    parent = f"from mtl_jax.runtime import distributed; distributed.supervise(['-c', {child!r}, {str(note)!r}], 10)"
    with subprocess.Popen([sys.executable, "-c", parent], cwd=ROOT) as run:
        wait_until(lambda: note.exists() and note.read_text().endswith("\n"))
        run.kill()
    wait_until(lambda: not pathlib.Path(f"/proc/{int(note.read_text())}").exists())


def wait_until(happened):
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("flags", "message"),
    [(("127.0.0.1:1", 0, -1), "go together"), (("127.0.0.1:1", 2, 2), "the numbers of 2 processes are 0 to 1")],
)
def test_flags_that_do_not_fit(flags, message):
    with pytest.raises(UserError, match=message):
        distributed.initialize(*flags, 1, 1)


def test_what_the_cluster_says(monkeypatch):
    for name in ("TPU_WORKER_HOSTNAMES", "SLURM_NTASKS", "SLURM_PROCID", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert not distributed.is_distributed_environment()
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert not distributed.is_distributed_environment()  # a shell inside of an allocation
    monkeypatch.setenv("SLURM_PROCID", "2")
    assert distributed.is_distributed_environment()
    monkeypatch.delenv("SLURM_NTASKS")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "10.0.0.1")
    assert not distributed.is_distributed_environment()
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "10.0.0.1,10.0.0.2")
    assert distributed.is_distributed_environment()


def test_one_process_needs_nobody():
    distributed.wait_for_all("here")
    assert distributed.is_first() and distributed.any_process(True) and not distributed.any_process(False)
    assert not distributed.is_preempted()
    assert distributed.to_host({"a": np.arange(3), "b": 2})["b"] == 2
