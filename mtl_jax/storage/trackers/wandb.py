"""Weights & Biases (https://docs.wandb.ai), online or, with WANDB_MODE=offline, in files that `wandb sync` sends."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import shlex
from collections.abc import Mapping, Sequence

from mtl_jax.storage.trackers.base import Cell, TrackedRun, Tracker


class Wandb(Tracker):
    """A W&B run; its files are in the folder `wandb` of the run."""

    def __init__(self, run: TrackedRun, *, project: str = "mtl_jax", entity: str = ""):
        """Continues the run of the same identity. Raises `wandb.Error`: it cannot be made."""
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=project,
            entity=entity or None,
            id=run.identity or None,
            resume="allow" if run.identity else None,
            name=run.name,
            group=run.group or None,
            job_type=run.job,
            config=dict(run.config),
            dir=str(run.folder),
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.identity = self._run.id
        files = pathlib.Path(self._run.dir).parent
        send = f"wandb sync {shlex.quote(str(files))}"
        self.location = send if self._run.offline else self._run.url or send

    @staticmethod
    def problem() -> str:
        if importlib.util.find_spec("wandb") is None:
            return "wandb is not installed: pip install 'mtl-jax[wandb]'"
        import wandb

        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False):
            return "W&B has no login on this machine: `wandb login`, or WANDB_MODE=offline and `wandb sync` later"
        return ""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)  # W&B leaves out steps that it has, which have the same numbers

    def summary(self, step: int, values: Mapping[str, float]) -> None:
        self._run.summary.update(dict(values))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        self._run.log({name: self._wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def figure(self, name: str, file: pathlib.Path) -> None:
        self._run.log({name: self._wandb.Image(str(file))})

    def artifact(self, path: pathlib.Path) -> None:
        name = re.sub(r"[^\w.-]", "_", path.name)
        artifact = self._wandb.Artifact(f"{self.identity}-{name}", type="model" if path.is_dir() else "results")
        (artifact.add_dir if path.is_dir() else artifact.add_file)(str(path))
        self._run.log_artifact(artifact)

    def close(self, completed: bool) -> None:
        self._run.finish(exit_code=0 if completed else os.EX_TEMPFAIL)
