"""Which tasks of a run read a record, and records as a corpus without labels.

Data sets that read records alike (the same fields, in the same manner) are one here: the text is encoded once, and what
their tasks share of the network runs once.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from mtl_jax.config.plain import to_plain
from mtl_jax.data import corpus as corpora
from mtl_jax.data import sampler
from mtl_jax.data.batch import BatchLayout
from mtl_jax.data.corpus import Corpus
from mtl_jax.data.datasets import list_cells, record_filters
from mtl_jax.data.datasets.text_checks import check_texts
from mtl_jax.data.encoding import marked_spans
from mtl_jax.data.files.location import Location
from mtl_jax.data.labels.raw_labels import LabelSpec
from mtl_jax.data.records import Note, Record, field, find_field, suggestion, where
from mtl_jax.errors import UserError
from mtl_jax.evaluation.input_files import TEXT
from mtl_jax.experiment.inputs import cut, label_specs, max_length
from mtl_jax.storage import artifacts

SPLIT = "input"  # the one split of the corpus
# fields of a data set that say where records come from and which count, and not how one is read
OF_FILES = (
    "reader",
    "path",
    "wheel",
    "splits",
    "where",
    "encoding",
    "options",
    "dev_fraction",
    "test_fraction",
    "group",
    "limit",
    "drop_duplicates",
)


class Needs(NamedTuple):
    """What a record has to have for the tasks of one data set to read it.

    texts, words  fields with texts, or the field with words
    image   field with pictures, "" for none
    beside  further fields: choices, marked spans, the predicates where all tasks of the data set read them
    where   {field: values}: a record that has the field with another value is none of this data set
    empty   "error" | "drop": a record without text
    """

    texts: tuple[str, ...]
    words: str
    image: str
    beside: tuple[str, ...]
    where: Mapping[str, Sequence[str]]
    empty: str

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.texts + ((self.words,) if self.words else ()) + ((self.image,) if self.image else ())

    @property
    def wanted(self) -> tuple[str, ...]:
        return self.inputs + self.beside

    def given(self, record: Record) -> Record | None:
        """The record with the fields of this data set; None where it lacks one, or has another value of `where`."""
        if TEXT in record.fields:
            if len(self.inputs) != 1 or self.beside:
                return None
            line = record.fields[TEXT]
            return record._replace(fields={self.inputs[0]: line.split() if self.words else line})
        return record if all(map(functools.partial(_has, record), self.wanted)) else None

    def excludes(self, record: Record) -> bool:
        """Whether `where` leaves the record out."""
        values = {name: find_field(record, name) for name in self.where}
        return any(value is not None and str(value) not in self.where[name] for name, value in values.items())


class Group(NamedTuple):
    """Data sets of one manner of reading: the first stands for all, and its entry for theirs."""

    datasets: tuple[str, ...]
    entry: Any

    @property
    def name(self) -> str:
        return self.datasets[0]


class Read(NamedTuple):
    """Records as a corpus.

    corpus    of the groups that read any of them, by the name of the group; `records` of a split are those of
              `records` at the places in `numbers`
    numbers   {group: numbers of the records that it reads}
    readers   {data set: numbers of the records that its tasks read}
    records   all that there are
    """

    corpus: Corpus
    numbers: Mapping[str, Sequence[int]]
    readers: Mapping[str, Collection[int]]
    records: Sequence[Record]


class Reading:
    """How a run reads records. `tasks`: the ones that are wanted, () for all that were trained."""

    def __init__(self, config: Any, kept: artifacts.Artifacts, tasks: Sequence[str] = ()):
        self._config, self._kept = config, kept
        specs = {spec.task: spec for spec in label_specs(config) if spec.task in kept.vocabularies}
        for task in tasks:
            if task not in specs:
                raise UserError(
                    f"--tasks: the run has trained no task {task!r}; it has: {', '.join(specs)}."
                    f"{suggestion(task, specs)}"
                )
        self.tasks = tuple(name for name in kept.vocabularies if not tasks or name in tasks)
        self.dataset_of = {task: specs[task].dataset for task in self.tasks}
        self.datasets = {name: config.datasets[name] for name in dict.fromkeys(self.dataset_of.values())}
        by_dataset = {name: [spec for spec in specs.values() if spec.dataset == name] for name in self.datasets}
        self._needs = {name: _needs(config.datasets[name], own) for name, own in by_dataset.items()}
        self.groups = _groups(config, by_dataset)
        self._layout = _layout(kept, specs, self.groups)
        self._shapes: dict[str, Any] = {}  # the rows of the last records of each group, whose shapes the next ones take
        self.notes: list[Note] = []  # about records that no task reads

    def read(self, records: Sequence[Record], folder: Location | None = None) -> Read:
        """Records as a corpus of the split "input".

        Args:
          records: of any data set of the run.
          folder: what paths of pictures start from; None: the working folder.

        Raises:
          UserError: a record that no task can read, or not as training reads it, with its place.
        """
        readers: dict[str, dict[int, Record]] = {name: {} for name in self.datasets}
        listed = {name: list_cells.parse_list_cells(records, entry)[0] for name, entry in self.datasets.items()}
        for number, record in enumerate(records):
            self._share_out(number, record, {name: own[number] for name, own in listed.items()}, readers)
        for name, given in readers.items():
            needs = self._needs[name]
            listed, _ = list_cells.parse_list_cells(list(given.values()), self.datasets[name])
            given = dict(zip(given, listed, strict=True))
            whole, empty = check_texts(listed, needs.texts, needs.words, needs.empty)
            self.notes += empty
            there = {id(record) for record in whole}
            readers[name] = {number: record for number, record in given.items() if id(record) in there}
        held, numbers = {}, {}
        for group in self.groups:
            own = {number: record for name in group.datasets for number, record in readers[name].items()}
            if own:
                numbers[group.name] = sorted(own)
                held[group.name] = [own[number] for number in numbers[group.name]], group.entry
        corpus = corpus_of(self._config, self._kept, held, folder, self._layout, self._shapes)
        self._shapes |= {name: by_split[SPLIT] for name, by_split in corpus.rows.items()}
        return Read(corpus, numbers, {name: given.keys() for name, given in readers.items()}, records)

    def _share_out(
        self, number: int, record: Record, listed: Mapping[str, Record], readers: Mapping[str, dict[int, Record]]
    ) -> None:
        given = {name: own for name, needs in self._needs.items() if (own := needs.given(listed[name])) is not None}
        if not given:
            wanted = " or ".join(dict.fromkeys(" and ".join(map(repr, needs.wanted)) for needs in self._needs.values()))
            known = ", ".join(map(repr, record.fields)) if TEXT not in record.fields else "a line of text"
            raise UserError(
                f"{where(record)}: no task can read this line; as a JSON object, or a column or element, it needs the "
                f"fields {wanted}; it has: {known}"[:600]
            )
        taken = {name: own for name, own in given.items() if not self._needs[name].excludes(own)}
        if not taken:
            self.notes.append(Note("records that no data set takes (where)", record.file, record.line))
        for name, own in taken.items():
            readers[name][number] = own


def corpus_of(
    config: Any,
    kept: artifacts.Artifacts,
    held: Mapping[str, tuple[Sequence[Record], Any]],
    folder: Location | None = None,
    layout: BatchLayout | None = None,
    shapes: Mapping[str, Any] | None = None,
) -> Corpus:
    """Records as a corpus with the one split "input": no labels, everything else as in training.

    Args:
      config, kept: of the run whose model is to read them.
      held: {data set of the config: (records, entry that names their fields of texts or words)}.
      folder: what paths of pictures start from; None: the working folder.
      layout: of the batches; by default every data set stands for itself.
      shapes: {data set: rows whose shapes these take where they can}.
    """
    specs = {spec.task: spec for spec in label_specs(config) if spec.task in kept.vocabularies}
    layout = layout or _layout(kept, specs, ())
    rows, splits = {}, {}
    for name, (records, entry) in held.items():
        own = [specs[layout.tasks[k]] for k in layout.tasks_on(layout.datasets.index(name))]
        packed, split = corpora.corpus_for_prediction(
            records,
            entry,
            own,
            kept.vocabularies,
            kept.tokenizer,
            row_length=config.data.row_length,
            max_length=max_length(config, kept.architecture),
            pack=config.data.packing,
            overflow=config.data.overflow or "auto",
            stride=config.data.window_stride,
            cut=cut(config),
            form=kept.pictures,
            folder=folder,
            like=(shapes or {}).get(name),
        )
        rows[name], splits[name] = {SPLIT: packed}, {SPLIT: split}
    return Corpus(
        layout,
        rows,
        splits,
        kept.vocabularies,
        {task: specs[task] for task in kept.vocabularies},
        kept.tokenizer,
        notes=(),
        fingerprint="",
        statistics={"datasets": {}, "tasks": kept.statistics},
        pictures=kept.pictures,
    )


def _layout(kept, specs: Mapping[str, LabelSpec], groups: Sequence[Group]) -> BatchLayout:
    """The layout in which the first data set of each group has the tasks of all."""
    names = tuple(dict.fromkeys(spec.dataset for spec in specs.values()))
    first = {name: group.name for group in groups for name in group.datasets}
    of_tasks = [names.index(first.get(specs[task].dataset, specs[task].dataset)) for task in kept.vocabularies]
    pictured = [names.index(name) for name in kept.pictures.sizes] if kept.pictures else []
    return sampler.make_layout(names, tuple(kept.vocabularies), of_tasks, sampler.Mixing(), pictured)


def reads_lines(config: Any) -> bool:
    """Whether some data set of the trained tasks reads a line of text: one field, and nothing beside it."""
    specs = [spec for spec in label_specs(config) if not config.train_on or spec.task in config.train_on]
    names = dict.fromkeys(spec.dataset for spec in specs)
    needs = (_needs(config.datasets[name], [spec for spec in specs if spec.dataset == name]) for name in names)
    return any(len(need.inputs) == 1 and not need.beside for need in needs)


def _needs(entry: Any, specs: Sequence[LabelSpec]) -> Needs:
    predicates = {spec.predicates if spec.level == "predicate" else "" for spec in specs}
    beside = tuple(entry.choices) + (tuple(entry.marked) if len(entry.marked) == 2 else ())
    if "" not in predicates:
        beside += (predicates.pop(),)
    chosen = entry.where.to_dict() if hasattr(entry.where, "to_dict") else dict(entry.where)
    return Needs(
        tuple(entry.text),
        entry.words,
        entry.image,
        beside,
        record_filters.parse_conditions(chosen),
        entry.options.get("empty", "error"),
    )


def _groups(config, by_dataset: Mapping[str, Sequence[LabelSpec]]) -> list[Group]:
    groups: dict[str, Group] = {}
    for name, specs in by_dataset.items():
        entry = config.datasets[name]
        levels = {spec.level for spec in specs}
        how = [
            {field: value for field, value in to_plain(entry).items() if field not in OF_FILES},
            sorted({spec.predicates for spec in specs if spec.level == "predicate"}),
            "span" in levels,
            bool(entry.words) and bool(levels & {"word", "predicate"}),
            name if "token" in levels else "",
        ]
        key = json.dumps(how, sort_keys=True)
        before = groups.get(key, Group((), entry))
        groups[key] = Group((*before.datasets, name), before.entry)
    return list(groups.values())


def _has(record: Record, name: str) -> bool:
    """Whether a record has the field, or what a path leads to; or the two fields of a span "start+end"."""
    return _is_there(record, name) or all(_is_there(record, one) for one in marked_spans.field_names(name))


def _is_there(record: Record, name: str) -> bool:
    try:
        field(record, name)
    except UserError:
        return False
    return True
