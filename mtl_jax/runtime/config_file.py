"""The flag --config: a Python file with `get_config`, the name of a shipped one, or the config.json of a run."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import pathlib
import re
import signal
import sys
import sysconfig
import threading
import traceback
from collections.abc import Sequence
from types import FrameType, ModuleType
from typing import Any

from absl import flags
from ml_collections import ConfigDict, FrozenConfigDict, config_flags

from mtl_jax.errors import UserError

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
_PACKAGE_FILES = [str(_PACKAGE), str(_PACKAGE.parent / "launch.py")]
_LIBRARIES = [sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib")] + _PACKAGE_FILES
_MODULE = "config_of_flag"


def shipped_folder() -> pathlib.Path:
    """The folder of the shipped configs: `mtl_jax/configs` of an installed wheel, `configs` of a checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def shipped_configs() -> list[str]:
    """Names of the shipped configs, each of which --config takes."""
    return sorted(
        file.stem for file in shipped_folder().glob("*.py") if "def get_config(" in file.read_text(encoding="utf-8")
    )


def define_config_flag(name: str) -> flags.FlagHolder:
    """The flag `name`, whose fields are set by `--name.field=value` as well."""
    flag = config_flags.DEFINE_config_file(
        name, None, "File, file.py:argument, a shipped config by name, or the config.json of a run.", lock_config=True
    )
    flags.FLAGS[name].parser = _Parser(name)
    return flag


class _Parser(flags.ArgumentParser):
    """Loads the config that --config names, and turns every error of the file into a `UserError`.

    The parser of ml_collections delays an OSError until the first use of the config, and reduces others to a string.
    """

    def __init__(self, name: str):
        self.name = name

    def parse(self, path: str) -> ConfigDict:
        """Raises UserError: there is no such file, or it raises an error, whose line is named."""
        config = load(path)
        _add_splits(config, override_paths(sys.argv, self.name))
        return config.lock()


def load(path: str) -> ConfigDict:
    """The config that --config names: "quickstart:soft", "mine.py", "runs/x/config.json". UserError as of `parse`."""
    name, *argument = path.split(":", 1)
    file = _file(name)
    return _of_run(file) if file.suffix == ".json" else _of_python(str(file), argument)


def _file(name: str) -> pathlib.Path:
    """The file that --config names; "quickstart" and "configs/quickstart.py" are shipped wherever the command runs."""
    file = pathlib.Path(name).expanduser()
    if file.is_file():
        return file
    stem = name.removeprefix("configs/").removesuffix(".py")
    if stem in shipped_configs():
        return shipped_folder() / f"{stem}.py"
    if file.is_dir():
        raise UserError(f"--config: {name!r} is a folder; name a .py file, or the config.json of a run")
    raise UserError(f"--config: there is no file {name!r}, and the shipped configs are {', '.join(shipped_configs())}")


def override_paths(argv: Sequence[str], name: str) -> list[str]:
    """The fields that the command line sets: "optimizer.clip_norm" of --config.optimizer.clip_norm=1."""
    matches = (re.match(rf"--?(?:no)?{re.escape(name)}\.([^=]+)", flag) for flag in argv)
    return [match[1] for match in matches if match]


def _add_splits(config: ConfigDict, overrides: Sequence[str]) -> None:
    """Adds the splits that a data set lacks, so that --config.datasets.x.splits.test=FILE can name them."""
    from mtl_jax.data.datasets import SPLITS  # imported late, so that mistakes in flags are reported at once

    datasets = config.get("datasets")
    for path in overrides:
        section, _, rest = path.partition(".")
        name, _, split = rest.rpartition(".splits.")
        if section == "datasets" and split in SPLITS and datasets is not None and name in datasets:
            splits = datasets[name].splits
            if not isinstance(splits.get(split), str):  # there is none, or several files, which one replaces
                with splits.ignore_type(), splits.unlocked():
                    splits[split] = ""


