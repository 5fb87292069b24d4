"""--mode=inspect: encoded examples, labels, lengths, packing, parameters by owner."""

from __future__ import annotations

import collections

import jax
import numpy as np

from mtl_jax.analysis.report import text_table
from mtl_jax.config.sections import Config
from mtl_jax.data.corpus import Corpus, Split
from mtl_jax.data.labels import answer_spans, target_sequences
from mtl_jax.data.records import field
from mtl_jax.evaluation.metric_inputs import metric_ceiling, text_scores
from mtl_jax.experiment.assemble import Experiment
from mtl_jax.experiment.budget import steps_per_epoch, tokens_per_step
from mtl_jax.models.ownership import ExpertColumns, sole_tasks
from mtl_jax.runs.build import build
from mtl_jax.storage import run_warnings

MAX_EXAMPLES = 2  # shown for each data set
MAX_CLASSES = 12  # shown for each task


def describe_experiment(config: Config) -> str:
    """The text for the terminal."""
    experiment = build(config)
    parts = ["Notes", *(f"  {note}" for note in _notes(experiment)), ""]  # before tables that may be long
    for dataset in experiment.corpus.layout.datasets:
        parts += _examples(experiment, dataset)
    parts += [
        "Data sets",
        _datasets(experiment),
        "",
        "Labels",
        _labels(experiment),
        "",
        "Parameters",
        _parameters(experiment),
    ]
    if experiment.corpus.pictures is not None:
        parts += ["", "Pictures", _pictures(experiment)]
    batches = experiment.batches(config.seed)
    batch = batches.batch(0)
    blocks, rows, tokens = batch.tokens.shape
    real = (batch.segment > 0).mean()
    parts += ["", f"A batch: {blocks} blocks of {rows} rows of {tokens} tokens, {real:.1%} real"]
    epochs = {name: batches.steps_per_epoch(name) for name in experiment.corpus.layout.datasets}
    parts += [f"An epoch of {name}: {count:.0f} batches" for name, count in epochs.items()]
    parts += _length(experiment)
    return "\n".join(parts)


def _length(experiment: Experiment) -> list[str]:
    """The length of the run in all units, and the memory that its state takes."""
    config, corpus = experiment.config, experiment.corpus
    steps, epoch = config.training.steps, max(steps_per_epoch(config, corpus).values())
    tokens = steps * tokens_per_step(config, corpus)
    state = jax.eval_shape(lambda: experiment.init(config.seed))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state.params, state.opt_state)))
    return [
        "",
        f"The run: {steps:,} steps, {steps / epoch:.3g} epochs, {tokens:,.0f} tokens",
        f"Parameters and state of the optimizer: {size / 2**20:,.1f} MiB, and activations and gradients; what a step "
        "takes, in time and memory, is measured by --mode=range_test",
    ]


def _notes(experiment: Experiment) -> list[str]:
    """All notes on the data, losses first."""
    losses = [entry["text"] for entry in run_warnings.by_severity(run_warnings.data_warnings(experiment.corpus))]
    return [*losses, *(note for note in experiment.corpus.notes if note not in losses)]


def _examples(experiment: Experiment, dataset: str) -> list[str]:
    """The tokens of the first examples, and their labels for each task."""
    corpus, lines = experiment.corpus, [f"Data set {dataset}: first examples of train"]
    rows, split = corpus.rows[dataset]["train"], corpus.splits[dataset]["train"]
    for example in range(min(MAX_EXAMPLES, len(split.encoded.record))):
        row, slot = (int(i[0]) for i in np.nonzero(rows.example == example))
        start, length = int(rows.start[row, slot]), int(rows.length[row, slot])
        record = split.records[split.encoded.record[example]]
        tokens = [corpus.tokenizer.id_to_token(int(t)) for t in rows.tokens[row, start : start + length]]
        if rows.patch is not None:
            tokens = _with_patches(tokens, rows.patch[row, start : start + length] > 0)
        lines.append(f"  {record.file}:{record.line}")
        lines.append(f"    tokens   {' '.join(tokens)}")
        for task in (t for t in experiment.tasks if experiment.config.tasks[t].dataset == dataset):
            lines.append(f"    {task:8} {_gold(corpus, task, split, split.encoded.record[example])}")
    return [*lines, ""]


def _with_patches(tokens: list[str], is_patch: np.ndarray) -> list[str]:
    """The tokens, with the number of patches in place of these."""
    before = int(is_patch.argmax())
    return [*tokens[:before], f"[{is_patch.sum()} patches]", *tokens[before + int(is_patch.sum()) :]]


