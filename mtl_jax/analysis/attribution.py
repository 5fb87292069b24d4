"""Which words a prediction rests on: integrated gradients by token and task, and the layers that a task reads."""

from __future__ import annotations

import itertools
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.analysis import html
from mtl_jax.data.batch import Batch
from mtl_jax.data.records import Record
from mtl_jax.data.sampler import evaluation_batches, evaluation_layout
from mtl_jax.errors import UserError
from mtl_jax.evaluation import inference, input_files
from mtl_jax.evaluation.input_records import ReadRecords
from mtl_jax.experiment.assemble import Experiment
from mtl_jax.models.ownership import adapter_path
from mtl_jax.models.taps import TapSpec
from mtl_jax.runtime.progress import progress_bar
from mtl_jax.tasks import TASK_KINDS
from mtl_jax.training import objective as terms
from mtl_jax.training.objective import Objective
from mtl_jax.training.placement import require_platform

STEPS = 32  # of the path from no words to the text
MAX_TEXTS = 200  # texts of a page
SPECIAL_TOKENS = ("[CLS]", "[SEP]", "<s>", "</s>")  # stand alone beside the sub-words of a word
EXPLAINED_LEVELS = ("text", "pair", "word", "predicate")  # levels whose predictions are classes or numbers
OUTSIDE_TAG = "O"  # the class of words that are no entity, no role: it is not what a tagger looks for


class TextAttribution(NamedTuple):
    """One text of one task.

    tokens        as they are shown: words where the data set has words
    attributions  of each, in units of the score
    score         what is explained: the sum of the logits of what was predicted (of a tagger over the words whose tag
                  is not "O"), or the number that was predicted
    baseline      the same without words
    """

    tokens: list[str]
    attributions: list[float]
    score: float
    baseline: float


def integrated_gradients(objective: Objective, owner: Sequence[int], steps: int = STEPS):
    """(params, batch) -> {task: (attributions float32[R, T], score [R, E], baseline [R, E])}.

    A_t = Σ_d x_td · ∫₀¹ ∂S(α x) / ∂x_td dα by the midpoint rule (Sundararajan et al. 2017, equation 1), x the word
    vectors, the baseline zero vectors; positions and token types stay. Over a text's tokens they add up to S(x) − S(0)
    as far as the rule is exact (completeness). Texts of one row do not see each other, tasks have streams of their
    own, so one pass serves all.

    Args:
      objective: over batches of one block, see `sampler.evaluation_layout`.
      owner: of each of the K tasks, in the embedding layer.
      steps: of the rule.
    """
    layout = objective.layout
    streams = [layout.tasks[k] for k in layout.tasks_on(layout.candidates[0][0])]
    tasks = [task for task in streams if objective.tasks[task].level in EXPLAINED_LEVELS]
    spec = TapSpec({"embed": ()}, tokens=True)

    def run(params, batch: Batch):
        table = params["embed"]["word"]["embedding"]
        words = jnp.stack([table[owner[layout.tasks.index(task)]][batch.tokens[0]] for task in streams])  # [M, R, T, D]
        taps = objective.network.taps(params, batch, spec)

        def logits(tap):
            hidden = objective.network.apply(params, batch, None, None, taps._replace(tokens=tap), spec).hidden
            return {task: logits_of(task, hidden[task]) for task in tasks}

        def logits_of(task, hidden):
            head, labels = terms.head_params(objective, params, task), terms.join_blocks(batch.labels[task])
            return objective.tasks[task].logits(head, terms.features(batch, layout, task, hidden), labels)

        chosen = {task: _chosen(objective, params, batch, task, found) for task, found in logits(taps.tokens).items()}

        def scores(tap):
            return {
                task: _by_example(batch, task, jnp.sum(found * chosen[task], axis=tuple(range(2, found.ndim))))
                for task, found in logits(tap).items()
            }

        def slope(alpha):
            return jax.grad(lambda tap: sum(s.sum() for s in scores(tap).values()))((alpha - 1.0) * words)

        def add(total, alpha):
            return total + slope(alpha), None

        middles = (jnp.arange(steps, dtype=jnp.float32) + 0.5) / steps
        total, _ = jax.lax.scan(add, jnp.zeros_like(words), middles)
        attributions = jnp.sum(total / steps * words, axis=-1)
        full, empty = scores(taps.tokens), scores(-words)
        return {task: (attributions[streams.index(task)], full[task], empty[task]) for task in tasks}

    return run


