"""Parses the command line; mistakes in flags and in config files become readable messages."""

from __future__ import annotations

import pathlib
import re
import sys
from collections.abc import Iterator, Sequence

from absl import flags

from mtl_jax.errors import UserError
from mtl_jax.runtime.config_file import override_paths

_RUN_MODES = ("evaluate", "predict", "attribute", "export", "push")  # modes that take the config.json of --workdir


def entry_point() -> str:
    """How this process was started: "mtl-jax", "python -m mtl_jax" or "python launch.py"."""
    program = pathlib.Path(sys.argv[0])
    if program.name == "mtl-jax":
        return "mtl-jax"
    is_module = program.parts[-2:] == ("mtl_jax", "__main__.py")
    return "python -m mtl_jax" if is_module else "python launch.py"


def parse(argv: Sequence[str]) -> list[str]:
    """`flags.FLAGS(argv)`, for `absl.app.run(..., flags_parser=parse)`.

    Overrides without --config, in a mode that reads a finished run, change the config.json of the run.

    Raises:
      UserError: an unknown flag or config field, a value of a wrong type, a config file that is not there or that
        raises; of the last, file and line are named.
    """
    argv = list(argv)
    overrides = override_paths(argv, "config")
    if overrides and not _value(argv, "config"):
        argv[1:1] = [f"--config={_config_of_run(argv, overrides[0])}"]
    try:
        return flags.FLAGS(argv)
    except Exception as error:
        user_error = next((cause for cause in _causes(error) if isinstance(cause, UserError)), None)
        if user_error is not None:
            raise UserError(str(user_error)) from error
        if isinstance(error, flags.Error) and not overrides:
            raise UserError(f"{error}\nThe flags are listed by: {entry_point()} --help") from error
        raise UserError(_override_message(error, argv)) from error


def _config_of_run(argv: Sequence[str], field: str) -> str:
    mode, run = _value(argv, "mode") or "train", _value(argv, "workdir")
    if mode == "merge":
        run = _value(argv, "runs").split(",")[0]
    elif mode not in _RUN_MODES:
        run = ""
    if not run:
        raise UserError(f"--config.{field} sets a field of a config; name it by --config=FILE")
    return str(pathlib.Path(run).expanduser() / "config.json")


def _value(argv: Sequence[str], name: str) -> str:
    """The value of a flag on the command line before it is parsed; "" for none."""
    result = ""
    for flag, following in zip(argv, [*argv[1:], ""], strict=True):
        name_part, equals, value = flag.partition("=")
        if name_part in (f"--{name}", f"-{name}"):
            result = value if equals else following
    return result


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _override_message(error: Exception, argv: Sequence[str]) -> str:
    """The message for an override of a missing field, or of a wrong type."""
    message = str(error.args[0] if error.args else error)
    if match := re.search(r"""['"]+([^'"\\]+)\\?['"]""", message):
        field = match[1]
        near = re.search(r'Did you mean "([^"]+)"', message)
        for flag in argv:
            path = flag.lstrip("-").partition("=")[0].split(".")
            if path[0] == "config" and field in path[1:]:
                where = ".".join(path[: path.index(field)])
                hint = f"; did you mean {near[1]!r}?" if near else ""
                return f"--{'.'.join(path)}: {where} has no field {field!r}{hint}"
    if isinstance(error, flags.Error):
        return f"{message}\nThe flags are listed by: {entry_point()} --help"
    return f"--config: {type(error).__name__}: {message}"
