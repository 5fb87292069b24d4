"""--mode=merge: columns or runs that began from one base become one encoder, by every method of `sharing.merging`.

What all columns share already stays as it is, and so does each task's head. The merged parameters are an ordinary run:
config.json (with `sharing.trunk` = "all"), model/, checkpoints/ and best/ at step 0, summary.json.
"""

from __future__ import annotations

import itertools
import pathlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import jax

from mtl_jax.config.sections import Config, Merging
from mtl_jax.errors import UserError
from mtl_jax.evaluation.evaluator import Evaluator
from mtl_jax.evaluation.ranking import rank
from mtl_jax.evaluation.scores import (
    ScoredSplits,
    make_evaluator,
    mean_by_split,
    mean_loss,
    placement_from_config,
    score_split,
    score_splits,
    selection_score,
)
from mtl_jax.experiment.assemble import Experiment
from mtl_jax.runs.build import build
from mtl_jax.runs.merge_columns import (
    Column,
    FinishedRun,
    Leaves,
    LoadedRun,
    NoProductsError,
    load_run,
    merged_config,
    merged_template,
    original_scores,
    read_run,
    require_one_base,
    require_same_model,
    stack_different_leaves,
)
from mtl_jax.runtime import distributed
from mtl_jax.runtime.progress import progress_bar
from mtl_jax.sharing.merging import MERGING
from mtl_jax.storage import artifacts, run_warnings
from mtl_jax.storage import workdir as folders
from mtl_jax.storage.checkpoint import Checkpoints
from mtl_jax.storage.data_identity import data_metadata
from mtl_jax.storage.summary import RunWarning, SplitScores, Summary
from mtl_jax.training.objective import Params
from mtl_jax.training.parameter_paths import flatten, with_leaves
from mtl_jax.training.placement import Placement, require_platform


class MergedRow(TypedDict):
    """Scores of a method (or of the columns before merging, or of another run), the options that were best on dev, and
    how many settings of them were tried.
    """

    name: str
    options: dict[str, float]
    tried: int
    scores: SplitScores


class MergeResult(TypedDict):
    """What is written to merging.json.

    runs      folders
    columns   [K] {"run", "tasks"}: what was merged
    metrics   {task: its first metric}
    rows      first the columns as they were, then the methods, then the runs of `config.merging.reference_runs`
    chosen    name of the method that was written
    warnings  what a reader of the scores has to know, see `run_warnings`
    """

    runs: list[str]
    columns: list[dict[str, Any]]
    metrics: dict[str, str]
    rows: list[MergedRow]
    chosen: str
    warnings: list[RunWarning]


class _Merger(NamedTuple):
    """What merging and scoring need: the merged model, the stacked leaves [K, ...] and their base [...]."""

    experiment: Experiment
    evaluator: Evaluator
    placement: Placement
    template: Params
    stack: Leaves
    base: Leaves

    def merge(self, method: str, options: dict[str, float]) -> Params:
        """The merged parameters on the devices. Raises ValueError where these columns have no such mean."""
        key = jax.random.key(self.experiment.config.seed)
        tree = MERGING[method].merge(self.stack, self.base, key=key, **options)
        leaves = flatten(self.template) | {path: leaf[None] for path, leaf in tree.items()}
        return self.placement.replicated(self.placement.put_state(with_leaves(self.template, leaves)))


class _Merged(NamedTuple):
    """The best setting of one method: its rank on dev, its parameters and their scores."""

    rank: tuple[float, float]
    row: MergedRow
    params: Params
    scored: ScoredSplits


def merge(merging: Merging, workdirs: Sequence[pathlib.Path], out: pathlib.Path) -> MergeResult:
    """Merges the columns of finished runs, chooses method and options on dev, and writes the best as a run to `out`.

    Args:
      merging: `config.merging`.
      workdirs: runs of one config except for what they train and how; one run with columns, or several.
      out: folder of the merged run.

    Returns:
      what is written to out/merging.json.

    Raises:
      UserError: what differs between the runs, with the leaf or field and the runs; nothing to merge.
    """
    began = time.monotonic()
    runs = [read_run(workdir) for workdir in workdirs]
    require_platform(runs[0].config.training.platform)
    adapters = merging.adapters or "products"
    config = merged_config(runs, adapters)
    _require_new(out, config)
    other_runs = {str(run): folders.read_summary(pathlib.Path(run).expanduser()) for run in merging.reference_runs}
    try:
        loaded, columns = _load_columns(runs, adapters)
    except NoProductsError:
        if merging.adapters:
            raise
        config = merged_config(runs, "factors")
        loaded, columns = _load_columns(runs, "factors")
    merger = _merger(config, loaded, columns)
    refused: list[RunWarning] = []
    rows: list[MergedRow] = []
    best: _Merged | None = None
    for name in merging.methods or MERGING:
        merged = _best_setting(merger, name, refused)
        if merged is not None:
            rows.append(merged.row)
            best = merged if best is None or merged.rank > best.rank else best
    if best is None:
        raise UserError(f"--mode=merge: {refused[0]['text']}; name others in config.merging.methods")
    seconds = time.monotonic() - began
    summary = _write(out, config, merger, loaded, best, refused=refused, seconds=seconds)
    result: MergeResult = {
        "runs": [str(run.workdir) for run in runs],
        "columns": [{"run": str(column.run), "tasks": list(column.tasks)} for column in columns],
        "metrics": {name: task.metrics[0] for name, task in merger.experiment.tasks.items()},
        "rows": [
            _row("as they were", original_scores(loaded)),
            *rows,
            *(_row(run, other["tasks"]) for run, other in other_runs.items()),
        ],
        "chosen": best.row["name"],
        "warnings": summary["warnings"],
    }
    if distributed.is_first():
        folders.write_json(out / "merging.json", result)
    return result


