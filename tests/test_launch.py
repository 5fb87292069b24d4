"""The command line: mistakes end in one message that names the place, and in status 2."""

import errno
import os
import pathlib
import re
import subprocess
import sys

import pytest

from mtl_jax import command_line  # defines the flags
from mtl_jax.errors import UserError
from mtl_jax.runtime.flags import parse

ROOT = pathlib.Path(__file__).parents[1]
GOOD = """
from mtl_jax.config import default
def get_config():
    config = default.get_config()
    default.add_task(config, "ner", kind="tagging", dataset="news", label="tags")
    return config
"""


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.optimizr.clip=3"], r"optimizr.clip: config has no field 'optimizr'; did you mean 'optimizer'\?"),
        (["--config.optimizer.clip_nor=3"], r"config.optimizer has no field 'clip_nor'; did you mean 'clip_norm'\?"),
        (["--config.tasks.nerr.weight=3"], r"config.tasks has no field 'nerr'; did you mean 'ner'\?"),
        (["--config.optimizer.clip_norm=abc"], "could not convert string to float: 'abc'"),
        (["--confg=x"], "Unknown command line flag 'confg'"),
        (["--mode=tran"], "<train|evaluate|"),
    ],
)
def test_flags(tmp_path, monkeypatch, flags, message):
    file = tmp_path / "config.py"
    file.write_text(GOOD)
    # ml_collections reads the overrides there
    monkeypatch.setattr(sys, "argv", ["launch.py", f"--config={file}", *flags])
    with pytest.raises(UserError, match=message):
        parse(["launch.py", f"--config={file}", *flags])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD.replace("    return", GOOD.splitlines()[4] + "\n    return"), ":6: two tasks with the same name: 'ner'"),
        (GOOD.replace("kind=", "knd="), ":5: a task has no field 'knd'"),
        (GOOD.replace("default.get_config()", "1 / 0"), ":4: ZeroDivisionError: division by zero"),
        (GOOD.replace("get_config():", "get_config(:"), ":3: invalid syntax"),
        (GOOD.replace("return config", "pass"), ":3: get_config\\(\\) returned nothing"),
        ("import numpyy", ":1: ModuleNotFoundError: No module named 'numpyy'"),
        (GOOD.replace("default.get_config()", "open('labels.txt')"), r":4: FileNotFoundError: .*labels\.txt"),
        (GOOD.replace("default.get_config()", "(_ for _ in ()).throw(PermissionError(13, 'no'))"), ":4: PermissionErr"),
        (GOOD.replace("default.get_config()", "exit(0)"), ":4: SystemExit: 0"),
        ("raise SystemExit", ":1: SystemExit$"),
        (GOOD.replace("    config = default", "    raise KeyboardInterrupt\n    config = d"), ":4: KeyboardInterr"),
        ("def f():\n    return f()\nf()", ":2: RecursionError: maximum recursion depth"),
        ("import json\nx = json.loads('{')", ":2: Expecting property name"),
        (GOOD.replace("return config", "return {'seed': 1}"), r":3: get_config\(\) returned a dict; a config begins"),
        (GOOD.replace("get_config():", "make():"), ": it has no function get_config"),
        (GOOD.replace("get_config():", "get_config(name):"), ": get_config.* missing 1 required .*=ARGUMENT|:ARGUMENT"),
        ("\x00", ":1: "),
        ("\udcff".encode("utf-8", "surrogatepass").decode("latin-1"), ":1: "),
    ],
)
def test_config_files(tmp_path, content, message):
    file = tmp_path / "config.py"
    file.write_text(content)
    with pytest.raises(UserError, match=re.escape(str(file)) + message) as error:
        parse(["launch.py", f"--config={file}"])
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="is a folder"):
        parse(["launch.py", f"--config={tmp_path}"])
    with pytest.raises(UserError, match=r"there is no file 'nowhere\.py'"):
        parse(["launch.py", "--config=nowhere.py:argument"])


