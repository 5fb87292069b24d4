"""--mode=relate: measured transfer between all pairs of tasks, measures that may predict it, groups to train."""

from __future__ import annotations

import csv
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypedDict

import numpy as np
from ml_collections import ConfigDict

from mtl_jax.analysis.ablation import lane_parts, runner, traced_fields
from mtl_jax.analysis.ablation.gathering import Shards, gather_programs
from mtl_jax.analysis.ablation.lane_program import Sources
from mtl_jax.analysis.ablation.records import Grid
from mtl_jax.analysis.relatedness import grouping, transfer
from mtl_jax.analysis.relatedness.registry import MEASURES
from mtl_jax.analysis.relatedness.seed_measures import SeedMeasures, experiment_of, measure_seeds
from mtl_jax.analysis.relatedness.transfer import TransferGains
from mtl_jax.analysis.relatedness.validation import correlation
from mtl_jax.config.sections import Config
from mtl_jax.errors import UserError
from mtl_jax.evaluation.metric_inputs import has_labels
from mtl_jax.runtime import distributed
from mtl_jax.runtime.shards import Shard
from mtl_jax.storage import run_warnings
from mtl_jax.storage import workdir as folders
from mtl_jax.storage.summary import RunWarning
from mtl_jax.storage.tracking import require_ready
from mtl_jax.training.placement import require_platform

VERSION = 3  # of relatedness.json
METHOD = {"name": "grid"}  # of the lanes


class Relatedness(TypedDict):
    """What relatedness.json holds.

    version       of the format
    tasks         [K] names
    metrics       {task: its first metric}
    split         on which transfer was measured
    alone, gain   see `transfer.transfer_gains`
    measures      {name: {"title", "distance", "matrix": [K, K] mean over seeds, "correlation": see `validation` (for
                  distances, of their negatives)}}
    looks         {"steps": [P], "cosines": [P][K][K]}, mean over seeds; None without gradients
    groups        {"by": measure that they are by, "" for measured gains; "groups": [[task, ...]],
                  "served": {task: index}, "gain", "exact"}
    auxiliary     {target: [task, ...]}, best first
    notes         sentences
    warnings      about the lanes, see `storage.run_warnings`
    """

    version: int
    tasks: list[str]
    metrics: dict[str, str]
    split: str
    alone: dict[str, dict[str, Any]]
    gain: list[list[dict[str, Any] | None]]
    measures: dict[str, dict[str, Any]]
    looks: dict[str, Any] | None
    groups: dict[str, Any]
    auxiliary: dict[str, list[str]]
    notes: list[str]
    warnings: list[RunWarning]


def relate(
    config: ConfigDict, workdir: pathlib.Path, check: Callable[[ConfigDict], object], shard: Shard | None = None
) -> Relatedness | Grid | None:
    """Measures how the tasks of a config relate; resumes what the workdir has.

    Args:
      config: with `config.relatedness`. Its sharing and training are those of the joint runs.
      workdir: gets config.json, transfer/, measures/seed_*.json, relatedness.csv and relatedness.json.
      check: raises UserError for a wrong config.
      shard: trains its part of the pairs, and measures its part of the seeds; what is compared is left to `gather`.

    Returns:
      what is written, of a shard its lanes; None where SIGTERM or Ctrl-C stopped it.

    Raises:
      UserError: what is wrong with the config, the data or the workdir.
    """
    require_platform(config.training.platform)
    tasks = tuple(config.train_tasks) or tuple(config.tasks)
    _require(config, tasks)
    require_ready(config)
    folders.require_unclaimed(workdir, config)
    check(config)
    planned = transfer.transfer_plan(config, tasks)
    if len(planned.programs) == 1:
        for setting in planned.programs[0].settings:
            check(traced_fields.with_values(planned.programs[0].config, setting.fields))
    print(planned.describe())
    if distributed.is_first():
        folders.claim(workdir, config)
    sources = Sources()
    _require_scores(config, sources)
    if planned.programs:
        selected = lane_parts.part(planned, shard) if shard else lane_parts.whole(planned)
        grid = runner.train(
            planned, METHOD, workdir / "transfer", "transfer", sources, selected=selected, tracked_in=workdir
        )
        if grid is None:
            return None
    else:
        grid = _untrained(config, sources)
    by_seed = measure_seeds(config, workdir / "measures", shard.part(planned.seeds) if shard else planned.seeds)
    if by_seed is None:
        print(f"{workdir}: stopped by a signal, saved; the same command resumes from there")
        return None
    return grid if shard else _write(config, workdir, grid, by_seed)


