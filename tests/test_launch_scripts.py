"""The launchers of shards: they can be parsed, and start the command that they say."""

import pathlib
import py_compile
import subprocess

import pytest
import yaml

SCRIPTS = pathlib.Path(__file__).parents[1] / "scripts"


@pytest.mark.parametrize("name", sorted(file.name for file in SCRIPTS.iterdir() if file.suffix != ".pyc"))
def test_scripts_can_be_parsed(name, tmp_path):
    file = SCRIPTS / name
    if file.suffix == ".py":
        py_compile.compile(str(file), cfile=str(tmp_path / "compiled"), doraise=True)
    elif file.suffix == ".yaml":
        entry = yaml.safe_load(file.read_text())
        assert "--shard=" in entry["run"] and entry["envs"]["SHARD"] == "0/1" and entry["resources"]["use_spot"]
    elif file.is_file():
        subprocess.run(["bash", "-n", str(file)], check=True)


@pytest.mark.parametrize(
    ("environment", "status", "expected"),
    [
        ({"SLURM_ARRAY_TASK_COUNT": "8", "SLURM_ARRAY_TASK_MAX": "7"}, 0, "--shard=3/8"),
        ({"SLURM_ARRAY_TASK_COUNT": "1", "SLURM_ARRAY_TASK_MAX": "3", "SHARDS": "8"}, 0, "--shard=3/8"),
        ({"SLURM_ARRAY_TASK_COUNT": "1", "SLURM_ARRAY_TASK_MAX": "3"}, 2, "set SHARDS"),
        ({"SLURM_ARRAY_TASK_COUNT": "8", "SLURM_ARRAY_TASK_MAX": "7", "STATUS": "143"}, 143, "requeue 17_3"),
    ],
)
def test_an_array_of_slurm_starts_shards(tmp_path, environment, status, expected):
    for name, code in (("srun", 'echo "$@"; exit ${STATUS:-0}'), ("scontrol", 'echo "$@"')):
        (tmp_path / name).write_text(f"#!/bin/bash\n{code}\n")
        (tmp_path / name).chmod(0o755)
    environment |= {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_JOB_ID": "17"}
    command = ["bash", str(SCRIPTS / "slurm_array.sbatch"), "--mode=ablate", "--workdir=x y"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == status and expected in done.stdout + done.stderr, done