def _pictures(experiment: Experiment) -> str:
    """Number, size and patches of the pictures of each data set that has some."""
    corpus, rows = experiment.corpus, []
    side = experiment.config.images.patch_size
    for name, (height, width) in corpus.pictures.sizes.items():
        pixels = corpus.rows[name]["train"].pixels
        grid = (height // side, width // side)
        count = (len(pixels) - 1) // (grid[0] * grid[1])
        rows.append([name, count, f"{height} × {width}", f"{grid[0]} × {grid[1]}", f"{pixels.nbytes / 2**20:.1f} MiB"])
    return text_table(["data set", "pictures", "pixels (height × width)", "patches of each", "in memory"], rows)


def _gold(corpus: Corpus, task: str, split: Split, record: int) -> str:
    names = corpus.vocabularies[task].all_names
    level = corpus.specs[task].level
    if level == "token":
        return "(tokens are masked at random, differently in every step)"
    gold = split.encoded.labels[task]
    value, known = gold.at_record(int(record))
    if level == "span" and known.all() and value[0, 0] != answer_spans.UNKNOWN:
        whole = split.inputs.texts[record][-1] if split.inputs.words is None else split.inputs.words[record]
        return answer_spans.answer_text(whole, split.encoded, int(record), *value[0].tolist()) or "(no answer)"
    if level == "span":
        return "(none)"
    sources = gold.sources[int(record)] if gold.sources else ()  # ids of copied tokens follow those of the names

    def show(label: np.ndarray, is_known: bool) -> str:
        if not is_known:
            return "(none)"
        if np.ndim(label):
            return "{" + ", ".join(f"{n}: {p:g}" for n, p in zip(names, label, strict=False) if p) + "}"
        if int(label) >= len(names) > 0:
            return sources[int(label) - len(names)]
        return names[int(label)] if names else f"{float(label):g}"

    return " ".join(show(*pair) for pair in zip(value, known, strict=True))


def _datasets(experiment: Experiment) -> str:
    rows = []
    for name, splits in experiment.corpus.statistics["datasets"].items():
        for split, numbers in splits.items():
            if split != "capacities":
                length = numbers["length"]
                rows.append(
                    [
                        name,
                        split,
                        numbers["records"],
                        numbers["overlong"],
                        numbers["rows"],
                        f"{numbers['real']:.1%}",
                        int(length["p50"]),
                        int(length["p90"]),
                        int(length["p99"]),
                        length["max"],
                    ]
                )
    header = [
        "data set",
        "split",
        "examples",
        "too long",
        "rows",
        "real tokens",
        "length 50 %",
        "90 %",
        "99 %",
        "longest",
    ]
    return text_table(header, rows)


def _labels(experiment: Experiment) -> str:
    rows = []
    for task, splits in experiment.corpus.statistics["tasks"].items():
        for split, numbers in splits.items():
            if "counts" in numbers:
                ordered = sorted(numbers["counts"].items(), key=lambda item: -item[1])
                shown = ", ".join(f"{name} {count:g}" for name, count in ordered[:MAX_CLASSES])
                more = f", … {len(ordered) - MAX_CLASSES} more" if len(ordered) > MAX_CLASSES else ""
                rows.append([task, split, numbers["known"], numbers["missing"], f"{shown}{more}"])
            else:
                keys = ("mean", "std", "min", "max")
                shown = ", ".join(f"{key} {numbers[key]:.3g}" for key in keys if key in numbers)
                shown += _text_scores(experiment, task, split)
                rows.append([task, split, numbers["known"], numbers["missing"], shown])
    return text_table(["task", "split", "labelled", "unlabelled", "counts"], rows)


def _text_scores(experiment: Experiment, task: str, split: str) -> str:
    """For generation: the scores of the input itself, which a model has to beat, and the ceiling of any model."""
    generator, spec = experiment.tasks[task], experiment.corpus.specs[task]
    if spec.kind != "tokens" or split == "train":
        return ""
    parts = {"the input itself": _input_scores(experiment, task, split)}
    parts["the gold tokens themselves"] = metric_ceiling(experiment.corpus, generator, split)
    return "".join(
        f"; {source}: " + ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
        for source, scores in parts.items()
        if scores
    )


def _input_scores(experiment: Experiment, task: str, split: str) -> dict[str, float]:
    corpus, spec = experiment.corpus, experiment.corpus.specs[task]
    entry = experiment.config.datasets[spec.dataset]
    data = corpus.splits[spec.dataset][split]
    gold = data.encoded.labels[task]
    labelled = np.flatnonzero(np.diff(gold.offsets))
    names = tuple(entry.text) or ((entry.words,) if entry.words else ())
    if not names or not len(labelled):
        return {}
    sides = [
        target_sequences.reference_texts(
            [field(data.records[m], name) for m in labelled], spec.target, corpus.tokenizer, corpus.vocabularies[task]
        )
        for name in names
    ]
    inputs = [" ".join(texts) for texts in zip(*sides, strict=True)]
    return text_scores(experiment.tasks[task], [gold.texts[m] for m in labelled], inputs)


def _parameters(experiment: Experiment) -> str:
    """Sizes by layer, and the tasks that use it."""
    sizes: dict[tuple[str, str], int] = collections.Counter()
    names = list(experiment.tasks)
    for path, leaf in experiment.shapes.items():
        layer = path.split("/")[0]
        if layer == "heads":
            sizes[layer, path.split("/")[1]] += leaf.size
            continue
        owner = experiment.owners[layer]
        for o in range(len(sole_tasks(owner))):
            if isinstance(owner, ExpertColumns):
                users = [f"expert {owner.names[o]}"]
            else:
                users = [names[k] for k in range(len(names)) if owner[k] == o]
            sizes[layer, " + ".join(users)] += leaf.size // leaf.shape[0]
    rows = [[layer, users, f"{size:,}"] for (layer, users), size in sizes.items()]
    return text_table(["layer", "used by", "parameters"], [*rows, ["all", "", f"{sum(sizes.values()):,}"]])
