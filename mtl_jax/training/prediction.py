"""Prediction on new texts, and export, from the checkpoints of a run."""

from __future__ import annotations

import contextlib
import json
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from mtl_jax.data import answers, batches, decoding, marks
from mtl_jax.data import corpus as corpora
from mtl_jax.data.corpus import Corpus
from mtl_jax.data.files import Location, local
from mtl_jax.data.records import Record
from mtl_jax.errors import UserError
from mtl_jax.models.export import save_folder
from mtl_jax.training import artifacts
from mtl_jax.training.checkpoint import load_params
from mtl_jax.training.experiment import Experiment, assemble
from mtl_jax.training.placement import Placement, place, require_platform
from mtl_jax.training.progress import progress_bar
from mtl_jax.training.scoring import abstract_params, make_evaluator
from mtl_jax.training.sources import cut, label_specs, max_length

CHUNK = 4096  # records read, predicted and written at a time


def predict(config: Any, workdir: pathlib.Path, which: Sequence[str], source: str, target: str) -> None:
    """Reads JSONL or lines of text and writes a JSON line for each: {task: labels, tags, answers, probabilities}.

    A JSON object has the fields of the data sets' texts or words and pictures (`predicates` for roles, choices, marked
    spans); it is read by the tasks of every data set whose fields it has. Masked language modelling tells each [MASK]
    in it. A line of text is the text, its words at blanks, or the path of the picture of every data set that reads one
    field. Paths of pictures start from the folder of the file.

    Args:
      config: of the run.
      workdir: of the run.
      which: checkpoints; parameters of several are averaged.
      source: file, "-" for the standard input.
      target: file, "" for the standard output.

    Raises:
      UserError: no such file or checkpoint; a line that no task can read, with its number.
    """
    require_platform(config.training.platform)
    with _opened(source, target) as (inputs, out), progress_bar("predicting", "text") as bar:
        for loaded in load(config, workdir, which, inputs, source):
            for line in predictions(loaded):
                out.write(json.dumps(line, ensure_ascii=False) + "\n")
            bar.update(len(loaded.records))
    if target:
        print(f"predictions in {target}")


class Loaded(NamedTuple):
    """A run's model, and some texts as the corpus of `experiment`, in the split "input".

    records    as they were read; `experiment.corpus.splits[...]["input"].records` has their numbers
    placement  of params
    """

    experiment: Experiment
    placement: Placement
    params: Any
    records: list[Record]


def load(
    config: Any, workdir: pathlib.Path, which: Sequence[str], lines: Iterable[str], source: str
) -> Iterator[Loaded]:
    """The model with the texts of `lines`, some thousands at a time; see `predict`.

    Raises:
      UserError: there is no text; one that no task can read.
    """
    kept, params = artifacts.load(workdir), None
    for records in _chunks(lines, source, _readers(config, kept)):
        corpus = _corpus(config, kept, records, local(pathlib.Path(source).parent))
        experiment = assemble(config, corpus, kept.architecture, None)
        if params is None:
            placement = all_devices(experiment)
            params = average_params(experiment, placement, workdir, which)
        yield Loaded(experiment, placement, params, records)
    if params is None:
        raise UserError(f"--input={source}: no text in it")


def export(config: Any, workdir: pathlib.Path, which: Sequence[str], target: pathlib.Path) -> list[str]:
    """Writes each column as a Hugging Face folder: target/<task>, or target/shared where all tasks share it.

    Returns:
      what was written, a line each.

    Raises:
      UserError: layers other than transformers.
    """
    require_platform(config.training.platform)
    kept = artifacts.load(workdir)
    if kept.architecture is None:
        raise UserError(
            f"--mode=export writes Hugging Face folders, which are for transformers; this run has "
            f"config.model.layer = {config.model.layer!r}"
        )
    for field in ("mixer", "adapter"):
        if config.sharing[field]:
            raise UserError(
                f"--mode=export writes columns as published architectures, which have no {field}s; this run has "
                f"config.sharing.{field} = {config.sharing[field]!r}"
            )
    if kept.pictures is not None:
        raise UserError("--mode=export writes published text encoders, which have no place for patches of pictures")
    experiment, params = model(config, workdir, which)
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


def model(config: Any, workdir: pathlib.Path, which: Sequence[str]) -> tuple[Experiment, Any]:
    """A run's model without any data, and its parameters (of several checkpoints their mean) as numpy arrays."""
    kept = artifacts.load(workdir)
    experiment = assemble(config, _corpus(config, kept, []), kept.architecture, None)
    return experiment, jax.device_get(average_params(experiment, all_devices(experiment), workdir, which))


