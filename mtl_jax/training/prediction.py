"""Prediction on new texts, and export, from the checkpoints of a run."""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from tqdm import tqdm

from mtl_jax.data import batches
from mtl_jax.data import corpus as corpora
from mtl_jax.data.corpus import Corpus
from mtl_jax.data.records import Record
from mtl_jax.errors import UserError
from mtl_jax.models.export import save_folder
from mtl_jax.training import artifacts, loop
from mtl_jax.training.checkpoint import load_params
from mtl_jax.training.experiment import Experiment, assemble, label_specs, max_length
from mtl_jax.training.placement import Placement, place

CHUNK = 4096  # records read, predicted and written at a time


def predict(config: Any, workdir: pathlib.Path, which: Sequence[str], source: str, target: str) -> None:
    """Reads JSONL or lines of text and writes a JSON line for each: {task: labels, tags, spans, probabilities}.

    A JSON object has the fields of the data sets' texts or words (`predicates` for roles); it is read by the tasks of
    every data set whose fields it has. A line of text is the text, or its words at blanks, of every data set.

    Args:
      config: of the run.
      workdir: of the run.
      which: checkpoints; parameters of several are averaged.
      source: file, "-" for the standard input.
      target: file, "" for the standard output.

    Raises:
      UserError: no such file or checkpoint; a line that no task can read, with its number.
    """
    kept = artifacts.load(workdir)
    experiment, placement, params = None, None, None
    out = sys.stdout if not target else _open(target, "w", "--output")
    inputs = sys.stdin if source == "-" else _open(source, "r", "--input")
    with tqdm(unit="text", desc="predicting", dynamic_ncols=True) as bar:
        for records in _chunks(inputs, source, config):
            data = _corpus(config, kept, records)
            experiment = assemble(config, data, kept.architecture, None)
            if params is None:
                placement = _one_device(experiment)
                params = average_params(experiment, placement, workdir, which)
            for line in _predictions(experiment, placement, params, data, records):
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
            bar.update(len(records))
    if experiment is None:
        raise UserError(f"--input={source}: no text in it")
    if target:
        out.close()
        print(f"predictions in {target}")


def export(config: Any, workdir: pathlib.Path, which: Sequence[str], target: pathlib.Path) -> list[str]:
    """Writes each column as a Hugging Face folder: target/<task>, or target/shared where all tasks share it.

    Returns:
      what was written, a line each.

    Raises:
      UserError: layers other than transformers.
    """
    kept = artifacts.load(workdir)
    if kept.architecture is None:
        raise UserError(f"--mode=export writes Hugging Face folders, which there are for transformers; this run has {config.model.layer} layers")
    data = _corpus(config, kept, [])
    experiment = assemble(config, data, kept.architecture, None)
    params = jax.device_get(average_params(experiment, _one_device(experiment), workdir, which))
    columns = {tuple(owner[k] for owner in experiment.owners.values()): [] for k in range(len(experiment.tasks))}
    for k, task in enumerate(experiment.tasks):
        columns[tuple(owner[k] for owner in experiment.owners.values())].append(task)
    lines = []
    for column, tasks in columns.items():
        name = "shared" if len(columns) == 1 and len(tasks) > 1 else "+".join(tasks)
        own = {
            path: jax.tree.map(lambda leaf, o=o: leaf[o], params[path])
            for path, o in zip(experiment.owners, column, strict=True)
        }
        written = save_folder(target / name, kept.architecture, own, workdir / "model")
        lines.append(f"{target / name}: {len(written)} tensors, for {', '.join(tasks)}")
    return lines


def average_params(experiment: Experiment, placement: Placement, workdir: pathlib.Path, which: Sequence[str]) -> Any:
    """The mean of the parameters of several checkpoints."""
    abstract = loop.abstract_params(experiment, placement)
    total = None
    for name in which:
        params = load_params(workdir, name, abstract).params
        total = params if total is None else jax.tree.map(lambda a, b: a + b, total, params)
    return jax.tree.map(lambda leaf: leaf / len(which), total) if len(which) > 1 else total


