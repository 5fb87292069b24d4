"""The layers from which adaptation begins: those of finished runs, and the initial values of the first of them."""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from mtl_jax.config import default
from mtl_jax.config.plain import to_plain
from mtl_jax.config.sections import Config, Sharing
from mtl_jax.data import corpus as corpora
from mtl_jax.errors import UserError
from mtl_jax.experiment.assemble import Experiment, assemble
from mtl_jax.experiment.inputs import label_specs, load_encoder, max_length
from mtl_jax.experiment.transfer import RunValues, Transfer, transfer
from mtl_jax.models.mixers import MIXERS
from mtl_jax.runs.init_from import load_run, reasons_by_part
from mtl_jax.storage import artifacts
from mtl_jax.storage.checkpoint import require_checkpoint
from mtl_jax.storage.data_identity import require_same_on_all_hosts
from mtl_jax.training.objective import Params
from mtl_jax.training.parameter_paths import flatten, with_leaves
from mtl_jax.training.placement import require_platform

INITIAL_VALUES = "initial values"  # the name of the values before the first run's first step
NOT_HEADS = "^(?!heads/)"


class Source(NamedTuple):
    """Where adaptation begins.

    config     of the run, with the new tasks in place of its own
    artifacts  tokenizer and architecture
    layers     {path: leaves [O, ...]} of one task, or [draws, O, ...] with `by_draw`
    by_draw    whether each draw begins from values of its own
    new        {reason: parts that are not of the run}
    """

    config: Config
    artifacts: artifacts.Artifacts
    layers: Params
    by_draw: bool
    new: Mapping[str, list[str]]

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
      UserError: folders of one name; a missing checkpoint; a wrong config.
    """
    _require_names(given, runs)
    configs = {}
    for run, run_config in runs.items():  # everything that can be wrong, before anything is loaded
        configs[run] = _with_new_tasks(run_config, given, run)
        check(configs[run])
        _require_column(given.adaptation.column, run_config)
        require_checkpoint(run, checkpoint or run_config.evaluation.checkpoint)
    require_platform(next(iter(configs.values())).training.platform)
    sources: dict[str, Source] = {}
    for run, run_config in runs.items():
        which = checkpoint or run_config.evaluation.checkpoint
        experiment, params, _ = load_run(run_config, run, which)
        sources[run.name] = _source(configs[run], run, RunValues(experiment, params))
    return sources | {INITIAL_VALUES: _initial_values(next(iter(sources.values())))}


def task_experiment(source: Source, task: str, pretrained_params: Params | None = None) -> Experiment:
    """The experiment of one new task, with one example in each row."""
    config, saved = task_config(source.config, task), source.artifacts
    data = corpora.load(
        config.datasets,
        label_specs(config),
        saved.tokenizer,
        row_length=config.data.row_length,
        max_length=max_length(config, saved.architecture),
        pack=config.data.packing,
        overflow=config.data.overflow or "auto",
        stride=config.data.window_stride,
        seed=config.data.seed,
        tasks=(task,),
        max_unseen_labels=config.data.max_unseen_labels,
    )
    require_same_on_all_hosts(data)
    return assemble(config, data, saved.architecture, pretrained_params)


def task_config(config: Config, task: str) -> ConfigDict:
    """The config of a model of one new task alone."""
    config = copy.deepcopy(config)
    with config.unlocked():
        config.train_tasks = (task,)
        column = config.adaptation.column
        config.init_from.tasks = ConfigDict({task: column} if column else {})
        top = config.sharing.head_layers.get(column) if column else None
        config.sharing.head_layers = ConfigDict({task: top} if top else {})
    return config


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
    """The config of a run with the new tasks in place of its own. Each layer has one owner, or the run's experts.

    Adapters are those of the given config, or else of the run.
    """
    config = default.get_config()
    for field in ("datasets", "tasks", "adaptation", "seed"):
        config[field] = given[field]
    for field in ("tokenizer", "model", "evaluation", "training"):
        config[field] = run_config[field]
    for field in ("seed", "row_length", "max_unseen_labels", "overflow", "window_stride"):
        config.data[field] = run_config.data[field]
    config.data.packing = False
    config.init_from.run = str(run)
    sharing = run_config.sharing
    for field in ("readout", "readout_options"):
        config.sharing[field] = sharing[field]
    adapters = given.sharing if given.sharing.adapter else sharing
    for field in ("adapter", "adapter_options", "adapter_layers"):
        config.sharing[field] = adapters[field]
    config.sharing.adapter_owner = "none" if adapters.adapter_owner == "none" else "all"
    if given.adaptation.column in sharing.head_layers:
        config.sharing.head_layers = sharing.head_layers
    if sharing.mixer and MIXERS[sharing.mixer](1, **sharing.mixer_options.to_dict()).experts:
        for field in ("mixer", "mixer_options", "mixer_layers"):
            config.sharing[field] = sharing[field]
        config.sharing.trunk = _trunk_below_experts(sharing)
    return config


def _trunk_below_experts(sharing: Sharing) -> str:
    """`trunk` of one task that is as high as that of all tasks of the run."""
    split = sorted(path for path, groups in sharing.task_groups.items() if len(groups) > 1)
    if not split:
        return sharing.trunk
    number = int(split[0].removeprefix("layer_")) if split[0] != "embed" else -1
    return {-1: "none", 0: "embed"}.get(number, f"layer_{number - 1:02d}")


def _require_column(column: str, run_config: Config) -> None:
    """Raises UserError where a run has no column of the requested task."""
    tasks = tuple(run_config.train_tasks) or tuple(run_config.tasks)
    if column and column not in tasks:
        raise UserError(f"config.adaptation.column: {column!r} is not one of the run's tasks {', '.join(tasks)}")


def _source(config: Config, run: pathlib.Path, values: RunValues) -> Source:
    """The layers of a run as those of one new task: the mean of the owners of each layer, or what one task uses."""
    source = Source(config, artifacts.load(run), {}, False, {})
    task = next(iter(config.tasks))
    target = task_experiment(source, task)
    taken = transfer_to(target, values, config.adaptation.column)
    named = target.by_name(jax.device_get(target.init_params(config.seed)))
    layers = {path: tree for path, tree in named.items() if path != "heads"}
    flat = taken.apply(flatten(layers))
    new = {path: why for path, why in taken.reasons.items() if not path.startswith("heads/")}
    return source._replace(layers=with_leaves(layers, flat), new=reasons_by_part(new))


def transfer_to(target: Experiment, values: RunValues, column: str) -> Transfer:
    """What the layers of one new task take from a run. `column`: task whose column it is, "": the mean of all."""
    return transfer(values, target, NOT_HEADS, dict.fromkeys(target.tasks, column))


def _initial_values(source: Source) -> Source:
    """The values before training: published ones, or random ones, which differ between draws."""
    config = source.config
    encoder = load_encoder(config)
    experiment = task_experiment(source, next(iter(config.tasks)), encoder.params if encoder else None)
    draws = 1 if encoder else max(config.adaptation.num_supports, config.adaptation.num_tuning_supports)
    by_draw = [jax.device_get(experiment.init_params(config.seed + draw)) for draw in range(draws)]
    layers = [{path: tree for path, tree in params.items() if path != "heads"} for params in by_draw]
    if encoder:
        return source._replace(layers=layers[0], new={})
    return source._replace(layers=jax.tree.map(lambda *leaves: np.stack(leaves), *layers), by_draw=True, new={})
