"""Terminals and locales that have not every character: nothing fails by what it says, and names stay what they are."""

import ast
import io
import os
import pathlib
import subprocess
import sys

import pytest

from mtl_jax.errors import UserError
from mtl_jax.runtime import terminal
from mtl_jax.storage import workdir as folders

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_cannot_be_shown_is_no_error(monkeypatch, encoding):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    terminal.replace_unencodable()
    for stream in streams:
        stream.write("‖Θ‖ ─ a\udcff")
        stream.flush()
    shown = streams[0].buffer.getvalue().decode(encoding)
    assert shown == ("‖Θ‖ ─ a\\udcff" if encoding == "utf-8" else "??? ? a?")


def test_another_locale_than_utf8_is_left_once(monkeypatch):
    calls = []
    monkeypatch.setattr(os, "execv", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(sys, "orig_argv", ["python", "launch.py", "--workdir=x"])
    monkeypatch.delenv("PYTHONUTF8", raising=False)
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    terminal.restart_in_utf8_mode()
    assert not calls
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    terminal.restart_in_utf8_mode()
    terminal.restart_in_utf8_mode()  # declined: it is no circle
    assert calls == [(sys.executable, [sys.executable, "launch.py", "--workdir=x"])]
    assert os.environ["PYTHONUTF8"] == "1" and os.environ["PYTHONIOENCODING"]


def test_a_name_that_is_not_utf8_is_told_so(tmp_path):
    with pytest.raises(UserError, match="this name is not UTF-8"):
        folders.prepare(tmp_path / "\udcfcn")


def test_the_command_in_the_locale_c(tmp_path):
    folder = tmp_path / "ünï"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "ä b", "label": "‖x‖"}\n{"text": "c", "label": "y"}\n' * 4, "utf-8")
    (folder / "config.py").write_text(
        "from mtl_jax.config import default\n"
        "def get_config():\n"
        "    config = default.get_config()\n"
        f"    default.add_dataset(config, 'd', reader='jsonl', path={str(folder)!r}, text=('text',),\n"
        "                        splits={'train': 'a.jsonl', 'dev': 'a.jsonl'})\n"
        "    default.add_task(config, 't', kind='classification', dataset='d', label='label')\n"
        "    config.tokenizer.kind = 'words'\n"
        "    return config\n",
        "utf-8",
    )
    command = [sys.executable, "launch.py", f"--config={folder / 'config.py'}", "--mode=inspect"]
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for own in (locale, {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1:strict"}):
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LC_"))}
        environment |= {"MTL_JAX_CACHE": str(tmp_path / "cache"), **own}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert b"?x?" in done.stdout and b"Traceback" not in done.stderr


def test_text_files_name_their_encoding():
    """Without it Python takes that of the locale."""
    wrong = []
    for file in [*(ROOT / "mtl_jax").rglob("*.py"), *(ROOT / "configs").glob("*.py"), ROOT / "launch.py"]:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and _opens_text(node):
                wrong.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert not wrong, "\n".join(wrong)


def _opens_text(call: ast.Call) -> bool:
    """Whether a call opens a file as text without an encoding: open("x"), path.open("a"), path.read_text()."""
    name = call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")
    if any(keyword.arg == "encoding" for keyword in call.keywords):
        return False
    if name in ("read_text", "write_text"):
        return len(call.args) < (1 if name == "read_text" else 2)
    if name != "open" or (isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) in ("Image", "os")):
        return False
    arguments = call.args[1:] if isinstance(call.func, ast.Name) else call.args
    mode = [a.value for a in arguments if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return any(len(m) <= 3 and set(m) <= set("rwaxt+") for m in mode) or (isinstance(call.func, ast.Name) and not mode)


def test_alarms_of_the_compiler_stay_out_of_the_progress_bar(monkeypatch):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL", raising=False)
    terminal.silence_compiler()
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "3"
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")  # a user who wants to see them does
    terminal.silence_compiler()
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0"
    # XLA reads it when JAX is imported: the command line alone does not import it
    code = "import sys; from mtl_jax import command_line; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