def gather(shards: Shards, out: pathlib.Path) -> Relatedness:
    """relatedness.json and relatedness.csv of all shards in `out`; where some are missing, a warning says so.

    Raises:
      UserError: see `gathering.gather_programs`; no shard has measured a seed yet.
    """
    config = shards.config
    planned = transfer.transfer_plan(config, tuple(config.train_tasks) or tuple(config.tasks))
    if planned.programs:
        transfers = {s: folder / "transfer" for s, folder in shards.folders.items()}
        grid = gather_programs(shards, planned, METHOD, transfers)
    else:
        grid = _untrained(config, Sources())
    files = sorted(file for folder in shards.folders.values() for file in (folder / "measures").glob("seed_*.json"))
    if not files:
        raise UserError(f"no shard of {shards.count} has measured a seed yet; start them, or wait")
    if lost := len(planned.seeds) - len(files):
        text = f"partial: the measures are of {len(files)} of {len(planned.seeds)} seeds; start the other shards again"
        warning = run_warnings.warning(run_warnings.PARTIAL, text, lost, len(planned.seeds))
        grid = grid._replace(warnings=run_warnings.by_severity([warning, *grid.warnings]))
    by_number = sorted(files, key=lambda file: int(file.stem.removeprefix("seed_")))
    folders.claim(out, config)
    return _write(config, out, grid, [json.loads(file.read_text(encoding="utf-8")) for file in by_number])


def _write(config: Config, workdir: pathlib.Path, grid: Grid, by_seed: Sequence[SeedMeasures]) -> Relatedness:
    """Compares, and writes relatedness.json and relatedness.csv."""
    measured = transfer.transfer_gains(grid, config.relatedness.transfer_split)
    if grid.lanes and all(value["mean"] is None for value in measured["alone"].values()):
        raise UserError(
            f"config.relatedness.transfer_split: no task has a score on {config.relatedness.transfer_split!r}"
        )
    result = _result(config, grid, measured, by_seed)
    if distributed.is_first():
        folders.write_json(workdir / "relatedness.json", result)
        _write_csv(workdir / "relatedness.csv", result)
    return result


def read(workdir: pathlib.Path) -> Relatedness:
    """relatedness.json of a workdir.

    Raises:
      UserError: it is damaged, or of another version of this program.
    """
    file = workdir / "relatedness.json"
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: not complete JSON ({error}); start --mode=relate again to write it anew") from None
    if not isinstance(result, dict) or result.get("version") != VERSION:
        raise UserError(f"{file}: not of version {VERSION} of the format, which this program reads")
    return result


def _require(config: Config, tasks: Sequence[str]) -> None:
    if len(tasks) < 2:
        raise UserError(f"--mode=relate: {len(tasks)} task; how tasks relate is a question about two or more")
    sharing = config.sharing
    meets = sharing.task_groups or sharing.mixer or sharing.cascades or sharing.tied or config.penalties
    if sharing.trunk == "none" and not meets:
        raise UserError("config.sharing.trunk: 'none' shares nothing, so that no task gains by another; take 'all'")


def _untrained(config: ConfigDict, sources: Sources) -> Grid:
    """The grid without a lane, where no pair is to be trained."""
    tasks = experiment_of(config, *sources.load(config)).tasks
    metrics = {name: list(task.metrics) for name, task in tasks.items()}
    return Grid({}, {}, metrics, [], [], [], dict(METHOD), {}, [], [])


