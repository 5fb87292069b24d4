"""The command line: mistakes end in one message that names the place, and in status 2."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

import launch  # defines the flags
from mtl_jax import flag_errors
from mtl_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
GOOD = """
from configs import default
def get_config():
    config = default.get_config()
    default.add_task(config, "ner", kind="tagging", dataset="news", label="tags")
    return config
"""


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--config.optimizr.clip=3"], r"optimizr.clip: config has no field 'optimizr'; did you mean 'optimizer'\?"),
        (["--config.optimizer.clipp=3"], r"config.optimizer has no field 'clipp'; did you mean 'clip'\?"),
        (["--config.tasks.nerr.weight=3"], r"config.tasks has no field 'nerr'; did you mean 'ner'\?"),
        (["--config.optimizer.clip=abc"], "could not convert string to float: 'abc'"),
        (["--confg=x"], "Unknown command line flag 'confg'"),
        (["--mode=tran"], "<train|evaluate|"),
    ],
)
def test_flags(tmp_path, monkeypatch, flags, said):
    file = tmp_path / "config.py"
    file.write_text(GOOD)
    # ml_collections reads the overrides there
    monkeypatch.setattr(sys, "argv", ["launch.py", f"--config={file}", *flags])
    with pytest.raises(UserError, match=said):
        flag_errors.parse(["launch.py", f"--config={file}", *flags])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (GOOD.replace("    return", GOOD.splitlines()[4] + "\n    return"), ":6: two tasks of one name: 'ner'"),
        (GOOD.replace("kind=", "knd="), ":5: a task has no field 'knd'"),
        (GOOD.replace("default.get_config()", "1 / 0"), ":4: ZeroDivisionError: division by zero"),
        (GOOD.replace("get_config():", "get_config(:"), ":3: invalid syntax"),
        (GOOD.replace("return config", "pass"), ": get_config\\(\\) returned nothing"),
        ("import numpyy", ":1: ModuleNotFoundError: No module named 'numpyy'"),
    ],
)
def test_config_files(tmp_path, content, said):
    file = tmp_path / "config.py"
    file.write_text(content)
    with pytest.raises(UserError, match=re.escape(str(file)) + said):
        flag_errors.parse(["launch.py", f"--config={file}"])
    with pytest.raises(UserError, match=r"there is no file 'nowhere\.py'"):
        flag_errors.parse(["launch.py", "--config=nowhere.py:argument"])


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--mode=train"], "--mode=train needs --workdir=FOLDER"),
        (["--mode=train", "--workdir=x"], "--mode=train needs --config=FILE"),
        (["--mode=predict"], "--mode=predict needs --workdir=FOLDER"),
        (["--mode=predict", "--workdir=nowhere"], "nowhere: no config.json"),
        (["--mode=inspect"], "--mode=inspect needs --config=FILE"),
        (["--mode=compare", "--runs=a"], "--mode=compare needs --runs=FOLDER,FOLDER"),
        (["--mode=adapt", "--workdir=a"], "--mode=adapt needs --workdir=RUN or --runs=RUN,RUN,..., --config=FILE"),
        (["stray"], "what is 'stray'?"),
    ],
)
def test_modes_name_the_flags_that_they_need(flags, said):
    launch.flags.FLAGS.unparse_flags()
    for name in ("config", "workdir", "mode", "input", "output", "runs"):
        launch.flags.FLAGS[name].unparse()
    with pytest.raises(UserError) as error:
        launch.main(flag_errors.parse(["launch.py", *flags]))
    assert said in str(error.value)


def test_a_device_that_is_not_there_ends_in_one_line_and_status_2(tmp_path):
    """JAX itself ends in a bare AssertionError here."""
    file = tmp_path / "config.py"
    file.write_text(
        GOOD.replace("    return", '    default.add_dataset(config, "news", reader="jsonl", words="words")\n    return')
        .replace("    return", "    config.tokenizer.kind = 'words'\n    return")
    )  # fmt: skip
    command = [sys.executable, "launch.py", f"--config={file}", f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cuda"}, capture_output=True, text=True, timeout=120
    )
    if "no device of the platform" not in done.stderr:
        pytest.skip("there is a GPU here")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: JAX found no device of the platform it was told to use (cuda)")