def average_params(experiment: Experiment, placement: Placement, workdir: pathlib.Path, which: Sequence[str]) -> Any:
    """The mean of the parameters of several checkpoints."""
    abstract = abstract_params(experiment, placement)
    total = None
    for name in which:
        params = load_params(workdir, name, abstract).params
        total = params if total is None else jax.tree.map(lambda a, b: a + b, total, params)
    return jax.tree.map(lambda leaf: leaf / len(which), total) if len(which) > 1 else total


def all_devices(experiment: Experiment) -> Placement:
    """Rows split over all devices."""
    shape = {"data": jax.device_count(), "task": 1, "model": 1}
    return place("jit", shape, experiment.spec.slices, len(experiment.tasks))


class _Reader(NamedTuple):
    """What the fields of a line have to be for the tasks of one data set to read it.

    inputs     names of the fields with its texts, or with its words, and with its pictures
    is_words   which of the two
    beside     further fields: choices, marked spans, the predicates where all tasks of the data set read them
    """

    inputs: tuple[str, ...]
    is_words: bool
    beside: tuple[str, ...]

    def reads(self, fields: Mapping[str, Any]) -> bool:
        return all(
            _has(fields, name) or all(_has(fields, one) for one in marks.field_names(name)) for name in self.wanted
        )

    @property
    def wanted(self) -> tuple[str, ...]:
        return (*self.inputs, *self.beside)


def _readers(config, kept: artifacts.Artifacts) -> dict[str, _Reader]:
    """{data set: how it reads}, of the data sets that the trained tasks use."""
    specs = [spec for spec in label_specs(config) if spec.task in kept.vocabularies]
    readers = {}
    for name in dict.fromkeys(spec.dataset for spec in specs):
        entry = config.datasets[name]
        own = {spec.predicates if spec.level == "predicate" else "" for spec in specs if spec.dataset == name}
        beside = tuple(entry.choices) + (tuple(entry.marked) if len(entry.marked) == 2 else ())
        if "" not in own:
            beside += (own.pop(),)
        inputs = ((entry.words,) if entry.words else tuple(entry.text)) + ((entry.image,) if entry.image else ())
        readers[name] = _Reader(inputs, bool(entry.words), beside)
    return readers


def _has(fields: Any, name: str) -> bool:
    """Whether there is a field of this name; "a.b" is also key b of the object in field a."""
    if not isinstance(fields, dict):
        return False
    first, _, rest = name.partition(".")
    return name in fields or (bool(rest) and _has(fields.get(first), rest))


@contextlib.contextmanager
def opened(source: str) -> Iterator[Iterable[str]]:
    """The lines of a file, "-" for the standard input."""
    with _opened(source, "") as (inputs, _):
        yield inputs


@contextlib.contextmanager
def _opened(source, target):
    """The two files, or standard input and output."""
    if not source:
        raise UserError("name the texts by --input=FILE, or --input=- for the standard input")
    if target and source != "-" and pathlib.Path(source).resolve() == pathlib.Path(target).resolve():
        raise UserError(f"--output={target} is the input; name another file")
    with contextlib.ExitStack() as stack:

        def opened(path, mode, flag):
            try:
                return stack.enter_context(open(pathlib.Path(path).expanduser(), mode, encoding="utf-8"))
            except OSError as error:
                raise UserError(f"{flag}={path}: {error.strerror}") from None

        inputs = sys.stdin if source == "-" else opened(source, "r", "--input")
        yield inputs, opened(target, "w", "--output") if target else sys.stdout


def _chunks(lines, source, readers: Mapping[str, _Reader]):
    """Lists of records; blank lines are left out."""
    records: list[Record] = []
    number = 0
    try:
        for number, line in enumerate(lines, 1):
            if line.strip():
                records.append(Record(_fields(line, source, number, readers), source, number))
            if len(records) == CHUNK:
                yield records
                records = []
    except UnicodeDecodeError as error:
        raise UserError(f"--input={source}: not UTF-8 after line {number} ({error.reason})") from None
    if records:
        yield records


def _fields(line, source, number, readers) -> dict[str, Any]:
    if line.lstrip().startswith("{"):
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{source}:{number}: broken JSON: {error.msg} at column {error.colno}") from None
    else:
        fields = {}
        for reader in readers.values():
            if len(reader.inputs) == 1:
                fields[reader.inputs[0]] = line.split() if reader.is_words else line.strip()
    if not any(reader.reads(fields) for reader in readers.values()):
        wanted = " or ".join(dict.fromkeys(" and ".join(map(repr, reader.wanted)) for reader in readers.values()))
        raise UserError(f"{source}:{number}: no task can read this line; as a JSON object it needs the fields {wanted}")
    return fields


