"""The figures of ordinary runs: the curves of one, the scores of several."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mtl_jax.storage.metrics_log import read_metrics


def draw_curves(workdir: pathlib.Path, file: pathlib.Path | None = None) -> pathlib.Path | None:
    """Draws training loss and dev score of each task against the step. Returns the PNG, None without any line.

    Args:
      workdir: of the run.
      file: the PNG; None: figures/curves.png of the workdir.
    """
    lines = read_metrics(workdir)
    train = [line for line in lines if line["kind"] == "train"]
    dev = [line for line in lines if line["kind"] == "dev"]
    if not train:
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for task in train[0]["loss"]:
        points = [(line["step"], line["loss"][task]) for line in train if line["loss"].get(task) is not None]
        left.plot(*zip(*points, strict=True), label=task, linewidth=1.2) if points else None
    left.set(title="training loss", xlabel="step", yscale="log")
    for task in dev[0]["tasks"] if dev else ():
        metric = next(iter(dev[0]["tasks"][task]))
        points = [(line["step"], line["tasks"][task][metric]) for line in dev]
        right.plot(*zip(*points, strict=True), label=f"{task} ({metric})", marker="o", markersize=3)
    right.set(title="dev score", xlabel="step")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    file = file or workdir / "figures" / "curves.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    pyplot.close(figure)
    return file


BALANCE = {  # field of a line of the log: title of its panel
    "alpha": "α, weights of the losses",
    "weights": "weights of the aggregation",
    "task_norms": "norms of gradients over the shared parameters",
    "lowest_cosine": "lowest cosine to another task's gradient",
}


def draw_balance(workdir: pathlib.Path, file: pathlib.Path | None = None) -> pathlib.Path | None:
    """Draws the balance of the tasks against the step. Returns the PNG, None where nothing varies.

    Args:
      workdir: of the run.
      file: the PNG; None: figures/balance.png of the workdir.
    """
    train = [line for line in read_metrics(workdir) if line["kind"] == "train"]
    panels = {
        field: {
            task: [(line["step"], line[field][task]) for line in train if line[field][task] is not None]
            for task in train[0][field]
        }
        for field in BALANCE
        if train and field in train[0]
    }
    panels = {field: by_task for field, by_task in panels.items() if any(by_task.values())}
    constant = all(len({value for _, value in points}) <= 1 for points in panels.get("alpha", {}).values())
    if constant:
        panels.pop("alpha", None)
    if not panels:
        return None
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, drawn = pyplot.subplots(
        1, len(panels), figsize=(1 + 4.5 * len(panels), 3.8), layout="constrained", squeeze=False
    )
    for axes, (field, by_task) in zip(drawn[0], panels.items(), strict=True):
        for task, points in by_task.items():
            if points:
                axes.plot(*zip(*points, strict=True), label=task, linewidth=1.2)
        axes.set(title=BALANCE[field], xlabel="step")
        if field == "task_norms":
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    file = file or workdir / "figures" / "balance.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    pyplot.close(figure)
    return file


def draw_comparison(result: Mapping[str, Any], names: Sequence[str], file: pathlib.Path) -> None:
    """Bars of each task's first metric on test (dev where there is no test), one for each run.

    Args:
      result: {task: {split: {metric: {run: value}}}}.
      names: of the runs.
      file: the PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(result), figsize=(1.5 + 3 * len(result), 3.6), layout="constrained", squeeze=False
    )
    for axes, (task, splits) in zip(panels[0], result.items(), strict=True):
        split = "test" if "test" in splits else next(iter(splits))
        metric, values = next(iter(splits[split].items()))
        heights = [0.0 if values[name] is None else values[name] for name in names]
        bars = axes.bar(names, heights, color=[f"C{i}" for i in range(len(names))])
        axes.bar_label(bars, ["–" if values[name] is None else f"{values[name]:.3f}" for name in names], fontsize=8)
        axes.set(title=f"{task}: {split} {metric}", ylim=(1.12 * min([*heights, 0.0]), 1.12 * max([*heights, 0.1])))
        axes.tick_params(axis="x", labelrotation=30)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    pyplot.close(figure)