def _one_device(experiment):
    shape = {"data": jax.device_count(), "task": 1, "model": 1}
    return place("jit", shape, experiment.spec.slices, len(experiment.tasks))


def _open(path, mode, flag):
    try:
        return open(pathlib.Path(path).expanduser(), mode, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{flag}={path}: {error.strerror}") from None


def _chunks(lines, source, config):
    """Lists of records; blank lines are left out."""
    records: list[Record] = []
    try:
        for number, line in enumerate(lines, 1):
            if line.strip():
                records.append(Record(_fields(line, source, number, config), source, number))
            if len(records) == CHUNK:
                yield records
                records = []
    except UnicodeDecodeError as error:
        raise UserError(f"--input={source}: not UTF-8 ({error.reason})") from None
    if records:
        yield records


def _fields(line, source, number, config) -> dict[str, Any]:
    if line.lstrip().startswith("{"):
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{source}:{number}: broken JSON: {error.msg} at column {error.colno}") from None
    else:
        fields = {}
        for entry in config.datasets.values():
            if entry.words:
                fields[entry.words] = line.split()
            elif len(entry.text) == 1:
                fields[entry.text[0]] = line.strip()
    if not any(_readable(entry, fields) for entry in config.datasets.values()):
        wanted = " or ".join(", ".join((entry.words,) if entry.words else entry.text) for entry in config.datasets.values())
        raise UserError(f"{source}:{number}: no task can read this line; a JSON object needs the fields {wanted}")
    return fields


def _readable(entry, fields) -> bool:
    return all(name in fields for name in ((entry.words,) if entry.words else entry.text))


def _corpus(config, kept: artifacts.Artifacts, records: Sequence[Record]) -> Corpus:
    """The records as a corpus with the one split "input": no labels, everything else as in training."""
    specs = {spec.task: spec for spec in label_specs(config) if spec.task in kept.vocabularies}
    names = tuple(dict.fromkeys(spec.dataset for spec in specs.values()))
    rows, splits = {}, {}
    for name in names:
        entry, own = config.datasets[name], [spec for spec in specs.values() if spec.dataset == name]
        readable = [i for i, record in enumerate(records) if _readable(entry, record.fields)]
        if any(spec.level == "predicate" for spec in own):
            readable = [i for i in readable if "predicates" in records[i].fields]
        if not readable:
            continue
        packed, split = corpora.for_prediction(
            [records[i] for i in readable], entry, own, kept.vocabularies, kept.tokenizer,
            row_length=config.data.row_length, max_length=max_length(config, kept.architecture),
            pack=config.data.pack, overlong=config.data.overlong or "auto",
        )  # fmt: skip
        rows[name] = {"input": packed}
        splits[name] = {"input": split._replace(records=readable)}
    tasks = tuple(kept.vocabularies)
    layout = batches.make_layout(names, tasks, [names.index(specs[t].dataset) for t in tasks], batches.Mixing())
    return Corpus(
        layout, rows, splits, kept.vocabularies, {task: specs[task] for task in tasks}, kept.tokenizer,
        notes=(), fingerprint="", statistics={"datasets": {}, "tasks": kept.statistics},
    )  # fmt: skip


def _predictions(experiment, placement, params, data: Corpus, records) -> list[dict[str, Any]]:
    """A dict for each record: its place, and what each task says."""
    evaluator = loop.make_evaluator(experiment, placement)
    lines: list[dict[str, Any]] = [{"line": record.line} for record in records]
    for dataset in data.splits:
        predicted = evaluator.predict(params, dataset, "input")
        readable = data.splits[dataset]["input"].records
        for name, values in predicted.values.items():
            for place_, number in enumerate(readable):
                lines[number][name] = _decode(experiment.tasks[name], {key: array[place_] for key, array in values.items()})
    return lines


def _decode(task, values: Mapping[str, Any]) -> Any:
    if task.level != "predicate":
        return task.decode(**values)
    return [task.decode(**{key: array[i] for key, array in values.items()}) for i in range(len(values["value"]))]
