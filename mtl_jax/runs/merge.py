"""--mode=merge: columns or runs that began from one base become one encoder, by every method of `sharing.merging`.

What all columns share already stays as it is, and so does each task's head. The merged parameters are an ordinary run:
config.json (with `sharing.trunk` = "all"), model/, checkpoints/ and best/ at step 0, summary.json.
"""

from __future__ import annotations

import itertools
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mtl_jax.config.plain import from_plain, to_plain
from mtl_jax.errors import UserError
from mtl_jax.evaluation.ranking import rank
from mtl_jax.evaluation.scores import (
    abstract_params,
    make_evaluator,
    mean_loss,
    mean_score,
    means,
    placement_of,
    score_split,
    score_splits,
)
from mtl_jax.experiment.assemble import Experiment
from mtl_jax.runs.build import build
from mtl_jax.runtime.progress import progress_bar
from mtl_jax.sharing.merging import MERGING, first_difference
from mtl_jax.storage import artifacts, run_warnings
from mtl_jax.storage import workdir as folders
from mtl_jax.storage.checkpoint import Checkpoints, data_metadata, load_params, require_checkpoint, require_same_data
from mtl_jax.training.parameter_paths import flatten, with_leaves
from mtl_jax.training.placement import require_platform

COMMON = (
    "datasets",
    "tasks",
    "tokenizer",
    "model",
    "data.row_length",
    "data.max_unseen_labels",
    "data.seed",
    "seed",
    "sharing.read",
    "sharing.read_options",
    "sharing.depths",
    "sharing.feeds",
)


def merge(merging: Any, workdirs: Sequence[pathlib.Path], out: pathlib.Path) -> dict[str, Any]:
    """Merges the columns of finished runs, chooses method and options on dev, and writes the best as a run to `out`.

    Args:
      merging: `config.merging`.
      workdirs: runs of one config but for what they train and how; one run with columns, or several.
      out: folder of the merged run.

    Returns, and writes to out/merging.json:
      runs      folders
      columns   [K] {"run", "tasks"}: what was merged
      metrics   {task: its first metric}
      rows      [{"name": method or run, "options": those chosen on dev, "tried": how many, "scores": {task: {split:
                {metric: value}}}}]: first the columns as they were, then the methods, then `config.merging.beside`
      chosen    name of the method that was written
      warnings  what a reader of the scores has to know, see `run_warnings`

    Raises:
      UserError: what differs between the runs, with the leaf or field and the runs; nothing to merge.
    """
    began = time.monotonic()
    runs = [_read(workdir) for workdir in workdirs]
    require_platform(runs[0].config.training.platform)
    config = _merged_config(runs)
    folders.require_unclaimed(out, config)
    if (out / "summary.json").exists():
        raise UserError(f"{out} holds a merged run; take another --output, or delete it to merge anew")
    beside = {str(run): folders.read_summary(pathlib.Path(run).expanduser()) for run in merging.beside}
    if len(runs) == 1 and runs[0].config.sharing.trunk == "all" and not runs[0].config.sharing.groups:
        raise _nothing_to_merge(runs[0])  # before its data are read
    built = [_built(run) for run in runs]
    columns = [column for one in built for column in one.columns]
    if len(columns) < 2:
        raise _nothing_to_merge(runs[0])
    _require_one_base(columns)
    experiment = build(config, taught=False)
    for one in built:
        _require_same_model(one, experiment, config)
    if not any("dev" in by_split for by_split in experiment.corpus.rows.values()):
        raise UserError("--mode=merge chooses on dev, but no data set has a dev split")
    placement = placement_of(experiment)
    evaluator = make_evaluator(experiment, placement)
    whole = _heads_and_common(experiment, built)
    stack, base = _stacked(columns)
    if not stack:
        raise UserError(f"--mode=merge: the columns of {', '.join(map(str, workdirs))} are equal already (tied)")

    def with_merged(tree):
        flat = flatten(whole) | {path: leaf[None] for path, leaf in tree.items()}
        return placement.replicated(placement.put_state(with_leaves(whole, flat)))

    key = jax.random.key(config.seed)
    rows = [{"name": "as they were", "options": {}, "tried": 0, "scores": _own_scores(built)}]
    best: tuple[tuple[float, float], str, Any] | None = None
    refused: list[dict[str, Any]] = []
    for name in merging.methods or MERGING:
        method = MERGING[name]
        grid = [
            dict(zip(method.options, values, strict=True)) for values in itertools.product(*method.options.values())
        ]
        found = []
        with progress_bar(f"merging: {name}", "setting", len(grid), leave=False) as bar:
            for options in grid:
                try:
                    params = with_merged(method.merge(stack, base, key=key, **options))
                except ValueError as error:  # these columns have no such mean
                    refused.append(run_warnings.warning(run_warnings.OTHER, f"{name} was left out: {error}"))
                    continue
                scores = score_split(evaluator, params, "dev").scores
                found.append((rank(mean_score(scores, experiment), mean_loss(scores)), options))
                bar.update()
        if not found:
            continue
        ranked, options = max(found, key=lambda pair: pair[0])
        params = with_merged(method.merge(stack, base, key=key, **options))
        scores, *others = score_splits(evaluator, experiment, params)
        rows.append({"name": name, "options": options, "tried": len(grid), "scores": scores})
        if best is None or ranked > best[0]:
            best = ranked, name, (params, scores, *others)
    if best is None:
        raise UserError(f"--mode=merge: {refused[0]['text']}; name others in config.merging.methods")
    rows += [{"name": run, "options": {}, "tried": 0, "scores": s["tasks"]} for run, s in beside.items()]
    result = {
        "runs": [str(run.workdir) for run in runs],
        "columns": [{"run": str(column.run), "tasks": list(column.tasks)} for column in columns],
        "metrics": {name: task.metrics[0] for name, task in experiment.tasks.items()},
        "rows": rows,
        "chosen": best[1],
    }
    result["warnings"] = _write(out, config, experiment, built, refused, *best[2], seconds=time.monotonic() - began)
    folders.write_json(out / "merging.json", result)
    return result


