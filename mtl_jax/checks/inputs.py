"""Checks of what is read: data sets, pictures, tasks, how data sets share the batches."""

from __future__ import annotations

from mtl_jax.checks.ranges import RESERVED, SPLITS
from mtl_jax.checks.value_rules import check_choice, check_distinct, check_name, check_names, check_range
from mtl_jax.data.labels.target_sequences import SPECIALS
from mtl_jax.data.readers import READERS
from mtl_jax.data.readers.options import declared_options
from mtl_jax.data.records import suggestion
from mtl_jax.errors import UserError
from mtl_jax.tasks import TASK_KINDS, make_task


def check_datasets(config, say):
    check_distinct("config.datasets", config.datasets, say)
    if not config.datasets:
        say("config.datasets: none; add one with default.add_dataset(config, name, ...)")
    for name, entry in config.datasets.items():
        where = f"config.datasets.{name}"
        check_name(where, name, say)
        check_choice(f"{where}.reader", entry.reader, READERS, say)
        if bool(entry.text) == bool(entry.words) and not (entry.image and not entry.words):
            say(
                f"{where}: give either text (one or two fields of plain text) or words (the field with a list of "
                "words); only beside an image may both be left out"
            )
        if isinstance(entry.text, str):
            say(f"{where}.text: a tuple of field names, e.g. ({entry.text!r},)")
        if len(entry.marked) not in (0, 2, 4) or len(entry.markers) not in (0, 4):
            say(f"{where}: marked has two fields of spans, or the four strings around them; markers has four tokens")
        if entry.marked_ends and check_choice(f"{where}.marked_ends", entry.marked_ends, ("included", "excluded"), say):
            if len(entry.marked) != 2:
                say(f"{where}.marked_ends: is about spans in two fields; name these in marked, or leave it out")
        if entry.marked and not entry.words and len(entry.text) != 1:
            say(f"{where}.marked: spans are marked in one text; name one field in text, not {len(entry.text)}")
        if entry.choices and not entry.text:
            say(f"{where}.choices: they are texts, encoded with a text; name it in text, not in words")
        if entry.choices and entry.marked:
            say(f"{where}: a data set has choices or marked spans, not both")
        check_choice(f"{where}.drop_duplicates", entry.drop_duplicates, ("", "train", "test"), say)
        _check_tagged(name, config, say)
        for field in ("splits", "max_examples"):
            check_names(f"{where}.{field}", entry[field], SPLITS, say)


def check_images(config, say):
    images, pictured = config.images, False
    for name, entry in config.datasets.items():
        where, size = f"config.datasets.{name}.image_size", entry.image_size
        pictured |= bool(entry.image)
        if size and not entry.image:
            say(f"{where}: there is nothing to resize; name the field of the pictures in image")
        elif size and not (len(size) == 2 and all(isinstance(s, int) and not isinstance(s, bool) for s in size)):
            say(f"{where}: {size!r} should be (height, width) in pixels")
        elif size and (min(size) < 1 or images.patch_size < 1 or any(side % images.patch_size for side in size)):
            say(f"{where}: {size!r} should be multiples of config.images.patch_size = {images.patch_size}")
    for name, entry in config.tasks.items():
        if entry.options.get("copy") and config.datasets.get(entry.dataset, {}).get("image"):
            say(f"config.tasks.{name}.options.copy: patches of pictures are no tokens to copy; leave it out")
        source = config.datasets.get(entry.dataset)
        if entry.kind in TASK_KINDS and TASK_KINDS[entry.kind].reads_pictures and source is not None:
            if not (source.image and (source.text or source.words)):
                say(
                    f"config.tasks.{name}.kind: {entry.kind!r} reads words and pictures; name both in "
                    f"config.datasets.{entry.dataset}: image, and text or words"
                )
    if images.num_channels not in (1, 3):
        say(f"config.images.num_channels: {images.num_channels} should be 3 (RGB) or 1 (grey)")
    for field in ("pretrained", "blank"):
        if images[field] and not pictured:
            say(f"config.images.{field}: no data set has pictures; name their field in config.datasets.*.image")
    if pictured and config.optimizer.cache_frozen:
        say("config.optimizer.cache_frozen: the embedding of pictures is trained; it has to be False with pictures")


def check_tasks(config, say):
    check_distinct("config.tasks", config.tasks, say)
    if not config.tasks:
        say("config.tasks: none; add one with default.add_task(config, name, ...)")
    for name, entry in config.tasks.items():
        where = f"config.tasks.{name}"
        check_name(where, name, say, RESERVED["tasks"])
        check_choice(f"{where}.dataset", entry.dataset, config.datasets, say)
        if check_choice(f"{where}.kind", entry.kind, TASK_KINDS, say):
            _check_kind(config, name, TASK_KINDS[entry.kind], where, say)


