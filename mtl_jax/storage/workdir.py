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

from mtl_jax.config.plain import differences, to_plain
from mtl_jax.errors import UserError
from mtl_jax.runtime import distributed
from mtl_jax.storage.tensorboard import EventFile


def prepare(path: str | os.PathLike, flag: str = "--workdir") -> pathlib.Path:
    """Makes the folder and makes sure that it can be written; `flag` names it in messages.

    Raises:
      UserError: it cannot be made or written.
    """
    workdir = pathlib.Path(path).expanduser()
    if not is_utf8_name(workdir.absolute()):
        raise UserError(
            f"{flag}={path}: a name here is not UTF-8, in which checkpoints are written; name another folder"
        )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise UserError(f"{flag}={path}: cannot be written ({error.strerror}); name a folder that can") from None
    return workdir


def is_utf8_name(path: str | os.PathLike) -> bool:
    """Whether libraries outside of Python can take the path: of other bytes Python makes half surrogate pairs."""
    try:
        os.fspath(path).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@contextlib.contextmanager
def locked(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A folder that is prepared, and that no other run may hold within this context; the first process holds it.

    Raises:
      UserError: it cannot be made or written; another run holds it.
    """
    workdir = prepare(path)
    if not distributed.is_first():
        yield workdir
        return
    with (workdir / "lock").open("a+", encoding="utf-8") as lock:  # the system lets go of it however the process ends
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


def require_unclaimed(workdir: pathlib.Path, config: Any) -> None:
    """Makes sure that a workdir holds no checkpoint or summary of another config.

    Raises:
      UserError: it does; the fields that differ are named.
    """
    held = (workdir / "summary.json").exists() or any((workdir / "checkpoints").glob("*")) or is_ablation(workdir)
    if not held or not (workdir / "config.json").exists():
        return
    if different := differences(read_config(workdir), to_plain(config)):
        raise UserError(
            f"{workdir} holds a run of another config; take another --workdir, or delete it to begin anew.\n  "
            + "\n  ".join(different)
        )


def is_ablation(workdir: pathlib.Path) -> bool:
    """Whether the folder is that of many lanes (an ablation, or tasks related) and not of one run."""
    return any((workdir / name).exists() for name in ("programs", "ablation.json", "transfer", "relatedness.json"))


def claim(workdir: pathlib.Path, config: Any) -> None:
    """Writes config.json."""
    write_json(workdir / "config.json", to_plain(config))


def read_config(workdir: pathlib.Path) -> dict[str, Any]:
    """The plain config of a run.

    Raises:
      UserError: there is none, or it is not JSON.
    """
    file = workdir / "config.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{workdir}: no config.json, so this is not the folder of a run") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: not JSON: {error.msg}") from None


def read_summary(workdir: pathlib.Path) -> dict[str, Any]:
    """summary.json of a finished run.

    Raises:
      UserError: the run has none yet, or a damaged one.
    """
    file = workdir / "summary.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{workdir}: no summary.json; the run is not finished, start it again to go on") from None
    except ValueError as error:
        raise UserError(
            f"{file}: this is no whole JSON ({error}); delete the file and start the run again, it goes on from its "
            "newest checkpoint"
        ) from None


def write_json(file: pathlib.Path, value: Any) -> None:
    """Writes JSON so that the file is never half there."""
    write_whole(file, json.dumps(_finite(value), indent=2) + "\n")


def write_whole(file: pathlib.Path, text: str) -> None:
    """Writes a file so that it is there whole or as it was before, after a loss of power too."""
    temporary = file.with_name(file.name + f".{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as written:
        written.write(text)
        written.flush()
        os.fsync(written.fileno())
    os.replace(temporary, file)


def _finite(value):
    """NaN and infinities are not JSON: they become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class MetricsLog:
    """metrics.jsonl, and the same numbers as TensorBoard events `kind/field/...`. One object a line, with the fields

    step   steps taken; the line is about the last of them
    kind   "train", every config.training.log_every steps and at the end; values of that one step:
             loss           {task: L_k}, null for a task without labels in the batch
             alpha          {task: α_k}
             penalty        {penalty: Ω}, without λ
             strength       {penalty: λ}
             total          Σ_k α_k·L_k + λ·Ω
             penalty_ratio  {penalty: its pull relative to that of the losses}, see `mtl_jax.training.penalty_effect`
             column_distance  {penalty: distance of the columns from their mean, relative to its norm}, likewise
             gradient_norm  {task or "shared": norm before clipping, of the parameters that only this task has}
             teaching       {task: share of its teachers in the target}, where there are any
             learning_rate  of the step, without the factors of config.optimizer.groups
             support        {task: L_k before the inner loop of meta-learning, whose `loss` is that after it}
             skipped        {task or "shared": steps so far left out because its loss or gradient was not finite}
           "dev", at every evaluation:
             tasks          {task: {metric: value}}, see `mtl_jax.runs.train.train`
             score          mean over tasks of each one's first metric

    Numbers that are not finite are null. Use as a context manager. Of several processes the first alone writes.
    """

    def __init__(self, workdir: pathlib.Path, step: int, unscored: bool = False):
        """Opens the log to go on at `step`: lines that were written after it by a run cut off are dropped.

        `unscored`: the evaluation of `step` comes again, so that its line is dropped too.
        """
        self._lines = self._events = None
        if not distributed.is_first():
            return
        self.file = workdir / "metrics.jsonl"
        kept = [line for line in read_metrics(workdir) if line["step"] <= step]
        if unscored:
            kept = [line for line in kept if (line["step"], line["kind"]) != (step, "dev")]
        write_whole(self.file, "".join(json.dumps(line) + "\n" for line in kept))
        self._lines = self.file.open("a", buffering=1, encoding="utf-8")
        self._events = EventFile(workdir / "events", step + 1)

    def write(self, step: int, kind: str, values: dict[str, Any]) -> None:
        """One line; `values` may hold dicts, whose numbers become TensorBoard scalars `kind/key/key`."""
        if self._lines is None:
            return
        self._lines.write(json.dumps({"step": step, "kind": kind, **_finite(values)}) + "\n")
        for name, number in _scalars(values, kind):
            self._events.add(name, number, step)

    def sync(self) -> None:
        """Returns when all lines are on the disk: a checkpoint shall never be ahead of them."""
        if self._lines is not None:
            os.fsync(self._lines.fileno())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._lines is None:
            return
        self._lines.close()
        with contextlib.suppress(OSError):  # a full disk has been told of by what is needed to go on
            self._events.close()


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl; a last line cut off by a crash is left out."""
    file = workdir / "metrics.jsonl"
    lines = []
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return lines


def _scalars(values, prefix):
    for key, value in values.items():
        name = f"{prefix}/{key}"
        if isinstance(value, dict):
            yield from _scalars(value, name)
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield name, value
