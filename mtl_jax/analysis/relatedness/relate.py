"""--mode=relate: measured transfer between all pairs of tasks, measures that may predict it, groups to train."""

from __future__ import annotations

import csv
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence, Set
from typing import Any, TypedDict

import jax
import numpy as np
from ml_collections import ConfigDict

from mtl_jax.analysis.ablation import parts, runner, traced_fields
from mtl_jax.analysis.ablation.engine import padded
from mtl_jax.analysis.ablation.gathering import Shards, gather_programs
from mtl_jax.analysis.ablation.lane_program import Sources
from mtl_jax.analysis.ablation.records import Grid
from mtl_jax.analysis.relatedness import grouping, transfer
from mtl_jax.analysis.relatedness.measure_inputs import Evidence, JointRun, SeparateColumns, shared_leaves
from mtl_jax.analysis.relatedness.registry import MEASURES
from mtl_jax.analysis.relatedness.transfer import TransferGains
from mtl_jax.analysis.relatedness.validation import correlation
from mtl_jax.config.sections import Config
from mtl_jax.data.corpus import Corpus
from mtl_jax.errors import UserError
from mtl_jax.evaluation import inference
from mtl_jax.evaluation.metric_inputs import has_labels
from mtl_jax.experiment.assemble import Experiment, assemble
from mtl_jax.runtime import distributed
from mtl_jax.runtime.progress import progress_bar
from mtl_jax.runtime.shards import Shard
from mtl_jax.runtime.stop_signals import StopSignals
from mtl_jax.storage import run_warnings
from mtl_jax.storage import workdir as folders
from mtl_jax.storage.summary import RunWarning
from mtl_jax.storage.tracking import require_ready
from mtl_jax.training.placement import require_platform

VERSION = 2  # of relatedness.json
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
    groups        {"groups": [[task, ...]], "served": {task: index}, "gain", "exact"}
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


class _SeedMeasures(TypedDict):
    """The measures of one seed: {measure: [K, K]}; "looks" {"steps", "cosines"} of the joint run, if there is one."""

    matrices: dict[str, list[list[float | None]]]
    looks: dict[str, Any] | None


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
    planned = transfer.transfer_plan(config, tasks)
    selected = parts.part(planned, shard) if shard else parts.whole(planned)
    for setting in planned.programs[0].settings:
        check(traced_fields.with_values(planned.programs[0].config, setting.fields))
    print(planned.describe())
    if distributed.is_first():
        folders.claim(workdir, config)
    sources = Sources()
    _require_scores(config, sources)
    grid = runner.train(
        planned, METHOD, workdir / "transfer", "transfer", sources, selected=selected, tracked_in=workdir
    )
    if grid is None:
        return None
    by_seed = _measure_seeds(config, workdir / "measures", shard.part(planned.seeds) if shard else planned.seeds)
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
    grid = gather_programs(shards, planned, METHOD, {s: folder / "transfer" for s, folder in shards.folders.items()})
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


def _write(config: Config, workdir: pathlib.Path, grid: Grid, by_seed: Sequence[_SeedMeasures]) -> Relatedness:
    """Compares, and writes relatedness.json and relatedness.csv."""
    measured = transfer.transfer_gains(grid, config.relatedness.transfer_split)
    if all(value["mean"] is None for value in measured["alone"].values()):
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
    if len(tasks) < 3:
        raise UserError(f"--mode=relate: {len(tasks)} tasks; pairs can be compared with three tasks or more")
    if config.penalties:
        raise UserError(
            "config.penalties: --mode=relate measures what tasks gain by shared layers, and penalties would act on "
            "tasks that are not trained; leave them out"
        )
    sharing = config.sharing
    if sharing.mixer or sharing.adapter or sharing.cascades or sharing.head_layers or sharing.readout != "top":
        raise UserError(
            "config.sharing: --mode=relate compares columns that are trained separately; take mixer = '', "
            "adapter = '', readout = 'top', and neither head_layers nor cascades"
        )
    if config.sharing.trunk == "none" and not config.sharing.task_groups:
        raise UserError("config.sharing.trunk: 'none' shares nothing, so that no task gains by another; take 'all'")
    if config.aggregation.method != "sum" or config.loss_weights.method != "equal":
        raise UserError(
            "--mode=relate trains pairs with the plain sum; set config.aggregation.method = 'sum' and "
            "config.loss_weights.method = 'equal'"
        )


