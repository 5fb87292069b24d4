"""Commands that nobody can run here at their size: tried in small, so that they stand ready."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu  # noqa: E402


def run(command, environment):
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )


def test_a_part_of_the_gpu_benchmark_on_cpu(launch_environment, tmp_path):
    """Attention: cuDNN is not there, which is a cell of the table and loses no other."""
    environment = {**launch_environment, "MTL_JAX_BENCHMARK_RESULTS": str(tmp_path), "PYTHONPATH": str(ROOT)}
    ended = run(["benchmarks/gpu.py", "--small", "--only=attention,torch"], environment)
    assert not ended.returncode, ended.stderr
    actual = json.loads((tmp_path / "gpu_small.json").read_text())
    outcomes = {name: outcome for name, _, outcome in actual["tables"]["parts"][1:]}
    assert outcomes["attention"] == "done" and outcomes["torch"].startswith("left out")
    rows = actual["tables"]["attention"][1:]
    assert len(rows) == 6 and {name: not time for _, name, time, _ in rows} == {
        "the project's": False,
        "jax.nn, XLA": False,
        "jax.nn, cuDNN": True,
    }


@pytest.mark.slow
def test_every_part_of_the_gpu_benchmark_on_cpu(launch_environment, tmp_path):
    environment = {**launch_environment, "MTL_JAX_BENCHMARK_RESULTS": str(tmp_path), "PYTHONPATH": str(ROOT)}
    ended = run(["benchmarks/gpu.py", "--small"], environment)
    assert not ended.returncode, ended.stdout + ended.stderr
    outcomes = json.loads((tmp_path / "gpu_small.json").read_text())["tables"]["parts"][1:]
    assert [outcome for name, _, outcome in outcomes if name != "torch"] == ["done"] * 5


def test_a_part_that_fails_or_hangs_is_a_row_with_the_reason():
    failed = gpu.run_part([sys.executable, "-c", "raise ValueError('no such card')"], 60)
    assert failed.found is None and failed.reason == "failed: ValueError: no such card"
    hangs = gpu.run_part([sys.executable, "-c", "import time; time.sleep(60)"], 2)
    assert hangs.reason == "stopped after 2 s" and hangs.seconds < 20
    assert gpu.run_part([sys.executable, "-c", "print('{\"rows\": []}')"], 60).found == {"rows": []}
    assert gpu.run_part([sys.executable, "-c", ""], 0).reason == "no time was left"


def test_a_plan_on_paper_by_fake_devices(launch_environment, tmp_path):
    """The state of a small trunk on 8 devices: with `fsdp` an eighth of its large arrays."""
    environment = {**launch_environment, "MTL_JAX_BENCHMARK_RESULTS": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [
        "benchmarks/on_paper.py",
        "--compiler=cpu",
        "--small",
        "--machine=8 H200",
        "--workload=hard",
        "--meshes=2",
    ]
    ended = run(command, environment)
    assert not ended.returncode, ended.stderr
    complete, split = json.loads((tmp_path / "on_paper_small.json").read_text())["numbers"]
    assert complete["mesh"] == "data 8" and split["mesh"] == "fsdp 8"
    assert split["state"] < 0.5 * complete["state"]
    assert split["moved"]["all-gather"] > complete["moved"]["all-gather"] and complete["moved"]["all-reduce"] > 0
