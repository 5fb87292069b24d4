"""Initial values from the parameters of a run, compared by name: tasks, classes, words, experts, data sets.

Every owner of a layer takes the values of the owner that its tasks had in the run, the mean where they had several; so
a trunk becomes columns, and columns a trunk. A new task's column takes the mean of the run's; its head and its adapters
keep their own initial values. Rows of a head are taken by the name of the class, those of the word vectors by the word.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mtl_jax.experiment.assemble import Experiment
from mtl_jax.experiment.frozen_tasks import locked_rows
from mtl_jax.models.ownership import ExpertColumns, Owner, expert_names, mixer_path, owner_count
from mtl_jax.tasks.base import Task
from mtl_jax.training.parameter_paths import flatten

Names = Sequence[Any] | None  # of the indices of an axis; None: indices mean the same in both models
TABLE, POSITIONS = "embed/word/embedding", "embed/position/embedding"

NO_SUCH_PARAMETER = "the run has no such parameter"


class RunValues(NamedTuple):
    """A run's experiment, and its parameters {path: numpy array}, those of heads by the names of their tasks."""

    experiment: Experiment
    params: Mapping[str, np.ndarray]


class Move(NamedTuple):
    """How one leaf takes values from the run.

    source  [O', ...]
    owners  for each slice [O, ...] here the slices of `source` whose mean it takes; () where there is none
    axes    of each further axis the indices (here, there) that belong together; None: all, as they are
    absent  (mask, value) of what stays out of the predictions of frozen tasks; None without
    """

    source: np.ndarray
    owners: tuple[tuple[int, ...], ...]
    axes: tuple[tuple[np.ndarray, np.ndarray] | None, ...]
    absent: tuple[np.ndarray, float] | None = None

    def apply(self, initial: np.ndarray) -> np.ndarray:
        """`initial` [O, ...] with the values of the run in their places."""
        result = np.array(initial)
        for owner, sources in enumerate(self.owners):
            if not sources:
                continue
            value = self.source[sources[0]] if len(sources) == 1 else self.source[list(sources)].mean(axis=0)
            if all(axis is None for axis in self.axes):
                result[owner] = value
                continue
            here, there = (
                np.ix_(*(np.arange(n) if pair is None else pair[i] for pair, n in zip(self.axes, shape, strict=True)))
                for i, shape in enumerate((result.shape[1:], value.shape))
            )
            result[owner][here] = value[there]
        if self.absent is not None:
            mask, value = self.absent
            result = np.where(mask, np.asarray(value, result.dtype), result)
        return result

    def covered(self, shape: Sequence[int]) -> np.ndarray:
        """bool[O, ...], broadcastable to the shape of the leaf: what it replaces."""
        result = np.asarray([bool(sources) for sources in self.owners]).reshape((-1,) + (1,) * (len(shape) - 1))
        for axis, (pair, length) in enumerate(zip(self.axes, shape[1:], strict=True), 1):
            if pair is not None:
                mask = np.zeros(length, bool)
                mask[pair[0]] = True
                result = result & mask.reshape((-1,) + (1,) * (len(shape) - axis - 1))
        return result


