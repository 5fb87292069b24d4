"""--mode=relate: measured transfer between all pairs of tasks, measures that may foretell it, groups to train."""

from __future__ import annotations

import csv
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mtl_jax.analysis.ablation import fields, runner
from mtl_jax.analysis.ablation.program import Sources
from mtl_jax.analysis.relatedness import evidence, grouping, transfer
from mtl_jax.analysis.relatedness.evidence import Evidence, JointRun, SeparateColumns
from mtl_jax.analysis.relatedness.registry import MEASURES
from mtl_jax.analysis.relatedness.validation import correlation
from mtl_jax.errors import UserError
from mtl_jax.evaluation.metric_inputs import has_labels
from mtl_jax.experiment.assemble import assemble
from mtl_jax.runtime.progress import progress_bar
from mtl_jax.runtime.stop_signals import StopSignals
from mtl_jax.storage import workdir as folders
from mtl_jax.training.placement import require_platform

VERSION = 2  # of relatedness.json


def relate(config: ConfigDict, workdir: pathlib.Path, check: Callable[[ConfigDict], None]) -> dict[str, Any] | None:
    """Measures how the tasks of a config relate; goes on where the workdir stands.

    Args:
      config: with `config.relate`. Its sharing and training are those of the joint runs.
      workdir: gets config.json, transfer/, measures/seed_*.json, relatedness.csv and relatedness.json.
      check: raises UserError for a config that is wrong.

    Returns:
      what relatedness.json holds; None where SIGTERM or Ctrl-C stopped it.
        tasks         [K] names
        metrics       {task: its first metric}
        split         on which transfer was measured
        alone, gain   see `transfer.transfer_gains`
        measures      {name: {"title", "distance", "matrix": [K, K] mean over seeds, "correlation": see `validation`
                      (of distances: of their negatives)}}
        looks         {"steps": [P], "cosines": [P][K][K]}, mean over seeds; None without gradients
        groups        {"groups": [[task, ...]], "served": {task: index}, "gain", "exact"}
        auxiliary     {target: [task, ...]}, best first
        notes         sentences
        warnings      of the lanes, see `training.run_warnings`

    Raises:
      UserError: what is wrong with the config, the data or the workdir.
    """
    require_platform(config.training.platform)
    tasks = tuple(config.train_on) or tuple(config.tasks)
    _require(config, tasks)
    folders.require_unclaimed(workdir, config)
    planned = transfer.transfer_plan(config, tasks)
    for setting in planned.programs[0].settings:
        check(fields.with_values(planned.programs[0].config, setting.fields))
    print(planned.describe())
    folders.claim(workdir, config)
    sources = Sources()
    _require_scores(config, sources)
    grid = runner.train(planned, {"name": "grid"}, workdir / "transfer", "transfer", sources)
    if grid is None:
        return None
    measured = transfer.transfer_gains(grid, config.relate.split)
    if all(value["mean"] is None for value in measured["alone"].values()):
        raise UserError(f"config.relate.split: no task has a score on {config.relate.split!r}")
    seeds = _measured(config, workdir / "measures", planned.seeds)
    if seeds is None:
        print(f"{workdir}: stopped by a signal, saved; the same command goes on from there")
        return None
    result = _result(config, list(grid.tasks), {t: names[0] for t, names in grid.tasks.items()}, measured, seeds)
    result["warnings"] = grid.warnings
    folders.write_json(workdir / "relatedness.json", result)
    _write_csv(workdir / "relatedness.csv", result)
    return result


def read(workdir: pathlib.Path) -> dict[str, Any]:
    """relatedness.json of a workdir.

    Raises:
      UserError: it is damaged, or of another version of this program.
    """
    file = workdir / "relatedness.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: no whole JSON ({error}); start --mode=relate again to write it anew") from None
    if not isinstance(found, dict) or found.get("version") != VERSION:
        raise UserError(f"{file}: not of version {VERSION} of the format, which this program reads")
    return found


def _require(config, tasks):
    if len(tasks) < 3:
        raise UserError(f"--mode=relate: {len(tasks)} tasks; pairs can be compared with three tasks or more")
    if config.penalties:
        raise UserError(
            "config.penalties: --mode=relate measures what tasks gain by shared layers, where penalties would pull at "
            "tasks that are not trained; leave them out"
        )
    sharing = config.sharing
    if sharing.mixer or sharing.adapter or sharing.cascades or sharing.head_layers or sharing.readout != "top":
        raise UserError(
            "config.sharing: --mode=relate compares columns that are trained alone; take mixer = '', adapter = '', "
            "readout = 'top', and neither head_layers nor cascades"
        )
    if config.sharing.trunk == "none" and not config.sharing.task_groups:
        raise UserError("config.sharing.trunk: 'none' shares nothing, so no task gains by another; take 'all'")
    if config.aggregation.method != "sum" or config.loss_weights.method != "equal":
        raise UserError(
            "--mode=relate trains pairs with the plain sum; set config.aggregation.method = 'sum' and "
            "config.loss_weights.method = 'equal'"
        )


