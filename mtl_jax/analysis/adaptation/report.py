"""The report of --mode=adapt: a table on the terminal, scores against steps and against k."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from mtl_jax.analysis import plotting, tables
from mtl_jax.analysis.adaptation.adapt import AdaptResult
from mtl_jax.analysis.report import warning_lines


def rows(result: AdaptResult) -> tables.TableRows:
    """A row for each k and each run."""
    tasks = result["tasks"]
    header = [
        "examples of each class",
        "from",
        result["metric"],
        *(tasks if len(tasks) > 1 else ()),
        f"− {result['against']}",
        "rate",
        "steps",
    ]
    table = []
    for k in map(str, result["shots"]):
        for name in result["runs"]:
            chosen, difference = result["chosen"][name][k], result["differences"].get(name, {}).get(k)
            values = [result["mean"][name][k]]
            if len(tasks) > 1:
                values += [result["by_task"][name][k][task] for task in tasks]
            change = tables.format_change(difference) if difference else None
            means = map(tables.format_mean, values)
            table.append([k, name, *means, change, f"{chosen['rate']:g}", str(chosen["steps"])])
    return header, table


def render(result: AdaptResult, out: pathlib.Path) -> str:
    """Draws the figures into out/figures and returns the text for the terminal."""
    tuned = ", ".join(result["tuned_on"]) or "the same tasks, other draws"
    figures = [str(picture.file) for picture in draw(result, out / "figures")]
    return "\n".join(
        [
            tables.text_table(*rows(result)),
            "",
            f"on test, ± 95 % over {result['draws']} draws of the support, of a single run; rate and steps chosen on "
            f"dev of {tuned};",
            "differences paired by draw, p corrected by Holm",
            *warning_lines(result, out / "adapt.json"),
            "",
            f"numbers  {out / 'adapt.json'}",
            f"figures  {', '.join(figures)}",
        ]
    )


def draw(result: AdaptResult, folder: pathlib.Path) -> list[plotting.Picture]:
    """The curves over steps, a panel for each k, and the scores against k."""
    names, shots = list(result["runs"]), [str(k) for k in result["shots"]]
    styles = dict(
        zip(names, zip(plotting.colours_by_name(names), plotting.MARKERS * len(names), strict=False), strict=True)
    )
    figure, axes = plotting.panels(*plotting.grid_shape(len(shots)))
    for k, panel in zip(shots, axes.flat, strict=False):
        for name, (colour, marker) in styles.items():
            _line(panel, result["steps"], result["curves"][name][k], colour, marker, name)
            chosen = result["chosen"][name][k]["steps"]
            best = result["mean"][name][k]["mean"]
            panel.plot(chosen, best, "*", color=colour, markeredgecolor="black", markersize=13, label="chosen on dev")
        panel.set_xscale("symlog", linthresh=1)
        panel.set_xticks(result["steps"], [str(n) for n in result["steps"]])
        panel.set(title=f"{k} of each class", xlabel="steps", ylabel=f"{result['metric']} (test)")
    plotting.hide_empty(axes.flat[len(shots) :])
    caption = "Score on test against the steps of adaptation, at the rate chosen on dev; 95 % intervals over draws."
    pictures = [plotting.Picture(plotting.save(figure, folder / "adapt_steps.png"), caption)]
    if len(shots) > 1:
        figure, axes = plotting.panels(1, 1)
        for name, (colour, marker) in styles.items():
            _line(axes[0, 0], result["shots"], [result["mean"][name][k] for k in shots], colour, marker, name)
        axes[0, 0].set_xticks(result["shots"], shots)
        axes[0, 0].set(xlabel="examples of each class", ylabel=f"{result['metric']} (test)")
        caption = "Score on test against the examples of each class, at rate and steps chosen on dev."
        pictures.append(plotting.Picture(plotting.save(figure, folder / "adapt_shots.png"), caption))
    return pictures


def _line(
    axes: Axes, x: Sequence[int], intervals: Sequence[Mapping[str, Any]], colour: Any, marker: str, label: str
) -> None:
    axes.plot(x, [i["mean"] for i in intervals], marker=marker, markersize=4, linewidth=1.4, color=colour, label=label)
    if all(i["low"] is not None for i in intervals):
        low, high = [i["low"] for i in intervals], [i["high"] for i in intervals]
        axes.fill_between(x, low, high, color=colour, alpha=plotting.BAND, linewidth=0)
