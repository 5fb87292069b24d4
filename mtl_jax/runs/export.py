"""--mode=export: columns as Hugging Face folders."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import jax

from mtl_jax.config.sections import Config
from mtl_jax.errors import UserError
from mtl_jax.evaluation.inference import export_refusal, load_model
from mtl_jax.models.export import save_folder
from mtl_jax.storage import artifacts
from mtl_jax.training.placement import require_platform


def export(config: Config, workdir: pathlib.Path, which: Sequence[str], target: pathlib.Path) -> list[str]:
    """Writes each column as a Hugging Face folder: target/<task>, or target/shared where all tasks share it.

    Returns:
      a line for each folder that was written.

    Raises:
      UserError: see `export_refusal`.
    """
    require_platform(config.training.platform)
    if refusal := export_refusal(config):
        raise UserError(refusal)
    architecture = artifacts.load(workdir).architecture
    experiment, params = load_model(config, workdir, which)
    tasks_of_column: dict[tuple[int, ...], list[str]] = {}
    for k, task in enumerate(experiment.tasks):
        tasks_of_column.setdefault(tuple(owner[k] for owner in experiment.owners.values()), []).append(task)
    lines = []
    for column, tasks in tasks_of_column.items():
        folder = target / ("shared" if len(tasks_of_column) == 1 and len(tasks) > 1 else "+".join(tasks))
        column_params = {
            path: jax.tree.map(lambda leaf, index=index: leaf[index], params[path])
            for path, index in zip(experiment.owners, column, strict=True)
        }
        written = save_folder(folder, architecture, column_params, workdir / "model")
        lines.append(f"{folder}: {len(written)} tensors, for {', '.join(tasks)}")
    return lines
