"""`config.init_from`: the run that another one begins from: its tokens, its classes, its parameters."""

from __future__ import annotations

import collections
import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.config.plain import from_plain, to_plain
from mtl_jax.config.sections import Config
from mtl_jax.data.corpus import KnownLabels
from mtl_jax.data.tokenizers import Tokenizer
from mtl_jax.errors import UserError
from mtl_jax.evaluation.inference import model_without_data, placement_over_devices
from mtl_jax.evaluation.scores import restore_params
from mtl_jax.experiment.assemble import Experiment
from mtl_jax.experiment.frozen_tasks import require_separable
from mtl_jax.experiment.transfer import NO_SUCH_PARAMETER, RunValues, Transfer, is_head, transfer
from mtl_jax.runs.importance import fisher_information
from mtl_jax.runtime import distributed
from mtl_jax.storage import artifacts
from mtl_jax.storage import workdir as folders
from mtl_jax.storage.artifacts import Artifacts
from mtl_jax.storage.checkpoint import require_checkpoint
from mtl_jax.storage.summary import StartingPoint
from mtl_jax.tasks.groups import join_heads
from mtl_jax.training.objective import Params
from mtl_jax.training.parameter_paths import flatten, with_leaves
from mtl_jax.training.state import IMPORTANCE, TrainState, importance

FILE = "init_from.json"  # in the folder of a run: what it took from another one


class SavedData(NamedTuple):
    """What a run saves of its data that another one reads in place of its own: see `corpus.load`."""

    tokenizer: Tokenizer | None
    known: Mapping[str, KnownLabels]


def saved_data(config: Config, finished: pathlib.Path | None) -> SavedData:
    """The tokens, and the classes of tasks whose data are not read. `finished`: the folder of the run of this config,
    which has them itself; without it they come from the run that it begins from.

    Raises:
      UserError: no such run; a task that it lacks; another tokenizer in the config.
    """
    settings = config.init_from
    if not settings.run:
        return SavedData(None, {})
    own = finished is not None and (finished / "model" / "labels.json").is_file()
    saved = artifacts.load(finished) if own else _read(config)[1]
    known = {}
    for task in _unread(config):
        name = task if own else settings.tasks.get(task, task)
        if name not in saved.vocabularies:
            raise UserError(
                f"config.init_from.untrained: {task!r} is no task of {settings.run}, which has "
                f"{', '.join(saved.vocabularies)} (config.init_from.tasks)"
            )
        known[task] = KnownLabels(saved.vocabularies[name], saved.statistics[name])
    return SavedData(saved.tokenizer if settings.vocabulary == "run" else None, known)


def _unread(config: Config) -> list[str]:
    """The untrained tasks whose data sets have no place to be read from."""
    tasks = config.train_tasks or config.tasks
    return [task for task in config.init_from.untrained if task in tasks and not is_readable(config, task)]


def is_readable(config: Config, task: str) -> bool:
    """Whether the data set of a task says where it is."""
    entry = config.datasets[config.tasks[task].dataset]
    return bool(entry.path or entry.origin or entry.wheel or entry.splits)


def _read(config: Config) -> tuple[Config, Artifacts]:
    """The config and the artifacts of the run that a config begins from."""
    settings = config.init_from
    folder = pathlib.Path(settings.run).expanduser()
    if folders.is_ablation(folder):
        raise UserError(f"config.init_from.run: {folder} is the folder of an ablation; name the folder of a single run")
    try:
        run = from_plain(folders.read_config(folder))
        require_checkpoint(folder, settings.checkpoint or run.evaluation.checkpoint)
    except UserError as error:
        raise UserError(f"config.init_from.run: {error}") from None
    if settings.vocabulary == "run" and to_plain(config.tokenizer) != to_plain(run.tokenizer):
        raise UserError(
            f"config.tokenizer: differs from that of {folder}, whose tokens are used (config.init_from.vocabulary = "
            f"'run'); set config.tokenizer to {to_plain(run.tokenizer)}, or take vocabulary = 'data'"
        )
    for task, name in settings.tasks.items():
        if name not in (run.train_tasks or run.tasks):
            raise UserError(
                f"config.init_from.tasks.{task}: {folder} has no task {name!r}; its tasks are "
                f"{', '.join(run.train_tasks or run.tasks)}"
            )
    return run, artifacts.load(folder)


