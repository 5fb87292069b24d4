"""An ablation from its config to its lanes: programs one after the other, each in as many turns as memory asks for."""

from __future__ import annotations

import collections
import functools
import json
import pathlib
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from mtl_jax.analysis.ablation import (
    exact_optima,
    fields,
    halving,
    hypergradient,
    lanes,
    memory,
    plan,
    program,
    records,
    results,
)
from mtl_jax.analysis.ablation.engine import Engine, resident
from mtl_jax.analysis.ablation.lane_batch import Turn
from mtl_jax.analysis.ablation.plan import Plan, Program
from mtl_jax.analysis.ablation.program import Built, Sources
from mtl_jax.errors import Stopped, UserError
from mtl_jax.runtime.progress import progress_bar
from mtl_jax.runtime.stop_signals import StopSignals
from mtl_jax.storage import run_warnings
from mtl_jax.storage import workdir as folders
from mtl_jax.training.placement import require_platform


def ablate(
    config: ConfigDict, workdir: pathlib.Path, check: Callable[[ConfigDict], Mapping[str, str]]
) -> records.Grid | None:
    """Trains every lane of an ablation; goes on where the workdir stands.

    Args:
      config: with `config.ablation`.
      workdir: gets config.json, programs/<name>/lanes.json, ablation.csv and ablation.json.
      check: as in `plan.make`.

    Returns:
      all lanes; None where SIGTERM or Ctrl-C stopped it after a checkpoint.

    Raises:
      UserError: what is wrong with the config, the data or the workdir; a lane that does not fit into memory.
    """
    require_platform(config.training.platform)
    folders.require_unclaimed(workdir, config)
    planned = plan.make(config, check)
    print(planned.describe())
    folders.claim(workdir, config)
    method = {"name": config.ablation.method, **config.ablation.options.to_dict()}
    grid = train(planned, method, workdir, "ablation")
    if grid is not None:
        results.write(workdir, grid)
        _require_training(workdir, grid)
    return grid


def _require_training(workdir, grid):
    """Raises UserError where no lane took a single step."""
    if all(0 < lane.steps == lane.left_out for lane in grid.lanes):
        raise UserError(
            f"{workdir}: nothing was trained: every step of all {len(grid.lanes)} lanes was left out, as a loss or "
            "gradient was not finite. Lower config.optimizer.learning_rate or λ, and take another --workdir"
        )


def train(
    planned: Plan, method: Mapping[str, Any], workdir: pathlib.Path, what: str, sources: Sources | None = None
) -> records.Grid | None:
    """All lanes of a plan, under workdir/programs; goes on where that stands. None where a signal stopped it.

    `method` is the grid's, `what` stands before the progress bar, `sources` has what was read already.
    """
    sources, found, notes, warnings, optima, costs = sources or Sources(), [], [], [], [], []
    with StopSignals() as stop, progress_bar(what, "step", planned.lane_steps) as bar:
        for one in planned.programs:
            folder = workdir / "programs" / one.name
            done = _read(folder / "lanes.json")
            if done is None:
                done = _train(planned, one, folder, sources, stop, bar)
                if done is None:
                    bar.close()
                    print(f"{workdir}: stopped by a signal, saved; the same command goes on from there")
                    return None
            else:
                bar.update(len(one.settings) * len(planned.seeds) * one.config.training.steps)
            found += [records.Lane(**lane) for lane in done["lanes"]]
            costs += [{"choices": dict(one.choices), **done["cost"]}] if one.settings[0].line == "sharing" else []
            optima += done["references"]
            notes += [f"{one.name}: {note}" for note in done["notes"]]
            warnings += done["warnings"]
    return records.Grid(
        sweeps={name: dict(entry) for name, entry in planned.sweeps.items()},
        choices={name: list(names) for name, names in planned.choices.items()},
        baselines={name: list(names) for name, names in planned.baselines.items()},
        costs=costs,
        tasks=done["tasks"],
        lanes=found,
        references=optima,
        notes=notes,
        method=dict(method),
        warnings=run_warnings.ordered([*of_lanes(found), *warnings]),
    )


def _halve(turn: Turn, one: Program, settings, stop) -> bool:
    """Drops the worse lanes; False where a signal came meanwhile, which leaves all of them, saved."""
    turn.save()
    eta = halving.options(one.config)["eta"]
    try:
        turn.drop(halving.survivors(turn.dev_ranks(stop), turn.settings, settings, eta), stop)
    except Stopped:
        return False
    return True


def of_lanes(found: Sequence[records.Lane]) -> list[dict[str, Any]]:
    """What the reader of the lanes' scores has to know of their training and predictions."""
    trained = [lane for lane in found if lane.steps]
    warnings = []
    for status in ("frozen: not finite", "dropped"):
        if count := sum(lane.status == status for lane in found):
            warnings.append(
                run_warnings.warning(
                    run_warnings.STEPS,
                    f"{count} of {len(found)} lanes: {status}; they are in no mean",
                    count,
                    len(found),
                )
            )
    if some := [lane for lane in trained if lane.left_out and not lane.status.startswith("frozen")]:
        most = max(some, key=lambda lane: lane.left_out / lane.steps)
        text = (
            f"{len(some)} of {len(found)} lanes left out steps, as a loss or gradient was not finite; at most "
            f"{most.left_out} of {most.steps}"
        )
        warnings.append(run_warnings.warning(run_warnings.STEPS, text, len(some), len(found)))
    alike = collections.Counter(
        (task, split) for lane in found for task, by_split in lane.remarks.items() for split in by_split
    )
    for (task, split), count in alike.items():
        example = next(lane.remarks[task][split] for lane in found if split in lane.remarks.get(task, {}))
        text = f"task {task}, {split}: in {count} of {len(found)} lanes all predictions are alike, e.g. {example}"
        warnings.append(run_warnings.warning(run_warnings.PREDICTIONS, text, count, len(found)))
    return warnings