class _Run(NamedTuple):
    """A finished run as its folder tells of it."""

    workdir: pathlib.Path
    config: Any
    kept: artifacts.Artifacts
    summary: dict[str, Any]


class _Column(NamedTuple):
    """One model: the tasks that use it, its leaves {path: [...]} and those that it began from."""

    run: pathlib.Path
    tasks: tuple[str, ...]
    leaves: dict[str, jax.Array]
    base: dict[str, jax.Array]


class _Built(NamedTuple):
    """A run made real: its parameters, and its columns."""

    run: _Run
    experiment: Experiment
    params: Any
    columns: list[_Column]


def _nothing_to_merge(run: _Run) -> UserError:
    return UserError(
        f"--mode=merge: {run.workdir} has one column for all its tasks (config.sharing.trunk = "
        f"{run.config.sharing.trunk!r}), so there is nothing to merge; name several runs, or one with columns"
    )


def _read(workdir: pathlib.Path) -> _Run:
    if folders.is_ablation(workdir):
        raise UserError(f"--runs: {workdir} is the folder of an ablation, which keeps no parameters")
    config = from_plain(folders.read_config(workdir))
    for field in ("mixer", "adapter"):
        if config.sharing[field]:
            raise UserError(
                f"--runs: {workdir} has config.sharing.{field} = {config.sharing[field]!r}; what is merged are columns "
                "that are models of their own, without mixers and adapters"
            )
    summary = folders.read_summary(workdir)
    require_checkpoint(workdir, str(summary["step"]))
    return _Run(workdir, config, artifacts.load(workdir), summary)


def _merged_config(runs: Sequence[_Run]) -> ConfigDict:
    """The config of one encoder for all tasks of the runs.

    Raises:
      UserError: a field in which runs of one base may not differ; a task that two runs have.
    """
    first = runs[0]
    for run in runs[1:]:
        plain = [to_plain(r.config) for r in (first, run)]
        for name in COMMON:
            parts = [_part(p, name) for p in plain]
            if parts[0] != parts[1]:
                raise UserError(
                    f"--runs: {first.workdir} and {run.workdir} differ in config.{name}, so they have no base in "
                    "common. Train them from one config, each with its config.train_on"
                )
    trained: dict[str, pathlib.Path] = {}
    for run in runs:
        for task in run.kept.vocabularies:
            if task in trained:
                raise UserError(f"--runs: {trained[task]} and {run.workdir} both have a head for task {task!r}")
            trained[task] = run.workdir
    config = from_plain(to_plain(first.config))
    config.train_on = tuple(task for task in config.tasks if task in trained)
    if len(config.train_on) == len(config.tasks):
        config.train_on = ()
    config.sharing.trunk, config.sharing.groups, config.sharing.tied = "all", ConfigDict(), False
    config.penalties, config.distillation = ConfigDict(), ConfigDict()
    return config


def _part(plain: Mapping[str, Any], field: str) -> Any:
    for key in field.split("."):
        plain = plain[key]
    return plain


