"""Runs of launch.py in several processes."""

import pathlib
import subprocess
import sys

from benchmarks import launching

ROOT = pathlib.Path(__file__).parents[2]


def start(env, config, workdir, *flags, heartbeat=100, devices=4, count=2, others=None):
    """All processes of a run; `others`: changes of the environment of all but the first."""
    port = launching.free_port()
    env = {**env, "XLA_FLAGS": env["XLA_FLAGS"] + f" --xla_force_host_platform_device_count={devices}"}
    env["MTL_JAX_CACHE"] = str(config.parent / "cache")
    actual = []
    for number in range(count):
        command = [
            sys.executable,
            "launch.py",
            f"--config={config}",
            f"--workdir={workdir}",
            f"--processes={count}",
            f"--process={number}",
            f"--coordinator=127.0.0.1:{port}",
            f"--heartbeat_seconds={heartbeat}",
            *flags,
        ]
        actual.append(
            subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
        env |= others or {}
    return actual


def ended(runs):
    """[(status, output)]"""
    return [(run.returncode, output) for run in runs for output in [run.communicate(timeout=900)[0]]]
