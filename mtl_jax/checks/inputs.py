"""Checks of data sets, pictures and tasks, and of how data sets are mixed in batches."""

from __future__ import annotations

from mtl_jax.checks.ranges import RESERVED, SPLITS
from mtl_jax.checks.value_rules import Report, check_choice, check_distinct, check_name, check_names, check_range
from mtl_jax.config.entries import Dataset, Task
from mtl_jax.config.sections import Config
from mtl_jax.data import origins
from mtl_jax.data.labels.target_sequences import SPECIALS
from mtl_jax.data.readers import READERS
from mtl_jax.data.readers.options import declared_options
from mtl_jax.data.records import suggestion
from mtl_jax.errors import UserError
from mtl_jax.tasks import TASK_KINDS, make_task
from mtl_jax.tasks.base import Task as TaskKind


def check_datasets(config: Config, report: Report) -> None:
    """Checks `datasets`: which fields of the records are read, as what."""
    check_distinct("config.datasets", config.datasets, report)
    if not config.datasets:
        report("config.datasets: none; add one with default.add_dataset(config, name, ...)")
    for name, entry in config.datasets.items():
        where = f"config.datasets.{name}"
        check_name(where, name, report)
        check_choice(f"{where}.reader", entry.reader, READERS, report)
        if entry.origin:
            try:
                origins.parse(entry.origin)
            except UserError as error:
                report(f"{where}.{error}")
        if bool(entry.text) == bool(entry.words) and not (entry.image and not entry.words):
            report(
                f"{where}: give either text (one or two fields of plain text) or words (the field with a list of "
                "words); only with an image may both be left out"
            )
        if isinstance(entry.text, str):
            report(f"{where}.text: a tuple of field names, e.g. ({entry.text!r},)")
        if len(entry.marked) not in (0, 2, 4) or len(entry.markers) not in (0, 4):
            report(f"{where}: marked has two fields of spans, or the four strings around them; markers has four tokens")
        if entry.marked_ends and len(entry.marked) != 2:
            report(f"{where}.marked_ends: is about spans in two fields; name these in marked, or leave it out")
        if entry.marked and not entry.words and len(entry.text) != 1:
            report(f"{where}.marked: spans are marked in one text field; name one in text, not {len(entry.text)}")
        if entry.choices and not entry.text:
            report(f"{where}.choices: they are encoded with a field of plain text; name it in text, not in words")
        if entry.choices and entry.marked:
            report(f"{where}: a data set has either choices or marked spans")
        _check_tagged(name, config, report)
        for field in ("splits", "max_examples"):
            check_names(f"{where}.{field}", entry[field], SPLITS, report)


def check_images(config: Config, report: Report) -> None:
    """Checks `images`, and the tasks that read pictures."""
    images, has_pictures = config.images, False
    for name, entry in config.datasets.items():
        where, size = f"config.datasets.{name}.image_size", entry.image_size
        has_pictures |= bool(entry.image)
        if size and not entry.image:
            report(f"{where}: there is nothing to resize; name the field of the pictures in image")
        elif size and not (len(size) == 2 and all(isinstance(s, int) and not isinstance(s, bool) for s in size)):
            report(f"{where}: {size!r} should be (height, width) in pixels")
        elif size and (min(size) < 1 or images.patch_size < 1 or any(side % images.patch_size for side in size)):
            report(f"{where}: {size!r} should be multiples of config.images.patch_size = {images.patch_size}")
    for name, entry in config.tasks.items():
        if entry.options.get("copy") and config.datasets.get(entry.dataset, {}).get("image"):
            report(f"config.tasks.{name}.options.copy: patches of pictures cannot be copied; leave it out")
        source = config.datasets.get(entry.dataset)
        if entry.kind in TASK_KINDS and TASK_KINDS[entry.kind].reads_pictures and source is not None:
            if not (source.image and (source.text or source.words)):
                report(
                    f"config.tasks.{name}.kind: {entry.kind!r} reads words and pictures; name both in "
                    f"config.datasets.{entry.dataset}: image, and text or words"
                )
    if images.num_channels not in (1, 3):
        report(f"config.images.num_channels: {images.num_channels} should be 3 (RGB) or 1 (grey)")
    for field in ("pretrained", "blank"):
        if images[field] and not has_pictures:
            report(f"config.images.{field}: no data set has pictures; name their field in config.datasets.*.image")
    if has_pictures and config.optimizer.cache_frozen:
        report("config.optimizer.cache_frozen: has to be False with pictures, whose embedding is trained")


def check_tasks(config: Config, report: Report) -> None:
    """Checks `tasks`: data set, kind, and what the kind requires."""
    check_distinct("config.tasks", config.tasks, report)
    if not config.tasks:
        report("config.tasks: none; add one with default.add_task(config, name, ...)")
    for name, entry in config.tasks.items():
        where = f"config.tasks.{name}"
        check_name(where, name, report, RESERVED["tasks"])
        check_choice(f"{where}.dataset", entry.dataset, config.datasets, report)
        if check_choice(f"{where}.kind", entry.kind, TASK_KINDS, report):
            _check_kind(config, name, TASK_KINDS[entry.kind], where, report)


