"""Lanes of an ablation as runs of trackers: one group, named after the folder of the ablation."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from mtl_jax.analysis.ablation.records import Grid
from mtl_jax.analysis.ablation.results import tidy_table
from mtl_jax.config.plain import to_plain
from mtl_jax.config.sections import Config
from mtl_jax.storage import tracking
from mtl_jax.storage.trackers import TRACKERS, TrackedRun


def track_lanes(config: Config, workdir: pathlib.Path, program: str, lanes: list[dict[str, Any]], bar: tqdm) -> None:
    """Tracks the lanes of a trained program that are not tracked yet: curve, scores, and what sets them apart.

    Args:
      config: of the program; of the ablation, for its trackers.
      workdir: of the ablation, whose own run they are parts of.
      program: its name.
      lanes: `records.Lane` as dicts.
      bar: shows a line where there are many.
    """
    if not any(TRACKERS[name].shows_lanes for name in config.training.trackers):
        return
    if "" not in tracking.identities(workdir):  # what the lanes are parts of comes first
        with tracking.tracked(config, lanes_run(config, workdir)) as trackers:
            trackers.interrupted = True
    known, plain = tracking.identities(workdir), to_plain(config)
    for number, lane in enumerate(lanes):
        key = f"{program}/{number}"
        if set(config.training.trackers) & set(known.get(key, ())):
            continue
        parts = [lane["line"], *(f"{name} {value:.3g}" for name, value in lane["values"].items())]
        run = TrackedRun(
            folder=workdir,
            name=", ".join([program, *parts, f"seed {lane['seed']}"]),
            config=plain | {"lane": {name: lane[name] for name in ("line", "choices", "values", "seed")}},
            group=workdir.absolute().name,
            job="lane",
        )
        with tracking.tracked(config, run, key) as trackers:
            for point in lane["curve"]:
                trackers.scalars(point["step"], _of_curve(point))
            trackers.result(lane["step"] or lane["steps"], "final", lane["scores"])
    bar.write(f"  {program}: {len(lanes)} lanes tracked")


def track_grid(config: Config, workdir: pathlib.Path, grid: Grid) -> None:
    """Tracks the results of all lanes together: a table, and the files."""
    with tracking.tracked(config, lanes_run(config, workdir)) as trackers:
        trackers.table("lanes", *tidy_table(grid))
        trackers.files(workdir, "config.json", "ablation.csv", "ablation.json")


def lanes_run(config: Config, workdir: pathlib.Path) -> TrackedRun:
    """The run that the lanes are parts of."""
    name = workdir.absolute().name
    return TrackedRun(workdir, name, to_plain(config), group=name, job="lanes")


def _of_curve(point: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a point of a curve, under the names that a single run has."""
    of_dev = {"dev": {"tasks": point["dev"]}} if "dev" in point else {}
    others = {name: value for name, value in point.items() if name not in ("step", "dev")}
    return dict(tracking.flat_numbers({"train": others, **of_dev}, ""))
