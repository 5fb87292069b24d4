"""The section of report.html, and the tables, of --mode=relate."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from mtl_jax.analysis import html, tables
from mtl_jax.analysis.ablation.conclusions import p_value
from mtl_jax.analysis.relatedness.figures import draw
from mtl_jax.analysis.relatedness.registry import MEASURES
from mtl_jax.analysis.relatedness.relate import Relatedness
from mtl_jax.analysis.settings import configuration
from mtl_jax.storage.workdir import read_config


def gain_rows(result: Relatedness) -> tables.TableRows:
    """A row for each task: its score when trained alone, and its gain with each other task."""
    tasks = result["tasks"]
    rows = []
    for j, task in enumerate(tasks):
        gains = [None if i == j else _gain(result["gain"][i][j]) for i in range(len(tasks))]
        rows.append([task, result["metrics"][task], tables.format_mean(result["alone"][task]), *gains])
    return ["task", f"score ({result['split']})", "alone", *(f"with {task}" for task in tasks)], rows


def _gain(difference: Mapping[str, Any]) -> str | None:
    if difference["mean"] is None:
        return None
    p = difference["corrected_p"]
    return f"{difference['mean']:+.3f}{'*' if p is not None and p < 0.05 else ''}"


def measure_rows(result: Relatedness) -> tables.TableRows:
    """A row for each measure: how well it predicts transfer, best first."""

    def order(entry: Mapping[str, Any]) -> float:
        rho = entry["correlation"]["rho"]
        return -2.0 if rho is None else rho

    rows = []
    for entry in sorted(result["measures"].values(), key=order, reverse=True):
        c = entry["correlation"]
        interval = "–" if c["low"] is None else f"{c['low']:+.2f} to {c['high']:+.2f}"
        rho = "–" if c["rho"] is None else f"{c['rho']:+.2f}"
        sign = " (negative)" if entry["distance"] else ""
        rows.append([entry["title"] + sign, rho, interval, "–" if c["p"] is None else p_value(c["p"]), str(c["pairs"])])
    return ["measure against transfer", "Spearman's ρ", "95 % interval", "Mantel, one-sided", "pairs"], rows


def describe_groups(result: Relatedness) -> list[str]:
    """Sentences on groups and auxiliary tasks."""
    groups = result["groups"]
    quality = "the optimum" if groups["exact"] else "found greedily"
    listed = "; ".join(
        f"{', '.join(group)}" + (f" (for {', '.join(served)})" if (served := _served(groups, n)) != group else "")
        for n, group in enumerate(groups["groups"])
    )
    basis = f"estimated by {MEASURES[groups['by']].title}" if groups["by"] else "estimated from pairs"
    lines = [f"groups to train together: {listed}: total gain {groups['gain']:+.3f}, {basis}, {quality}"]
    for task, helpers in result["auxiliary"].items():
        lines.append(f"auxiliary tasks for {task}: {', '.join(helpers) or 'none helps it'}")
    return lines


def _served(groups: Mapping[str, Any], number: int) -> list[str]:
    return [task for task, group in groups["served"].items() if group == number]


def relatedness(folder: pathlib.Path, result: Relatedness, figures: pathlib.Path) -> list[html.Html]:
    """The whole section; draws its figures into `figures`."""
    config = read_config(folder) if (folder / "config.json").exists() else {}
    parts = configuration(config)
    measured = any(d and d["n"] for row in result["gain"] for d in row)
    if measured:
        parts += [html.heading("What tasks gain from each other"), html.table(*gain_rows(result))]
        parts.append(
            html.paragraph(
                "Single tasks and pairs were trained as lanes, and scored after the last step; gains are paired by "
                "seed. * p < 0.05 after Holm's correction over all ordered pairs."
            )
        )
    pictures = draw(result, figures)
    first = 2 if measured else 0
    parts += [html.picture(*picture) for picture in pictures[:first]]
    parts += [html.heading("Which tasks to train together", 3), html.bullet_list(describe_groups(result))]
    parts.append(
        html.paragraph(
            "The gain of a task in a group is estimated by the mean of its gains in pairs with the other members; "
            "larger groups were not trained."
        )
    )
    if result["measures"]:
        parts += [html.heading("What predicts transfer" if measured else "Measures"), html.table(*measure_rows(result))]
        parts.append(
            html.paragraph(
                "ρ over ordered pairs of tasks. Pairs of one task depend on each other: intervals are by the jackknife "
                "over tasks, and p is the fraction of permutations of the tasks with as large a ρ."
            )
        )
    parts += [html.picture(*picture) for picture in pictures[first:]]
    return parts + ([html.heading("Notes"), html.bullet_list(result["notes"])] if result["notes"] else [])
