"""Checkpoints by Orbax: the newest ones, saved asynchronously, and the best by dev score. Orbax is used only here.

    workdir/checkpoints/<step>/   params, and the rest of the train state
    workdir/best/<step>/          params

Both carry the config, the fingerprint of the data and the dev score as metadata.
"""

from __future__ import annotations

import pathlib
from typing import Any, NamedTuple

import jax
from orbax.checkpoint import v1 as ocp

from mtl_jax.errors import UserError
from mtl_jax.training.step import TrainState


class Checkpoints:
    """The checkpoints of one workdir. Use as a context manager: leaving waits for what is being written."""

    def __init__(self, workdir: pathlib.Path, keep: int):
        latest = ocp.training.preservation_policies.LatestN
        always = ocp.training.save_decision_policies.FixedIntervalPolicy(1)

        def checkpointer(folder, count):
            return ocp.training.Checkpointer(
                folder.absolute(), preservation_policy=latest(count), save_decision_policy=always,
                cleanup_tmp_directories=True,
            )  # fmt: skip

        self._newest = checkpointer(workdir / "checkpoints", keep)
        self._best = checkpointer(workdir / "best", 1)
        self._pending: list[Any] = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.wait()
        self._newest.close()
        self._best.close()

    @property
    def latest(self) -> int | None:
        """Step of the newest whole checkpoint."""
        return self._newest.latest.step if self._newest.latest else None

    def save(self, state: TrainState, metadata: dict[str, Any]) -> None:
        """Starts to write the state; returns before it is on disk. A failed write shows at the next call or `wait`."""
        self._settle()
        parts = {"params": state.params, "rest": _rest(state)}
        step = int(state.step)
        if self.latest is None or step > self.latest:
            self._pending.append(
                self._newest.save_checkpointables_async(step, parts, custom_metadata=metadata, overwrite=True)
            )

    def save_best(self, state: TrainState, metadata: dict[str, Any]) -> None:
        """Starts to write the parameters as the best so far."""
        self._settle()
        self._pending.append(
            self._best.save_checkpointables_async(
                int(state.step), {"params": state.params}, custom_metadata=metadata, overwrite=True
            )
        )

    def wait(self) -> None:
        """Waits for what is being written, and raises where that failed."""
        for response in self._pending:
            if response is not None:
                response.result()
        self._pending.clear()

    def _settle(self):
        """One write at a time for each folder; those that are through are checked for errors here."""
        self.wait()

    def metadata(self, step: int) -> dict[str, Any]:
        """What was saved beside the state of a step."""
        return dict(self._newest.metadata(step).custom_metadata or {})

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state of a step, on the devices that the abstract state names."""
        _require_same(self._newest.checkpointables_metadata(step).metadata["params"], abstract.params, step)
        parts = self._newest.load_checkpointables(step, {"params": abstract.params, "rest": _rest(abstract)})
        return TrainState(params=parts["params"], **parts["rest"])


class Saved(NamedTuple):
    """Parameters of a finished or running workdir, with their step and metadata."""

    params: Any
    step: int
    metadata: dict[str, Any]


def load_params(workdir: pathlib.Path, which: str, abstract_params: Any) -> Saved:
    """The parameters of a workdir: `which` = "best" | "last" | the number of a step.

    Raises:
      UserError: there is no such checkpoint, or its arrays have other shapes.
    """
    folders = {"best": ["best"], "last": ["checkpoints"]}.get(which, ["checkpoints", "best"])
    for name in folders:
        folder = (workdir / name).absolute()
        if not folder.is_dir():
            continue
        with ocp.training.Checkpointer(folder) as checkpointer:
            steps = {saved.step for saved in checkpointer.checkpoints}
            step = int(which) if which.isdigit() else max(steps, default=None)
            if step in steps:
                _require_same(checkpointer.checkpointables_metadata(step).metadata["params"], abstract_params, step)
                params = checkpointer.load_checkpointables(step, {"params": abstract_params})["params"]
                metadata = dict(checkpointer.metadata(step).custom_metadata or {})
                return Saved(params, step, metadata)
    raise UserError(
        f"{workdir}: no checkpoint {which!r} in {' or '.join(folders)}/; train first, or name one with --checkpoint"
    )


def _rest(state: TrainState) -> dict[str, Any]:
    return {name: value for name, value in state._asdict().items() if name != "params"}


def _require_same(saved: Any, wanted: Any, step: int) -> None:
    """Orbax casts silently and fails deep inside on shapes: compare first."""

    def describe(tree):
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path): (tuple(leaf.shape), str(leaf.dtype)) for path, leaf in leaves}

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
