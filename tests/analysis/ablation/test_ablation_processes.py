"""Ablations in several processes: the table of one process, restarts by other numbers of them, data that differ."""

import os
import signal
import time

import jax
import pytest

from benchmarks import launching
from mtl_jax import checks
from mtl_jax.analysis.ablation import memory
from mtl_jax.analysis.ablation.engine import Engine
from mtl_jax.analysis.ablation.runner import ablate
from mtl_jax.storage import workdir as folders
from tests.helpers.processes import ended, start

CONFIG = launching.CONFIG.replace(
    f"= {launching.STEPS}, 20, {launching.EVERY}",
    """= 40, 10, 4
    default.add_sweep(config, "strength", field="penalties.l2.strength", points=(0.0, 0.1, 200.0))
    config.ablation.num_seeds, config.ablation.limits = 2, False
    if os.environ.get("NOISE"):
        config.datasets.data_1.options.noise = 0.2""",
).replace("def get", "import os\ndef get")
pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """(config file, its config, the table of one process with eight devices)."""
    folder = tmp_path_factory.mktemp("processes")
    (folder / "config.py").write_text(CONFIG)
    scope = {}
    exec(CONFIG, scope)
    with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
        patch.setenv("MTL_JAX_CACHE", str(folder / "cache"))
        config = scope["get_config"]()
        ablate(config, folders.prepare(folder / "whole"), check)
        yield folder / "config.py", config, (folder / "whole" / "ablation.csv").read_text()


def check(config):
    checks.check(config, "ablate")


def saved_steps(workdir):
    return [int(step.name) for step in workdir.glob("programs/*/turn_*/checkpoints/*") if step.name.isdigit()]


def test_killed_in_two_processes_and_finished_by_others(setting, tmp_path, launch_environment, monkeypatch):
    file, config, table = setting
    runs = start(launch_environment, file, tmp_path / "cut", "--mode=ablate", heartbeat=10, devices=2)
    deadline = time.monotonic() + 900
    while not any(step >= 8 for step in saved_steps(tmp_path / "cut")):
        assert all(run.poll() is None for run in runs) and time.monotonic() < deadline, ended(runs)
        time.sleep(0.01)
    os.kill(launching.child_of(runs[1].pid), signal.SIGKILL)
    (status, output), (other, _) = ended(runs)
    assert status == 3 and "another process of this run has stopped responding" in output and other == 137
    assert not (tmp_path / "cut" / "ablation.csv").exists()

    monkeypatch.setattr(Engine, "init", None)  # nothing is trained twice
    monkeypatch.setattr(memory, "fit_lanes", lambda *_: (2, 2))  # fewer lanes fit than before
    ablate(config, folders.prepare(tmp_path / "cut"), check)  # by one process of eight devices
    assert (tmp_path / "cut" / "ablation.csv").read_text() == table


def test_two_processes_have_the_table_of_one(setting, tmp_path, launch_environment):
    file, _, table = setting
    actual = ended(start(launch_environment, file, tmp_path / "two", "--mode=ablate", devices=2))
    assert [status for status, _ in actual] == [0, 0], actual
    assert "chosen on dev" in actual[0][1] and "chosen on dev" not in actual[1][1]
    assert (tmp_path / "two" / "ablation.csv").read_text() == table
    assert (tmp_path / "two" / "report.html").exists()


def test_other_data_on_one_host_end_both_with_one_sentence(setting, tmp_path, launch_environment):
    file, _, _ = setting
    runs = start({**launch_environment, "NOISE": ""}, file, tmp_path / "odd", "--mode=ablate", others={"NOISE": "1"})
    for status, output in ended(runs):
        assert status == 2 and output.count("error: ") == 1, output
        assert "processes 0 and 1 read different data: data set data_1 (50 rows of train" in output, output
