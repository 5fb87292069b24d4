"""Which tasks of a run read a record, and records as a corpus without labels.

Data sets that read records alike (the same fields, in the same way) form one group: the text is encoded once, and what
their tasks share of the network runs once.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from mtl_jax.config.entries import Dataset
from mtl_jax.config.plain import to_plain
from mtl_jax.config.sections import Config
from mtl_jax.data import corpus as corpora
from mtl_jax.data import sampler
from mtl_jax.data.batch import BatchLayout, PackedRows
from mtl_jax.data.corpus import Corpus
from mtl_jax.data.datasets import list_parsing, record_filters
from mtl_jax.data.datasets.text_checks import check_texts
from mtl_jax.data.encoding import marked_spans
from mtl_jax.data.files.location import Location
from mtl_jax.data.labels.label_spec import LabelSpec
from mtl_jax.data.records import Note, Record, field, find_field, suggestion, where
from mtl_jax.errors import UserError
from mtl_jax.evaluation.input_files import TEXT
from mtl_jax.experiment.inputs import label_specs, max_length, patch_spec
from mtl_jax.storage.artifacts import Artifacts

INPUT_SPLIT = "input"  # the one split of the corpus
# fields of a data set that decide where records come from and which are used, and not how a record is read
FILE_FIELDS = (
    "reader",
    "path",
    "origin",
    "wheel",
    "splits",
    "filter",
    "encoding",
    "options",
    "dev_fraction",
    "test_fraction",
    "group_by",
    "max_examples",
    "drop_duplicates",
)


class RequiredFields(NamedTuple):
    """The fields that a record needs for the tasks of one data set to read it.

    texts       fields with text
    words       field with words, "" for none
    image       field with pictures, "" for none
    additional  choices, marked spans, the predicates where all tasks of the data set read them
    where       {field: values}: a record that has the field with another value is not of this data set
    empty       "error" | "drop": a record without text
    """

    texts: tuple[str, ...]
    words: str
    image: str
    additional: tuple[str, ...]
    where: Mapping[str, Sequence[str]]
    empty: str

    @property
    def inputs(self) -> tuple[str, ...]:
        """Fields with text, words or pictures."""
        return self.texts + ((self.words,) if self.words else ()) + ((self.image,) if self.image else ())

    @property
    def all(self) -> tuple[str, ...]:
        """All required fields."""
        return self.inputs + self.additional

    def select(self, record: Record) -> Record | None:
        """The record with the fields of this data set; None where it lacks one."""
        if TEXT in record.fields:
            if len(self.inputs) != 1 or self.additional:
                return None
            line = record.fields[TEXT]
            return record._replace(fields={self.inputs[0]: line.split() if self.words else line})
        return record if all(_has_field(record, name) for name in self.all) else None

    def excludes(self, record: Record) -> bool:
        """Whether `where` leaves the record out."""
        values = {name: find_field(record, name) for name in self.where}
        return any(value is not None and str(value) not in self.where[name] for name, value in values.items())


class DatasetGroup(NamedTuple):
    """Data sets that read records alike: the first one and its entry represent all of them."""

    datasets: tuple[str, ...]
    entry: Dataset

    @property
    def name(self) -> str:
        """The name of the first data set."""
        return self.datasets[0]


class ReadRecords(NamedTuple):
    """Records as a corpus.

    corpus    of the groups that read any record, by the name of the group; the records of its split are those with
              the indices in `numbers`
    numbers   {group: indices of the records that it reads}
    readers   {data set: indices of the records that its tasks read}
    records   all records
    """

    corpus: Corpus
    numbers: Mapping[str, Sequence[int]]
    readers: Mapping[str, Collection[int]]
    records: Sequence[Record]


class RecordReading:
    """How a run reads records for the given tasks, () for all that were trained."""

    def __init__(self, config: Config, saved: Artifacts, tasks: Sequence[str] = ()):
        self._config, self._artifacts = config, saved
        specs = {spec.task: spec for spec in label_specs(config) if spec.task in saved.vocabularies}
        for task in tasks:
            if task not in specs:
                raise UserError(
                    f"--tasks: the run has trained no task {task!r}; it has: {', '.join(specs)}."
                    f"{suggestion(task, specs)}"
                )
        self.tasks = tuple(name for name in saved.vocabularies if not tasks or name in tasks)
        self.dataset_of = {task: specs[task].dataset for task in self.tasks}
        self.datasets = {name: config.datasets[name] for name in dict.fromkeys(self.dataset_of.values())}
        by_dataset = {name: [spec for spec in specs.values() if spec.dataset == name] for name in self.datasets}
        self._required = {
            name: _required_fields(config.datasets[name], of_dataset) for name, of_dataset in by_dataset.items()
        }
        self.groups = _groups(config, by_dataset)
        self._layout = _layout(saved, specs, self.groups)
        self._shapes: dict[str, PackedRows] = {}  # the last rows of each group, whose shapes the next ones have
        self.notes: list[Note] = []  # about records that no task reads

    def read(self, records: Sequence[Record], folder: Location | None = None) -> ReadRecords:
        """Records as a corpus of the split "input".

        Args:
          records: of any data set of the run.
          folder: base of relative paths of pictures; None: the working directory.

        Raises:
          UserError: a record that no task can read, or not as training reads it, with its place.
        """
        readers: dict[str, dict[int, Record]] = {name: {} for name in self.datasets}
        listed = {name: list_parsing.parse_list_cells(records, entry)[0] for name, entry in self.datasets.items()}
        for number, record in enumerate(records):
            self._assign(number, record, {name: by_number[number] for name, by_number in listed.items()}, readers)
        for name, by_number in readers.items():
            required = self._required[name]
            listed, _ = list_parsing.parse_list_cells(list(by_number.values()), self.datasets[name])
            by_number = dict(zip(by_number, listed, strict=True))
            complete, empty = check_texts(listed, required.texts, required.words, required.empty)
            self.notes += empty
            ids = {id(record) for record in complete}
            readers[name] = {number: record for number, record in by_number.items() if id(record) in ids}
        inputs, numbers = {}, {}
        for group in self.groups:
            by_number = {number: record for name in group.datasets for number, record in readers[name].items()}
            if by_number:
                numbers[group.name] = sorted(by_number)
                inputs[group.name] = [by_number[number] for number in numbers[group.name]], group.entry
        corpus = build_corpus(self._config, self._artifacts, inputs, folder, self._layout, self._shapes)
        self._shapes |= {name: by_split[INPUT_SPLIT] for name, by_split in corpus.rows.items()}
        return ReadRecords(corpus, numbers, {name: by_number.keys() for name, by_number in readers.items()}, records)

    def _assign(
        self, number: int, record: Record, listed: Mapping[str, Record], readers: Mapping[str, dict[int, Record]]
    ) -> None:
        """Adds a record to the `readers` that can read it; `listed`: the record as each data set sees it."""
        readable = {
            name: selected
            for name, required in self._required.items()
            if (selected := required.select(listed[name])) is not None
        }
        if not readable:
            alternatives = dict.fromkeys(" and ".join(map(repr, required.all)) for required in self._required.values())
            known = ", ".join(map(repr, record.fields)) if TEXT not in record.fields else "a line of text"
            raise UserError(
                f"{where(record)}: no task can read this line; as a JSON object, or a column or element, it needs the "
                f"fields {' or '.join(alternatives)}; it has: {known}"[:600]
            )
        included = {
            name: selected for name, selected in readable.items() if not self._required[name].excludes(selected)
        }
        if not included:
            self.notes.append(Note("records that no data set takes (where)", record.file, record.line))
        for name, selected in included.items():
            readers[name][number] = selected


def build_corpus(
    config: Config,
    saved: Artifacts,
    inputs: Mapping[str, tuple[Sequence[Record], Dataset]],
    folder: Location | None = None,
    layout: BatchLayout | None = None,
    shapes: Mapping[str, PackedRows] | None = None,
) -> Corpus:
    """Records as a corpus with the one split "input": no labels, everything else as in training.

    Args:
      config, saved: of the run whose model is to read them.
      inputs: {data set of the config: (records, entry that names their fields of text or words)}.
      folder: base of relative paths of pictures; None: the working directory.
      layout: of the batches; by default every data set is a group of its own.
      shapes: {data set: rows whose shapes these have where they fit}.
    """
    specs = {spec.task: spec for spec in label_specs(config) if spec.task in saved.vocabularies}
    layout = layout or _layout(saved, specs, ())
    rows, splits = {}, {}
    for name, (records, entry) in inputs.items():
        of_dataset = [specs[layout.tasks[k]] for k in layout.tasks_on(layout.datasets.index(name))]
        packed, split = corpora.corpus_for_prediction(
            records,
            entry,
            of_dataset,
            saved.vocabularies,
            saved.tokenizer,
            row_length=config.data.row_length,
            max_length=max_length(config, saved.architecture),
            pack=config.data.packing,
            overflow=config.data.overflow or "auto",
            stride=config.data.window_stride,
            cut=patch_spec(config),
            form=saved.pictures,
            folder=folder,
            like=(shapes or {}).get(name),
        )
        rows[name], splits[name] = {INPUT_SPLIT: packed}, {INPUT_SPLIT: split}
    return Corpus(
        layout,
        rows,
        splits,
        saved.vocabularies,
        {task: specs[task] for task in saved.vocabularies},
        saved.tokenizer,
        notes=(),
        fingerprint="",
        statistics={"datasets": {}, "tasks": saved.statistics},
        pictures=saved.pictures,
    )


def _layout(saved: Artifacts, specs: Mapping[str, LabelSpec], groups: Sequence[DatasetGroup]) -> BatchLayout:
    """The layout in which the first data set of each group has the tasks of all."""
    names = tuple(dict.fromkeys(spec.dataset for spec in specs.values()))
    first = {name: group.name for group in groups for name in group.datasets}
    dataset_of_task = [names.index(first.get(specs[task].dataset, specs[task].dataset)) for task in saved.vocabularies]
    pictured = [names.index(name) for name in saved.pictures.sizes if name in names] if saved.pictures else []
    return sampler.make_layout(names, tuple(saved.vocabularies), dataset_of_task, sampler.Mixing(), pictured)


def accepts_plain_lines(config: Config) -> bool:
    """Whether some data set of the trained tasks reads a plain line of text: a single field."""
    specs = [spec for spec in label_specs(config) if not config.train_tasks or spec.task in config.train_tasks]
    names = dict.fromkeys(spec.dataset for spec in specs)
    return any(
        len(_required_fields(config.datasets[name], [spec for spec in specs if spec.dataset == name]).all) == 1
        for name in names
    )


def _required_fields(entry: Dataset, specs: Sequence[LabelSpec]) -> RequiredFields:
    predicates = {spec.predicates if spec.level == "predicate" else "" for spec in specs}
    additional = tuple(entry.choices) + (tuple(entry.marked) if len(entry.marked) == 2 else ())
    if "" not in predicates:
        additional += (predicates.pop(),)
    return RequiredFields(
        tuple(entry.text),
        entry.words,
        entry.image,
        additional,
        record_filters.parse_conditions(to_plain(entry.filter)),
        entry.options.get("empty", "error"),
    )


def _groups(config: Config, by_dataset: Mapping[str, Sequence[LabelSpec]]) -> list[DatasetGroup]:
    groups: dict[str, DatasetGroup] = {}
    for name, specs in by_dataset.items():
        entry = config.datasets[name]
        levels = {spec.level for spec in specs}
        way_of_reading = [
            {field: value for field, value in to_plain(entry).items() if field not in FILE_FIELDS},
            sorted({spec.predicates for spec in specs if spec.level == "predicate"}),
            "span" in levels,
            bool(entry.words) and bool(levels & {"word", "predicate"}),
            name if "token" in levels else "",
        ]
        key = json.dumps(way_of_reading, sort_keys=True)
        before = groups.get(key, DatasetGroup((), entry))
        groups[key] = DatasetGroup((*before.datasets, name), before.entry)
    return list(groups.values())


def _has_field(record: Record, name: str) -> bool:
    """Whether a record has the field or the path; or the two fields of a span "start+end"."""
    return _has_path(record, name) or all(_has_path(record, part) for part in marked_spans.field_names(name))


def _has_path(record: Record, name: str) -> bool:
    try:
        field(record, name)
    except UserError:
        return False
    return True
