"""The figures of ordinary runs: the curves of one, the scores of several."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mtl_jax.evaluation.many_tasks import LISTED_TASKS, summarized_curves
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
    losses = {
        task: [(line["step"], line["loss"][task]) for line in train if line["loss"].get(task) is not None]
        for task in train[0]["loss"]
    }
    for task, points in summarized_curves(losses, lambda x: x).items():
        left.plot(*zip(*points, strict=True), label=task, linewidth=1.2)
    left.set(title="training loss", xlabel="step", yscale="log")
    metrics = {task: next(iter(scores)) for task, scores in dev[0]["tasks"].items()} if dev else {}
    scores = {
        task: [(line["step"], value) for line in dev if (value := line["tasks"][task][name]) is not None]
        for task, name in metrics.items()
    }
    for task, points in summarized_curves(scores, lambda x: -x).items():
        label = f"{task} ({metrics[task]})" if task in metrics else task
        right.plot(*zip(*points, strict=True), label=label, marker="o", markersize=3)
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
LARGEST_OF = {"lowest_cosine": lambda cosine: -cosine}  # of many tasks those are drawn where this is largest, or |x|


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
        for task, points in summarized_curves(by_task, LARGEST_OF.get(field, abs)).items():
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
      result: {task: {split: {metric: {run: value}}}}; of many tasks those are drawn on which the runs differ most.
      names: of the runs.
      file: the PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    result = _most_different(result, names)
    figure, panels = pyplot.subplots(
        1, len(result), figsize=(1.5 + 3 * len(result), 3.6), layout="constrained", squeeze=False
    )
    for axes, (task, splits) in zip(panels[0], result.items(), strict=True):
        split, metric, values = _first_scores(splits)
        heights = [0.0 if values[name] is None else values[name] for name in names]
        bars = axes.bar(names, heights, color=[f"C{i}" for i in range(len(names))])
        axes.bar_label(bars, ["–" if values[name] is None else f"{values[name]:.3f}" for name in names], fontsize=8)
        axes.set(title=f"{task}: {split} {metric}", ylim=(1.12 * min([*heights, 0.0]), 1.12 * max([*heights, 0.1])))
        axes.tick_params(axis="x", labelrotation=30)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
    pyplot.close(figure)


def _first_scores(splits: Mapping[str, Any]) -> tuple[str, str, Mapping[str, float | None]]:
    """Split, first metric and its values by run: of test, or else of the first split."""
    split = "test" if "test" in splits else next(iter(splits))
    metric, values = next(iter(splits[split].items()))
    return split, metric, values


def _most_different(result: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The tasks of `draw_comparison`; of many those whose first metric differs most between runs."""
    if len(result) <= LISTED_TASKS:
        return dict(result)

    def spread(task: str) -> float:
        _, _, values = _first_scores(result[task])
        known = [values[name] for name in names if values[name] is not None]
        return max(known, default=0.0) - min(known, default=0.0)

    return {task: result[task] for task in sorted(result, key=spread, reverse=True)[:LISTED_TASKS]}