def _require_scores(config, sources: Sources) -> None:
    """Raises UserError where no task has a label in the split on which transfer is to be measured."""
    corpus, _ = sources.load(config)
    split, known = config.relate.split, corpus.specs.items()
    if not any(split in corpus.splits[spec.dataset] and has_labels(corpus, task, split) for task, spec in known):
        raise UserError(f"config.relate.split: no task has a label in {split!r}")


def _measured(config, folder: pathlib.Path, seeds) -> list[dict[str, Any]] | None:
    """Of each seed {"matrices": {measure: [K, K]}, "looks": {"steps", "cosines"} | None}; None where it was stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = tuple(config.relate.measures) or tuple(MEASURES)
    needs = {MEASURES[name].needs for name in chosen}
    files = {seed: folder / f"seed_{seed}.json" for seed in seeds}
    missing = [seed for seed, file in files.items() if not file.exists()]
    if missing:
        corpus, joint, columns = _runs(config, needs)
        total = len(missing) * config.training.steps * ((joint is not None) + (columns is not None))
        with StopSignals() as stop, progress_bar("measures", "step", total) as bar:

            def tick():
                bar.update(1)
                return stop.asked

            for seed in missing:
                found = Evidence(joint and joint(seed, tick), columns and columns(seed, tick), corpus)
                if stop.asked:
                    return None
                matrices = {n: np.asarray(MEASURES[n].compute(found), np.float64).tolist() for n in chosen}
                looks = found.joint and {"steps": found.joint.steps, "cosines": found.joint.cosines.tolist()}
                folders.write_json(files[seed], {"matrices": matrices, "looks": looks})
        jax.clear_caches()
    return [json.loads(file.read_text(encoding="utf-8")) for file in files.values()]


def _runs(config, needs):
    """The corpus, and what trains for the measures that need it: the config itself; a column for each task."""
    corpus, encoder = Sources().load(config)

    def experiment(**changes):
        own = fields.with_values(config, changes)
        return assemble(own, corpus, encoder and encoder.architecture, encoder and encoder.params)

    joint = columns = None
    if "joint" in needs:
        together = experiment()
        if evidence.shared_leaves(together) is None:
            raise UserError("config.optimizer.freeze: nothing that tasks share is trained, so gradients do not meet")
        joint = JointRun(together, config.relate.every, config.relate.lookahead)
    if "columns" in needs:
        alone, trunk = ({"sharing.trunk": name, "sharing.task_groups": ConfigDict()} for name in ("none", "all"))
        columns = SeparateColumns(experiment(**alone), experiment(**trunk), config.relate.inputs)
    return corpus, joint, columns


def _result(config, tasks, metrics, measured, seeds) -> dict[str, Any]:
    gain = np.asarray([_numbers(None if d is None else d["mean"] for d in row) for row in measured["gain"]])
    found, notes = {}, []
    for name in seeds[0]["matrices"]:
        stacked = np.asarray([[_numbers(row) for row in seed["matrices"][name]] for seed in seeds])
        matrix, measure = stacked.mean(axis=0), MEASURES[name]
        if not np.isfinite(matrix[~np.eye(len(tasks), dtype=bool)]).any():
            notes.append(f"{measure.title}: no pair of tasks has what it needs")
            continue
        towards = -matrix if measure.distance else matrix
        found[name] = {
            "title": measure.title,
            "distance": measure.distance,
            "matrix": matrix.tolist(),
            "correlation": correlation(towards, gain)._asdict(),
        }
    looks = None
    if seeds[0]["looks"]:
        cosines = np.mean([[[_numbers(r) for r in m] for m in s["looks"]["cosines"]] for s in seeds], axis=0)
        looks = {"steps": seeds[0]["looks"]["steps"], "cosines": cosines.tolist()}
    known = np.nan_to_num(gain, nan=0.0)
    groups = grouping.best_groups(len(tasks), config.relate.groups, grouping.gains_from_pairs(known))
    return {
        "version": VERSION,
        "tasks": tasks,
        "metrics": metrics,
        "split": config.relate.split,
        **measured,
        "measures": found,
        "looks": looks,
        "groups": {
            "groups": [[tasks[k] for k in group] for group in groups.groups],
            "served": dict(zip(tasks, groups.served, strict=True)),
            "gain": groups.gain,
            "exact": groups.exact,
        },
        "auxiliary": {
            task: [tasks[k] for k in grouping.auxiliary_tasks(known, target, config.relate.auxiliary)]
            for target, task in enumerate(tasks)
        },
        "notes": notes,
    }


def _numbers(row):
    """JSON's null is not a number."""
    return [np.nan if value is None else value for value in row]


def _write_csv(file: pathlib.Path, result: Mapping[str, Any]) -> None:
    """A row for each ordered pair: what it gains, and what each measure says."""
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
