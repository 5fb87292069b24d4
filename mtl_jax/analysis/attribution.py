"""--mode=attribute: which words a prediction rests on, by token and task, and the layers that a task reads."""

from __future__ import annotations

import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mtl_jax.analysis import html
from mtl_jax.analysis.integrated_gradients import LEVELS, TaskAttributions, integrated_gradients
from mtl_jax.config.sections import Config
from mtl_jax.data.batch import Batch
from mtl_jax.data.corpus import Corpus
from mtl_jax.data.encoding.encode import EncodedSplit
from mtl_jax.data.records import Record
from mtl_jax.data.sampler import evaluation_batches, evaluation_layout
from mtl_jax.errors import UserError
from mtl_jax.evaluation import inference, input_files
from mtl_jax.evaluation.input_records import ReadRecords
from mtl_jax.experiment.assemble import Experiment
from mtl_jax.models.encoder_parts import encoder_parts
from mtl_jax.models.ownership import ExpertColumns, adapter_path, layer_paths, mixer_path, shared_adapter_path
from mtl_jax.runtime import distributed
from mtl_jax.runtime.progress import progress_bar
from mtl_jax.tasks import TASK_KINDS
from mtl_jax.training.placement import require_platform

MAX_RECORDS = 200  # on a page
SPECIAL_TOKENS = ("[CLS]", "[SEP]", "<s>", "</s>")  # never joined to the sub-words of a word


class TextAttribution(NamedTuple):
    """The explanation of one prediction.

    tokens        words where the data set has words
    attributions  of each, in units of the score
    score         what is explained: the sum of the logits of the predicted classes (for a tagger, of the words whose
                  tag is not "O"), or the predicted number
    baseline      the score without words
    """

    tokens: list[str]
    attributions: list[float]
    score: float
    baseline: float


def attribute(
    config: Config,
    workdir: pathlib.Path,
    which: Sequence[str],
    source: str,
    out: pathlib.Path,
    tasks: Sequence[str] = (),
    *,
    dataset: str = "",
    reader: str = "",
    split: str = "",
) -> str:
    """Explains predictions: writes out/attribution.html, and out/attributions.jsonl with a line for each record.

    Args:
      config, workdir, which, source, tasks, dataset, reader, split: as in `runs.predict`; the first `MAX_RECORDS`
        records are explained.
      out: folder; it is created.

    Returns:
      the text for the terminal.

    Raises:
      UserError: as `runs.predict.predict`; a task that generates text.
    """
    _require_attributable(config)
    require_platform(config.training.platform)
    predictor = inference.Predictor(config, workdir, which, tasks)
    request = input_files.InputRequest(source, dataset, reader, split)
    with input_files.open_input(request, predictor.reading.datasets) as opened:
        records = list(itertools.islice((item for item in opened.items if isinstance(item, Record)), MAX_RECORDS))
        if not records:
            raise UserError(f"--input={source}: no records in it")
        read = predictor.reading.read(records, opened.folder)
        lines = predictor.predict_read(read, opened)
        attributions = _attributions(predictor, read)
    file = out / "attribution.html"
    if distributed.is_first():  # all processes have computed the same: there are few records
        out.mkdir(parents=True, exist_ok=True)
        _write_lines(out / "attributions.jsonl", lines, attributions)
        html.save(file, f"Attributions, {workdir.name}", _page(predictor, lines, attributions))
    return f"{len(attributions)} records\npage     {file}\nnumbers  {out / 'attributions.jsonl'}"


def _require_attributable(config: Config) -> None:
    for name, entry in config.tasks.items():
        if TASK_KINDS[entry.kind].predicts == "texts" and name in (config.train_tasks or config.tasks):
            raise UserError(
                f"--mode=attribute explains classes and numbers; config.tasks.{name} generates text, which is a search "
                "without a single score"
            )


