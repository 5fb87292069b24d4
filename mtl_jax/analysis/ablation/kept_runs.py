"""Lanes that stay as run folders (`config.ablation.keep`): all modes begin from them, without training again."""

from __future__ import annotations

import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from mtl_jax.analysis.ablation import traced_fields
from mtl_jax.analysis.ablation.engine import Engine
from mtl_jax.analysis.ablation.lane_log import LaneLog, LaneResult
from mtl_jax.analysis.ablation.lane_results import LaneParameters
from mtl_jax.analysis.ablation.records import COUNTED_STATUSES, Grid
from mtl_jax.analysis.ablation.scores import Cell
from mtl_jax.analysis.ablation.summary import summarise
from mtl_jax.config import default
from mtl_jax.evaluation.scores import mean_by_split, metric_ceilings
from mtl_jax.evaluation.task_distances import task_distances
from mtl_jax.experiment.assemble import Experiment
from mtl_jax.runs.write_run import write_run
from mtl_jax.runtime import distributed
from mtl_jax.storage import run_warnings
from mtl_jax.storage.summary import Summary
from mtl_jax.training.objective import Params

RUNS = "runs"  # folder of a program's runs


def run_name(setting: int, seed: int) -> str:
    """The folder of a lane in that of its program's runs."""
    return f"setting_{setting:03}_seed_{seed}"


def lane_config(
    engine: Engine, setting: int, seed: int, learned: Mapping[str, float], moves: Mapping[str, Sequence[str]]
) -> ConfigDict:
    """The config that trains a lane alone.

    Args:
      engine: of the lanes.
      setting: its index.
      seed: of the lane.
      learned: {sweep: value} that the lane has learned; {} where they are those of its setting.
      moves: {sweep: fields of the config}.
    """
    built = engine.built
    fields = dict(built.settings[setting].fields)
    fields |= {field: value for sweep, value in learned.items() for field in moves[sweep]}
    config = traced_fields.with_values(built.experiment.config, fields | {"seed": seed})
    config.ablation = default.get_config().ablation
    return config


class KeptRuns(NamedTuple):
    """Where a program's lanes stay: the folder of their runs. `moves` as in `plan.Program`."""

    folder: pathlib.Path
    moves: Mapping[str, Sequence[str]]


def write_runs(keep: KeptRuns, lanes: LaneParameters, settings: Sequence[int], logs: Mapping[Cell, LaneLog]) -> None:
    """Writes the run folder of every lane in `logs` that means include.

    Args:
      keep: where.
      lanes: parameters that were scored.
      settings: of the columns of `lanes`.
      logs: with results, by cell.
    """
    engine = lanes.engine
    for (s, i), log in logs.items():
        if log.status not in COUNTED_STATUSES:
            continue
        of_lane = distributed.to_host(jax.tree.map(lambda leaf, cell=(s, i): leaf[cell], lanes.params))
        params = distributed.place(of_lane, engine.shape.sharding("-"))
        config = lane_config(engine, settings[i], lanes.seeds[s], log.result["values"], keep.moves)
        summary = _summary(engine.built.experiment, params, log.result)
        write_run(keep.folder / run_name(settings[i], lanes.seeds[s]), config, engine.built.experiment, params, summary)


def only_chosen(grid: Grid) -> Grid:
    """The grid whose lanes name a run only where their setting was chosen on dev, of each combination of choices."""
    chosen = {
        number
        for combination in summarise(grid)["combinations"]
        if combination["chosen"] is not None
        for number in combination["points"][combination["chosen"]]["lanes"]
    }
    return grid._replace(lanes=[lane if n in chosen else lane._replace(run="") for n, lane in enumerate(grid.lanes)])


def delete_others(workdir: pathlib.Path, grid: Grid) -> None:
    """Deletes the runs below a workdir that no lane of the grid names."""
    kept = {workdir / lane.run for lane in grid.lanes if lane.run}
    for folder in workdir.glob(f"programs/*/{RUNS}/*"):
        if folder not in kept:
            shutil.rmtree(folder)


def _summary(experiment: Experiment, params: Params, result: LaneResult) -> Summary:
    """As a run of its own would have it; without the time, which lanes have in common."""
    scores, splits = result["scores"], experiment.corpus.statistics["datasets"]
    sizes = {
        task: {
            split: {"scored": values["records"], "total": values["available"]}
            for split, values in splits[experiment.config.tasks[task].dataset].items()
            if split in by_split
        }
        for task, by_split in scores.items()
    }
    skipped: dict[str, int] = {}
    warnings = [
        *run_warnings.step_warnings(result["left_out"], result["steps"], skipped),
        *run_warnings.prediction_warnings(result["remarks"]),
        *run_warnings.data_warnings(experiment.corpus),
    ]
    return {
        "tasks": scores,
        "means": mean_by_split(scores),
        "examples": sizes,
        "ceilings": metric_ceilings(experiment, scores),
        "step": result["step"],
        "seconds": 0.0,
        "distances": task_distances(experiment, params),
        "parameters": sum(int(leaf.size) for leaf in jax.tree.leaves(params)),
        "penalties": result["effects"],
        "skipped": skipped,
        "steps": {"made": result["steps"], "left_out": result["left_out"]},
        "warnings": run_warnings.by_severity(warnings),
    }