def test_overrides_without_a_config_are_of_the_run(tmp_path, monkeypatch):
    from mtl_jax.config import default
    from mtl_jax.storage import workdir as folders

    config = default.get_config()
    default.add_dataset(config, "news", reader="jsonl", words="words", splits={"train": ("a", "b"), "dev": ("c", "d")})
    folders.claim(tmp_path, config)
    flags = [
        "launch.py",
        "--mode=evaluate",
        f"--workdir={tmp_path}",
        "--config.datasets.news.splits.test=x.jsonl",
        "--config.datasets.news.splits.dev=y.jsonl",
        "--config.evaluation.rows_per_batch=4",
    ]
    monkeypatch.setattr(sys, "argv", flags)
    parse(flags)
    actual = command_line.CONFIG.value
    assert actual.evaluation.rows_per_batch == 4 and actual.datasets.news.words == "words"
    assert actual.datasets.news.splits.to_dict() == {"train": ("a", "b"), "dev": "y.jsonl", "test": "x.jsonl"}
    monkeypatch.setattr(sys, "argv", flags := ["launch.py", "--mode=train", "--config.seed=4"])
    with pytest.raises(UserError, match=r"--config\.seed sets a field of a config; name it by --config=FILE"):
        parse(flags)
    (tmp_path / "config.json").write_text("{\n 'x'")
    with pytest.raises(UserError, match=r"config\.json:2: not JSON"):
        parse(["launch.py", f"--config={tmp_path / 'config.json'}"])


@pytest.mark.parametrize(
    ("flags", "message"),
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
def test_modes_name_the_flags_that_they_need(flags, message):
    command_line.flags.FLAGS.unparse_flags()
    for name in ("config", "workdir", "mode", "input", "output", "runs"):
        command_line.flags.FLAGS[name].unparse()
    with pytest.raises(UserError) as error:
        command_line.main(parse(["launch.py", *flags]))
    assert message in str(error.value)


def test_a_device_that_is_not_there_ends_in_one_line_and_status_2(tmp_path):
    """JAX itself ends in a bare AssertionError here."""
    file = tmp_path / "config.py"
    file.write_text(
        GOOD.replace(
            "    return", '    default.add_dataset(config, "news", reader="jsonl", words="words")\n    return'
        ).replace("    return", "    config.tokenizer.kind = 'words'\n    return")
    )
    command = [sys.executable, "launch.py", f"--config={file}", f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cuda"}, capture_output=True, text=True, timeout=120
    )
    if "no device of the platform" not in done.stderr:
        pytest.skip("there is a GPU here")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: JAX found no device of the requested platform (cuda)")


def test_shipped_configs_by_name_and_neighbours_of_a_config(tmp_path, monkeypatch):
    def config_of(path):
        monkeypatch.setattr(sys, "argv", flags := ["launch.py", f"--config={path}"])
        parse(flags)
        return command_line.CONFIG.value

    monkeypatch.chdir(tmp_path)
    by_name = config_of("snips_joint:lstm")
    assert list(by_name.tasks) == ["intent", "slots"]
    assert config_of("configs/snips_joint.py:lstm").to_dict() == by_name.to_dict()
    with pytest.raises(UserError, match=r"no file 'snip', and the shipped .*, snips_joint, task_kinds, tree"):
        config_of("snip:lstm")
    with pytest.raises(UserError, match=r"snips_joint.py:\d+: the argument of this config is 'lstm' or 'bert'"):
        config_of("snips_joint:gru")

    (tmp_path / "base.py").write_text(GOOD)
    (tmp_path / "__init__.py").write_text("SEED = 3")
    (tmp_path / "mine.py").write_text(
        "from . import SEED, base\ndef get_config():\n    config = base.get_config()\n"
        "    config.seed = SEED\n    return config"
    )
    assert config_of("mine.py").seed == 3 and list(config_of("mine.py").tasks) == ["ner"]
    (tmp_path / "snips_joint").write_text(GOOD)  # a file of the user's goes before a shipped config
    assert list(config_of("snips_joint").tasks) == ["ner"]


def test_what_a_person_can_correct_is_one_message_and_defects_are_none():
    full = command_line._user_message(OSError(errno.ENOSPC, "No space left on device", "/disk"))
    assert full.startswith("/disk: No space left on device.") and "resumes from the last complete checkpoint" in full
    memory = command_line._user_message(RuntimeError("RESOURCE_EXHAUSTED: 3 GiB"))
    assert memory.startswith("not enough memory: RESOURCE_EXHAUSTED: 3 GiB") and "rows_per_block" in memory
    for defect in (ValueError("x"), OSError(errno.ENOENT, "no such file"), RuntimeError("INTERNAL")):
        assert command_line._user_message(defect) is None