def _chosen(objective, params, batch, task, logits):
    """What of the logits [R, E or Q, ...] is the prediction: 1 there, else 0."""
    kind, labels = objective.tasks[task], terms.join_blocks(batch.labels[task])
    if logits.ndim == 2:  # a number
        return jnp.ones_like(logits)
    value = kind.predict(params["heads"][task], logits, labels)["value"]
    if value.ndim == logits.ndim:  # any set of classes
        return value.astype(logits.dtype)
    chosen = jax.nn.one_hot(value, logits.shape[-1], dtype=logits.dtype)
    if kind.level in ("word", "predicate"):
        chosen = chosen * (labels["segment"] > 0)[..., None]
        if OUTSIDE_TAG in kind.names:
            chosen = chosen.at[..., kind.names.index(OUTSIDE_TAG)].set(0.0)
    return chosen


def _by_example(batch, task, scores):
    """[R, E] of [R, E] for texts, of [R, Q] for words."""
    labels = terms.join_blocks(batch.labels[task])
    if "slot" not in labels:
        return jnp.where(batch.length[0] > 0, scores, 0.0)
    member = jax.nn.one_hot(labels["slot"], batch.length.shape[-1], dtype=scores.dtype)
    member = member * (labels["segment"] > 0)[..., None]
    return jnp.einsum("rq,rqe->re", scores, member, precision=jax.lax.Precision.HIGHEST)


def attribute(
    config: Any,
    workdir: pathlib.Path,
    which: Sequence[str],
    source: str,
    out: pathlib.Path,
    tasks: Sequence[str] = (),
    dataset: str = "",
    reader: str = "",
    split: str = "",
) -> str:
    """Explains the predictions for texts: out/attribution.html, and out/attributions.jsonl with a line a text.

    Args:
      config, workdir, which, source, tasks, dataset, reader, split: as in `runs.predict`; of the first 200 texts.
      out: folder; it is made.

    Returns:
      what the terminal shows.

    Raises:
      UserError: as `runs.predict.predict`; a mixer, a cascade, or a task that writes texts.
    """
    for field in ("mixer", "cascades"):
        if config.sharing[field]:
            raise UserError(
                "--mode=attribute follows each task through its own column, and this run has config.sharing."
                f"{field}, which brings tasks together"
            )
    for name, entry in config.tasks.items():
        if TASK_KINDS[entry.kind].defines("generate") and name in (config.train_on or config.tasks):
            raise UserError(
                f"--mode=attribute explains classes and numbers; config.tasks.{name} writes texts, which are a search "
                "and no single score"
            )
    if named := [name for name, entry in config.datasets.items() if entry.image]:
        raise UserError(
            f"--mode=attribute explains by words alone; the data set {named[0]!r} has pictures, so that words would be "
            "credited with what was seen"
        )
    require_platform(config.training.platform)
    model = inference.Predictor(config, workdir, which, tasks)
    with input_files.open_input(
        input_files.InputRequest(source, dataset, reader, split), model.reading.datasets
    ) as opened:
        records = list(itertools.islice((item for item in opened.items if isinstance(item, Record)), MAX_TEXTS))
        if not records:
            raise UserError(f"--input={source}: no text in it")
        read = model.reading.read(records, opened.folder)
        said = model.predict_read(read, opened)
        found = _of_records(model, read)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "attributions.jsonl").open("w", encoding="utf-8") as stream:
        for line, by_task in zip(said, found, strict=True):
            tasks = {task: a._asdict() | {"prediction": line[task]} for task, a in by_task.items()}
            place = {key: line[key] for key in ("line", "file") if key in line}
            stream.write(json.dumps(place | {"tasks": tasks}, ensure_ascii=False) + "\n")
    layers = ["task", *model.experiment.owners]
    parts = [html.heading("Which layers a task reads"), html.table(layers, _reads(model.experiment))]
    parts.append(
        html.paragraph(
            "Blue words speak for what was predicted, orange ones against it: integrated gradients from no words at "
            "all, in units of the score (the logit of the predicted class; of a tagger the sum over the words it "
            "tagged). They add up to the score minus that of the empty text; what the sum leaves over is said."
        )
    )
    kinds = model.experiment.tasks
    if others := [name for name in model.reading.tasks if kinds[name].level not in EXPLAINED_LEVELS]:
        parts.append(html.paragraph(f"Left out, since they predict neither classes nor numbers: {', '.join(others)}."))
    for line, by_task in zip(said, found, strict=True):
        place = f"{line['file']}, line {line['line']}" if "file" in line else f"Line {line['line']}"
        parts.append(html.heading(place, 3))
        for task, a in by_task.items():
            parts += [
                html.paragraph(f"{task}: {_describe_prediction(line[task])}"),
                html.coloured_tokens(a.tokens, a.attributions),
            ]
            rest = a.score - a.baseline - sum(a.attributions)
            parts.append(
                html.small_print(f"score {a.score:+.3f}, without words {a.baseline:+.3f}, left over {rest:+.3f}")
            )
    file = html.save(out / "attribution.html", f"Attributions, {workdir.name}", parts)
    return f"{len(found)} texts\npage     {file}\nnumbers  {out / 'attributions.jsonl'}"


