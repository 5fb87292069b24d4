"""Reports: tables on the terminal, learning curves, comparisons of runs, report.html."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mtl_jax.analysis import html as pages
from mtl_jax.analysis import report_sections
from mtl_jax.analysis.ablation import records, results
from mtl_jax.analysis.ablation.conclusions import describe_choices
from mtl_jax.analysis.ablation.summary import main_split
from mtl_jax.analysis.relatedness import report_section
from mtl_jax.analysis.relatedness.relate import read
from mtl_jax.analysis.run_figures import draw_balance, draw_comparison, draw_curves
from mtl_jax.analysis.single_task_changes import single_task_changes
from mtl_jax.analysis.tables import (
    baseline_rows,
    comparison_means,
    comparison_rows,
    conclusion_rows,
    distances_rows,
    merging_rows,
    overview_rows,
    points_rows,
    results_rows,
    text_table,
)
from mtl_jax.errors import UserError
from mtl_jax.evaluation.many_tasks import TABLE_ROWS, first_and_last
from mtl_jax.runs import commands
from mtl_jax.runs.merge import MergeResult
from mtl_jax.storage import run_warnings
from mtl_jax.storage.summary import Evaluation, Summary
from mtl_jax.storage.tracking import locations
from mtl_jax.storage.workdir import read_config, read_summary, write_json

MAX_LINES = 60  # of an ablation on the terminal


def warning_lines(result: Mapping[str, Any], file: pathlib.Path) -> list[str]:
    """The warnings below a table, after a blank line; [] for none.

    Args:
      result: with "warnings", see `run_warnings`.
      file: that contains all of them.
    """
    lines = run_warnings.format_lines(result.get("warnings", ()), str(file))
    return ["", "Warnings", *(f"  {line}" for line in lines)] if lines else []


def results_table(summary: Evaluation) -> str:
    """Scores by task and metric, a column for each split, with the number of examples scored.

    Of many tasks the worst and the best by their first metric, and the means.
    """
    header, rows = results_rows(summary)
    if len(rows) > TABLE_ROWS:
        firsts = {next(iter(scores[max(scores)])) for scores in summary["tasks"].values() if scores}
        last = len(header) - 2  # the last split
        chosen = [row for row in rows if row[1] in firsts]
        tasks = first_and_last(chosen, lambda row: -1.0 if row[last] is None else row[last])
        rows = [*tasks, *(row for row in rows if row[0] == "(all)")]
    return text_table(header, rows)


def distances_table(distances: Mapping[str, Mapping[str, float]]) -> str:
    """Distances between the tasks' parameters, pairs of tasks in rows; of many the closest and the farthest."""
    header, rows = distances_rows(distances)
    return text_table(header, first_and_last(rows, lambda row: row[1]))


def training_report(workdir: pathlib.Path, summary: Summary) -> str:
    """The report at the end of `--mode=train`; draws the learning curves, and the balance of the tasks."""
    parts = [results_table(summary)]
    if summary.get("distances"):
        parts += [
            "",
            "Distances between the tasks' parameters, over all layers that they do not share:",
            distances_table(summary["distances"]),
        ]
    parts += warning_lines(summary, workdir / "summary.json")
    drawn = ", ".join(str(figure) for figure in (draw_curves(workdir), draw_balance(workdir)) if figure)
    parts += [
        "",
        f"step {summary['step']}, {summary['seconds']:.0f} s, {summary['parameters']:,} parameters",
        f"figures      {drawn or 'none'}",
        f"checkpoints  {workdir / 'checkpoints'} (newest), {workdir / 'best'} (by dev score)",
        f"numbers      {workdir / 'summary.json'}, {workdir / 'metrics.jsonl'}",
        *(f"{tracker:<13}{location}" for tracker, location in locations(workdir).items()),
        "",
    ]
    first, *others = commands.next_commands(workdir)
    return "\n".join([*parts, f"next         {first}", *(f"             {line}" for line in others)])


def comparison_report(workdirs: Sequence[pathlib.Path], out: pathlib.Path) -> str:
    """Compares runs: a table, out/compare.json and out/figures/compare.png.

    Raises:
      UserError: a run that is not finished.
    """
    names = [workdir.name for workdir in workdirs]
    if len(set(names)) != len(names):
        names = [str(workdir) for workdir in workdirs]
    summaries = {name: read_summary(workdir) for name, workdir in zip(names, workdirs, strict=True)}
    for workdir in workdirs:
        read_config(workdir)
    (header, rows), result = comparison_rows(summaries)
    out.mkdir(parents=True, exist_ok=True)
    compared = {
        "runs": {n: str(w) for n, w in zip(names, workdirs, strict=True)},
        "tasks": result,
        "means": comparison_means(summaries),
        "delta_m": single_task_changes(summaries),
        "warnings": run_warnings.combine_runs(summaries),
    }
    write_json(out / "compare.json", compared)
    draw_comparison(result, names, out / "figures" / "compare.png")
    return "\n".join([text_table(header, rows), *warning_lines(compared, out / "compare.json")])