def _corpus(config, kept: artifacts.Artifacts, records: Sequence[Record], folder: Location | None = None) -> Corpus:
    """The records as the corpus of the data sets that can read them; the splits' `records` are their numbers.

    `folder` is what paths of pictures start from.
    """
    held, readable = {}, {}
    for name, reader in _readers(config, kept).items():
        readable[name] = [i for i, record in enumerate(records) if reader.reads(record.fields)]
        if readable[name]:
            held[name] = [records[i] for i in readable[name]], config.datasets[name]
    data = corpus_of(config, kept, held, folder)
    splits = {name: {"input": by["input"]._replace(records=readable[name])} for name, by in data.splits.items()}
    return data._replace(splits=splits)


def corpus_of(
    config: Any,
    kept: artifacts.Artifacts,
    held: Mapping[str, tuple[Sequence[Record], Any]],
    folder: Location | None = None,
) -> Corpus:
    """Records as a corpus with the one split "input": no labels, everything else as in training.

    Args:
      config, kept: of the run whose model is to read them.
      held: {data set of the config: (records, entry that names their fields of texts or words)}.
      folder: what paths of pictures start from; None: the working folder.
    """
    specs = {spec.task: spec for spec in label_specs(config) if spec.task in kept.vocabularies}
    names = tuple(dict.fromkeys(spec.dataset for spec in specs.values()))
    rows, splits = {}, {}
    for name, (records, entry) in held.items():
        own = [spec for spec in specs.values() if spec.dataset == name]
        packed, split = corpora.for_prediction(
            records, entry, own, kept.vocabularies, kept.tokenizer,
            row_length=config.data.row_length, max_length=max_length(config, kept.architecture),
            pack=config.data.pack, overlong=config.data.overlong or "auto", stride=config.data.stride,
            cut=cut(config), form=kept.pictures, folder=folder,
        )  # fmt: skip
        rows[name], splits[name] = {"input": packed}, {"input": split}
    tasks = tuple(kept.vocabularies)
    pictured = [names.index(name) for name in kept.pictures.sizes] if kept.pictures else []
    of_tasks = [names.index(specs[task].dataset) for task in tasks]
    layout = batches.make_layout(names, tasks, of_tasks, batches.Mixing(), pictured)
    return Corpus(
        layout, rows, splits, kept.vocabularies, {task: specs[task] for task in tasks}, kept.tokenizer,
        notes=(), fingerprint="", statistics={"datasets": {}, "tasks": kept.statistics}, pictures=kept.pictures,
    )  # fmt: skip


def predictions(loaded: Loaded) -> list[dict[str, Any]]:
    """For each record {"line": its place, task: what it says}."""
    experiment, data = loaded.experiment, loaded.experiment.corpus
    evaluator = make_evaluator(experiment, loaded.placement)  # its programs fit the shapes of these records
    lines: list[dict[str, Any]] = [{"line": record.line} for record in loaded.records]
    for dataset in data.splits:
        predicted = evaluator.predict(loaded.params, dataset, "input")
        split = data.splits[dataset]["input"]
        readable = split.records
        for name, values in predicted.values.items():
            if experiment.tasks[name].level == "span":
                record = split.encoded.record[decoding.windows(split.encoded)]
                values = experiment.tasks[name].best(record, values["value"], len(readable))
                values |= _answers(split, values["value"])
            for place_, number in enumerate(readable):
                own = {key: array[place_] for key, array in values.items()}
                if sources := data.splits[dataset]["input"].encoded.labels[name].sources:
                    own["source"] = sources[place_]
                lines[number][name] = _decode(experiment.tasks[name], own)
    return lines


def _answers(split: corpora.Split, spans) -> dict[str, list[Any]]:
    """The texts of predicted spans int32[M, 2], and where they stand: characters or words; None for no answer."""
    wholes = [texts[-1] for texts in split.units.texts] if split.units.words is None else split.units.words
    texts, places = [], []
    for record, (first, last) in enumerate(spans.tolist()):
        texts.append(answers.text_of(wholes[record], split.encoded, record, first, last))
        by_words = split.units.words is not None
        place = (first, last) if by_words or first < 0 else answers.characters(split.encoded, record, first, last)
        places.append(None if first < 0 else place)
    return {"text": texts, "place": places}


def _decode(task, values: Mapping[str, Any]) -> Any:
    if task.level != "predicate":
        return task.decode(**values)
    return [task.decode(**{key: array[i] for key, array in values.items()}) for i in range(len(values["value"]))]