def _of_run(file: pathlib.Path) -> ConfigDict:
    from mtl_jax.config.plain import from_plain

    try:
        config = from_plain(json.loads(file.read_text(encoding="utf-8")))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: not JSON: {error.msg}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file}: cannot be read: {error}") from None
    return _checked(config, f"{file}", "the file holds")


def _of_python(file: str, argument: Sequence[str]) -> ConfigDict:
    interrupted: list[int] = []
    try:
        with _record_interrupts(interrupted):
            module = _load(file)
            config = module.get_config(*argument)
    except BaseException as error:  # also SystemExit, for example of a script that is not a config
        if interrupted:
            raise
        raise UserError(_place(error, file, argument)) from error
    line = module.get_config.__code__.co_firstlineno if hasattr(module.get_config, "__code__") else 1
    return _checked(config, f"{file}:{line}", "get_config() returned")


def _load(file: str) -> ModuleType:
    """The module of a file, in a package of its folder: `from . import other` finds its neighbours."""
    for name in [name for name in sys.modules if name.partition(".")[0] == _MODULE]:
        del sys.modules[name]  # of another folder
    folder = pathlib.Path(file).resolve().parent
    package = sys.modules[_MODULE] = ModuleType(_MODULE)
    package.__path__ = [str(folder)]
    if (folder / "__init__.py").is_file():
        importlib.machinery.SourceFileLoader(_MODULE, str(folder / "__init__.py")).exec_module(package)
    loader = importlib.machinery.SourceFileLoader(f"{_MODULE}.{pathlib.Path(file).stem}", file)
    spec = importlib.util.spec_from_loader(loader.name, loader)
    module = sys.modules[loader.name] = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


class _record_interrupts:
    """Records Ctrl-C within this context in a list, so that it is not mistaken for an error of the file."""

    def __init__(self, received: list[int]):
        self._received = received

    def __enter__(self) -> None:
        def record(number: int, frame: FrameType | None) -> None:
            self._received.append(number)
            raise KeyboardInterrupt

        self._previous = signal.signal(signal.SIGINT, record) if _in_main_thread() else None

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _checked(config: Any, place: str, what: str) -> ConfigDict:
    if config is None:
        raise UserError(f"{place}: {what} nothing; it should end with 'return config'")
    if isinstance(config, FrozenConfigDict):
        config = ConfigDict(config)
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"{place}: {what} {_article(type(config).__name__)}; a config begins with default.get_config() of "
            "mtl_jax.config"
        )
    return config


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _place(error: BaseException, file: str, argument: Sequence[str]) -> str:
    """ "file:line: what is wrong": the innermost line of the config, or of a file of the user's that it uses."""
    if isinstance(error, SyntaxError) and error.filename and not _is_library(error.filename):
        return f"{error.filename}:{error.lineno or 1}: {error.msg}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_library(frame.filename)]
    line = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else file
    if not frames and b"\0" in (content := pathlib.Path(file).read_bytes()):
        return f"{file}:{content[: content.index(0)].count(10) + 1}: a null byte; this is not a Python file"
    if not frames and isinstance(error, AttributeError) and "get_config" in str(error):
        return f"{file}: it has no function get_config(); a config ends in one that returns it"
    if not frames and isinstance(error, TypeError) and argument:
        return f"{file}: get_config() takes no argument, so {':'.join([file, *argument])} has to be {file}"
    if not frames and isinstance(error, TypeError):
        return f"{file}: {error}; give it as --config={file}:ARGUMENT, or give it a default"
    message = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    plain = isinstance(error, KeyError | ValueError) and " " in message
    return f"{line}: {message}" if plain else f"{line}: {type(error).__name__}: {message}".removesuffix(": ")


def _is_library(filename: str) -> bool:
    if filename.startswith("<"):
        return True
    path = str(pathlib.Path(filename).resolve())
    if path.startswith(f"{shipped_folder()}/"):
        return False
    return any(path == library or path.startswith(library + "/") for library in _LIBRARIES)