class Beginning:
    """The values that an experiment takes from a run; read when they are needed."""

    def __init__(self, config: Config, experiment: Experiment):
        self._config, self._experiment = config, experiment
        self._weights: dict[str, np.ndarray] | None = None

    @functools.cached_property
    def _transfer(self) -> tuple[Transfer, int]:
        settings, experiment = self._config.init_from, self._experiment
        run_config, _ = _read(self._config)
        folder = pathlib.Path(settings.run).expanduser()
        which = settings.checkpoint or run_config.evaluation.checkpoint
        source, params, step = load_run(run_config, folder, which)
        values = RunValues(source, params)
        frozen = [task for task in settings.freeze if task in experiment.tasks]
        names = {task: settings.tasks.get(task, task) for task in experiment.tasks}
        continued = {task: name for task, name in names.items() if name in source.tasks}
        require_separable(frozen, continued, tuple(source.tasks), experiment.sharing)
        taken = transfer(values, experiment, settings.params, settings.tasks, frozen)
        _require_frozen(experiment, taken, settings.run)
        if not taken.moves:
            raise UserError(f"config.init_from: nothing of {settings.run} fits, the first reason: {_first(taken)}")
        return taken, step

    def init_params(self, seed: int) -> Params:
        """The parameters before the first step; under `jax.eval_shape` without those of the run."""
        params = self._experiment.init_params(seed)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(params)):
            return params
        named = self._experiment.by_name(jax.device_get(params))
        tree = with_leaves(named, self._transfer[0].apply(flatten(named)))
        heads = join_heads(self._experiment.spec.objective.groups, tree["heads"])
        return jax.tree.map(jnp.asarray, {**tree, "heads": heads})

    def with_importance(self, state: TrainState) -> TrainState:
        """The state with the importance of its parameters for the tasks of the run, where a penalty asks for it."""
        if not importance(state.anchor) or isinstance(state.step, jax.core.Tracer):
            return state
        weights = {f"{IMPORTANCE}{path}": jnp.asarray(leaf) for path, leaf in self._importance(state.params).items()}
        return state._replace(anchor={**state.anchor, **weights})

    def _importance(self, params: Params) -> dict[str, np.ndarray]:
        if self._weights is None:
            names = self._config.init_from.tasks
            there = artifacts.load(pathlib.Path(self._config.init_from.run).expanduser()).vocabularies
            earlier = [task for task in self._experiment.tasks if names.get(task, task) in there]
            self._weights = fisher_information(self._experiment, params, earlier)
        return self._weights

    def describe(self) -> StartingPoint:
        """What was taken, for summary.json."""
        taken, step = self._transfer
        shapes = self._experiment.shapes
        return {
            "run": self._config.init_from.run,
            "step": step,
            "taken": sorted(_summarized(path for path in shapes if path not in taken.reasons)),
            "partly": {path: reason for path, reason in taken.reasons.items() if path in taken.moves},
            "new": reasons_by_part({path: why for path, why in taken.reasons.items() if path not in taken.moves}),
        }


def starting_from(config: Config, experiment: Experiment) -> Experiment:
    """The experiment whose initial values are those of `config.init_from`, where it names a run."""
    if not config.init_from.run:
        return experiment
    beginning = Beginning(config, experiment)
    return experiment._replace(
        init_params=beginning.init_params,
        init=lambda seed: beginning.with_importance(experiment.init_from(beginning.init_params(seed), seed)),
        beginning=beginning,
    )


def load_run(config: Config, folder: pathlib.Path, which: str) -> tuple[Experiment, dict[str, np.ndarray], int]:
    """A run without its data, its parameters {path: array} with heads by the names of their tasks, and their step."""
    experiment = model_without_data(config, folder)
    saved = restore_params(experiment, placement_over_devices(experiment), folder, which)
    return experiment, flatten(experiment.by_name(distributed.to_host(saved.params))), saved.step


def starting_point(workdir: pathlib.Path) -> dict[str, StartingPoint]:
    """{"init_from": what the run took from another one}; {} where there is none."""
    file = workdir / FILE
    return {"init_from": json.loads(file.read_text(encoding="utf-8"))} if file.is_file() else {}


def lines(start: StartingPoint) -> list[str]:
    """What a run takes from another one, for people."""
    result = [f"begins from {start['run']}, step {start['step']}: {', '.join(start['taken']) or 'nothing'} as a whole"]
    result += [f"of {path} {reason}" for path, reason in start["partly"].items()]
    return result + [f"new: {', '.join(paths)}: {reason}" for reason, paths in start["new"].items()]


def reasons_by_part(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    """{reason: layers and heads} from {path: reason}."""
    result: dict[str, list[str]] = collections.defaultdict(list)
    for path, reason in reasons.items():
        (part,) = _summarized([path])
        if part not in result[reason]:
            result[reason].append(part)
    return dict(result)


def _require_frozen(experiment: Experiment, taken: Transfer, run: str) -> None:
    """Raises UserError where something that stays as it is is not of the run."""
    for path, mask in experiment.frozen.items():
        if path not in taken.reasons or (taken.reasons[path] == NO_SUCH_PARAMETER and path.startswith("adapter_")):
            continue  # new adapters begin as the identity
        shape = experiment.shapes[path].shape
        covered = np.zeros((1,) * len(shape), bool)
        if path in taken.moves:
            move = taken.moves[path]
            covered = move.covered((1, *shape))[0] if is_head(path) else move.covered(shape)
            if move.absent is not None:
                covered = covered | move.absent[0]
        if (mask & ~covered).any():
            raise UserError(
                f"config.init_from: {path} is of a frozen or untrained task, but not all of it is of {run}: "
                f"{taken.reasons[path]}"
            )


def _first(taken: Transfer) -> str:
    path, reason = next(iter(taken.reasons.items()))
    return f"{path}: {reason}"


def _summarized(paths: Any) -> dict[str, None]:
    """Layers and heads of paths."""
    return dict.fromkeys("/".join(path.split("/")[: 2 if is_head(path) else 1]) for path in paths)