def _require_scores(config: Config, sources: Sources) -> None:
    """Raises UserError where no task has a label in the split on which transfer is measured."""
    corpus, _ = sources.load(config)
    split, specs = config.relatedness.transfer_split, corpus.specs.items()
    if not any(split in corpus.splits[spec.dataset] and has_labels(corpus, task, split) for task, spec in specs):
        raise UserError(f"config.relatedness.transfer_split: no task has a label in {split!r}")


def _measure_seeds(config: ConfigDict, folder: pathlib.Path, seeds: Sequence[int]) -> list[_SeedMeasures] | None:
    """The measures of each seed, written to `folder`; None where a signal stopped it. Processes divide the seeds."""
    folder.mkdir(parents=True, exist_ok=True)
    names = tuple(config.relatedness.measures) or tuple(MEASURES)
    files = {seed: folder / f"seed_{seed}.json" for seed in seeds}
    by_seed = distributed.from_first(
        lambda: {s: json.loads(file.read_text(encoding="utf-8")) for s, file in files.items() if file.exists()}
    )
    missing = [seed for seed in seeds if seed not in by_seed]
    if missing:
        corpus, joint, columns = _runs(config, {MEASURES[name].needs for name in names})
        processes = jax.process_count() if inference.fits_a_process(config) else 1  # otherwise all measure together
        total = -(-len(missing) // processes) * config.training.steps * ((joint is not None) + (columns is not None))
        with StopSignals() as stop, progress_bar("measures", "step", total) as bar:

            def tick() -> bool:
                bar.update(1)
                return stop.should_stop()

            for first in range(0, len(missing), processes):
                together = missing[first : first + processes]
                # without a seed of its own a process repeats the last one: a stop is agreed on step by step
                seed = padded(together, processes)[jax.process_index() % processes]
                evidence = Evidence(joint and joint(seed, tick), columns and columns(seed, tick), corpus)
                if stop.asked:
                    return None
                matrices = {name: np.asarray(MEASURES[name].compute(evidence), np.float64).tolist() for name in names}
                run = evidence.joint
                looks = run and {"steps": run.steps, "cosines": run.cosines.tolist()}
                measured = distributed.gather(_SeedMeasures(matrices=matrices, looks=looks))
                by_seed |= dict(zip(together, measured, strict=False))
                for seed in together if distributed.is_first() else ():
                    folders.write_json(files[seed], by_seed[seed])
        jax.clear_caches()
    return [folders.finite_json(by_seed[seed]) for seed in seeds]


def _runs(config: ConfigDict, needs: Set[str]) -> tuple[Corpus, JointRun | None, SeparateColumns | None]:
    """The corpus, and the runs that the measures need: of the config itself, and of a column for each task."""
    corpus, encoder = Sources().load(config)

    def experiment(**changes: Any) -> Experiment:
        changed = traced_fields.with_values(config, changes)
        return assemble(changed, corpus, encoder and encoder.architecture, encoder and encoder.params)

    joint = columns = None
    if "joint" in needs:
        all_tasks = experiment()
        if shared_leaves(all_tasks) is None:
            raise UserError("config.optimizer.freeze: no shared parameter is trained, so there are no common gradients")
        joint = JointRun(all_tasks, config.relatedness.measure_every, config.relatedness.lookahead)
    if "columns" in needs:
        separate, trunk = ({"sharing.trunk": name, "sharing.task_groups": ConfigDict()} for name in ("none", "all"))
        columns = SeparateColumns(experiment(**separate), experiment(**trunk), config.relatedness.num_inputs)
    return corpus, joint, columns


def _result(config: Config, grid: Grid, measured: TransferGains, by_seed: Sequence[_SeedMeasures]) -> Relatedness:
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
    finite_gain = np.nan_to_num(gain, nan=0.0)
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


def _mean_looks(by_seed: Sequence[_SeedMeasures]) -> dict[str, Any] | None:
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