def _check_kind(config: Config, name: str, kind: type[TaskKind], where: str, report: Report) -> None:
    """What a kind of task requires of its entry and of its data set."""
    entry, dataset = config.tasks[name], config.datasets.get(config.tasks[name].dataset)
    if entry.level:
        check_choice(f"{where}.level", entry.level, kind.levels, report)
    if dataset is not None:
        _check_dataset_of(entry, kind, dataset, where, report)
    if entry.max_labels and kind.label_type in ("tokens", "hidden"):
        report(f"{where}.max_labels: tasks of kind {entry.kind!r} need every label; limit the data set instead")
    if kind.label_type == "hidden":
        _check_masked(config, name, where, report)
    elif not entry.label:
        report(f"{where}.label: name the field that holds the label")
    if kind.predicts == "tags" and dataset is not None:
        _check_scheme(entry, dataset, where, report)
    if kind.label_type == "tokens":
        _check_generation(name, entry, report)
    if kind.in_row and dataset is not None:
        _check_alone_in_rows(config, name, report)


def _check_scheme(entry: Task, dataset: Dataset, where: str, report: Report) -> None:
    """A task and its data set have to name one scheme to which tags are converted."""
    of_task, of_dataset = entry.options.get("scheme"), dataset.options.get("scheme")
    if of_task and of_dataset and of_task != of_dataset:
        report(
            f"{where}.options.scheme: {of_task!r}, but config.datasets.{entry.dataset}.options.scheme is "
            f"{of_dataset!r}; leave out one of them, tags are converted to the other"
        )


def _check_tagged(name: str, config: Config, report: Report) -> None:
    """Options about the tags of a data set need a tagging task that reads them."""
    entry, where = config.datasets[name], f"config.datasets.{name}.options"
    fields = [task.label for task in config.tasks.values() if task.dataset == name and _reads_tags(task)]
    schemes = entry.options.get("schemes") or {}
    for field in schemes if hasattr(schemes, "keys") else ():
        if field not in fields:
            read = f"they read {', '.join(map(repr, fields))}" if fields else "there is none"
            report(
                f"{where}.schemes: names {field!r}, which no tagging task on {name!r} reads; {read}."
                f"{suggestion(field, fields)}"
            )
    reader_has_scheme = entry.reader in READERS and "scheme" in declared_options(READERS[entry.reader])
    if "scheme" in entry.options and not fields and not reader_has_scheme:
        report(f"{where}.scheme: converts the tags of tagging tasks on {name!r}, and there is none")


def _reads_tags(task: Task) -> bool:
    return task.kind in TASK_KINDS and TASK_KINDS[task.kind].predicts == "tags"


def _check_generation(name: str, entry: Task, report: Report) -> None:
    """The options of a task that generates text, all of which can be checked without the data."""
    if entry.classes:
        report(f"config.tasks.{name}.classes: a task that generates text takes its tokens from the targets of train")
    settings = {"kind": entry.kind, "metrics": tuple(entry.metrics), **entry.options.to_dict()}
    try:
        make_task(name, settings, "sequence", SPECIALS)
    except UserError as error:
        report(str(error))


def _check_alone_in_rows(config: Config, name: str, report: Report) -> None:
    """Where answers follow the texts, the texts have to be read by no other task, and have no pictures."""
    dataset, where = config.tasks[name].dataset, f"config.tasks.{name}.dataset"
    readers = [task for task, other in config.tasks.items() if task != name and other.dataset == dataset]
    if readers:
        report(
            f"{where}: the answers follow the texts of {dataset!r}, where {readers[0]!r} would read them; add the same "
            "files as another data set"
        )
    for field in ("image", "marked"):
        if config.datasets[dataset][field]:
            report(
                f"{where}: {dataset!r} has config.datasets.{dataset}.{field}, which tasks of kind "
                f"{config.tasks[name].kind!r} cannot read"
            )


def _check_dataset_of(entry: Task, kind: type[TaskKind], dataset: Dataset, where: str, report: Report) -> None:
    """Whether the data set has the choices or marked spans that the kind of task reads."""
    chooses = kind.label_type == "choice"
    if chooses != bool(dataset.choices):
        if chooses:
            report(f"{where}: config.datasets.{entry.dataset}.choices is empty; name the field or fields of choices")
        else:
            report(
                f"{where}.dataset: {entry.dataset!r} has choices, each of which is encoded with the text; only tasks "
                f"of kind {_kinds_of('choice')} read it. Add the same files as another data set"
            )
    if (entry.level or kind.levels[0]) == "pair" and not dataset.marked:
        report(f"{where}: config.datasets.{entry.dataset}.marked is empty; name the two fields with the spans")


def _kinds_of(label_type: str) -> str:
    return " or ".join(repr(name) for name, kind in TASK_KINDS.items() if kind.label_type == label_type)


def _check_masked(config: Config, name: str, where: str, report: Report) -> None:
    """Masked language modelling hides tokens, so its data set has to be one that no other task reads."""
    entry = config.tasks[name]
    readers = [task for task, other in config.tasks.items() if task != name and other.dataset == entry.dataset]
    if readers:
        report(
            f"{where}.dataset: tokens of {entry.dataset!r} are hidden, which {readers[0]!r} has to see; add the same "
            "files as another data set"
        )
    if config.optimizer.cache_frozen:
        report(f"{where}: hidden tokens differ from step to step, so config.optimizer.cache_frozen has to be False")
    if entry.dataset in config.datasets and config.datasets[entry.dataset].marked:
        report(f"{where}.dataset: {entry.dataset!r} has marked spans; add the same files as another data set")


def check_mixing(config: Config, report: Report) -> None:
    """Checks `data`: weights of data sets."""
    for name, weight in config.data.mixing_weights.items():
        check_range(f"config.data.mixing_weights.{name}", weight, 0.0, None, report)
    check_names("config.data.mixing_weights", config.data.mixing_weights, config.datasets, report)
