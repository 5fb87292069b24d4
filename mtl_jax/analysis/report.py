"""What people read at the end: tables on the terminal, learning curves, runs side by side."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from mtl_jax.training.workdir import read_config, read_metrics, read_summary, write_json


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A plain text table: columns of texts to the left, those of numbers, with four digits, to the right."""

    def show(value):
        if value is None:
            return "–"
        return f"{value:.4f}" if isinstance(value, float) else str(value)

    cells = [[show(value) for value in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    left = [all(isinstance(row[i], str) for row in rows) for i in range(len(header))]
    lines = [
        "  ".join(
            c.ljust(w) if to_left else c.rjust(w) for c, w, to_left in zip(row, widths, left, strict=True)
        ).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "  ".join("─" * w for w in widths), *lines[1:]])


def results_table(summary: Mapping[str, Any]) -> str:
    """Scores by task and metric, a column for each split, with the number of examples scored."""
    splits = sorted({split for scores in summary["tasks"].values() for split in scores})
    sizes = summary.get("examples", {})
    rows = []
    for task, scores in summary["tasks"].items():
        metrics = dict.fromkeys(metric for split in splits for metric in scores.get(split, {}))
        for metric in metrics:
            row = [task, metric]
            for split in splits:
                size = sizes.get(task, {}).get(split, {})
                row += [scores.get(split, {}).get(metric), _of(size)]
            rows.append(row)
    header = ["task", "metric"]
    for split in splits:
        header += [split, "examples"]
    return table(header, rows)


def _of(size):
    """ "1000 of 7528" where a subset was scored."""
    if not size:
        return None
    scored, total = size["scored"], size["total"]
    return str(scored) if scored == total else f"{scored} of {total}"


def distances_table(distances: Mapping[str, Mapping[str, float]]) -> str:
    """How far the tasks' parameters are from each other, pairs of tasks in rows."""
    rows = [[pair, d["distance"], d["relative"]] for pair, d in distances.items()]
    return table(["tasks", "‖Θi − Θj‖", "relative to ‖Θ‖"], rows)


def finished(workdir: pathlib.Path, summary: Mapping[str, Any]) -> str:
    """What `--mode=train` says at its end; draws the learning curves."""
    parts = [results_table(summary)]
    if summary.get("distances"):
        parts += ["", "Distance between the tasks' parameters, over all layers that they do not share:",
                  distances_table(summary["distances"])]  # fmt: skip
    figure = curves(workdir)
    parts += [
        "",
        f"step {summary['step']}, {summary['seconds']:.0f} s, {summary['parameters']:,} parameters",
        f"figures      {figure or 'none'}",
        f"checkpoints  {workdir / 'checkpoints'} (newest), {workdir / 'best'} (by dev score)",
        f"numbers      {workdir / 'summary.json'}, {workdir / 'metrics.jsonl'}",
        f"TensorBoard  tensorboard --logdir {workdir / 'events'}",
        "",
        f"next         python launch.py --workdir={workdir} --mode=predict --input=texts.txt",
    ]
    if read_config(workdir)["model"]["layer"] == "transformer":
        parts.append(f"             python launch.py --workdir={workdir} --mode=export --output={workdir / 'export'}")
    return "\n".join(parts)


def curves(workdir: pathlib.Path) -> pathlib.Path | None:
    """Draws figures/curves.png: training loss and dev score of each task against the step. None without any line."""
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
    file = workdir / "figures" / "curves.png"
    file.parent.mkdir(exist_ok=True)
    figure.savefig(file, dpi=130)
    pyplot.close(figure)
    return file


def compare(workdirs: Sequence[pathlib.Path], out: pathlib.Path) -> str:
    """Runs side by side: a table, out/compare.json and out/figures/compare.png.

    Raises:
      UserError: a run that is not finished, names that are the same.
    """
    names = [workdir.name for workdir in workdirs]
    if len(set(names)) != len(names):
        names = [str(workdir) for workdir in workdirs]
    summaries = {name: read_summary(workdir) for name, workdir in zip(names, workdirs, strict=True)}
    for workdir in workdirs:
        read_config(workdir)
    rows, result = [], {}
    tasks = dict.fromkeys(task for summary in summaries.values() for task in summary["tasks"])
    for task in tasks:
        scores = {name: summary["tasks"].get(task, {}) for name, summary in summaries.items()}
        for split in ("dev", "test"):
            metrics = dict.fromkeys(m for by_split in scores.values() for m in by_split.get(split, {}))
            for metric in metrics:
                values = {name: by_split.get(split, {}).get(metric) for name, by_split in scores.items()}
                rows.append([task, split, metric, *values.values()])
                result.setdefault(task, {}).setdefault(split, {})[metric] = values
    rows.append(["(all)", "", "largest distance between tasks", *[_largest(s) for s in summaries.values()]])
    rows.append(["(all)", "", "seconds", *[round(s["seconds"]) for s in summaries.values()]])
    out.mkdir(parents=True, exist_ok=True)
    write_json(
        out / "compare.json", {"runs": {n: str(w) for n, w in zip(names, workdirs, strict=True)}, "tasks": result}
    )
    _draw_comparison(result, names, out / "figures" / "compare.png")
    return table(["task", "split", "metric", *names], rows)


def _largest(summary):
    return max((pair["distance"] for pair in summary.get("distances", {}).values()), default=None)


def _draw_comparison(result, names, file):
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
    file.parent.mkdir(exist_ok=True)
    figure.savefig(file, dpi=130)
    pyplot.close(figure)
