"""What an ablation yields: a record for each lane, kept as a tidy table (ablation.csv) and whole (ablation.json)."""

from __future__ import annotations

import csv
import json
import math
import os
import pathlib
from typing import Any, NamedTuple

from mtl_jax.analysis.summary import ENDS, summarise
from mtl_jax.errors import UserError
from mtl_jax.training.workdir import write_json

__all__ = ["LINES", "STATUSES", "Grid", "Lane", "read", "summarise", "write"]

LINES = ("sharing", *ENDS)
STATUSES = ("finished", "stopped early", "frozen: not finite", "dropped")
VERSION = 2  # of ablation.json


class Lane(NamedTuple):
    """One setting trained with one seed.

    line            "sharing": a point of the sweeps; or an end: "single" (λ = 0), "tied" (λ → ∞), "hard" (one trunk)
    choices         name -> name of the alternative; {} where nothing is chosen between
    values          sweep -> its value; an end has "learning_rate" and the sweeps other than λ. Under the method
                    "hypergradient" the values that were learned
    seed            of initial values, dropout and the order of the batches
    status          "finished" | "stopped early" | "frozen: not finite" | "dropped" (by successive halving)
    step            steps taken by the parameters that were scored (the best on dev, or the last)
    steps           steps trained
    scores          {task: {split: {metric: value}}}; a task's first metric is its score, higher = better; None where
                    a value is not defined
    score           mean over tasks of the first metric on dev at `step`, by which settings are chosen; None without one
    distance        mean over pairs of tasks of ‖Θi − Θj‖, relative to the mean ‖Θk‖, over the parameters that the tasks
                    do not share; None where nothing is a task's own
    effective_rank  of the K deviations from the tasks' mean (Roy & Vetterli 2007: exp of the entropy of σ/Σσ),
                    from 0 to K − 1; None likewise
    left_out        steps of `steps` that changed nothing, as a loss or gradient was not finite
    remarks         {task: {split: sentence}} on predictions that are all alike
    effects         {penalty: what it did, see `training.penalty_effect.Effect`}
    curve           [{"step": n, "loss": {task: mean training loss since the entry before}, "dev": {task: {metric:
                    value}}}]; "dev" only where dev was scored
    """

    line: str
    choices: dict[str, str]
    values: dict[str, float]
    seed: int
    status: str
    step: int
    steps: int
    scores: dict[str, dict[str, dict[str, float | None]]]
    score: float | None
    distance: float | None
    effective_rank: float | None
    curve: list[dict[str, Any]]
    left_out: int
    remarks: dict[str, dict[str, str]]
    effects: dict[str, dict[str, float | None]]


class Grid(NamedTuple):
    """Everything of one ablation.

    sweeps      name -> {"field": config field, "scale": "log" | "linear", "values": [...]}
    choices     name -> alternatives in order; those of one field over numbers have names that float() takes
    tasks       task -> its metrics; the first is the score
    lanes       all of them, the ends at every learning rate tried included
    references  exact optima to draw beside: {"label": text, "choices": {}, "values": {}, "scores": as of a lane}
    notes       sentences for people
    method      {"name": "grid" | "halving" | "hypergradient", and its numbers}
    baselines   choice -> alternatives that the others are compared with
    costs       of each program without its ends {"choices": {choice: alternative}, "parameters": of one model,
                "step_seconds": median over calls of what a step of one lane takes, the first call left out; None where
                there was one call only}
    warnings    what a reader of the scores has to know, see `training.run_warnings`; of combinations of choices there
                are more, in `summarise`
    """

    sweeps: dict[str, dict[str, Any]]
    choices: dict[str, list[str]]
    tasks: dict[str, list[str]]
    lanes: list[Lane]
    references: list[dict[str, Any]]
    notes: list[str]
    method: dict[str, Any]
    baselines: dict[str, list[str]]
    costs: list[dict[str, Any]]
    warnings: list[dict[str, Any]]


def write(folder: pathlib.Path, grid: Grid) -> None:
    """Writes folder/ablation.csv and folder/ablation.json, neither ever half there. Values not finite become null.

    ablation.csv has a row for each lane × task × split × metric; a lane without any score has one row with these
    empty. ablation.json has the grid and its `summarise`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lanes = [lane._asdict() for lane in grid.lanes]
    whole = {"version": VERSION, **grid._asdict(), "lanes": lanes, "summary": summarise(grid)}
    write_json(folder / "ablation.json", _plain(whole))
    file = folder / "ablation.csv"
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    with temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        header, rows = tidy(grid)
        writer.writerow(header)
        writer.writerows(rows)
    os.replace(temporary, file)


def read(folder: pathlib.Path) -> Grid:
    """The grid of folder/ablation.json.

    Raises:
      UserError: there is none, it is damaged, or of another version of this program.
    """
    file = folder / "ablation.json"
    try:
        whole = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder}: no ablation.json; the ablation is not finished, start it again to go on, or this is not the "
            "folder of one"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        where = f"{file}:{error.lineno}" if isinstance(error, json.JSONDecodeError) else str(file)
        raise UserError(f"{where}: not JSON ({error}); start the ablation again to write it anew") from None
    if not isinstance(whole, dict) or whole.get("version") != VERSION:
        found = whole.get("version") if isinstance(whole, dict) else None
        raise UserError(f"{file}: version {found!r} of the format, this program reads {VERSION}")
    try:
        lanes = [Lane(**{field: lane[field] for field in Lane._fields}) for lane in whole["lanes"]]
        whole = {"baselines": {}, "costs": [], **whole, "lanes": lanes}  # written before there were such
        grid = Grid(**{field: whole[field] for field in Grid._fields})
    except (KeyError, TypeError) as error:
        raise UserError(f"{file}: damaged, {error} is missing; start the ablation again to write it anew") from None
    for i, lane in enumerate(lanes):
        for field, known in (("line", LINES), ("status", STATUSES)):
            if getattr(lane, field) not in known:
                raise UserError(f"{file}: lane {i}: {field} {getattr(lane, field)!r} is none of {', '.join(known)}")
    return grid


def tidy(grid: Grid) -> tuple[list[str], list[list[Any]]]:
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
    """Dicts, lists and Python's own numbers; the engine's may be of numpy."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):
        value = value.tolist()
    return None if isinstance(value, float) and not math.isfinite(value) else value
