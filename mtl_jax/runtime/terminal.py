"""What the terminal and the locale can show: neither may end a run, or change the name of a file."""

from __future__ import annotations

import os
import sys


def restart_in_utf8_mode() -> None:
    """Runs this command anew, in the same process, in Python's UTF-8 mode where the locale is of another encoding.

    There a name such as "ünï" has no form that libraries outside of Python take. The terminal keeps its encoding.
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
    """XLA's alarms ("Very slow compile?", "Constant folding an instruction is taking > 1s") are not written into the
    progress bar; what really fails is raised in Python too. A level that the user has set stays.

    Call before JAX is imported.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def show_what_can_be_shown() -> None:
    """From here on a character that the terminal has not is "?" there, and no error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace" if is_utf8(stream) else "replace")


def is_utf8(stream) -> bool:
    """Whether a text stream takes every character."""
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("_", "-").startswith(("utf-", "utf8"))