def _require_new(out: pathlib.Path, config: Config) -> None:
    folders.require_unclaimed(out, config)
    if (out / "summary.json").exists():
        raise UserError(f"{out} holds a merged run; take another --output, or delete it to merge anew")


def _load_columns(runs: Sequence[FinishedRun], adapters: str) -> tuple[list[LoadedRun], list[Column]]:
    """The runs with their parameters, and all their columns, at least two and of one base."""
    sharing = runs[0].config.sharing
    if len(runs) == 1 and sharing.trunk == "all" and not sharing.task_groups and not sharing.adapter:
        raise runs[0].nothing_to_merge()  # before its data are read
    loaded = [load_run(run, adapters) for run in runs]
    columns = [column for run in loaded for column in run.columns]
    if len(columns) < 2:
        raise runs[0].nothing_to_merge()
    require_one_base(columns)
    return loaded, columns


def _merger(config: Config, runs: Sequence[LoadedRun], columns: Sequence[Column]) -> _Merger:
    experiment = build(config, soft_labels=False)
    for run in runs:
        require_same_model(run.run, experiment)
    if not any("dev" in by_split for by_split in experiment.corpus.rows.values()):
        raise UserError("--mode=merge chooses on dev, but no data set has a dev split")
    placement = placement_from_config(experiment)
    stack, base = stack_different_leaves(columns)
    if not stack:
        names = ", ".join(str(run.run.workdir) for run in runs)
        raise UserError(f"--mode=merge: the columns of {names} are equal already (tied)")
    evaluator = make_evaluator(experiment, placement)
    return _Merger(experiment, evaluator, placement, merged_template(experiment, runs), stack, base)


def _best_setting(merger: _Merger, name: str, refused: list[RunWarning]) -> _Merged | None:
    """Tries all options of a method on dev. Settings that the columns do not permit go to `refused`."""
    values_of_options = MERGING[name].options
    grid = [
        dict(zip(values_of_options, values, strict=True)) for values in itertools.product(*values_of_options.values())
    ]
    ranked = []
    with progress_bar(f"merging: {name}", "setting", len(grid), leave=False) as bar:
        for options in grid:
            try:
                params = merger.merge(name, options)
            except ValueError as error:
                refused.append(run_warnings.warning(run_warnings.OTHER, f"{name} was left out: {error}"))
                continue
            scores = score_split(merger.evaluator, params, "dev").scores
            ranked.append((rank(selection_score(scores, merger.experiment), mean_loss(scores)), options))
            bar.update()
    if not ranked:
        return None
    best_rank, options = max(ranked, key=lambda pair: pair[0])
    params = merger.merge(name, options)
    scored = score_splits(merger.evaluator, merger.experiment, params)
    return _Merged(best_rank, _row(name, scored.scores, options, len(grid)), params, scored)


def _row(name: str, scores: SplitScores, options: dict[str, float] | None = None, tried: int = 0) -> MergedRow:
    return {"name": name, "options": options or {}, "tried": tried, "scores": scores}


def _write(
    out: pathlib.Path,
    config: Config,
    merger: _Merger,
    runs: Sequence[LoadedRun],
    best: _Merged,
    *,
    refused: Sequence[RunWarning],
    seconds: float,
) -> Summary:
    """Writes the merged model as the folder of a run at step 0, and returns its summary."""
    experiment, placement = merger.experiment, merger.placement
    if distributed.is_first():
        folders.claim(out, config)
        artifacts.save(out, experiment.corpus, experiment.model.architecture)
    state = experiment.init(config.seed)._replace(params=distributed.to_host(best.params))
    state = placement.replicated(placement.put_state(state))
    metadata = data_metadata(experiment.corpus) | {"progress": {"seconds": seconds}}
    with Checkpoints(out, 1, experiment.spec.objective.groups) as checkpoints:
        checkpoints.save(state, metadata)
        checkpoints.save_best(state, metadata)
    summary: Summary = {
        "tasks": best.scored.scores,
        "means": mean_by_split(best.scored.scores),
        "examples": best.scored.sizes,
        "step": 0,
        "seconds": seconds,
        "distances": {},
        "parameters": sum(int(leaf.size) for leaf in jax.tree.leaves(best.params)),
        "skipped": dict.fromkeys([*experiment.tasks, "shared"], 0),
        "steps": {"made": 0, "left_out": 0},
        "warnings": run_warnings.by_severity(
            [
                *_warnings_of_runs(runs),
                *run_warnings.prediction_warnings(best.scored.remarks),
                *run_warnings.data_warnings(experiment.corpus),
                *refused,
            ]
        ),
    }
    if distributed.is_first():
        folders.write_json(out / "summary.json", summary)
    return summary


def _warnings_of_runs(runs: Sequence[LoadedRun]) -> list[RunWarning]:
    """What the summaries of the merged runs say about their training."""
    workdirs = [run.run.workdir for run in runs]
    return [
        run_warnings.warning(run_warnings.RUNS, f"{workdir}: {entry['text']}", entry["count"], entry["total"])
        for workdir in workdirs
        for entry in run_warnings.training_warnings(workdir)
    ]
