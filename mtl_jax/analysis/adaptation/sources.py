"""The layers from which adaptation begins: those of finished runs, and the initial values of the first of them."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from mtl_jax.config import default
from mtl_jax.config.plain import to_plain
from mtl_jax.config.sections import Config
from mtl_jax.data import corpus as corpora
from mtl_jax.errors import UserError
from mtl_jax.evaluation import inference
from mtl_jax.experiment.assemble import Experiment, assemble
from mtl_jax.experiment.inputs import label_specs, load_encoder, max_length
from mtl_jax.storage import artifacts
from mtl_jax.storage.checkpoint import require_checkpoint
from mtl_jax.storage.data_identity import require_same_on_all_hosts
from mtl_jax.training.objective import Params
from mtl_jax.training.placement import require_platform

INITIAL_VALUES = "initial values"  # the name of the values before the first run's first step


class Source(NamedTuple):
    """Where adaptation begins.

    config     of the run, with the new tasks in place of its own
    artifacts  tokenizer and architecture
    layers     {path: leaves [1, ...]}, or [draws, 1, ...] with `by_draw`
    by_draw    whether each draw begins from values of its own
    """

    config: Config
    artifacts: artifacts.Artifacts
    layers: Params
    by_draw: bool

    def first_draws(self, count: int) -> Params:
        """The layers, of so many draws where each has its own."""
        return jax.tree.map(lambda leaf: leaf[:count], self.layers) if self.by_draw else self.layers

    def program_key(self) -> str:
        """Equal for sources that can share data and compiled programs."""
        config = to_plain(self.config)
        return repr([config["model"], config["sharing"], config["data"], self.artifacts.tokenizer.fingerprint])


def load_sources(
    given: Config, runs: Mapping[pathlib.Path, Config], checkpoint: str | None, check: Callable[[Config], object]
) -> dict[str, Source]:
    """Everything that is adapted, by name; see `adapt.adapt` for the arguments.

    Raises:
      UserError: folders of one name; a run without columns of its own; a missing checkpoint; a wrong config.
    """
    _require_names(given, runs)
    configs = {}
    for run, run_config in runs.items():  # everything that can be wrong, before anything is loaded
        configs[run] = _with_new_tasks(run_config, given, run)
        check(configs[run])
        _require_classes(configs[run])
        _require_column(given.adaptation.column, run_config)
        require_checkpoint(run, checkpoint or run_config.evaluation.checkpoint)
    require_platform(next(iter(configs.values())).training.platform)
    sources: dict[str, Source] = {}
    for run, run_config in runs.items():
        experiment, params = inference.load_model(run_config, run, (checkpoint or run_config.evaluation.checkpoint,))
        layers = _layers(experiment, params, configs[run].adaptation.column)
        sources[run.name] = Source(configs[run], artifacts.load(run), layers, False)
    return sources | {INITIAL_VALUES: _initial_values(next(iter(sources.values())))}


def task_experiment(source: Source, task: str, pretrained_params: Params | None = None) -> Experiment:
    """The experiment of one new task."""
    config, saved = source.config, source.artifacts
    data = corpora.load(
        config.datasets,
        label_specs(config),
        saved.tokenizer,
        row_length=config.data.row_length,
        max_length=max_length(config, saved.architecture),
        pack=False,
        overflow="truncate",
        seed=config.data.seed,
        tasks=(task,),
        max_unseen_labels=config.data.max_unseen_labels,
    )
    require_same_on_all_hosts(data)
    return assemble(config, data, saved.architecture, pretrained_params)


def _require_names(given: Config, runs: Mapping[pathlib.Path, Config]) -> None:
    names = [run.name for run in runs]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"--runs: two folders are named {repeated[0]!r}; tables identify runs by that name")
    if INITIAL_VALUES in names:
        raise UserError(f"--runs: a folder is named {INITIAL_VALUES!r}, as the values before training; rename it")
    if given.adaptation.baseline not in ("", INITIAL_VALUES, *names):
        choices = ", ".join(map(repr, (*names, INITIAL_VALUES)))
        raise UserError(f"config.adaptation.baseline: {given.adaptation.baseline!r} is not one of {choices}")


def _with_new_tasks(run_config: Config, given: Config, run: pathlib.Path) -> ConfigDict:
    """The config of a run with the new tasks in place of its own, and every layer shared."""
    for field in ("mixer", "adapter"):
        if run_config.sharing[field]:
            raise UserError(
                f"{run}: config.sharing.{field} = {run_config.sharing[field]!r}: the run has no column from which a "
                "new task could begin without the others"
            )
    config = default.get_config()
    for field in ("datasets", "tasks", "adaptation", "seed"):
        config[field] = given[field]
    for field in ("tokenizer", "model", "evaluation", "training"):
        config[field] = run_config[field]
    config.sharing.readout, config.sharing.readout_options = (
        run_config.sharing.readout,
        run_config.sharing.readout_options,
    )
    for field in ("seed", "row_length", "max_unseen_labels"):
        config.data[field] = run_config.data[field]
    return config


def _require_classes(config: Config) -> None:
    for name, task in config.tasks.items():
        if task.kind != "classification":
            raise UserError(
                f"config.tasks.{name}.kind: {task.kind!r}, but --mode=adapt draws examples of each class: "
                "'classification'"
            )


def _require_column(column: str, run_config: Config) -> None:
    """Raises UserError where a run has no column of the requested task."""
    tasks = tuple(run_config.train_tasks) or tuple(run_config.tasks)
    if column and column not in tasks:
        raise UserError(f"config.adaptation.column: {column!r} is not one of the run's tasks {', '.join(tasks)}")


def _layers(experiment: Experiment, params: Params, column: str) -> Params:
    """{path: leaves [1, ...]}: the mean of the owners of each layer, or what one task uses."""
    k = list(experiment.tasks).index(column) if column else None

    def selected(path: str, leaf: np.ndarray) -> np.ndarray:
        return leaf.mean(axis=0, keepdims=True) if k is None else leaf[experiment.owners[path][k]][None]

    return {
        path: jax.tree.map(lambda leaf, path=path: np.asarray(selected(path, leaf)), params[path])
        for path in experiment.owners
    }


def _initial_values(source: Source) -> Source:
    """The values before training: published ones, or random ones, which differ between draws."""
    config = source.config
    encoder = load_encoder(config)
    experiment = task_experiment(source, next(iter(config.tasks)), encoder.params if encoder else None)
    draws = 1 if encoder else max(config.adaptation.num_supports, config.adaptation.num_tuning_supports)
    by_draw = [jax.device_get(experiment.init_params(config.seed + draw)) for draw in range(draws)]
    layers = [{path: tree for path, tree in params.items() if path != "heads"} for params in by_draw]
    if encoder:
        return source._replace(layers=layers[0])
    return source._replace(layers=jax.tree.map(lambda *leaves: np.stack(leaves), *layers), by_draw=True)