class Transfer(NamedTuple):
    """What is taken from a run.

    moves    {path: how}, of what is taken
    reasons  {path: why it is new, or which part of it}, of what is not taken as a whole
    """

    moves: Mapping[str, Move]
    reasons: Mapping[str, str]

    def apply(self, params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """{path: leaf} with the values of the run, those of heads by the names of their tasks."""
        result = dict(params)
        for path, move in self.moves.items():
            result[path] = move.apply(params[path][None])[0] if is_head(path) else move.apply(params[path])
        return result


def transfer(
    source: RunValues, target: Experiment, params: str, tasks: Mapping[str, str], frozen: Collection[str] = ()
) -> Transfer:
    """What the parameters of an experiment take from a run.

    Args:
      source: the run.
      target: the experiment that begins.
      params: regex on its paths; others are new.
      tasks: {task here: task of the run that it continues}; others continue the one of their name.
      frozen: tasks here whose predictions nothing new may reach, see `frozen_tasks`.
    """
    names = _TaskNames(source.experiment, target, tasks)
    moves, reasons = {}, {}
    for path, shape in target.shapes.items():
        if not re.search(params, path):
            reasons[path] = "not asked for (config.init_from.params)"
            continue
        move = _head(path, source, target, names) if is_head(path) else _layer(path, source, target, names, frozen)
        if isinstance(move, str):
            reasons[path] = move
            continue
        moves[path] = move
        stacked = (1, *shape.shape) if is_head(path) else shape.shape
        if not move.covered(stacked).all():
            reasons[path] = _describe_part(path, move, stacked)
    return Transfer(moves, reasons)


class _TaskNames:
    """Names that mean the same in both models: those of the run."""

    def __init__(self, source: Experiment, target: Experiment, tasks: Mapping[str, str]):
        self.there = tuple(source.tasks)
        self.continued = {
            task: name for task in target.tasks if (name := tasks.get(task, task)) in self.there
        }  # task here -> task of the run
        self.here = tuple(self.continued.get(task, f"\n{task}") for task in target.tasks)  # no name has a line break


def _head(path: str, source: RunValues, target: Experiment, names: _TaskNames) -> Move | str:
    """How a leaf of a head is taken, or why it is not."""
    _, task, leaf = path.split("/", 2)
    other = names.continued.get(task)
    if other is None:
        return "there is no such task in the run"
    here, there = target.tasks[task], source.experiment.tasks[other]
    there_path, axes = f"heads/{other}/{leaf}", {}
    if leaf.startswith("feeds/"):  # embeddings of labels that another head predicts
        _, fed, rest = leaf.split("/", 2)
        fed_there = names.continued.get(fed)
        if fed_there is None:
            return f"there is no task {fed!r} in the run"
        there_path = f"heads/{other}/feeds/{fed_there}/{rest}"
        axes = {0: (target.tasks[fed].names, source.experiment.tasks[fed_there].names)}
    elif leaf in (class_axes := _class_axes(here, _width(target, task))):
        there_axes = _class_axes(there, _width(source.experiment, other)).get(leaf, ())
        axes = {axis: (here.names, there.names) for axis in class_axes[leaf] if axis in there_axes}
    if there_path not in source.params:
        return "its head in the run has no such parameter"
    value, shape = source.params[there_path], target.shapes[path].shape
    return _matched(value[None], ((0,),), (1, *shape), {axis + 1: pair for axis, pair in axes.items()})


def _width(experiment: Experiment, task: str) -> int:
    return experiment.spec.objective.network.width[task]


def _class_axes(task: Task, width: int) -> dict[str, tuple[int, ...]]:
    """{leaf: its axes that grow with the classes}."""

    def shapes(names: Sequence[str]) -> dict[str, Any]:
        other = task.with_attributes(names=tuple(names))
        return flatten(jax.eval_shape(lambda key: other.init(key, width), jax.random.key(0)))

    one, more = shapes(task.names), shapes((*task.names, "\n"))
    return {
        leaf: tuple(i for i, (a, b) in enumerate(zip(one[leaf].shape, more[leaf].shape, strict=True)) if a != b)
        for leaf in one
        if leaf in more and one[leaf].shape != more[leaf].shape
    }


def is_head(path: str) -> bool:
    """Whether a path is of a head, whose leaf has no axis of owners in files."""
    return path.startswith("heads/")


def _layer(path: str, source: RunValues, target: Experiment, names: _TaskNames, frozen: Collection[str]) -> Move | str:
    """How a leaf of a layer, mixer or adapter is taken, or why it is not."""
    layer = path.split("/")[0]
    if path not in source.params:
        return NO_SUCH_PARAMETER
    value, shape, there = source.params[path], target.shapes[path].shape, source.experiment
    owners = _owners(layer, target.owners[layer], there.owners[layer], names)
    axes = {}
    if path == TABLE and target.corpus.tokenizer.fingerprint != there.corpus.tokenizer.fingerprint:
        axes[1] = tuple(
            [tokenizer.id_to_token(i) for i in range(tokenizer.size)]
            for tokenizer in (target.corpus.tokenizer, there.corpus.tokenizer)
        )
    elif path == POSITIONS and value.shape[1] != shape[1]:
        axes[1] = (range(shape[1]), range(value.shape[1]))
    roles = _mixer_roles(path, target)
    for axis, role in enumerate(roles):
        if role:
            axes[axis + 1] = (
                _mixer_names(role, layer, target, names.here, shape[axis + 1]),
                _mixer_names(role, layer, there, names.there, value.shape[axis + 1]),
            )
    move = _matched(value, owners, shape, axes)
    return move if isinstance(move, str) or not frozen else _isolated(move, path, target, shape, frozen)


def _owners(layer: str, here: Owner, there: Owner, names: _TaskNames) -> tuple[tuple[int, ...], ...]:
    """For each owner here the owners in the run whose mean it takes."""
    if isinstance(here, ExpertColumns) or isinstance(there, ExpertColumns):
        columns = [_column_names(owner, n) for owner, n in ((here, names.here), (there, names.there))]
        found = {name: number for number, name in enumerate(columns[1])}
        if isinstance(here, ExpertColumns) and isinstance(there, ExpertColumns):
            return tuple((found[name],) if name in found else () for name in columns[0])
        return (tuple(range(len(columns[1]))),) * len(columns[0])  # experts from a trunk, or columns from experts
    index = {name: k for k, name in enumerate(names.there)}
    of_tasks = layer.startswith("adapter_") and (owner_count(there) > 1 or len(there) == 1)
    everyone = () if of_tasks else tuple(range(owner_count(there)))
    result = []
    for owner in range(owner_count(here)):
        tasks = [name for name, o in zip(names.here, here, strict=True) if o == owner]
        known = tuple(dict.fromkeys(there[index[name]] for name in tasks if name in index))
        result.append(known or everyone)
    return tuple(result)


def _column_names(owner: Owner, tasks: Sequence[str]) -> tuple[Any, ...]:
    return expert_names(tasks, owner.tasks) if isinstance(owner, ExpertColumns) else tuple(range(owner_count(owner)))


def _mixer_roles(path: str, experiment: Experiment) -> tuple[str, ...]:
    """What the axes of a mixer's leaf mean, see `Mixer.axes`."""
    mixers = {mixer_path(layer): mixer for layer, mixer in experiment.sharing.mixers.items()}
    layer, leaf = path.split("/", 1)
    return mixers[layer].axes.get(leaf, ()) if layer in mixers else ()


def _mixer_names(role: str, layer: str, experiment: Experiment, tasks: Sequence[str], length: int) -> list[Any]:
    """The names of the indices of an axis of a mixer: "task" (or several units of each), "stream", "column" or
    "dataset".
    """
    if role == "dataset":
        return list(experiment.corpus.layout.datasets)
    mixers = {mixer_path(path): mixer for path, mixer in experiment.sharing.mixers.items()}
    if role == "column":
        return list(expert_names(tasks, mixers[layer].columns))
    if role == "stream":
        return [*tasks, "\nshared"][:length]
    units = length // len(tasks)
    return [(task, unit) for task in tasks for unit in range(units)]


def _isolated(move: Move, path: str, target: Experiment, shape: Sequence[int], frozen: Collection[str]) -> Move:
    """`move`, after which no new column of a mixer reaches what frozen tasks read."""
    roles, layer = _mixer_roles(path, target), path.split("/")[0]
    mixers = {mixer_path(p): mixer for p, mixer in target.sharing.mixers.items()}
    absent = mixers[layer].absent.get(path.split("/", 1)[1]) if layer in mixers else None
    if absent is None:
        return move
    locked = locked_rows(roles, shape[1:], len(target.tasks), [list(target.tasks).index(task) for task in frozen])
    mask = ~move.covered(shape) & locked
    return move._replace(absent=(mask, absent)) if mask.any() else move


def _matched(
    value: np.ndarray,
    owners: tuple[tuple[int, ...], ...],
    shape: Sequence[int],
    named: Mapping[int, tuple[Names, Names]],
) -> Move | str:
    """The move of [O', ...] to [O, ...] by the names of some axes, or why there is none."""
    if not any(owners):
        return "the run has none for its tasks"
    if len(value.shape) != len(shape):
        return f"its shape is {list(value.shape[1:])} in the run and {list(shape[1:])} here"
    axes: list[tuple[np.ndarray, np.ndarray] | None] = []
    for axis in range(1, len(shape)):
        if axis in named:
            pair = _pairs(*named[axis])
            if pair is None and value.shape[axis] != shape[axis]:  # a table that is longer than its vocabulary
                pair = (np.arange(len(named[axis][0])),) * 2
            axes.append(pair)
        elif value.shape[axis] == shape[axis]:
            axes.append(None)
        else:
            return f"its shape is {list(value.shape[1:])} in the run and {list(shape[1:])} here"
    if any(pair is not None and not len(pair[0]) for pair in axes):
        return "no name of its rows is known to the run"
    return Move(value, owners, tuple(axes))


def _pairs(here: Sequence[Any], there: Sequence[Any]) -> tuple[np.ndarray, np.ndarray] | None:
    """The indices of equal names; None where all are the same."""
    if tuple(here) == tuple(there):
        return None
    index = {name: i for i, name in reversed(list(enumerate(there)))}
    pairs = [(i, index[name]) for i, name in enumerate(here) if name in index]
    return np.asarray([i for i, _ in pairs], np.int64), np.asarray([j for _, j in pairs], np.int64)


def _describe_part(path: str, move: Move, shape: Sequence[int]) -> str:
    parts = [f"{len(pair[0])} of {n}" for pair, n in zip(move.axes, shape[1:], strict=True) if pair is not None]
    what = "words" if path == TABLE else "positions" if path == POSITIONS else "names"
    if missing := sum(not sources for sources in move.owners):
        parts.append(f"{len(move.owners) - missing} of {len(move.owners)} owners")
        what = what if len(parts) > 1 else ""
    return " ".join(filter(None, [f"{', '.join(parts)}", what, "are those of the run"]))