def merging_report(out: pathlib.Path, result: MergeResult) -> str:
    """The report of `--mode=merge`: each task's first metric on the reported split, a row for each method."""
    header, rows = merging_rows(result)
    return "\n".join(
        [
            text_table(header, rows),
            *warning_lines(result, out / "merging.json"),
            "",
            f"merged   {', '.join('/'.join(column['tasks']) for column in result['columns'])}",
            f"written  {out}: {result['chosen']}, the best on dev; numbers in {out / 'merging.json'}",
            f"next     {commands.next_commands(out)[0]}",
        ]
    )


def ablation_report(folder: pathlib.Path) -> str:
    """Draws the figures of a finished ablation and writes folder/report.html.

    Args:
      folder: with ablation.json, see `results.write_grid`; its config.json is shown where there is one.

    Returns:
      the text for the terminal: tables, conclusions, files.

    Raises:
      UserError: no ablation.json, or a damaged one.
    """
    grid = results.read_grid(folder)
    summary = results.summarise(grid)
    parts = report_sections.ablation_section(folder, grid, summary, folder / "figures")
    file = pages.save(folder / "report.html", f"Ablation {folder.name}", parts)
    files = [
        "",
        f"report   {file}",
        f"numbers  {folder / 'ablation.csv'} (one row for each score), {folder / 'ablation.json'}",
        f"figures  {folder / 'figures'}",
    ]
    lines = _ablation_text(folder, grid, summary)
    room = MAX_LINES - len(files)
    if len(lines) > room:
        lines = [*lines[: room - 1], f"… {len(lines) - room + 1} more lines in the report"]
    return "\n".join(lines + files)


def relatedness_report(folder: pathlib.Path) -> str:
    """Draws the figures of a finished --mode=relate, writes folder/report.html and returns the text for the terminal.

    Args:
      folder: with relatedness.json.
    """
    result = read(folder)
    parts = report_section.relatedness(folder, result, folder / "figures")
    file = pages.save(folder / "report.html", f"How tasks relate: {folder.name}", parts)
    text = [
        *text_table(*report_section.gain_rows(result)).splitlines(),
        "",
        *text_table(*report_section.measure_rows(result)).splitlines(),
        "",
    ]
    return "\n".join(
        [
            *text,
            *report_section.describe_groups(result),
            *result["notes"],
            *warning_lines(result, folder / "relatedness.json"),
            "",
            f"report   {file}",
            f"numbers  {folder / 'relatedness.csv'} (one row for each pair), {folder / 'relatedness.json'}",
            f"figures  {folder / 'figures'}",
        ]
    )


def _ablation_text(folder: pathlib.Path, grid: records.Grid, summary: Mapping[str, Any]) -> list[str]:
    statuses = ", ".join(f"{count} {status}" for status, count in summary["statuses"].items())
    text = [f"{len(grid.lanes)} lanes, {len(summary['seeds'])} seeds: {statuses}"]
    text += [*warning_lines({"warnings": grid.warnings}, folder / "ablation.json"), ""]
    combinations = summary["combinations"]
    if len(combinations) == 1:
        text += [
            *text_table(
                *points_rows(combinations[0], summary["scores"], summary.get("selection", "mean"))
            ).splitlines(),
            "",
        ]
    elif len(combinations) > 3 and any(c["comparison"] for c in combinations):
        text += [*text_table(*conclusion_rows(summary)).splitlines(), ""]
    for compared in summary["baselines"]:
        text += [*text_table(*baseline_rows(compared, main_split(summary))).splitlines(), ""]
    for split in reversed(summary["splits"]):  # the last lines may be cut
        if split != "dev":
            text.append(f"The settings chosen on dev, on {split}:")
        elif len(combinations) > 1:
            text.append("Mean score of the tasks on dev:")
        else:
            continue
        text += [*text_table(*overview_rows(summary, split)).splitlines(), ""]
    if len(combinations) <= 3 or not any(c["comparison"] for c in combinations):
        for c in combinations:
            name = describe_choices(c["choices"])
            text += [f"{name}: {c['verdict']}" if name else c["verdict"], *(f"  {w}" for w in c["warnings"])]
    return [*text, *(f"  {note}" for note in grid.notes)]


def report_page(workdirs: Sequence[pathlib.Path], out: pathlib.Path) -> pathlib.Path:
    """One report.html about any runs and ablations, finished or not.

    Args:
      workdirs: their folders.
      out: folder of report.html and its figures; it is created.

    Returns:
      the file.

    Raises:
      UserError: no folder; a folder without a run; a damaged file.
    """
    if not workdirs:
        raise UserError("a report needs the folder of at least one run")
    workdirs = list(dict.fromkeys(pathlib.Path(workdir) for workdir in workdirs))
    names = [workdir.resolve().name for workdir in workdirs]
    if len(set(names)) != len(names):
        names = [str(workdir) for workdir in workdirs]
    named = dict(zip(names, workdirs, strict=True))
    out.mkdir(parents=True, exist_ok=True)
    return pages.save(out / "report.html", f"Report: {', '.join(names)}", report_sections.report_sections(named, out))
