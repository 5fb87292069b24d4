"""The folder of a run: config.json, metrics.jsonl, TensorBoard events, checkpoints, figures, summary.json."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

from mtl_jax.config.default import unknown_field
from mtl_jax.config.plain import differences, to_plain
from mtl_jax.config.sections import Config
from mtl_jax.errors import UserError
from mtl_jax.runtime import distributed
from mtl_jax.storage.summary import Summary


def prepare(path: str | os.PathLike, flag: str = "--workdir") -> pathlib.Path:
    """Makes the folder and tests that it can be written; `flag` names it in messages.

    Raises:
      UserError: it cannot be made or written.
    """
    workdir = pathlib.Path(path).expanduser()
    if not is_utf8_name(workdir.absolute()):
        raise UserError(f"{flag}={path}: this name is not UTF-8, which checkpoints need; name another folder")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise UserError(f"{flag}={path}: cannot be written ({error.strerror}); name a writable folder") from None
    return workdir


def is_utf8_name(path: str | os.PathLike) -> bool:
    """Whether libraries outside of Python accept the path: Python decodes other bytes to lone surrogates."""
    try:
        os.fspath(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@contextlib.contextmanager
def locked(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A prepared folder that no other run can use within this context; the first process locks it.

    Raises:
      UserError: it cannot be made or written; another run uses it.
    """
    workdir = prepare(path)
    if not distributed.is_first():
        yield workdir
        return
    with (workdir / "lock").open("a+", encoding="utf-8") as lock:  # the system releases it however the process ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(
                f"{workdir}: another run writes here ({lock.read().strip()}); wait for its end, or take another folder"
            ) from None
        except OSError:
            pass  # a file system without locks
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        lock.flush()
        yield workdir


def require_unclaimed(workdir: pathlib.Path, config: Config) -> None:
    """Raises UserError, with the fields that differ, where a workdir holds results of another config."""
    has_results = (
        (workdir / "summary.json").exists() or any((workdir / "checkpoints").glob("*")) or is_ablation(workdir)
    )
    if not has_results or not (workdir / "config.json").exists():
        return
    if different := differences(read_config(workdir), to_plain(config)):
        raise UserError(
            f"{workdir} holds a run of another config; take another --workdir, or delete it to start over.\n  "
            + "\n  ".join(different)
        )


def is_ablation(workdir: pathlib.Path) -> bool:
    """Whether the folder is of many lanes (--mode=ablate or relate) and not of a single run."""
    names = ("programs", "ablation.json", "transfer", "relatedness.json", "shards")
    return any((workdir / name).exists() for name in names)


def claim(workdir: pathlib.Path, config: Config) -> None:
    """Writes config.json."""
    write_json(workdir / "config.json", to_plain(config))


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
    """The plain config of a run.

    Raises:
      UserError: there is none, it is not JSON, or a version with other fields wrote it.
    """
    file = workdir / "config.json"
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{workdir}: no config.json, so this is not the folder of a run") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: not JSON: {error.msg}") from None
    if field := unknown_field(plain):
        raise UserError(
            f"{file}: another version of mtl_jax wrote this run, since {field} is no field of this one; train it again "
            "in another folder, or go on with that version"
        )
    return plain


def read_summary(workdir: pathlib.Path) -> Summary:
    """summary.json of a finished run.

    Raises:
      UserError: the run has none yet, or a damaged one.
    """
    file = workdir / "summary.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{workdir}: no summary.json; the run is not finished, start it again to resume it") from None
    except ValueError as error:
        raise UserError(
            f"{file}: not complete JSON ({error}); delete the file and start the run again, it resumes from its newest "
            "checkpoint"
        ) from None


def write_json(file: pathlib.Path, value: Any) -> None:
    """Writes JSON; the file is never incomplete."""
    write_atomically(file, json.dumps(finite_json(value), indent=2) + "\n")


def write_atomically(file: pathlib.Path, text: str) -> None:
    """Writes a file atomically: after a loss of power it is complete, or as it was before."""
    temporary = file.with_name(file.name + f".{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as written:
        written.write(text)
        written.flush()
        os.fsync(written.fileno())
    os.replace(temporary, file)


def finite_json(value: Any) -> Any:
    """The value with None in place of NaN and infinities, which JSON lacks."""
    if isinstance(value, dict):
        return {key: finite_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
