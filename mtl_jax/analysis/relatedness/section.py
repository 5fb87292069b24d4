"""The part of report.html, and the tables, about how tasks relate."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from mtl_jax.analysis import html, tables
from mtl_jax.analysis.ablation.verdicts import p_value
from mtl_jax.analysis.relatedness.figures import draw
from mtl_jax.analysis.settings import configuration
from mtl_jax.storage.workdir import read_config


def gain_rows(found: Mapping[str, Any]) -> tables.TableRows:
    """A row for each task: its score alone, and what it gains with each other."""
    tasks = found["tasks"]
    rows = []
    for j, task in enumerate(tasks):
        gains = [None if i == j else _gain(found["gain"][i][j]) for i in range(len(tasks))]
        rows.append([task, found["metrics"][task], tables.format_mean(found["alone"][task]), *gains])
    return ["task", f"score ({found['split']})", "alone", *(f"with {task}" for task in tasks)], rows


def _gain(difference) -> str | None:
    if difference["mean"] is None:
        return None
    p = difference["corrected_p"]
    return f"{difference['mean']:+.3f}{'*' if p is not None and p < 0.05 else ''}"


def measure_rows(found: Mapping[str, Any]) -> tables.TableRows:
    """A row for each measure: how well it foretells transfer, best first."""

    def order(entry):
        rho = entry["correlation"]["rho"]
        return -2.0 if rho is None else rho

    rows = []
    for entry in sorted(found["measures"].values(), key=order, reverse=True):
        c = entry["correlation"]
        interval = "–" if c["low"] is None else f"{c['low']:+.2f} to {c['high']:+.2f}"
        rho = "–" if c["rho"] is None else f"{c['rho']:+.2f}"
        sign = " (negative)" if entry["distance"] else ""
        rows.append([entry["title"] + sign, rho, interval, "–" if c["p"] is None else p_value(c["p"]), str(c["pairs"])])
    return ["measure against transfer", "Spearman's ρ", "95 % interval", "Mantel, one-sided", "pairs"], rows


def describe_groups(found: Mapping[str, Any]) -> list[str]:
    """Sentences on groups and auxiliary tasks."""
    groups = found["groups"]
    how = "the best there is" if groups["exact"] else "found greedily"
    each = "; ".join(
        f"{', '.join(group)}" + (f" (for {', '.join(served)})" if (served := _served(groups, n)) != group else "")
        for n, group in enumerate(groups["groups"])
    )
    lines = [f"groups to train together: {each}: gain {groups['gain']:+.3f} in all by the gains of pairs, {how}"]
    for task, chosen in found["auxiliary"].items():
        lines.append(f"beside {task}: {', '.join(chosen) or 'nothing helps it'}")
    return lines


def _served(groups, number):
    return [task for task, group in groups["served"].items() if group == number]


def relatedness(folder: pathlib.Path, found: Mapping[str, Any], figures: pathlib.Path) -> list[html.Html]:
    """Everything about it; draws its figures into `figures`."""
    config = read_config(folder) if (folder / "config.json").exists() else {}
    parts = configuration(config)
    parts += [html.heading("What tasks gain from each other"), html.table(*gain_rows(found))]
    parts.append(
        html.paragraph(
            "Every pair and every task alone were trained as lanes of one program, and scored after the last step; "
            "gains are paired by seed. * p < 0.05 after Holm's correction over all ordered pairs."
        )
    )
    pictures = draw(found, figures)
    parts += [html.picture(*picture) for picture in pictures[:2]]
    parts += [html.heading("Which tasks to train together", 3), html.bullet_list(describe_groups(found))]
    parts.append(
        html.paragraph(
            "A group is taken to bring a task the mean of what its other members bring it in pairs; what larger groups "
            "really bring was not trained."
        )
    )
    if found["measures"]:
        parts += [html.heading("What foretells transfer"), html.table(*measure_rows(found))]
        parts.append(
            html.paragraph(
                "ρ over ordered pairs of tasks. Pairs of one task depend on each other: intervals are by the jackknife "
                "over tasks, and p is the share of orders of the tasks that give as large a ρ."
            )
        )
    parts += [html.picture(*picture) for picture in pictures[2:]]
    return parts + ([html.heading("Notes"), html.bullet_list(found["notes"])] if found["notes"] else [])
