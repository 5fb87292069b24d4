"""Checkpoints by Orbax: the newest ones, saved asynchronously, and the best by dev score. Orbax is used only here.

    workdir/checkpoints/<step>/   params, and the rest of the train state
    workdir/best/<step>/          params

Both carry what identifies the data, and the progress of the loop, as metadata; and checksums of all of it. What is
found damaged is moved to workdir/damaged/, and the one before is taken.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import pathlib
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
from orbax.checkpoint import v1 as ocp

from mtl_jax.data.corpus import Corpus
from mtl_jax.errors import UserError
from mtl_jax.runtime import distributed
from mtl_jax.storage import checksums
from mtl_jax.storage.checksums import Damaged
from mtl_jax.training.state import TrainState

T = TypeVar("T")


class Checkpoints:
    """The checkpoints of one workdir. Use as a context manager: leaving waits for what is being written."""

    def __init__(self, workdir: pathlib.Path, keep: int):
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
        self._open_best = functools.cache(lambda: checkpointer(workdir / "best", 1))  # not every run keeps a best
        self._pending: Any = None
        self._pending_step = 0
        self._folder = workdir

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            self.wait()
            with _clear_errors("write", self._pending_step, self._folder):
                self._newest.close()
                if self._open_best.cache_info().currsize:
                    self._best.close()
        except Exception:
            if kind is None:  # otherwise what went wrong first is told
                raise

    @property
    def _best(self):
        return self._open_best()

    @property
    def latest(self) -> int | None:
        """Step of the newest whole checkpoint."""
        return self._newest.latest.step if self._newest.latest else None

    @property
    def best(self) -> int | None:
        """Step of the parameters that are kept as the best."""
        return self._best.latest.step if self._best.latest else None

    def newest(self, read: Callable[[int], T]) -> T | None:
        """What `read` makes of the step of the newest checkpoint; None where there is none.

        One that `read` finds damaged (`integrity.Damaged`) is moved to workdir/damaged/, which is said, and the one
        before is taken.
        """
        while (step := self.latest) is not None:
            try:
                return read(step)
            except Damaged as error:
                there = _set_aside(self._folder, "checkpoints", step) if distributed.is_first() else "damaged/"
                distributed.wait_for_all(f"step {step} set aside")
                self._newest.reload()
                on = f"step {self.latest}" if self.latest is not None else "the beginning: there is no other"
                print(f"{error}\n  It was moved to {there}; going on from {on}. The steps since then are made again.")
        return None

    def save(self, state: TrainState, metadata: dict[str, Any]) -> None:
        """Starts to write the state, unless one of this step is there; returns before it is on disk.

        A failed write shows at the next call, at `check` or at `wait`.
        """
        self.save_parts(int(state.step), {"params": state.params, "rest": _rest(state)}, metadata)

    def save_parts(self, step: int, parts: dict[str, Any], metadata: dict[str, Any]) -> None:
        """As `save`, for named pytrees."""
        self.wait()
        if self.latest is None or step > self.latest:
            self._start(self._newest, step, parts, metadata)

    def save_best(self, state: TrainState, metadata: dict[str, Any]) -> None:
        """Starts to write the parameters as the best so far, once all earlier writes are through."""
        self.wait()
        step = int(state.step)
        for ahead in [saved.step for saved in self._best.checkpoints if saved.step > step]:
            self._best.delete(ahead)  # Orbax would silently refuse to save a step before it
        self._start(self._best, step, {"params": state.params}, metadata)

    def _start(self, checkpointer, step, parts, metadata):
        with _clear_errors("write", step, self._folder):
            self._pending = checkpointer.save_checkpointables_async(
                step, parts, custom_metadata=checksums.with_checksums(metadata, parts), overwrite=True
            )
        self._pending_step = step

    def check(self) -> None:
        """Does not wait; raises as `wait` where a write has failed by now."""
        pending, self._pending = self._pending, None
        if pending is not None:
            with _clear_errors("write", self._pending_step, self._folder):
                try:
                    pending.result(timeout=0)
                except TimeoutError:
                    self._pending = pending

    def wait(self) -> None:
        """Waits for what is being written.

        Raises:
          UserError: that failed, on a full disk say.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            with _clear_errors("write", self._pending_step, self._folder):
                pending.result()

    def metadata(self, step: int) -> dict[str, Any]:
        """What was saved beside the state of a step.

        Raises:
          Damaged: it is not what was written.
        """
        return _metadata(self._newest, step, self._folder / "checkpoints")

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state of a step, on the devices that the abstract state names.

        Raises:
          Damaged: it is not what was written.
          UserError: it is of another model.
        """
        parts = self.restore_parts(step, {"params": abstract.params, "rest": _rest(abstract)})
        return TrainState(params=parts["params"], **parts["rest"])

    def restore_parts(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
        """As `restore`, for named pytrees."""
        return _restore(self._newest, step, abstract, self._folder / "checkpoints")[0]


class Saved(NamedTuple):
    """Parameters of a finished or running workdir, with their step and metadata."""

    params: Any
    step: int
    metadata: dict[str, Any]


def load_params(workdir: pathlib.Path, which: str, abstract_params: Any) -> Saved:
    """The parameters of a workdir: `which` = "best" | "last" | the number of a step.

    Raises:
      Damaged: it is not what was written.
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
                parts, metadata = _restore(checkpointer, step, {"params": abstract_params}, folder)
                return Saved(parts["params"], step, metadata)
    raise _no_checkpoint(workdir, which)