def _check_kind(config, name, kind, where, say):
    """What a kind of task needs of its own entry, and of its data set."""
    entry, dataset = config.tasks[name], config.datasets.get(config.tasks[name].dataset)
    if entry.level:
        check_choice(f"{where}.level", entry.level, kind.levels, say)
    if dataset is not None:
        _check_texts(entry, kind, dataset, where, say)
    if entry.max_labels and kind.label_type in ("tokens", "hidden"):
        say(f"{where}.max_labels: tasks of kind {entry.kind!r} need every label; limit the data set instead")
    if kind.label_type == "hidden":
        _check_masked(config, name, where, say)
    elif not entry.label:
        say(f"{where}.label: name the field that holds the label")
    if kind.predicts == "tags" and dataset is not None:
        _check_scheme(entry, dataset, where, say)
    if kind.label_type == "tokens":
        _check_writer(name, entry, make_task, SPECIALS, say)


def _check_scheme(entry, dataset, where, say):
    """What a task and its data set want its tags converted to has to be one scheme."""
    own, data = entry.options.get("scheme"), dataset.options.get("scheme")
    if own and data and own != data:
        say(
            f"{where}.options.scheme: {own!r}, but config.datasets.{entry.dataset}.options.scheme is {data!r}; "
            "leave one of them out, tags are converted to the other"
        )


def _check_tagged(name, config, say):
    """Options about tags of a data set act on the fields that tagging tasks read."""
    entry, where = config.datasets[name], f"config.datasets.{name}.options"
    fields = [task.label for task in config.tasks.values() if task.dataset == name and _reads_tags(task)]
    given = entry.options.get("schemes") or {}
    for field in given if hasattr(given, "keys") else ():
        if field not in fields:
            read = f"they read {', '.join(map(repr, fields))}" if fields else "there is none"
            say(
                f"{where}.schemes: names {field!r}, which no tagging task on {name!r} reads; {read}."
                f"{suggestion(field, fields)}"
            )
    own = entry.reader in READERS and "scheme" in declared_options(READERS[entry.reader])
    if "scheme" in entry.options and not fields and not own:
        say(f"{where}.scheme: converts the tags of tagging tasks on {name!r}, and there is none")


def _reads_tags(task) -> bool:
    return task.kind in TASK_KINDS and TASK_KINDS[task.kind].predicts == "tags"


def _check_writer(name, entry, make, specials, say):
    """The options of a task that writes texts, all of which are known without the data."""
    if entry.classes:
        say(f"config.tasks.{name}.classes: the tokens of a task that writes texts come from the targets of train")
    settings = {"kind": entry.kind, "metrics": tuple(entry.metrics), **entry.options.to_dict()}
    try:
        make(name, settings, "sequence", specials)
    except UserError as error:
        say(str(error))


def _check_texts(entry, kind, dataset, where, say):
    """Whether the data set has what the kind of task reads beside the text."""
    chooses = kind.label_type == "choice"
    if chooses != bool(dataset.get("choices")):
        if chooses:
            say(f"{where}: config.datasets.{entry.dataset}.choices is empty; name the field, or fields, of the choices")
        else:
            say(
                f"{where}.dataset: {entry.dataset!r} has choices, each of which is encoded with the text: it is for "
                f"tasks of kind {_kinds_of('choice')}; name the same files as another data set"
            )
    if (entry.level or kind.levels[0]) == "pair" and not dataset.get("marked"):
        say(f"{where}: config.datasets.{entry.dataset}.marked is empty; name the two fields with the spans")


def _kinds_of(label_type: str) -> str:
    return " or ".join(repr(name) for name, kind in TASK_KINDS.items() if kind.label_type == label_type)


def _check_masked(config, name, where, say):
    """Masked language modelling hides tokens that other tasks have to see."""
    entry = config.tasks[name]
    others = [other for other, task in config.tasks.items() if other != name and task.get("dataset") == entry.dataset]
    if others:
        say(
            f"{where}.dataset: tokens of {entry.dataset!r} are hidden, which {others[0]!r} has to see; name the same "
            "files as another data set"
        )
    if config.optimizer.cache_frozen:
        say(f"{where}: hidden tokens differ from step to step, so config.optimizer.cache_frozen has to be False")
    if entry.dataset in config.datasets and config.datasets[entry.dataset].get("marked"):
        say(f"{where}.dataset: {entry.dataset!r} has marked spans; name the same files as another data set")


def check_mixing(config, say):
    for name, weight in config.data.mixing_weights.items():
        check_range(f"config.data.mixing_weights.{name}", weight, 0.0, None, say)
    check_names("config.data.mixing_weights", config.data.mixing_weights, config.datasets, say)
