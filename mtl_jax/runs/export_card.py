"""README.md of an exported folder: what the model is, of which data, how it scores and how it is loaded."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from mtl_jax.config.plain import to_plain
from mtl_jax.config.sections import Config
from mtl_jax.data import origins
from mtl_jax.data.origins.base import Origin
from mtl_jax.errors import UserError
from mtl_jax.storage import workdir as folders
from mtl_jax.tasks.base import Task

_PIPELINES = {"sequence": "text-classification", "token": "token-classification", "span": "question-answering"}
_PIPELINES |= {"masked": "fill-mask", "choice": "multiple-choice"}
CONFIG = "mtl_jax_config.json"


def write_card(
    folder: pathlib.Path, config: Config, workdir: pathlib.Path, task: Task, model: str, lines: Sequence[str]
) -> None:
    """Writes README.md, and the config of the run.

    Args:
      folder: of the task.
      config, workdir: of the run.
      task: that was exported.
      model: the class of `transformers` with its head; "" where only the encoder is published, or nothing.
      lines: what was written, and what could not be.
    """
    plain = to_plain(config)
    folders.write_json(folder / CONFIG, plain)
    header = ["---", *(["library_name: transformers"] if model else [])]
    if model and task.head_kind in _PIPELINES:
        header.append(f"pipeline_tag: {_PIPELINES[task.head_kind]}")
    header += ["tags: [multi-task-learning, mtl_jax]", "---", "", f"# {task.name}", ""]
    others = [name for name in (config.train_tasks or config.tasks) if name != task.name]
    about = f"A task of kind `{plain['tasks'][task.name]['kind']}`"
    about += f", trained together with {', '.join(others)}." if others else ", trained by itself."
    start = config.model.pretrained or "random initial values"
    sections = [
        *header,
        f"{about} The encoder began from {start}, whose licence applies to what was made from it.",
        *("", "## Files", "", *(f"- {line}" for line in lines)),
        *("", "## Data", "", _data(config, task.name)),
        *("", "## Scores", "", *_scores(workdir, task.name)),
        *("", "## Labels", "", *_labels(task)),
        *("", "## Use", "", *_usage(task, model)),
        *("", f"All settings of the run are in `{CONFIG}`.", ""),
    ]
    (folder / "README.md").write_text("\n".join(sections), encoding="utf-8")


def _data(config: Config, task: str) -> str:
    name = config.tasks[task].dataset
    entry = config.datasets[name]
    if not entry.origin:
        return f"Data set `{name}`, files of its own; their licence is not known here."
    try:
        origin = origins.parse(entry.origin)
    except UserError:
        return f"Data set `{name}`, from {entry.origin}."
    if not isinstance(origin, tuple):
        return f"Data set `{name}`: {entry.origin} on the Hugging Face Hub, where its licence is stated."
    known: Origin = origin[1]
    return f"Data set `{name}`: {known.title} ({known.homepage}). Licence: {known.licence}."


def _scores(workdir: pathlib.Path, task: str) -> list[str]:
    """A table of the summary, where the run has one."""
    try:
        summary: dict[str, Any] = dict(folders.read_summary(workdir))
    except UserError:
        return ["The run has no summary."]
    by_split = summary["tasks"].get(task, {})
    names = list(dict.fromkeys(metric for scores in by_split.values() for metric in scores))
    if not names:
        return ["The run has not scored this task."]

    def cell(value: float | None) -> str:
        return "" if value is None else f"{value:.4f}"

    rows = [[split, *(cell(scores.get(name)) for name in names)] for split, scores in by_split.items()]
    table = [["split", *names], ["---"] * (len(names) + 1), *rows]
    return [f"At step {summary['step']}.", "", *("| " + " | ".join(row) + " |" for row in table)]


def _labels(task: Task) -> list[str]:
    if task.label_type not in ("class", "set") or not task.names:
        return ["None."]
    listed = ", ".join(f"`{name}`" for name in task.names[:50])
    return [listed + (f" and {len(task.names) - 50} more." if len(task.names) > 50 else ".")]


def _usage(task: Task, model: str) -> list[str]:
    loader = ["```python", "from load import load  # in the folder jax", 'predict = load("FOLDER/jax")', "```"]
    pipeline = _PIPELINES.get(task.head_kind)
    if not model:
        return loader
    if pipeline == "multiple-choice":
        call = [
            "from transformers import AutoModelForMultipleChoice",
            "",
            'AutoModelForMultipleChoice.from_pretrained("FOLDER")',
        ]
    else:
        call = ["from transformers import pipeline", "", f'pipeline({json.dumps(pipeline)}, model="FOLDER")']
    return ["```python", *call, "```", "", *loader]