def _built(run: _Run) -> _Built:
    experiment = build(run.config, taught=False)
    placement = placement_of(experiment)
    saved = load_params(run.workdir, str(run.summary["step"]), abstract_params(experiment, placement))
    require_same_data(saved.metadata, experiment.corpus, saved.step)
    base = experiment.init_params(run.config.seed)
    owners = experiment.owners
    served: dict[tuple[int, ...], list[str]] = {}
    for k, task in enumerate(experiment.tasks):
        served.setdefault(tuple(owner[k] for owner in owners.values()), []).append(task)

    def slices(params, column):
        own = {
            path: jax.tree.map(lambda leaf, o=o: leaf[o], params[path]) for path, o in zip(owners, column, strict=True)
        }
        return flatten(jax.device_get(own))

    columns = [
        _Column(run.workdir, tuple(tasks), slices(saved.params, column), slices(base, column))
        for column, tasks in served.items()
    ]
    return _Built(run, experiment, jax.device_get(saved.params), columns)


def _require_one_base(columns: Sequence[_Column]) -> None:
    names = [f"{column.run} ({', '.join(column.tasks)})" for column in columns]
    for values, trees in ((False, [column.leaves for column in columns]), (True, [column.base for column in columns])):
        if differs := first_difference(dict(zip(names, trees, strict=True)), same_values=values):
            raise UserError(
                f"--mode=merge: {differs}. Merging needs columns of one form that began from one base: a pretrained "
                "encoder, or one seed with config.model.column_init = 'same'"
            )


def _require_same_model(one: _Built, experiment: Experiment, config: Any) -> None:
    """Vocabularies and tokenizer of a run are those of the merged model."""
    if one.run.kept.tokenizer.fingerprint != experiment.corpus.tokenizer.fingerprint:
        raise UserError(f"--mode=merge: {one.run.workdir} has another tokenizer than all data sets give together")
    for task, vocabulary in one.run.kept.vocabularies.items():
        if vocabulary != experiment.corpus.vocabularies[task]:
            raise UserError(f"--mode=merge: {one.run.workdir} has other labels of task {task!r} than its data now")


def _heads_and_common(experiment: Experiment, built: Sequence[_Built]) -> dict[str, Any]:
    """The merged model's parameters with every head, and what all columns share, in their places."""
    whole = jax.device_get(experiment.init_params(experiment.config.seed))
    heads = {task: head for one in built for task, head in one.params["heads"].items()}
    first = with_leaves(
        {path: tree for path, tree in whole.items() if path != "heads"},
        {path: leaf[None] for path, leaf in built[0].columns[0].leaves.items()},
    )
    return {**first, "heads": {task: heads[task] for task in experiment.tasks}}


def _stacked(columns: Sequence[_Column]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What differs between the columns, leaves [K, ...], and its base [...]."""
    first, *others = columns
    shared = [
        path for path, leaf in first.leaves.items() if all((leaf == column.leaves[path]).all() for column in others)
    ]
    paths = [path for path in first.leaves if path not in shared]
    stack = {path: jnp.stack([column.leaves[path] for column in columns]) for path in paths}
    return stack, {path: jnp.asarray(first.base[path]) for path in paths}


def _own_scores(built: Sequence[_Built]) -> dict[str, Any]:
    return {task: scores for one in built for task, scores in one.run.summary["tasks"].items()}


def _write(out, config, experiment, built, refused, params, scores, sizes, remarks, seconds) -> list[dict[str, Any]]:
    """The merged model as the folder of a run at step 0. Returns the warnings in its summary."""
    of_runs = [
        run_warnings.warning(run_warnings.RUNS, f"{one.run.workdir}: {entry['text']}", entry["count"], entry["total"])
        for one in built
        for entry in run_warnings.of_training(one.run.workdir)
    ]
    of_scores = [*run_warnings.of_predictions(remarks), *run_warnings.of_data(experiment.corpus)]
    warnings = run_warnings.ordered([*of_runs, *of_scores, *refused])
    folders.claim(out, config)
    artifacts.save(out, experiment.corpus, experiment.model.architecture)
    state = experiment.init(config.seed)._replace(params=jax.device_get(params))
    metadata = data_metadata(experiment.corpus) | {"progress": {"seconds": seconds}}
    with Checkpoints(out, 1) as checkpoints:
        checkpoints.save(state, metadata)
        checkpoints.save_best(state, metadata)
    folders.write_json(
        out / "summary.json",
        {
            "tasks": scores,
            "means": means(scores),
            "examples": sizes,
            "step": 0,
            "seconds": seconds,
            "distances": {},
            "parameters": sum(int(leaf.size) for leaf in jax.tree.leaves(params)),
            "skipped": dict.fromkeys([*experiment.tasks, "shared"], 0),
            "steps": {"made": 0, "left_out": 0},
            "warnings": warnings,
        },
    )
    return warnings
