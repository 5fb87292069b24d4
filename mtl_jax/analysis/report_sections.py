"""The sections of report.html: ablations, finished and unfinished runs, comparisons."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtl_jax.analysis import html, tables
from mtl_jax.analysis.ablation import records, results
from mtl_jax.analysis.ablation.conclusions import LIMIT_NAMES, describe, describe_choices
from mtl_jax.analysis.ablation.summary import main_split
from mtl_jax.analysis.plotting import file_name
from mtl_jax.analysis.relatedness import report_section
from mtl_jax.analysis.relatedness.relate import read
from mtl_jax.analysis.run_figures import draw_balance, draw_curves
from mtl_jax.analysis.settings import command, configuration
from mtl_jax.errors import UserError
from mtl_jax.storage import run_warnings
from mtl_jax.storage.metrics_log import read_metrics
from mtl_jax.storage.summary import RunWarning, Summary
from mtl_jax.storage.workdir import read_config, read_summary

Parts = list[html.Html]


def ablation_section(
    folder: pathlib.Path,
    grid: records.Grid,
    summary: Mapping[str, Any],
    figures: pathlib.Path,
) -> Parts:
    """The section of an ablation; draws its figures into `figures`."""
    from mtl_jax.analysis.ablation.figures.draw import draw

    config = read_config(folder) if (folder / "config.json").exists() else {}
    parts = [html.heading("Setup"), html.bullet_list(_run(grid, summary))]
    parts += configuration(config)
    parts.append(html.heading("Results"))
    parts += warnings_section(grid.warnings)
    combinations = summary["combinations"]
    for c in combinations:
        name = describe_choices(c["choices"])
        parts += [html.heading(name, 3)] if name else []
        parts += [html.paragraph(c["verdict"]), *(html.paragraph(w, warning=True) for w in c["warnings"])]
    for split in summary["splits"]:
        title = "Mean score of the tasks on dev" if split == "dev" else f"The settings chosen on dev, on {split}"
        parts += [html.heading(title, 3), html.table(*tables.overview_rows(summary, split))]
    for compared in summary["baselines"]:
        rest = describe_choices(compared["rest"])
        parts.append(html.heading(f"Against {compared['baseline']}{f', {rest}' if rest else ''}", 3))
        parts.append(html.table(*tables.baseline_rows(compared, main_split(summary))))
    parts.append(
        html.paragraph(
            "± is half a 95 % interval over seeds (Student's t). Differences (−) are paired by seed, with the p of a "
            "paired t-test; on dev p is corrected by Holm over the settings of the sweep, because the best of them was "
            "chosen there. The limits (single-task, tied, hard sharing) have their own best learning rate on dev."
        )
    )
    parts.append(html.heading("Figures"))
    drawn = draw(grid, summary, figures)
    parts += [html.picture(*picture) for picture in drawn] or [html.paragraph("None: no lane has a value.")]
    parts.append(html.heading("All settings"))
    for c in combinations:
        parts.append(_details(c, summary))
    parts += [html.heading("Notes"), html.bullet_list(grid.notes)] if grid.notes else []
    return parts + _reproduce(grid, config, combinations)


def _run(grid: records.Grid, summary: Mapping[str, Any]) -> Iterator[str]:
    method = ", ".join(f"{key} {value}" for key, value in grid.method.items() if key != "name")
    yield f"method: {grid.method['name']}{f' ({method})' if method else ''}"
    yield f"tasks and their scores: {', '.join(f'{task} ({metric})' for task, metric in summary['scores'].items())}"
    for name, sweep in grid.sweeps.items():
        values = ", ".join(f"{value:.4g}" for value in sweep["values"] if value is not None)
        yield f"sweep {name}: {sweep['field']} = {values}"
    for name, alternatives in grid.choices.items():
        yield f"choice {name}: {', '.join(alternatives)}"
    yield f"seeds: {', '.join(map(str, summary['seeds']))}"
    yield f"lanes: {', '.join(f'{count} {status}' for status, count in summary['statuses'].items())}"


def _details(combination: Mapping[str, Any], summary: Mapping[str, Any]) -> html.Html:
    """The tables of one combination of choices, folded."""
    parts = [html.table(*tables.points_rows(combination, summary["scores"], summary.get("selection", "mean")))]
    parts.append(
        html.paragraph(
            "★ chosen on dev; ◆ no other setting is better for all tasks; scores are those on dev; frozen and "
            "dropped lanes are in no mean."
        )
    )
    for end, tuned in combination["ends"].items():
        tried = tuned["tried"] if tuned else []
        rows = [
            [describe(t["values"]), tables.format_mean(t["score"]), "" if t["eligible"] else "not finished"]
            for t in tried
        ]
        if rows:
            header = ["setting", "mean score (dev)", ""]
            parts += [html.heading(f"{LIMIT_NAMES[end]}: all settings", 3), html.table(header, rows)]
    if combination["chosen"] is not None:
        for split in (s for s in summary["splits"] if s in combination["points"][combination["chosen"]]["average"]):
            rows = tables.tasks_rows(combination, summary["scores"], split)
            parts += [html.heading(f"By task, {split} (no correction over tasks)", 3), html.table(*rows)]
    title = describe_choices(combination["choices"]) or "all settings, with the limits"
    return html.details(title, html.Html("".join(parts)))


def _reproduce(grid: records.Grid, config: Mapping[str, Any], combinations: Sequence[Mapping[str, Any]]) -> Parts:
    chosen = [c for c in combinations if c["chosen"] is not None]
    if not chosen:
        return []
    best = max(chosen, key=lambda c: c["points"][c["chosen"]]["score"]["mean"])
    point = best["points"][best["chosen"]]
    setting = ", ".join(filter(None, [describe_choices(best["choices"]), describe(point["values"])]))
    return [
        html.heading("Training one lane again, as a run"),
        html.paragraph(
            f"The setting with the highest mean score on dev ({setting}) with seed {point['seeds'][0]}; CONFIG.py is "
            "the config of this ablation. It has the same batches and initial values as the lane."
        ),
        html.code(command(grid, config, best["choices"], point["values"], point["seeds"][0])),
    ]


def report_sections(named: Mapping[str, pathlib.Path], out: pathlib.Path) -> Parts:
    """Sections about any runs and ablations; figures are written to out/figures.

    Raises:
      UserError: a folder without a run; a damaged file.
    """
    parts: Parts = []
    finished, grids, relations = {}, {}, {}
    for name, workdir in named.items():  # reads everything that may be damaged before anything is drawn
        if not any((workdir / file).exists() for file in ("config.json", "ablation.json", "summary.json")):
            raise UserError(f"{workdir}: neither config.json nor ablation.json, so this is not the folder of a run")
        if (workdir / "summary.json").exists():
            finished[name] = _summary(workdir)
        if (workdir / "ablation.json").exists():
            grids[name] = results.read_grid(workdir)
        if (workdir / "relatedness.json").exists():
            relations[name] = read(workdir)
    if len(finished) > 1:
        parts += [html.heading("Comparison of the runs"), html.table(*tables.comparison_rows(finished)[0])]
    for name, workdir in named.items():
        figures = out / "figures" / file_name(name)
        parts.append(html.heading(name))
        if name in grids:
            parts += ablation_section(workdir, grids[name], results.summarise(grids[name]), figures)
        if name in relations:
            related = relations[name]
            parts += [*warnings_section(related["warnings"]), *report_section.relatedness(workdir, related, figures)]
        elif name in finished:
            parts += _finished(workdir, finished[name], figures)
        elif name not in grids:
            parts += _unfinished(workdir, figures)
    return parts


def warnings_section(entries: Sequence[RunWarning]) -> Parts:
    """What a reader of the scores has to know, see `run_warnings`; a long list is folded."""
    shown = run_warnings.format_lines(entries, "the list below")
    parts = [html.paragraph(line, warning=True) for line in shown]
    if len(entries) > sum(entry["text"] in shown for entry in entries):
        parts.append(html.details(f"All {len(entries)} warnings", html.bullet_list(entry["text"] for entry in entries)))
    return parts


def _summary(workdir: pathlib.Path) -> Summary:
    try:
        return read_summary(workdir)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{workdir / 'summary.json'}: not JSON ({error}); delete it and start the run again") from None


def _finished(workdir: pathlib.Path, summary: Summary, figures: pathlib.Path) -> Parts:
    parts = [
        html.paragraph(f"Step {summary['step']}, {summary['seconds']:.0f} s, {summary['parameters']:,} parameters.")
    ]
    parts += configuration(read_config(workdir) if (workdir / "config.json").exists() else {})
    parts += [html.heading("Scores", 3), html.table(*tables.results_rows(summary))]
    parts += warnings_section(summary.get("warnings", ()))
    if summary.get("distances"):
        parts += [
            html.heading("Distances between the tasks' parameters", 3),
            html.table(*tables.distances_rows(summary["distances"])),
        ]
    return parts + _curves(workdir, figures)


def _curves(workdir: pathlib.Path, figures: pathlib.Path) -> Parts:
    drawn = draw_curves(workdir, figures / "curves.png")
    if drawn is None:
        return [html.paragraph("No curves: nothing was logged.")]
    parts = [html.picture(drawn, "Training loss and dev score of each task by step.")]
    if balanced := draw_balance(workdir, figures / "balance.png"):
        parts.append(html.picture(balanced, "The balance of the tasks by step."))
    return parts


def _unfinished(workdir: pathlib.Path, figures: pathlib.Path) -> Parts:
    """What a run has so far."""
    config, lines = read_config(workdir), read_metrics(workdir)
    dev = [line for line in lines if line["kind"] == "dev"]
    files = [file.name for file in sorted(workdir.iterdir())]
    parts = [html.paragraph("Not finished: there is no summary.json; the same command resumes it.", warning=True)]
    if lines:
        planned = config.get("training", {}).get("steps")
        parts.append(html.paragraph(f"Logged up to step {lines[-1]['step']} of {planned}; no test scores yet."))
    elif config.get("ablation", {}).get("sweeps") or config.get("ablation", {}).get("choices"):
        parts.append(html.paragraph("No step is logged. As an ablation it has no result yet: no ablation.json."))
        programs = sorted((workdir / "programs").glob("*"))
        status = {True: "all lanes trained", False: "in progress"}
        parts.append(html.bullet_list(f"{p.name}: {status[(p / 'lanes.json').exists()]}" for p in programs))
    parts.append(html.paragraph(f"Files: {', '.join(files)}."))
    parts += configuration(config)
    if dev:
        scores = dev[-1]["tasks"].items()
        rows = [[task, metric, value] for task, metrics in scores for metric, value in metrics.items()]
        parts.append(html.heading(f"Last dev scores, step {dev[-1]['step']}", 3))
        parts.append(html.table(["task", "metric", "dev"], rows))
    return parts + _curves(workdir, figures)
