"""Writes and reads the results of an ablation: a tidy table (ablation.csv) and everything (ablation.json)."""

from __future__ import annotations

import csv
import json
import math
import os
import pathlib
from typing import Any

from mtl_jax.analysis.ablation.records import LINES, STATUSES, Grid, Lane
from mtl_jax.analysis.ablation.summary import summarise
from mtl_jax.errors import UserError
from mtl_jax.storage.workdir import write_json

__all__ = ["LINES", "STATUSES", "Grid", "Lane", "read_grid", "summarise", "write_grid"]
VERSION = 3  # of ablation.json


def write_grid(folder: pathlib.Path, grid: Grid) -> None:
    """Writes folder/ablation.csv and folder/ablation.json atomically. Values that are not finite become null.

    ablation.csv has a row for each lane × task × split × metric; a lane without scores has one row in which these are
    empty. ablation.json has the grid and its `summarise`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lanes = [lane._asdict() for lane in grid.lanes]
    content = {"version": VERSION, **grid._asdict(), "lanes": lanes, "summary": summarise(grid)}
    write_json(folder / "ablation.json", _plain(content))
    file = folder / "ablation.csv"
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    with temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        header, rows = tidy_table(grid)
        writer.writerow(header)
        writer.writerows(rows)
    os.replace(temporary, file)


def read_grid(folder: pathlib.Path) -> Grid:
    """The grid of folder/ablation.json.

    Raises:
      UserError: there is none, it is damaged, or of another version of this program.
    """
    file = folder / "ablation.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder}: no ablation.json; the ablation is not finished (start it again to resume it), or this is not "
            "the folder of one"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        where = f"{file}:{error.lineno}" if isinstance(error, json.JSONDecodeError) else str(file)
        raise UserError(f"{where}: not JSON ({error}); start the ablation again to write it anew") from None
    if not isinstance(content, dict) or content.get("version") != VERSION:
        version = content.get("version") if isinstance(content, dict) else None
        raise UserError(f"{file}: version {version!r} of the format, this program reads {VERSION}")
    try:
        lanes = [Lane(**{field: lane[field] for field in Lane._fields}) for lane in content["lanes"]]
        grid = Grid(**{field: content[field] for field in Grid._fields if field != "lanes"}, lanes=lanes)
    except (KeyError, TypeError) as error:
        raise UserError(f"{file}: damaged, {error} is missing; start the ablation again to write it anew") from None
    for i, lane in enumerate(lanes):
        for field, values in (("line", LINES), ("status", STATUSES)):
            if getattr(lane, field) not in values:
                raise UserError(f"{file}: lane {i}: {field} {getattr(lane, field)!r} is not one of {', '.join(values)}")
    return grid


def tidy_table(grid: Grid) -> tuple[list[str], list[list[Any]]]:
    """Header and rows of ablation.csv. A choice or sweep named like another column is `choice_…` or `sweep_…`."""
    before, after = ["lane", "line"], ["seed", "status", "step", "steps", "left_out", "distance", "effective_rank"]
    last = ["task", "split", "metric", "value"]
    fixed = {*before, *after, *last}
    choices = {name: f"choice_{name}" if name in {*fixed, *grid.sweeps} else name for name in grid.choices}
    sweeps = {name: f"sweep_{name}" if name in {*fixed, *grid.choices} else name for name in grid.sweeps}
    numbers = sweeps | {"learning_rate": sweeps.get("learning_rate", "learning_rate")}
    rows = []
    for i, lane in enumerate(grid.lanes):
        head = [i, lane.line, *(lane.choices.get(name) for name in choices), *(lane.values.get(n) for n in numbers)]
        head += [getattr(lane, name) for name in after]
        scores = [
            (task, split, metric, value)
            for task, splits in lane.scores.items()
            for split, metrics in splits.items()
            for metric, value in metrics.items()
        ]
        rows += [[*head, *score] for score in scores or [(None,) * len(last)]]
    return [*before, *choices.values(), *numbers.values(), *after, *last], _plain(rows)


def _plain(value: Any) -> Any:
    """Dicts, lists and Python numbers in place of those of numpy."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        value = value.tolist()
    return None if isinstance(value, float) and not math.isfinite(value) else value
