"""Small runs of launch.py as processes of their own, for benchmarks of what becomes of them."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS, EVERY = 60, 5
PATIENCE = 300  # seconds until a run counts as hanging
CONFIG = f"""
from mtl_jax.config import default

def get_config():
    config = default.get_config()
    for k in range(2):
        options = {{"kind": "text", "features": 300, "tokens": 8, "noise": 0.1, "rho": 0.6, "task": k}}
        options |= {{"examples": {{"train": 100, "dev": 20, "test": 20}}}}
        default.add_dataset(config, f"data_{{k}}", reader="synthetic", words="words", options=options)
        default.add_task(config, f"task_{{k}}", kind="classification", dataset=f"data_{{k}}", label="label")
    default.add_penalty(config, "l2", kind="l2_to_mean", strength=0.1)
    config.loss_weights.method = "dwa"
    config.tokenizer.kind = "words"
    config.model.layer_type, config.model.num_layers, config.model.hidden_size, config.model.dropout = "cnn", 1, 64, 0.2
    config.sharing.trunk = "none"
    config.data.row_length, config.data.rows_per_block, config.evaluation.rows_per_batch = 16, 8, 8
    config.training.steps, config.training.eval_every, config.training.checkpoint_every = {STEPS}, 20, {EVERY}
    config.training.max_to_keep, config.training.log_every = 3, 1
    return config
"""


class Ended(NamedTuple):
    """How a run ended: its status, None for a hang, and what it printed."""

    status: int | None
    output: str


class Launcher:
    """Runs of launch.py with one config."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        (folder / "config.py").write_text(CONFIG)
        self.env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
        self.env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "MTL_JAX_CACHE": str(folder / "data")}

    def start(self, workdir: pathlib.Path, *flags: str, devices: int = 1) -> subprocess.Popen:
        given = [f"--config={self.folder / 'config.py'}", f"--workdir={workdir}", *flags]
        return self.start_mode("train", given, devices)

    def start_mode(self, mode: str, flags: Sequence[str], devices: int) -> subprocess.Popen:
        command = [sys.executable, "launch.py", f"--mode={mode}", *flags]
        others = re.sub(r"\S+device_count=\d+", "", self.env.get("XLA_FLAGS", ""))
        env = {**self.env, "XLA_FLAGS": f"{others} --xla_force_host_platform_device_count={devices}"}
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def start_both(self, workdir: pathlib.Path, *flags: str, heartbeat: int = 10) -> list[subprocess.Popen]:
        """Two processes of four devices each."""
        together = self.together(2, heartbeat)
        return [self.start(workdir, f"--process={number}", *together, *flags, devices=4) for number in range(2)]

    def together(self, count: int, heartbeat: int) -> tuple[str, ...]:
        """Flags that all of several processes have in common."""
        return (f"--processes={count}", f"--coordinator=127.0.0.1:{free_port()}", f"--heartbeat_seconds={heartbeat}")

    def finish_both(self, workdir: pathlib.Path) -> list[Ended]:
        return [self.end(process) for process in self.start_both(workdir)]

    def finish(self, workdir: pathlib.Path) -> Ended:
        return self.end(self.start(workdir))

    def end(self, process: subprocess.Popen) -> Ended:
        try:
            output, _ = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            return Ended(None, process.communicate()[0])
        return Ended(process.returncode, output)

    def cut(self, workdir: pathlib.Path, number: signal.Signals, moment: Callable[[], bool]) -> Ended:
        """A run that gets a signal at a moment, unless it ends before."""
        process = self.start(workdir)
        deadline = time.monotonic() + PATIENCE
        while process.poll() is None and not moment() and time.monotonic() < deadline:
            time.sleep(0.001)
        process.send_signal(number)
        return self.end(process)


def free_port() -> int:
    with socket.socket() as results:
        results.bind(("127.0.0.1", 0))
        return results.getsockname()[1]


def child_of(parent: int) -> int | None:
    """The process that another one has started, where /proc tells; None while there is none."""
    for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            number, rest = int(stat.parent.name), stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if int(rest[1]) == parent:
            return number
    return None


def arrays_of(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """{path: array} of the last checkpoint, by whatever processes it was saved."""
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.training.Checkpointer((workdir / "checkpoints").absolute()) as checkpointer:
        step = checkpointer.latest.step
        parts = checkpointer.checkpointables_metadata(step).metadata
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), parts)
        loaded = jax.device_get(checkpointer.load_checkpointables(step, shapes))
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(loaded)}


def flip(file: pathlib.Path, place: int) -> None:
    """One bit of a file."""
    raw = bytearray(file.read_bytes())
    raw[place // 8] ^= 1 << place % 8
    file.write_bytes(bytes(raw))