def _require_scores(config: Config, sources: Sources) -> None:
    """Raises UserError where no task has a label in the split on which transfer is measured."""
    corpus, _ = sources.load(config)
    split, specs = config.relatedness.transfer_split, corpus.specs.items()
    if not any(split in corpus.splits[spec.dataset] and has_labels(corpus, task, split) for task, spec in specs):
        raise UserError(f"config.relatedness.transfer_split: no task has a label in {split!r}")


def _result(config: Config, grid: Grid, measured: TransferGains, by_seed: Sequence[SeedMeasures]) -> Relatedness:
    tasks = list(grid.tasks)
    gain = np.asarray([_numbers(None if d is None else d["mean"] for d in row) for row in measured["gain"]])
    compared, notes = {}, []
    for name in by_seed[0]["matrices"]:
        stacked = np.asarray([[_numbers(row) for row in seed["matrices"][name]] for seed in by_seed])
        matrix, measure = stacked.mean(axis=0), MEASURES[name]
        if not np.isfinite(matrix[~np.eye(len(tasks), dtype=bool)]).any():
            notes.append(f"{measure.title}: not defined for any pair of tasks")
            continue
        closeness = -matrix if measure.distance else matrix
        compared[name] = {
            "title": measure.title,
            "distance": measure.distance,
            "matrix": matrix.tolist(),
            "correlation": correlation(closeness, gain)._asdict(),
        }
    predictor = config.relatedness.predictor
    if predictor and predictor not in compared:
        raise UserError(f"config.relatedness.predictor: {predictor!r} is not defined for any pair of these tasks")
    finite_gain = np.nan_to_num(gain, nan=0.0)
    if predictor:
        predicted = np.asarray(compared[predictor]["matrix"])
        finite_gain = np.nan_to_num(-predicted if compared[predictor]["distance"] else predicted, nan=0.0)
    groups = grouping.best_groups(len(tasks), config.relatedness.max_groups, grouping.gains_from_pairs(finite_gain))
    return {
        "version": VERSION,
        "tasks": tasks,
        "metrics": {task: metrics[0] for task, metrics in grid.tasks.items()},
        "split": config.relatedness.transfer_split,
        **measured,
        "measures": compared,
        "looks": _mean_looks(by_seed),
        "groups": {
            "by": predictor,
            "groups": [[tasks[k] for k in group] for group in groups.groups],
            "served": dict(zip(tasks, groups.served, strict=True)),
            "gain": groups.gain,
            "exact": groups.exact,
        },
        "auxiliary": {
            task: [
                tasks[k] for k in grouping.auxiliary_tasks(finite_gain, target, config.relatedness.max_auxiliary_tasks)
            ]
            for target, task in enumerate(tasks)
        },
        "notes": notes,
        "warnings": grid.warnings,
    }


def _mean_looks(by_seed: Sequence[SeedMeasures]) -> dict[str, Any] | None:
    """The mean over seeds of the cosines along the joint run."""
    if not by_seed[0]["looks"]:
        return None
    cosines = np.mean([[[_numbers(row) for row in m] for m in seed["looks"]["cosines"]] for seed in by_seed], axis=0)
    return {"steps": by_seed[0]["looks"]["steps"], "cosines": cosines.tolist()}


def _numbers(row: Iterable[float | None]) -> list[float]:
    """NaN in place of JSON's null."""
    return [np.nan if value is None else value for value in row]


def _write_csv(file: pathlib.Path, result: Relatedness) -> None:
    """A row for each ordered pair: its gain, and the value of each measure."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    names = list(result["measures"])
    with temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["trained_with", "task", "gain", "low", "high", "corrected_p", *names])
        for i, other in enumerate(result["tasks"]):
            for j, task in enumerate(result["tasks"]):
                if i != j:
                    d = result["gain"][i][j]
                    values = [result["measures"][name]["matrix"][i][j] for name in names]
                    writer.writerow([other, task, d["mean"], d["low"], d["high"], d["corrected_p"], *values])
    os.replace(temporary, file)