def _write_lines(
    file: pathlib.Path, lines: Sequence[dict[str, Any]], attributions: Sequence[dict[str, TextAttribution]]
) -> None:
    with file.open("w", encoding="utf-8") as stream:
        for line, by_task in zip(lines, attributions, strict=True):
            tasks = {task: a._asdict() | {"prediction": line[task]} for task, a in by_task.items()}
            place = {key: line[key] for key in ("line", "file") if key in line}
            stream.write(json.dumps(place | {"tasks": tasks}, ensure_ascii=False) + "\n")


def _page(
    predictor: inference.Predictor, lines: Sequence[dict[str, Any]], attributions: Sequence[dict[str, TextAttribution]]
) -> list[html.Html]:
    experiment = predictor.experiment
    parts = [
        html.heading("Which layers a task reads"),
        html.table(["task", *experiment.owners], _layers_by_task(experiment)),
        html.paragraph(
            "Blue words support the prediction, orange ones oppose it: integrated gradients from a baseline without "
            "words (and grey pictures, whose patches are summed), in units of the score (the logit of "
            "the predicted class; for a tagger the sum over the words it "
            "tagged). They add up to the score minus that of the baseline; the difference that remains is shown."
        ),
    ]
    if others := [name for name in predictor.reading.tasks if experiment.tasks[name].level not in LEVELS]:
        parts.append(html.paragraph(f"Left out, since they predict neither classes nor numbers: {', '.join(others)}."))
    for line, by_task in zip(lines, attributions, strict=True):
        place = f"{line['file']}, line {line['line']}" if "file" in line else f"Line {line['line']}"
        parts.append(html.heading(place, 3))
        for task, a in by_task.items():
            parts += [html.paragraph(f"{task}: {_summary(line[task])}"), html.coloured_tokens(a.tokens, a.attributions)]
            remainder = a.score - a.baseline - sum(a.attributions)
            text = f"score {a.score:+.3f}, without words {a.baseline:+.3f}, remainder {remainder:+.3f}"
            parts.append(html.small_print(text))
    return parts


def _attributions(predictor: inference.Predictor, read: ReadRecords) -> list[dict[str, TextAttribution]]:
    """{task: Attributed} of each record; only the first example of a text that was split."""
    experiment, corpus = predictor.experiment, read.corpus
    results: list[dict[str, TextAttribution]] = [{} for _ in read.records]
    total = sum(len(rows["input"].tokens) for rows in corpus.rows.values())
    with progress_bar("attributing", "row", total) as bar:
        for dataset, by_split in corpus.rows.items():
            rows = by_split["input"]
            objective = experiment.objective_for(evaluation_layout(corpus.layout, dataset))
            layout = objective.layout
            tasks = [layout.tasks[k] for k in layout.tasks_on(layout.candidates[0][0])]
            tasks = [t for t in tasks if objective.tasks[t].level in LEVELS and t in predictor.reading.tasks]
            if not tasks:
                continue
            run = jax.jit(integrated_gradients(objective))
            # no more rows than there are: empty rows cost as much as full ones
            rows_per_batch = min(experiment.config.evaluation.rows_per_batch, len(rows.tokens))
            for batch in evaluation_batches(rows, layout, rows_per_batch):
                by_task = distributed.to_host(run(predictor.params, batch))
                _add_batch(results, predictor, read, dataset, batch, {task: by_task[task] for task in tasks})
                bar.update(int((batch.row >= 0).sum()))
    return results


def _add_batch(
    results: list[dict[str, TextAttribution]],
    predictor: inference.Predictor,
    read: ReadRecords,
    dataset: str,
    batch: Batch,
    by_task: Mapping[str, TaskAttributions],
) -> None:
    """Writes the attributions of one batch into the results of its records."""
    encoded = read.corpus.splits[dataset]["input"].encoded
    for row, slot in zip(*np.nonzero(batch.example[0] >= 0), strict=True):
        example = batch.example[0, row, slot]
        if not encoded.is_first_example[example]:
            continue
        begin = int(batch.start[0, row, slot])
        record = read.numbers[dataset][encoded.record[example]]
        for task, values in by_task.items():
            if record not in read.readers[predictor.reading.dataset_of[task]]:
                continue
            of_tokens = values.attributions[row, begin : begin + int(batch.length[0, row, slot])]
            tokens, sums = _by_word(read.corpus, encoded, example, of_tokens)
            score, baseline = float(values.score[row, slot]), float(values.baseline[row, slot])
            results[record][task] = TextAttribution(tokens, sums, score, baseline)


