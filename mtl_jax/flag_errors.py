"""Parses the command line; mistakes in flags and in config files become messages for people."""

from __future__ import annotations

import pathlib
import re
import traceback
from collections.abc import Sequence

from absl import flags

from mtl_jax.errors import UserError

_LIBRARIES = ("site-packages", "dist-packages", "importlib")


def parse(argv: Sequence[str]) -> list[str]:
    """`flags.FLAGS(argv)`, for `absl.app.run(..., flags_parser=parse)`.

    Raises:
      UserError: an unknown flag or config field, a value of a wrong type, a config file that is not there or that
        raises; of the last, file and line are named.
    """
    for path in _config_files(argv):
        if not pathlib.Path(path).is_file():
            raise UserError(f"--config: there is no file {path!r}")
    try:
        rest = flags.FLAGS(argv)
    except Exception as error:
        in_file = next(filter(None, map(_in_config_file, _chain(error))), None)
        if in_file is None and isinstance(error, flags.Error):
            in_file = f"{error}\nThe flags are listed by: python launch.py --help"
        raise UserError(in_file or _in_override(error, argv)) from error
    for path in _config_files(argv):
        if flags.FLAGS.config is None:
            raise UserError(f"{path}: get_config() returned nothing; it should end with 'return config'")
    return rest


def _chain(error):
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _config_files(argv):
    for flag, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = flag.partition("=")
        if name in ("--config", "-config"):
            yield (value if equals else following).split(":")[0]


def _in_config_file(error) -> str | None:
    """The place in a config file where it was raised, below those functions of configs/default.py that it calls."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {error.msg}"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not any(part in frame.filename for part in _LIBRARIES)
        and frame.filename not in (__file__, "<string>")
        and pathlib.Path(frame.filename).name not in ("launch.py", "default.py")
        and not frame.filename.startswith("<")
    ]
    if not frames:
        return None
    said = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    kind = "" if isinstance(error, KeyError | ValueError) and " " in said else f"{type(error).__name__}: "
    return f"{frames[-1].filename}:{frames[-1].lineno}: {kind}{said}"


def _in_override(error, argv) -> str:
    """An override of a field that is not there, or of a type that does not fit."""
    said = str(error.args[0] if error.args else error)
    if found := re.search(r"""['"]+([^'"\\]+)\\?['"]""", said):
        field = found[1]
        near = re.search(r'Did you mean "([^"]+)"', said)
        for flag in argv:
            path = flag.lstrip("-").partition("=")[0].split(".")
            if path[0] == "config" and field in path[1:]:
                where = ".".join(path[: path.index(field)])
                hint = f"; did you mean {near[1]!r}?" if near else ""
                return f"--{'.'.join(path)}: {where} has no field {field!r}{hint}"
    return f"--config: {type(error).__name__}: {said}"
