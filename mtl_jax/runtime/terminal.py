"""Limits of the terminal and the locale, which must not end a run or change the name of a file."""

from __future__ import annotations

import os
import sys
from typing import TextIO


def restart_in_utf8_mode() -> None:
    """Restarts this command, in the same process, in Python's UTF-8 mode if the locale has another encoding.

    In such a locale, libraries outside of Python do not accept names such as "ünï". The terminal keeps its encoding.
    """
    if sys.getfilesystemencoding().lower().replace("_", "-") in ("utf-8", "utf8"):
        return
    if os.environ.get("PYTHONUTF8") == "1":  # declined by -X utf8=0
        return
    os.environ["PYTHONUTF8"] = "1"
    os.environ.setdefault("PYTHONIOENCODING", sys.stdout.encoding)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def silence_compiler() -> None:
    """Silences warnings of XLA ("Very slow compile?", "Constant folding an instruction is taking > 1s").

    They would break the progress bar; errors are raised in Python anyway. A level that the user has set stays.

    Call before JAX is imported.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def replace_unencodable() -> None:
    """From now on a character that the terminal cannot show is replaced, and not an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace" if is_utf8(stream) else "replace")


def is_utf8(stream: TextIO) -> bool:
    """Whether a stream can encode every character."""
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("_", "-").startswith(("utf-", "utf8"))