def _of_records(model: inference.Predictor, read: ReadRecords) -> list[dict[str, TextAttribution]]:
    """{task: Attributed} of each record; of a text that was split its first example."""
    experiment, corpus = model.experiment, read.corpus
    found: list[dict[str, TextAttribution]] = [{} for _ in read.records]
    total = sum(len(rows["input"].tokens) for rows in corpus.rows.values())
    with progress_bar("attributing", "row", total) as bar:
        for dataset, by_split in corpus.rows.items():
            rows, split = by_split["input"], corpus.splits[dataset]["input"]
            objective = experiment.objective_for(evaluation_layout(corpus.layout, dataset))
            on = [objective.layout.tasks[k] for k in objective.layout.tasks_on(objective.layout.candidates[0][0])]
            explained = [name for name in on if objective.tasks[name].level in EXPLAINED_LEVELS]
            wanted = [name for name in explained if name in model.reading.tasks]
            if not wanted:
                continue
            run = jax.jit(integrated_gradients(objective, experiment.owners["embed"]))
            at_once = min(
                experiment.config.evaluation.rows_per_batch, len(rows.tokens)
            )  # empty rows cost as much as full ones
            for batch in evaluation_batches(rows, objective.layout, at_once):
                of_tasks = jax.device_get(run(model.params, batch))
                for row, slot in zip(*np.nonzero(batch.example[0] >= 0), strict=True):
                    example = batch.example[0, row, slot]
                    if not split.encoded.is_first_example[example]:
                        continue
                    begin = int(batch.start[0, row, slot])
                    record = read.numbers[dataset][split.encoded.record[example]]
                    for task in wanted:
                        if record not in read.readers[model.reading.dataset_of[task]]:
                            continue
                        attributions, score, baseline = of_tasks[task]
                        own = attributions[row, begin : begin + int(batch.length[0, row, slot])]
                        tokens, values = _shown(corpus, split.encoded, example, own)
                        found[record][task] = TextAttribution(
                            tokens, values, float(score[row, slot]), float(baseline[row, slot])
                        )
                bar.update(int((batch.row >= 0).sum()))
    return found


def _shown(corpus, encoded, example, attributions) -> tuple[list[str], list[float]]:
    """Tokens, sub-words joined, and the sum of the attributions of each."""
    ids = encoded.tokens[encoded.token_offsets[example] : encoded.token_offsets[example + 1]]
    names = [corpus.tokenizer.id_to_token(int(index)) for index in ids]
    starts = set(encoded.word_token[encoded.word_offsets[example] : encoded.word_offsets[example + 1]].tolist())
    byte_level = any(name.startswith("Ġ") for name in names)
    tokens: list[str] = []
    values: list[float] = []
    for place, (name, value) in enumerate(zip(names, attributions, strict=True)):
        inside = name.startswith("##") or (byte_level and not name.startswith("Ġ"))
        if starts:
            inside = place not in starts and place > min(starts)
        inside = inside and name not in SPECIAL_TOKENS
        text = name.removeprefix("##").replace("Ġ", "")
        if inside and tokens:
            tokens[-1], values[-1] = tokens[-1] + text, values[-1] + float(value)
        else:
            tokens.append(text)
            values.append(float(value))
    return tokens, values


def _describe_prediction(predicted: Any) -> str:
    """What a task predicted, shortly."""
    if isinstance(predicted, dict) and "label" in predicted:
        probability = predicted.get("probabilities", {}).get(predicted["label"])
        return predicted["label"] + ("" if probability is None else f" (p = {probability:.3f})")
    if isinstance(predicted, dict) and "tags" in predicted:
        return " ".join(predicted["tags"])
    if isinstance(predicted, dict):
        short = {key: value for key, value in predicted.items() if key != "probabilities"}
        return json.dumps(short, ensure_ascii=False)
    return json.dumps(predicted, ensure_ascii=False)


def _reads(experiment: Experiment) -> list[list[str]]:
    """For each task and layer with whom the task shares it; "–" above the layer that its head reads."""
    tasks, depths = list(experiment.tasks), experiment.config.sharing.head_layers
    order = [path for path in experiment.owners if not path.startswith("adapter_")]
    rows = []
    for k, task in enumerate(tasks):
        row, below = [task], order[: order.index(depths.get(task, order[-1])) + 1]
        read = {*below, *map(adapter_path, below)}
        for path, owner in experiment.owners.items():
            if path not in read:
                row.append("–")
                continue
            others = [other for j, other in enumerate(tasks) if j != k and owner[j] == owner[k]]
            everyone = len(others) == len(tasks) - 1
            row.append("its own" if not others else "with all" if everyone else f"with {', '.join(others)}")
        rows.append(row)
    return rows