def require_checkpoint(workdir: pathlib.Path, which: str) -> None:
    """Raises UserError where a workdir has no folder of such a checkpoint: before anything is read that takes long."""
    steps = {
        int(found.name)
        for name in _folders(which)
        for found in ((workdir / name).iterdir() if (workdir / name).is_dir() else ())
        if found.name.isdigit()
    }
    if not steps or (which.isdigit() and int(which) not in steps):
        raise _no_checkpoint(workdir, which)


def _folders(which: str) -> list[str]:
    """Where such a checkpoint may lie in a workdir."""
    return {"best": ["best"], "last": ["checkpoints"]}.get(which, ["checkpoints", "best"])


def _no_checkpoint(workdir, which) -> UserError:
    there = " or ".join(_folders(which))
    return UserError(f"{workdir}: no checkpoint {which!r} in {there}/; train first, or name one with --checkpoint")


def data_metadata(corpus: Corpus) -> dict[str, Any]:
    """What tells the data of a checkpoint from others: a fingerprint, and numbers for people."""
    return {
        "data": corpus.fingerprint,
        "soft_labels": corpus.soft_labels,
        "numbers": {
            "data set": {
                f"{name}, {split}": f"{len(rows.tokens)} rows, {len(corpus.splits[name][split].records)} examples"
                for name, by_split in corpus.rows.items()
                for split, rows in by_split.items()
            },
            "task": {task: f"{len(vocabulary.names)} labels" for task, vocabulary in corpus.vocabularies.items()},
        },
    }


def require_same_data(metadata: dict[str, Any], corpus: Corpus, step: int) -> None:
    """Raises UserError, with the difference, where a checkpoint was trained on other data, or by other teachers.

    A corpus that was read without its teachers, to be scored, may be that of any.
    """
    now = data_metadata(corpus)
    if now["soft_labels"] not in ("", metadata.get("soft_labels")):
        raise UserError(
            f"the checkpoint of step {step} learned from other teachers than those that are now in the folders of "
            "config.distillation. Put them back, or take another --workdir"
        )
    if metadata["data"] == now["data"]:
        return
    differing = [
        f"{what} {name}: {there.get(name, 'none')} there, {here.get(name, 'none')} now"
        for what, here in now["numbers"].items()
        for there in [metadata.get("numbers", {}).get(what, {})]
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]
    raise UserError(
        f"the checkpoint of step {step} was trained on other data (fingerprint {metadata['data'][:12]} there, "
        f"{now['data'][:12]} now; {'; '.join(differing) or 'as many examples, rows and labels, other contents'}). "
        "Put the data back, or take another --workdir"
    )


def _rest(state: TrainState) -> dict[str, Any]:
    return {name: value for name, value in state._asdict().items() if name != "params"}


@contextlib.contextmanager
def _clear_errors(verb: str, step: int, folder: pathlib.Path):
    """Orbax fails with errors of many kinds where files are damaged or the disk is full."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) and not isinstance(error, Damaged):
            raise
        reason = (str(error).strip() or repr(error)).splitlines()[0][:300]
        said = f"cannot {verb} the checkpoint of step {step} in {folder}: {reason}."
        if verb == "read" and not _says_nothing_of_files(error):
            raise Damaged(f"{said} It is damaged") from error
        asked = "Is there room on the disk?" if verb == "write" else "Is there enough memory, and may it be read?"
        raise UserError(f"{said} {asked} The same command goes on from the last whole checkpoint") from error


@functools.cache  # once a process
def _ignore_late_replies() -> None:
    """Where one array cannot be read, Orbax ends its event loop while others are still on their way. Each of these
    would print a traceback of its own, "Event loop is closed" or what it met itself, when its coroutine is thrown away;
    of one that had not begun there is a warning. What was wrong is raised besides.
    """
    before = sys.unraisablehook

    def hook(said):
        error, thrown_away = said.exc_value, said.object
        closed = thrown_away is None and isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
        file = thrown_away.cr_code.co_filename if inspect.iscoroutine(thrown_away) else ""
        if not (closed or "orbax" in pathlib.Path(file).parts):
            before(said)

    sys.unraisablehook = hook
    warnings.filterwarnings("ignore", "coroutine 'PyTreeHandler.* was never awaited", RuntimeWarning)


def _says_nothing_of_files(error: Exception) -> bool:
    """Whether reading may go well another time."""
    return isinstance(error, MemoryError | PermissionError) or "RESOURCE_EXHAUSTED" in str(error)


def _metadata(checkpointer, step, folder) -> dict[str, Any]:
    _ignore_late_replies()
    with _clear_errors("read", step, folder):
        return checksums.opened(checkpointer.metadata(step).custom_metadata or {})


def _restore(checkpointer, step, abstract, folder) -> tuple[dict[str, Any], dict[str, Any]]:
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
    if distributed.any_of(failed is not None):  # before the sums, for which all are needed
        raise failed or Damaged(f"another process cannot read the checkpoint of step {step} in {folder}")
    with _clear_errors("read", step, folder):
        checksums.require_sums(metadata, parts)
    return parts, metadata


def _set_aside(workdir: pathlib.Path, kind: str, step: int) -> pathlib.Path:
    """Moves a checkpoint to workdir/damaged/; returns where it is now."""
    (workdir / "damaged").mkdir(exist_ok=True)
    free = (workdir / "damaged" / f"{kind}_{step}{f'_{n}' if n else ''}" for n in itertools.count())
    there = next(place for place in free if not place.exists())
    (workdir / kind / str(step)).rename(there)
    return there


def _require_same(saved: Any, wanted: Any, step: int) -> None:
    """Orbax casts silently and fails deep inside on shapes: compare first."""

    def describe(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {"/".join(map(checksums.name_of, path)): (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in leaves}

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
