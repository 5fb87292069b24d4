"""The columns of finished runs that --mode=merge combines, and whether they began from one base."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mtl_jax.config.plain import from_plain, to_plain
from mtl_jax.config.sections import Config
from mtl_jax.errors import UserError
from mtl_jax.evaluation.scores import placement_from_config, restore_params
from mtl_jax.experiment.assemble import Experiment
from mtl_jax.experiment.columns import adapter_leaves, encoder_params
from mtl_jax.runs.build import build
from mtl_jax.runtime import distributed
from mtl_jax.sharing.merging import first_difference
from mtl_jax.storage import artifacts
from mtl_jax.storage import workdir as folders
from mtl_jax.storage.checkpoint import require_checkpoint
from mtl_jax.storage.data_identity import require_same_data
from mtl_jax.storage.summary import SplitScores, Summary
from mtl_jax.tasks.groups import join_heads, split_heads
from mtl_jax.training.objective import Params
from mtl_jax.training.parameter_paths import flatten, with_leaves

Leaves = dict[str, jax.Array]  # by path

# fields in which runs of one base may not differ
COMMON_FIELDS = (
    "datasets",
    "tasks",
    "tokenizer",
    "model",
    "data.row_length",
    "data.max_unseen_labels",
    "data.seed",
    "seed",
    "sharing.readout",
    "sharing.readout_options",
    "sharing.head_layers",
    "sharing.cascades",
    "sharing.adapter",
    "sharing.adapter_options",
    "sharing.adapter_layers",
)


class NoProductsError(UserError):
    """Adapters of a run are no change of fixed kernels."""


class FinishedRun(NamedTuple):
    """A finished run, as its folder describes it."""

    workdir: pathlib.Path
    config: Config
    artifacts: artifacts.Artifacts
    summary: Summary

    def nothing_to_merge(self) -> UserError:
        """The error for a run with a single column."""
        return UserError(
            f"--mode=merge: {self.workdir} has one column for all its tasks (config.sharing.trunk = "
            f"{self.config.sharing.trunk!r}), so there is nothing to merge; name several runs, or one with columns"
        )


class Column(NamedTuple):
    """One model: the tasks that use it, its leaves {path: [...]}, and the leaves that it began from."""

    run: pathlib.Path
    tasks: tuple[str, ...]
    leaves: Leaves
    base: Leaves

    def __str__(self) -> str:
        return f"{self.run} ({', '.join(self.tasks)})"


class LoadedRun(NamedTuple):
    """A finished run with its parameters, heads by the names of their tasks, and its columns."""

    run: FinishedRun
    params: Params
    columns: list[Column]


def read_run(workdir: pathlib.Path) -> FinishedRun:
    """Reads the folder of a run.

    Raises:
      UserError: it is not that of a finished run, or its columns are not models of their own.
    """
    if folders.is_ablation(workdir):
        raise UserError(
            f"--runs: {workdir} is the folder of an ablation; name runs, such as those of config.ablation.keep"
        )
    config = from_plain(folders.read_config(workdir))
    if config.sharing.mixer:
        raise UserError(
            f"--runs: {workdir} has config.sharing.mixer = {config.sharing.mixer!r}; only columns that are models of "
            "their own, without a mixer between them, can be merged"
        )
    summary = folders.read_summary(workdir)
    require_checkpoint(workdir, str(summary["step"]))
    return FinishedRun(workdir, config, artifacts.load(workdir), summary)


def merged_config(runs: Sequence[FinishedRun], adapters: str) -> ConfigDict:
    """The config of one encoder for all tasks of the runs. `adapters`: of `config.merging`.

    Raises:
      UserError: a field in which runs of one base may not differ; a task that two runs have.
    """
    first = runs[0]
    for run in runs[1:]:
        for name in COMMON_FIELDS:
            if _field(to_plain(first.config), name) != _field(to_plain(run.config), name):
                raise UserError(
                    f"--runs: {first.workdir} and {run.workdir} differ in config.{name}, so they have no common base. "
                    "Train them from one config, each with its config.train_tasks"
                )
    run_of_task: dict[str, pathlib.Path] = {}
    for run in runs:
        for task in run.artifacts.vocabularies:
            if task in run_of_task:
                raise UserError(f"--runs: {run_of_task[task]} and {run.workdir} both have a head for task {task!r}")
            run_of_task[task] = run.workdir
    config = from_plain(to_plain(first.config))
    config.train_tasks = tuple(task for task in config.tasks if task in run_of_task)
    if len(config.train_tasks) == len(config.tasks):
        config.train_tasks = ()
    config.sharing.trunk, config.sharing.task_groups, config.sharing.tied = "all", ConfigDict(), False
    config.penalties, config.distillation = ConfigDict(), ConfigDict()
    config.sharing.adapter_groups = ConfigDict()
    if adapters == "factors":
        config.sharing.adapter_owner = "all"
        return config
    config.sharing.adapter, config.sharing.adapter_options = "", ConfigDict()
    config.sharing.adapter_owner, config.sharing.adapter_layers = "none", ()
    return config


def _field(plain: Mapping[str, Any], path: str) -> Any:
    for key in path.split("."):
        plain = plain[key]
    return plain


def load_run(run: FinishedRun, adapters: str) -> LoadedRun:
    """Builds the experiment of a run and loads its parameters. `adapters`: of `config.merging`."""
    experiment = build(run.config, soft_labels=False, finished=run.workdir)
    saved = restore_params(experiment, placement_from_config(experiment), run.workdir, str(run.summary["step"]))
    require_same_data(saved.metadata, experiment.corpus, saved.step)
    base = experiment.init_params(run.config.seed)
    owners = experiment.owners
    tasks_of_column: dict[tuple[int, ...], list[str]] = {}
    for k, task in enumerate(experiment.tasks):
        tasks_of_column.setdefault(tuple(owner[k] for owner in owners.values()), []).append(task)

    def column_leaves(params: Params, task: str) -> Leaves:
        try:
            slices = encoder_params(experiment, params, task, merged=adapters == "products")
        except ValueError as error:
            problem = f"--runs: {run.workdir}: {error}; take config.merging.adapters = 'factors'"
            raise NoProductsError(problem) from None
        if adapters == "factors":
            slices |= adapter_leaves(experiment, params, task)
        return flatten(distributed.to_host(slices))

    def base_leaves(task: str) -> Leaves:
        """What a column began from; adapters, which are drawn for each owner, from no change."""
        leaves = column_leaves(base, task)
        return {p: jnp.zeros_like(leaf) if p.startswith("adapter_") else leaf for p, leaf in leaves.items()}

    columns = [
        Column(run.workdir, tuple(tasks), column_leaves(saved.params, tasks[0]), base_leaves(tasks[0]))
        for tasks in tasks_of_column.values()
    ]
    params = distributed.to_host(saved.params)
    params["heads"] = split_heads(experiment.spec.objective.groups, params["heads"])
    return LoadedRun(run, params, columns)


def require_one_base(columns: Sequence[Column]) -> None:
    """Raises UserError where columns differ in shape, or in the values that they began from."""
    for by_column, same_values in (
        ({str(column): column.leaves for column in columns}, False),
        ({str(column): column.base for column in columns}, True),
    ):
        if difference := first_difference(by_column, same_values=same_values):
            raise UserError(
                f"--mode=merge: {difference}. Merging needs columns of one form that began from one base: a pretrained "
                "encoder, or one seed with config.model.column_init = 'same'"
            )


def require_same_model(run: FinishedRun, experiment: Experiment) -> None:
    """Raises UserError where the vocabularies or the tokenizer of a run are not those of the merged model."""
    if run.artifacts.tokenizer.fingerprint != experiment.corpus.tokenizer.fingerprint:
        raise UserError(f"--mode=merge: {run.workdir} has another tokenizer than all data sets together give")
    for task, vocabulary in run.artifacts.vocabularies.items():
        if vocabulary != experiment.corpus.vocabularies[task]:
            raise UserError(f"--mode=merge: the labels of task {task!r} in {run.workdir} are not those of its data now")


def merged_template(experiment: Experiment, runs: Sequence[LoadedRun]) -> Params:
    """Parameters of the merged model: all heads, and whatever all columns have in common, are in place."""
    initial = jax.device_get(experiment.init_params(experiment.config.seed))
    heads = {task: head for run in runs for task, head in run.params["heads"].items()}
    trunk = with_leaves(
        {path: tree for path, tree in initial.items() if path != "heads"},
        {path: leaf[None] for path, leaf in runs[0].columns[0].leaves.items()},
    )
    return {**trunk, "heads": join_heads(experiment.spec.objective.groups, heads)}


def stack_different_leaves(columns: Sequence[Column]) -> tuple[Leaves, Leaves]:
    """The leaves that differ between the columns, stacked to [K, ...], and the base [...] of each."""
    first, *others = columns
    paths = [
        path for path, leaf in first.leaves.items() if not all((leaf == column.leaves[path]).all() for column in others)
    ]
    stack = {path: jnp.stack([column.leaves[path] for column in columns]) for path in paths}
    return stack, {path: jnp.asarray(first.base[path]) for path in paths}


def original_scores(runs: Sequence[LoadedRun]) -> SplitScores:
    """The scores of each task in its own run."""
    return {task: scores for run in runs for task, scores in run.run.summary["tasks"].items()}
