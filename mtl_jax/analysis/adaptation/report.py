"""What --mode=adapt shows: a table on the terminal, scores against steps and against k."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from mtl_jax.analysis import plotting, tables
from mtl_jax.analysis.report import warning_lines


def rows(found: Mapping[str, Any]) -> tables.TableRows:
    """A row for each k and each run."""
    tasks = found["tasks"]
    header = [
        "examples a class",
        "from",
        found["metric"],
        *(tasks if len(tasks) > 1 else ()),
        f"− {found['against']}",
        "rate",
        "steps",
    ]
    result = []
    for k in map(str, found["shots"]):
        for name in found["runs"]:
            chosen, difference = found["chosen"][name][k], found["differences"].get(name, {}).get(k)
            values = [found["mean"][name][k]]
            if len(tasks) > 1:
                values += [found["by_task"][name][k][task] for task in tasks]
            change = tables.format_change(difference) if difference else None
            said = map(tables.format_mean, values)
            result.append([k, name, *said, change, f"{chosen['rate']:g}", str(chosen["steps"])])
    return header, result


def render(found: Mapping[str, Any], out: pathlib.Path) -> str:
    """Draws the figures into out/figures and gives the text of the terminal."""
    tuned = ", ".join(found["tuned_on"]) or "the same tasks, other draws"
    figures = [str(picture.file) for picture in draw(found, out / "figures")]
    return "\n".join(
        [
            tables.text_table(*rows(found)),
            "",
            f"on test, ± 95 % over {found['draws']} draws of the support, one run each; rate and steps chosen on dev "
            f"of {tuned};",
            "differences paired by draw, p corrected by Holm",
            *warning_lines(found, out / "adapt.json"),
            "",
            f"numbers  {out / 'adapt.json'}",
            f"figures  {', '.join(figures)}",
        ]
    )


def draw(found: Mapping[str, Any], folder: pathlib.Path) -> list[plotting.Picture]:
    """The curves over steps, a panel for each k, and the scores against k."""
    names, shots = list(found["runs"]), [str(k) for k in found["shots"]]
    styles = dict(
        zip(names, zip(plotting.colours_by_name(names), plotting.MARKERS * len(names), strict=False), strict=True)
    )
    figure, axes = plotting.panels(*plotting.grid_shape(len(shots)))
    for k, one in zip(shots, axes.flat, strict=False):
        for name, (colour, marker) in styles.items():
            _line(one, found["steps"], found["curves"][name][k], colour, marker, name)
            chosen = found["chosen"][name][k]["steps"]
            best = found["mean"][name][k]["mean"]
            one.plot(chosen, best, "*", color=colour, markeredgecolor="black", markersize=13, label="chosen on dev")
        one.set_xscale("symlog", linthresh=1)
        one.set_xticks(found["steps"], [str(n) for n in found["steps"]])
        one.set(title=f"{k} a class", xlabel="steps", ylabel=f"{found['metric']} (test)")
    plotting.hide_empty(axes.flat[len(shots) :])
    caption = "Score on test against the steps of adaptation, at the rate chosen on dev; 95 % intervals over draws."
    pictures = [plotting.Picture(plotting.save(figure, folder / "adapt_steps.png"), caption)]
    if len(shots) > 1:
        figure, axes = plotting.panels(1, 1)
        for name, (colour, marker) in styles.items():
            _line(axes[0, 0], found["shots"], [found["mean"][name][k] for k in shots], colour, marker, name)
        axes[0, 0].set_xticks(found["shots"], shots)
        axes[0, 0].set(xlabel="examples a class", ylabel=f"{found['metric']} (test)")
        caption = "Score on test against the examples of each class, at rate and steps chosen on dev."
        pictures.append(plotting.Picture(plotting.save(figure, folder / "adapt_shots.png"), caption))
    return pictures


def _line(axes, x, intervals, colour, marker, label):
    axes.plot(x, [i["mean"] for i in intervals], marker=marker, markersize=4, linewidth=1.4, color=colour, label=label)
    if all(i["low"] is not None for i in intervals):
        low, high = [i["low"] for i in intervals], [i["high"] for i in intervals]
        axes.fill_between(x, low, high, color=colour, alpha=plotting.BAND, linewidth=0)