def _train(planned: Plan, one: Program, folder, sources: Sources, stop, bar) -> dict[str, Any] | None:
    """All lanes of one program, written to `folder`/lanes.json; None where it was stopped."""
    bar.set_description(one.name, refresh=False)
    built = program.build(one, sources)
    seeds, count = planned.seeds, len(one.settings)
    for note in (*sources.new_notes(built.experiment.corpus), *built.notes):
        bar.write(f"  {note}")
    engine_for, (turn_seeds, turn_lanes) = _engines(built, one, seeds, count, bar)
    found: dict[tuple[int, int], dict[str, Any]] = {}
    step_seconds: list[float] = []
    halves = one.config.ablation.method == "halving" and built.settings[0].line == "sharing"
    rungs = halving.rungs(one.config, count) if halves else ()
    learns = one.config.ablation.method == "hypergradient" and built.settings[0].line == "sharing"
    tuner_for = (lambda engine: hypergradient.Tuner(engine, one.moves)) if learns else None
    turns = [
        (seeds[s : s + turn_seeds], range(i, min(i + turn_lanes, count)))
        for s in range(0, len(seeds), turn_seeds)
        for i in range(0, count, turn_lanes)
    ]
    if rungs and len(turns) > 1:
        raise UserError(
            f"{one.name}: config.ablation.method = 'halving' compares all lanes at each rung, but only "
            f"{turn_seeds} × {turn_lanes} of {len(seeds)} × {count} fit at once; take fewer, or method = 'grid'"
        )
    for number, (own_seeds, settings) in enumerate(turns):
        turn_folder = folder / f"turn_{number:02}"
        with Turn(engine_for, own_seeds, settings, turn_folder, tuner_for) as turn:
            bar.update(turn.position * len(turn.logs))
            for rung in (*rungs, one.config.training.steps):
                if not turn.run(rung, stop, bar):
                    return None
                if rung in rungs and not _halve(turn, one, built.settings, stop):
                    return None
            if (results_of_turn := turn.results(stop)) is None:
                return None
            found |= results_of_turn
            step_seconds += turn.step_seconds
        stop.release()
    shapes = jax.eval_shape(lambda: built.experiment.init_params(0))
    done = {
        "lanes": [
            records.Lane(
                line=built.settings[i].line,
                choices=dict(one.choices),
                seed=seed,
                **(found[seed, i] | {"values": {**built.settings[i].values, **found[seed, i]["values"]}}),
            )._asdict()
            for i in range(count)
            for seed in seeds
        ],
        "fields": [dict(setting.fields) for setting in built.settings],
        "references": _references(one, built) if one.config.ablation.reference else [],
        "cost": {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(shapes)),
            "step_seconds": statistics.median(step_seconds) if step_seconds else None,
        },
        "notes": list(built.notes),
        "warnings": run_warnings.of_data(built.experiment.corpus),
        "tasks": {name: list(task.metrics) for name, task in built.experiment.tasks.items()},
    }
    folders.write_json(folder / "lanes.json", done)
    for number in range(len(turns)):
        shutil.rmtree(folder / f"turn_{number:02}")
    jax.clear_caches()  # or the programs that are done stay in memory
    return done


def _references(one: Program, built: Built) -> list[dict[str, Any]]:
    """The exact optimum at every point of the sweep, to be drawn beside what was trained."""
    exact, found = exact_optima.REFERENCES[one.config.ablation.reference], []
    for setting in built.settings if built.settings[0].line == "sharing" else ():
        config = fields.with_values(one.config, setting.fields)
        if len(config.penalties) != 1:
            raise UserError("config.ablation.reference: the exact optimum is known for one penalty, not several")
        (penalty,) = config.penalties.values()
        optimum = exact(config, built.experiment.corpus, penalty.kind, penalty.strength)
        found.append(
            {
                "label": "exact optimum",
                "choices": dict(one.choices),
                "values": dict(setting.values),
                "scores": optimum["scores"],
            }
        )
    return found


def _engines(built: Built, one: Program, seeds, count, bar):
    """(S, L) -> the engine of that shape, and the S and L of a turn."""
    ablation = one.config.ablation
    layout = ablation.layout
    if layout == "auto":
        layout = "map" if jax.default_backend() == "cpu" else "vmap"
    budget = memory.available(ablation.memory)
    rows = resident(built, lanes.shape_of(len(seeds), count, layout).mesh, budget)

    @functools.lru_cache(maxsize=2)
    def engine_for(seeds, lanes_):
        return Engine(built, lanes.shape_of(seeds, lanes_, layout), rows)

    wanted = (len(seeds), count)
    if ablation.lanes:
        wanted = (min(len(seeds), ablation.lanes), max(1, min(count, ablation.lanes // len(seeds))))
    turn = memory.fit(lambda *size: engine_for(*size).needed, *wanted, budget, one.name)
    if turn != (len(seeds), count):
        bar.write(f"  {one.name}: {turn[0]} seeds × {turn[1]} settings at once, the rest in turns")
    return engine_for, turn


def _read(file: pathlib.Path) -> dict[str, Any] | None:
    """lanes.json of a program that was trained already."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except json.JSONDecodeError:
        raise UserError(f"{file}: damaged; delete it to train this program's lanes again") from None
