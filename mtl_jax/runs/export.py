"""--mode=export: columns as Hugging Face folders."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from mtl_jax.errors import UserError
from mtl_jax.evaluation.inference import export_refusal, model
from mtl_jax.models.export import save_folder
from mtl_jax.storage import artifacts
from mtl_jax.training.placement import require_platform


def export(config: Any, workdir: pathlib.Path, which: Sequence[str], target: pathlib.Path) -> list[str]:
    """Writes each column as a Hugging Face folder: target/<task>, or target/shared where all tasks share it.

    Returns:
      what was written, a line each.

    Raises:
      UserError: see `export_refusal`.
    """
    require_platform(config.training.platform)
    if refusal := export_refusal(config):
        raise UserError(refusal)
    kept = artifacts.load(workdir)
    experiment, params = model(config, workdir, which)
    columns = {tuple(owner[k] for owner in experiment.owners.values()): [] for k in range(len(experiment.tasks))}
    for k, task in enumerate(experiment.tasks):
        columns[tuple(owner[k] for owner in experiment.owners.values())].append(task)
    lines = []
    for column, tasks in columns.items():
        name = "shared" if len(columns) == 1 and len(tasks) > 1 else "+".join(tasks)
        own = {
            path: jax.tree.map(lambda leaf, o=o: leaf[o], params[path])
            for path, o in zip(experiment.owners, column, strict=True)
        }
        written = save_folder(target / name, kept.architecture, own, workdir / "model")
        lines.append(f"{target / name}: {len(written)} tensors, for {', '.join(tasks)}")
    return lines
