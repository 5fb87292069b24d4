"""An ablation from its config to its lanes: programs sequentially, those that are done are read."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from mtl_jax.analysis.ablation import kept_runs, lane_parts, plan, results
from mtl_jax.analysis.ablation.lane_parts import Parts
from mtl_jax.analysis.ablation.lane_program import Sources
from mtl_jax.analysis.ablation.lane_warnings import lane_warnings
from mtl_jax.analysis.ablation.plan import Plan
from mtl_jax.analysis.ablation.program_training import ProgramResults, ProgramTraining, read_program
from mtl_jax.analysis.ablation.records import Grid, Lane
from mtl_jax.analysis.ablation.tracked_lanes import track_grid, track_lanes
from mtl_jax.errors import UserError
from mtl_jax.runtime import distributed
from mtl_jax.runtime.progress import progress_bar
from mtl_jax.runtime.shards import Shard
from mtl_jax.runtime.stop_signals import StopSignals
from mtl_jax.storage import run_warnings
from mtl_jax.storage import workdir as folders
from mtl_jax.storage.tracking import require_ready
from mtl_jax.training.placement import require_platform


def ablate(
    config: ConfigDict,
    workdir: pathlib.Path,
    check: Callable[[ConfigDict], Mapping[str, str]],
    shard: Shard | None = None,
) -> Grid | None:
    """Trains every lane of an ablation; resumes what the workdir has.

    Args:
      config: with `config.ablation`.
      workdir: gets config.json, programs/<name>/lanes.json, ablation.csv and ablation.json.
      check: as in `plan.make_plan`.
      shard: trains the lanes of this one only, and writes no ablation.csv and ablation.json: see `gathering`.

    Returns:
      all lanes that it is for; None where SIGTERM or Ctrl-C stopped it after a checkpoint.

    Raises:
      UserError: what is wrong with the config, the data or the workdir; a lane that does not fit into memory.
    """
    require_platform(config.training.platform)
    require_ready(config)
    folders.require_unclaimed(workdir, config)
    planned = plan.make_plan(config, check)
    selected = lane_parts.part(planned, shard) if shard else lane_parts.whole(planned)
    print(planned.describe())
    if distributed.is_first():
        folders.claim(workdir, config)
    grid = train(planned, method_of(config), workdir, "ablation", selected=selected)
    if grid is not None and shard is None:
        grid = kept_runs.only_chosen(grid) if config.ablation.keep == "chosen" else grid
        if distributed.is_first():
            results.write_grid(workdir, grid)
            kept_runs.delete_others(workdir, grid)
        track_grid(config, workdir, grid)
        _require_training(workdir, grid)
    return grid


def method_of(config: ConfigDict) -> dict[str, Any]:
    """`Grid.method` of an ablation."""
    return {"name": config.ablation.method, **config.ablation.options.to_dict()}


def _require_training(workdir: pathlib.Path, grid: Grid) -> None:
    """Raises UserError where no step of any lane changed anything."""
    if all(0 < lane.steps == lane.left_out for lane in grid.lanes):
        raise UserError(
            f"{workdir}: nothing was trained: every step of all {len(grid.lanes)} lanes was skipped, because a loss or "
            "gradient was not finite. Lower config.optimizer.learning_rate or λ, and take another --workdir"
        )


def train(
    planned: Plan,
    method: Mapping[str, Any],
    workdir: pathlib.Path,
    description: str,
    sources: Sources | None = None,
    *,
    selected: Parts | None = None,
    tracked_in: pathlib.Path | None = None,
) -> Grid | None:
    """Trains lanes of a plan, in workdir/programs, or resumes them.

    Args:
      planned: programs and seeds.
      method: of the grid.
      workdir: gets programs/<name>/lanes.json.
      description: of the progress bar.
      sources: data and encoder that were read already.
      selected: the lanes to train; None: all of them.
      tracked_in: the folder whose run the lanes are parts of in trackers; None: the workdir.

    Returns:
      the grid of these lanes; None where a signal stopped the training.
    """
    sources, done = sources or Sources(), {}
    selected = lane_parts.whole(planned) if selected is None else selected
    programs = [program for program in planned.programs if program.name in selected]
    lane_steps = {p.name: p.config.training.steps * len(selected[p.name]) for p in programs}
    with StopSignals() as stop, progress_bar(description, "step", sum(lane_steps.values())) as bar:
        for program in programs:
            folder = workdir / "programs" / program.name
            results_before = distributed.from_first(lambda folder=folder: read_program(folder))
            if results_before is not None:
                done[program.name] = results_before
                bar.update(lane_steps[program.name])
                track_lanes(program.config, tracked_in or workdir, program.name, results_before["lanes"], bar)
                continue
            trained = ProgramTraining(program, selected[program.name], folder, stop, bar).run(sources)
            if trained is None:
                bar.close()
                print(f"{workdir}: stopped by a signal, saved; the same command resumes from there")
                return None
            done[program.name] = trained
            track_lanes(program.config, tracked_in or workdir, program.name, trained["lanes"], bar)
    return make_grid(planned, method, done)


def make_grid(planned: Plan, method: Mapping[str, Any], done: Mapping[str, ProgramResults]) -> Grid:
    """The grid of a plan from the results of its programs, of which some may be absent."""
    all_lanes = [Lane(**lane) for program in done.values() for lane in program["lanes"]]
    warnings = [warning for program in done.values() for warning in program["warnings"]]
    return Grid(
        sweeps={name: dict(entry) for name, entry in planned.sweeps.items()},
        choices={name: list(names) for name, names in planned.choices.items()},
        baselines={name: list(names) for name, names in planned.baselines.items()},
        costs=[
            {"choices": dict(program.choices), **done[program.name]["cost"]}
            for program in planned.programs
            if program.settings[0].line == "sharing" and program.name in done
        ],
        tasks={task: metrics for program in done.values() for task, metrics in program["tasks"].items()},
        lanes=all_lanes,
        references=[reference for program in done.values() for reference in program["references"]],
        notes=[f"{name}: {note}" for name, program in done.items() for note in program["notes"]],
        method=dict(method),
        warnings=run_warnings.by_severity([*lane_warnings(all_lanes), *warnings]),
        selection=planned.programs[0].config.evaluation.selection,
    )