def _by_word(
    corpus: Corpus, encoded: EncodedSplit, example: int, attributions: np.ndarray
) -> tuple[list[str], list[float]]:
    """Words, or tokens where there are no words, and the sum of the attributions of each; of a picture the sum of its
    patches."""
    within = slice(encoded.token_offsets[example], encoded.token_offsets[example + 1])
    names = [corpus.tokenizer.id_to_token(int(index)) for index in encoded.tokens[within]]
    if encoded.patch is not None:
        pictures = encoded.token_type[within]
        names = [
            f"[picture {pictures[index] + 1}]" if patch else name
            for index, (name, patch) in enumerate(zip(names, encoded.patch[within], strict=True))
        ]
    starts = set(encoded.word_token[encoded.word_offsets[example] : encoded.word_offsets[example + 1]].tolist())
    byte_level = any(name.startswith("Ġ") for name in names)
    tokens: list[str] = []
    values: list[float] = []
    for index, (name, value) in enumerate(zip(names, attributions, strict=True)):
        inside = name.startswith("##") or (byte_level and not name.startswith("Ġ"))
        if starts:
            inside = index not in starts and index > min(starts)
        inside = inside and name not in SPECIAL_TOKENS
        if name.startswith("[picture"):
            inside = bool(tokens) and tokens[-1] == name
            tokens, values = (tokens, values) if inside else ([*tokens, name], [*values, 0.0])
            values[-1] += float(value)
            continue
        text = name.removeprefix("##").replace("Ġ", "")
        if inside and tokens:
            tokens[-1], values[-1] = tokens[-1] + text, values[-1] + float(value)
        else:
            tokens.append(text)
            values.append(float(value))
    return tokens, values


def _summary(predicted: Any) -> str:
    """A prediction as a short string."""
    if isinstance(predicted, dict) and "label" in predicted:
        probability = predicted.get("probabilities", {}).get(predicted["label"])
        return predicted["label"] + ("" if probability is None else f" (p = {probability:.3f})")
    if isinstance(predicted, dict) and "tags" in predicted:
        return " ".join(predicted["tags"])
    if isinstance(predicted, dict):
        short = {key: value for key, value in predicted.items() if key != "probabilities"}
        return json.dumps(short, ensure_ascii=False)
    return json.dumps(predicted, ensure_ascii=False)


def _layers_by_task(experiment: Experiment) -> list[list[str]]:
    """For each task and layer, the tasks with which it shares the layer; "–" above the layer that its head reads."""
    tasks, depths = list(experiment.tasks), experiment.config.sharing.head_layers
    layers = layer_paths(len(experiment.model.layers))
    rows = []
    for k, task in enumerate(tasks):
        row, count = [task], layers.index(depths.get(task, layers[-1])) + 1
        below, modules = layers[:count], experiment.model.layers[: count - 1]
        read = {*below, *map(adapter_path, below), *map(shared_adapter_path, below)}
        read |= {*(name for module in modules for name in encoder_parts(module))}
        if task not in depths:
            read |= set(map(mixer_path, below))
        for path, owner in experiment.owners.items():
            if path not in read:
                row.append("–")
                continue
            if isinstance(owner, ExpertColumns):
                row.append("experts")
                continue
            others = [other for j, other in enumerate(tasks) if j != k and owner[j] == owner[k]]
            everyone = len(others) == len(tasks) - 1
            row.append("its own" if not others else "with all" if everyone else f"with {', '.join(others)}")
        rows.append(row)
    return rows
