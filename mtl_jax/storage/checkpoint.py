"""Checkpoints by Orbax: the newest ones, saved asynchronously, and the best by dev score. Only this file uses Orbax.

    workdir/checkpoints/<step>/   params, and the rest of the train state
    workdir/best/<step>/          params

The metadata of both identify the data and hold the progress of the loop; everything has checksums. A damaged checkpoint
is moved to workdir/damaged/, and the one before it is used.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import pathlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import chex
import jax
from orbax.checkpoint import v1 as ocp

from mtl_jax.errors import UserError
from mtl_jax.runtime import distributed
from mtl_jax.storage import checksums, named_heads
from mtl_jax.storage.checksums import DamagedError
from mtl_jax.tasks.groups import TaskGroup
from mtl_jax.training.state import TrainState

T = TypeVar("T")


class Checkpoints:
    """The checkpoints of one workdir. Use as a context manager: its exit waits for pending writes."""

    def __init__(self, workdir: pathlib.Path, keep: int, groups: Sequence[TaskGroup] = ()):
        """`keep`: the number of the newest checkpoints that stay. `groups` of the tasks whose states it saves."""
        latest = ocp.training.preservation_policies.LatestN
        always = ocp.training.save_decision_policies.FixedIntervalPolicy(1)

        def checkpointer(folder, count):
            return ocp.training.Checkpointer(
                folder.absolute(),
                preservation_policy=latest(count),
                save_decision_policy=always,
                cleanup_tmp_directories=True,
            )

        self._newest = checkpointer(workdir / "checkpoints", keep)
        self._open_best = functools.cache(lambda: checkpointer(workdir / "best", 1))  # not every run has a best
        self._pending: Any = None
        self._pending_step = 0
        self.folder = workdir
        self._groups = groups

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            self.wait()
            with _clear_errors("write", self._pending_step, self.folder):
                self._newest.close()
                if self._open_best.cache_info().currsize:
                    self._best.close()
        except Exception:
            if kind is None:  # otherwise the first error is the one to report
                raise

    @property
    def _best(self):
        return self._open_best()

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint."""
        return self._newest.latest.step if self._newest.latest else None

    @property
    def best_step(self) -> int | None:
        """Step of the best parameters."""
        return self._best.latest.step if self._best.latest else None

    def restore_newest(self, read: Callable[[int], T]) -> T | None:
        """What `read` returns for the step of the newest checkpoint; None where there is none.

        If `read` raises `DamagedError`, the checkpoint is moved to workdir/damaged/ with a message, and the one before
        it is read.
        """
        while (step := self.latest_step) is not None:
            try:
                return read(step)
            except DamagedError as error:
                target = _move_to_damaged(self.folder, step) if distributed.is_first() else "damaged/"
                distributed.wait_for_all(f"step {step} moved to damaged/")
                self._newest.reload()
                start = (
                    f"step {self.latest_step}" if self.latest_step is not None else "the beginning: there is no other"
                )
                print(f"{error}\n  It was moved to {target}; resuming from {start}. Later steps are repeated.")
        return None

    def save(self, state: TrainState, metadata: dict[str, Any]) -> None:
        """Starts to write the state, unless its step is saved already; returns before it is on disk.

        A failed write raises at the next call, at `check` or at `wait`.
        """
        params = named_heads.by_name(self._groups, state.params)
        self.save_parts(int(state.step), {"params": params, "rest": _other_parts(state)}, metadata)

    def save_parts(self, step: int, parts: dict[str, Any], metadata: dict[str, Any]) -> None:
        """As `save`, for named pytrees."""
        self.wait()
        if self.latest_step is None or step > self.latest_step:
            self._start(self._newest, step, parts, metadata)

    def save_best(self, state: TrainState, metadata: dict[str, Any]) -> None:
        """Starts to write the parameters as the best so far, after all earlier writes."""
        self.save_params(int(state.step), state.params, metadata, best=True)

    def save_params(self, step: int, params: chex.ArrayTree, metadata: dict[str, Any], *, best: bool) -> None:
        """Starts to write parameters as the best of a run, or as its newest; later ones are deleted."""
        self.wait()
        checkpointer = self._best if best else self._newest
        for later in [saved.step for saved in checkpointer.checkpoints if saved.step > step]:
            checkpointer.delete(later)  # Orbax would silently refuse to save an earlier step
        self._start(checkpointer, step, {"params": named_heads.by_name(self._groups, params)}, metadata)

    def _start(self, checkpointer, step, parts, metadata):
        with _clear_errors("write", step, self.folder):
            self._pending = checkpointer.save_checkpointables_async(
                step, parts, custom_metadata=checksums.with_checksums(metadata, parts), overwrite=True
            )
        self._pending_step = step

    def check(self) -> None:
        """Raises as `wait` where a write has failed by now; does not wait."""
        pending, self._pending = self._pending, None
        if pending is not None:
            with _clear_errors("write", self._pending_step, self.folder):
                try:
                    pending.result(timeout=0)
                except TimeoutError:
                    self._pending = pending

    def wait(self) -> None:
        """Waits for pending writes.

        Raises:
          UserError: a write failed, for example on a full disk.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            with _clear_errors("write", self._pending_step, self.folder):
                pending.result()

    def metadata(self, step: int) -> dict[str, Any]:
        """The metadata of a step.

        Raises:
          Damaged: it differs from what was written.
        """
        return _metadata(self._newest, step, self.folder / "checkpoints")

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state of a step, with the shardings of the abstract state.

        Raises:
          Damaged: it differs from what was written.
          UserError: it is of another model.
        """
        params = named_heads.abstract_by_name(self._groups, abstract.params)
        parts = self.restore_parts(step, {"params": params, "rest": _other_parts(abstract)})
        return TrainState(params=named_heads.by_group(self._groups, parts["params"], abstract.params), **parts["rest"])

    def restore_parts(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        """As `restore`, for named pytrees."""
        return _restore(self._newest, step, abstract, self.folder / "checkpoints")[0]


class SavedParams(NamedTuple):
    """Parameters of a finished or running workdir, with their step and metadata."""

    params: chex.ArrayTree
    step: int
    metadata: dict[str, Any]


def load_params(
    workdir: pathlib.Path, which: str, abstract_params: chex.ArrayTree, groups: Sequence[TaskGroup]
) -> SavedParams:
    """The parameters of a workdir: `which` = "best" | "last" | the number of a step. `groups` of its tasks.

    Raises:
      Damaged: it differs from what was written.
      UserError: there is no such checkpoint, or its arrays have other shapes.
    """
    for name in _folders(which):
        folder = (workdir / name).absolute()
        if not folder.is_dir():
            continue
        with ocp.training.Checkpointer(folder) as checkpointer:
            steps = {saved.step for saved in checkpointer.checkpoints}
            step = int(which) if which.isdigit() else max(steps, default=None)
            if step in steps:
                named = named_heads.abstract_by_name(groups, abstract_params)
                parts, metadata = _restore(checkpointer, step, {"params": named}, folder)
                return SavedParams(named_heads.by_group(groups, parts["params"], abstract_params), step, metadata)
    raise _no_checkpoint(workdir, which)


def require_checkpoint(workdir: pathlib.Path, which: str) -> None:
    """Raises UserError where a workdir has no folder of such a checkpoint: a check before slow reading begins."""
    steps = {
        int(path.name)
        for name in _folders(which)
        for path in ((workdir / name).iterdir() if (workdir / name).is_dir() else ())
        if path.name.isdigit()
    }
    if not steps or (which.isdigit() and int(which) not in steps):
        raise _no_checkpoint(workdir, which)


def _folders(which: str) -> list[str]:
    """The subfolders of a workdir that may hold such a checkpoint."""
    return {"best": ["best"], "last": ["checkpoints"]}.get(which, ["checkpoints", "best"])


def _no_checkpoint(workdir: pathlib.Path, which: str) -> UserError:
    places = " or ".join(_folders(which))
    return UserError(f"{workdir}: no checkpoint {which!r} in {places}/; train first, or name one with --checkpoint")


def _other_parts(state: TrainState) -> dict[str, Any]:
    return {name: value for name, value in state._asdict().items() if name != "params"}


@contextlib.contextmanager
def _clear_errors(verb: str, step: int, folder: pathlib.Path) -> Iterator[None]:
    """Turns the many kinds of errors that Orbax raises for damaged files or a full disk into `UserError`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) and not isinstance(error, DamagedError):
            raise
        reason = (str(error).strip() or repr(error)).splitlines()[0][:300]
        message = f"cannot {verb} the checkpoint of step {step} in {folder}: {reason}."
        if verb == "read" and not _may_succeed_later(error):
            raise DamagedError(f"{message} It is damaged") from error
        question = "Is the disk full?" if verb == "write" else "Is there enough memory, and permission to read it?"
        raise UserError(f"{message} {question} The same command resumes from the last complete checkpoint") from error


@functools.cache  # once a process
def _silence_unfinished_reads() -> None:
    """Silences coroutines of Orbax that are destroyed unfinished.

    Where one array cannot be read, Orbax closes its event loop while others are still being read; each of these would
    print a traceback, and each that had not begun a warning. The error itself is raised anyway.
    """
    previous = sys.unraisablehook

    def hook(unraisable):
        error, source = unraisable.exc_value, unraisable.object
        closed = source is None and isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
        file = source.cr_code.co_filename if inspect.iscoroutine(source) else ""
        if not (closed or "orbax" in pathlib.Path(file).parts):
            previous(unraisable)

    sys.unraisablehook = hook
    warnings.filterwarnings("ignore", "coroutine 'PyTreeHandler.* was never awaited", RuntimeWarning)


def _may_succeed_later(error: Exception) -> bool:
    """Whether an error says nothing about the files."""
    return isinstance(error, MemoryError | PermissionError) or "RESOURCE_EXHAUSTED" in str(error)


def _metadata(checkpointer: ocp.training.Checkpointer, step: int, folder: pathlib.Path) -> dict[str, Any]:
    _silence_unfinished_reads()
    with _clear_errors("read", step, folder):
        return checksums.verified(checkpointer.metadata(step).custom_metadata or {})


def _restore(
    checkpointer: ocp.training.Checkpointer, step: int, abstract: dict[str, Any], folder: pathlib.Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(named pytrees, metadata) of a step."""
    metadata = _metadata(checkpointer, step, folder)
    with _clear_errors("read", step, folder):
        saved = checkpointer.checkpointables_metadata(step).metadata
        if saved is None or any(saved.get(name) is None for name in abstract):  # Orbax only warns
            raise ValueError("its description of the arrays cannot be read")
    for name, part in abstract.items():
        _require_same(saved[name], part, step)
    parts, failed = None, None
    try:
        with _clear_errors("read", step, folder):
            parts = checkpointer.load_checkpointables(step, abstract)
    except UserError as error:
        failed = error
    if distributed.any_process(failed is not None):  # before the checksums, which need all processes
        raise failed or DamagedError(f"another process cannot read the checkpoint of step {step} in {folder}")
    with _clear_errors("read", step, folder):
        checksums.require_checksums(metadata, parts)
    return parts, metadata


def _move_to_damaged(workdir: pathlib.Path, step: int) -> pathlib.Path:
    """Moves a checkpoint to workdir/damaged/; returns its new path."""
    (workdir / "damaged").mkdir(exist_ok=True)
    names = (f"checkpoints_{step}{f'_{n}' if n else ''}" for n in itertools.count())
    target = next(path for name in names if not (path := workdir / "damaged" / name).exists())
    (workdir / "checkpoints" / str(step)).rename(target)
    return target


def _require_same(saved: chex.ArrayTree, wanted: chex.ArrayTree, step: int) -> None:
    """Raises UserError where shapes or dtypes differ: Orbax casts silently, and its errors on shapes are obscure."""

    def describe(tree: chex.ArrayTree) -> dict[str, tuple[tuple[int, ...], str]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {
            "/".join(map(checksums.path_entry_name, path)): (tuple(leaf.shape), str(leaf.dtype))
            for path, leaf in leaves
        }

    have, want = describe(saved), describe(wanted)
    differing = [
        f"{path}: saved {have.get(path, 'nothing')}, wanted {want.get(path, 'nothing')}"
        for path in sorted(have.keys() | want.keys())
        if have.get(path) != want.get(path)
    ]
    if differing:
        raise UserError(
            f"the checkpoint of step {step} is of another model; {len(differing)} arrays differ, "
            f"the first: {'; '.join(differing[:3])}"
        )
