"""Shell commands that use a finished run."""

from __future__ import annotations

import pathlib
import shlex

from mtl_jax.config.plain import from_plain
from mtl_jax.evaluation.input_records import accepts_plain_lines
from mtl_jax.runtime.flags import entry_point
from mtl_jax.storage.workdir import read_config


def launch_command(**flags: object) -> str:
    """ "python launch.py --workdir='my run' --mode=predict": each value quoted as it needs to be."""
    return " ".join([entry_point(), *(f"--{name}={shlex.quote(str(value))}" for name, value in flags.items())])


def gather_command(workdir: pathlib.Path) -> str:
    """What gathers the shards in a workdir, once all of them are done."""
    return launch_command(workdir=workdir, mode="report")


def next_commands(workdir: pathlib.Path) -> list[str]:
    """What a finished run can be used for."""
    config = from_plain(read_config(workdir))
    lines = [
        launch_command(
            workdir=workdir, mode="predict", input="texts.txt" if accepts_plain_lines(config) else "records.jsonl"
        )
    ]
    return [*lines, launch_command(workdir=workdir, mode="export", output=workdir / "export")]
