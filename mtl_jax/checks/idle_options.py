"""Options that act in some contexts only: which setting makes each of them act.

An option that differs from its default and has no effect is a mistake in the config. Options whose effect depends on
the data or the parameters are checked where these are known (`experiment`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from mtl_jax.analysis.relatedness.registry import MEASURES
from mtl_jax.balancing import LOSS_WEIGHTS
from mtl_jax.checks.value_rules import get_field
from mtl_jax.config import default
from mtl_jax.config.entries import Dataset, Task
from mtl_jax.config.plain import to_plain
from mtl_jax.config.sections import Config
from mtl_jax.data.readers import READERS
from mtl_jax.data.tokenizers import TOKENIZERS
from mtl_jax.models.layers import LAYERS
from mtl_jax.models.mixers import MIXERS
from mtl_jax.tasks import TASK_KINDS

LANE_MODES = ("ablate", "relate")  # modes that train many runs as lanes of one program
MODES = ("train", "inspect", *LANE_MODES)  # modes that build a new model, and read all sections about training


Condition = Callable[[Config, Any], bool]


class Rule(NamedTuple):
    """Some fields that act under one condition.

    fields  dotted paths; at most one part is "*", any entry. The last part may be a key of a mapping of options,
            which counts as set where it is present
    acts    (config, entry) -> whether the fields act; `entry` is the one at "*", None without
    needs   what makes them act, the end of a sentence; a function where it names the entries of a registry
    modes   the modes in which the rule is checked
    """

    fields: tuple[str, ...]
    acts: Condition
    needs: str | Callable[[], str]
    modes: tuple[str, ...] = MODES


def _has_budget(config: Config) -> bool:
    """Whether epochs or tokens set the number of steps."""
    return bool(config.training.epochs or config.training.tokens)


def _has_columns(config: Config) -> bool:
    """Whether some layer is not shared by all tasks."""
    sharing = config.sharing
    is_split = sharing.trunk != "all" or bool(sharing.task_groups)
    return len(config.tasks) > 1 and is_split and not _has_experts(config)


def _has_experts(config: Config) -> bool:
    """Whether the columns are experts of the mixer. Wrong options of the mixer are reported where it is built."""
    sharing, num_tasks = config.sharing, max(len(config.tasks), 1)
    if sharing.mixer not in MIXERS:
        return False
    for options in (to_plain(sharing.mixer_options), {}):
        with contextlib.suppress(TypeError, ValueError):
            return MIXERS[sharing.mixer](num_tasks, **options).experts
    return False


def _has_copies(config: Config) -> bool:
    """Whether the network has several copies of a layer: columns, experts or adapters."""
    sharing = config.sharing
    return len(config.tasks) > 1 and bool(_has_columns(config) or sharing.mixer or sharing.adapter)


def _reads_gradients(config: Config) -> bool:
    """Whether a method of balancing reads the gradients of the tasks. Wrong options are reported elsewhere."""
    if config.aggregation.method != "sum" or config.aggregation.smoothing > 0:
        return True
    with contextlib.suppress(KeyError, TypeError, ValueError):
        made = LOSS_WEIGHTS[config.loss_weights.method](**to_plain(config.loss_weights.options))
        return bool(made.needs & {"gradient_norms", "gram", "gradients"})
    return False


def _trunk_acts(config: Config) -> bool:
    """Whether the trunk ends below the lowest layer with groups of tasks, from which on these decide."""
    if not config.sharing.task_groups:
        return True
    lowest, trunk = min(map(_height, config.sharing.task_groups)), config.sharing.trunk
    return {"all": lowest, "none": -1}.get(trunk, _height(trunk)) + 1 < lowest


def _height(layer: str) -> int:
    """0 for the embeddings, then 1, 2, ...; 0 for what is not a layer, which is reported elsewhere."""
    number = layer.removeprefix("layer_")
    return int(number) + 1 if number.isdecimal() else 0


def _carves(config: Config, entry: Dataset) -> bool:
    """Whether dev or test is carved out of train."""
    del config
    return any(
        fraction and not _has_split(entry, split)
        for split, fraction in (("dev", entry.dev_fraction), ("test", entry.test_fraction))
    )


def _has_split(entry: Dataset, split: str) -> bool:
    """Whether a data set has a split without carving: it is named, or a reader without files generates all."""
    return bool(entry.splits.get(split)) or (
        entry.reader in READERS and READERS[entry.reader].generated and not entry.splits
    )


def _draws_by_data_seed(config: Config) -> bool:
    """Whether splits or subsets are drawn."""
    return any(_carves(config, entry) or entry.max_examples for entry in config.datasets.values()) or any(
        entry.max_labels for entry in config.tasks.values()
    )


def _reads_text(config: Config, entry: Dataset) -> bool:
    del config
    return entry.reader not in READERS or not READERS[entry.reader].binary


def _label_type(entry: Task) -> str:
    """That of the task's kind; "class" for an unknown kind, which is reported elsewhere."""
    return TASK_KINDS[entry.kind].label_type if entry.kind in TASK_KINDS else "class"


def _kinds(*label_types: str) -> str:
    """The kinds of task with these types of labels, as a list in words."""
    return _either(name for name, kind in TASK_KINDS.items() if kind.label_type in label_types)


def _has_pictures(config: Config, _: None) -> bool:
    return any(entry.image for entry in config.datasets.values())


def _sweeps_strength(config: Config) -> bool:
    return any(
        entry.field.startswith("penalties.") and entry.field.endswith(".strength")
        for entry in config.ablation.sweeps.values()
    )


def _measure_rule(field: str) -> Rule:
    """The rule of a field of `config.relatedness` that some measures read."""

    def readers() -> list[str]:
        return [name for name, measure in MEASURES.items() if field in measure.fields]

    def acts(config: Config, _: None) -> bool:
        return bool({*readers()} & {*(config.relatedness.measures or MEASURES)})

    return Rule(
        (f"relatedness.{field}",), acts, lambda: f"{_either(readers())} in config.relatedness.measures", ("relate",)
    )


def _layer_rule(field: str) -> Rule:
    """The rule of a field of `config.model` that some layers read; pretrained layers have values of their own."""

    def acts(config: Config, _: None) -> bool:
        model = config.model
        return not model.pretrained and model.num_layers != 0 and field in LAYERS[model.layer_type].field_names()

    def needs() -> str:
        layers = _either(name for name, layer in LAYERS.items() if field in layer.field_names())
        return f"config.model.layer_type = {layers}, at least one layer, and {_NOT_PRETRAINED}"

    return Rule((f"model.{field}",), acts, needs)


def _tokenizer_rule(field: str) -> Rule:
    """The rule of a field of `config.tokenizer` that some kinds read; a published one has its own vocabulary."""

    def needs() -> str:
        kinds = _either(name for name, kind in TOKENIZERS.items() if field in kind.fields)
        return f"config.tokenizer.kind = {kinds}"

    return Rule((f"tokenizer.{field}",), lambda c, _: field in TOKENIZERS[c.tokenizer.kind].fields, needs)


def _either(names: Iterable[str]) -> str:
    """'a', 'b' or 'c'."""
    *most, last = map(repr, names)
    return f"{', '.join(most)} or {last}" if most else last


def _field_is(field: str, *values: Any) -> Condition:
    """The condition that a field of a section has one of the values."""
    section, _, name = field.partition(".")
    return lambda config, _: config[section][name] in values


_NOT_PRETRAINED = "no config.model.pretrained, which has its own value"
_COLUMNS = "layers that not all tasks share (config.sharing.trunk, config.sharing.task_groups)"

RULES = (
    Rule(
        ("data.blocks_per_batch", "optimizer.skip_absent_tasks"),
        lambda c, _: c.data.mixing != "all",
        "a config.data.mixing by which blocks are drawn; with 'all' each data set has its own",
    ),
    Rule(("data.mixing_temperature",), _field_is("data.mixing", "temperature"), "config.data.mixing = 'temperature'"),
    Rule(("data.mixing_weights",), _field_is("data.mixing", "weights"), "config.data.mixing = 'weights'"),
    Rule(
        ("data.window_stride",),
        lambda c, _: not c.data.overflow and any(_label_type(t) == "span" for t in c.tasks.values()),
        lambda: f"windows: a task of kind {_kinds('span')}, and config.data.overflow = ''",
    ),
    Rule(
        ("data.seed",),
        lambda c, _: _draws_by_data_seed(c),
        "something to draw: dev_fraction, test_fraction or max_examples of a data set, or max_labels of a task",
    ),
    _tokenizer_rule("lowercase"),
    _tokenizer_rule("min_count"),
    _tokenizer_rule("max_vocab_size"),
    _tokenizer_rule("path"),
    Rule(
        ("images.patch_size", "images.num_channels"),
        _has_pictures,
        "pictures: name their field in config.datasets.*.image",
    ),
    Rule(
        ("model.pretrained_wheel.version", "model.pretrained_wheel.sha256"),
        lambda c, _: bool(c.model.pretrained_wheel.name),
        "config.model.pretrained_wheel.name",
    ),
    Rule(
        ("model.pretrained_adapter",),
        lambda c, _: bool(c.model.pretrained),
        "config.model.pretrained, on which it stands",
    ),
    Rule(
        ("model.hidden_size",),
        lambda c, _: not c.model.pretrained,
        _NOT_PRETRAINED,
    ),
    Rule(
        ("model.layer_options",), lambda c, _: c.model.num_layers != 0, "at least one layer (config.model.num_layers)"
    ),
    _layer_rule("num_heads"),
    _layer_rule("intermediate_size"),
    _layer_rule("initializer_range"),
    _layer_rule("activation"),
    _layer_rule("kernel_size"),
    Rule(
        ("model.attention_dropout",),
        lambda c, _: LAYERS[c.model.layer_type].attends,
        lambda: f"config.model.layer_type = {_either(name for name, layer in LAYERS.items() if layer.attends)}",
    ),
    Rule(("model.column_init",), lambda c, _: _has_columns(c), _COLUMNS),
    Rule(("model.column_execution",), lambda c, _: _has_copies(c), _COLUMNS + ", experts or adapters"),
    Rule(
        ("sharing.trunk",),
        lambda c, _: _trunk_acts(c),
        "config.sharing.task_groups that begin above it; from their lowest layer on they decide",
    ),
    Rule(
        ("sharing.mixer_options.chosen", "sharing.mixer_options.gamma"),
        lambda c, _: not _has_experts(c) or c.sharing.mixer_options.get("gate") == "dselect_k",
        "the option gate = 'dselect_k'",
    ),
    Rule(
        ("sharing.adapter_owner", "sharing.adapter_groups"),
        lambda c, _: bool(c.sharing.adapter) and len(c.tasks) > 1,
        "config.sharing.adapter, and several tasks to own it",
    ),
    Rule(
        ("sharing.tied",),
        lambda c, _: _has_columns(c) or bool(c.sharing.adapter or c.sharing.mixer),
        _COLUMNS + ", or adapters",
    ),
    Rule(
        ("aggregation.level", "aggregation.gradient_storage"),
        lambda c, _: c.aggregation.method != "sum" or c.aggregation.smoothing > 0,
        "a config.aggregation.method that compares gradients; 'sum' does not",
    ),
    Rule(
        ("aggregation.jacobian",),
        lambda c, _: _reads_gradients(c),
        "a config.aggregation.method or config.loss_weights.method that reads gradients",
    ),
    Rule(
        ("aggregation.pullbacks_at_once",),
        lambda c, _: _reads_gradients(c) and c.aggregation.jacobian != "taps" and not c.meta.method,
        "gradients of K tasks by K backward passes (config.aggregation.jacobian = 'vjp')",
    ),
    Rule(
        ("meta.inner_steps", "meta.head_init", "meta.tasks_per_step"),
        lambda c, _: bool(c.meta.method),
        "a config.meta.method",
    ),
    Rule(
        ("meta.inner_learning_rate", "meta.inner_params"),
        lambda c, _: bool(c.meta.method) and c.meta.inner_steps > 0,
        "a config.meta.method, and config.meta.inner_steps",
    ),
    Rule(
        ("meta.support_fraction",),
        _field_is("meta.method", "maml", "fomaml"),
        "config.meta.method = 'maml' or 'fomaml'",
    ),
    Rule(
        ("evaluation.selection_weights",),
        _field_is("evaluation.selection", "weighted"),
        "config.evaluation.selection = 'weighted'",
    ),
    Rule(
        ("evaluation.single_task_scores",),
        _field_is("evaluation.selection", "delta_m"),
        "config.evaluation.selection = 'delta_m'",
    ),
    Rule(
        ("training.epochs", "training.tokens", "training.minutes"),
        lambda c, _: False,
        "a single run: lanes are compared after equal numbers of steps, set config.training.steps",
        LANE_MODES,
    ),
    Rule(
        tuple(f"init_from.{field}" for field in ("checkpoint", "params", "tasks", "vocabulary", "freeze", "untrained")),
        lambda c, _: bool(c.init_from.run),
        "a run to begin from: config.init_from.run",
    ),
    Rule(
        ("training.early_stopping_patience",),
        lambda c, _: c.training.eval_every > 0 and (_has_budget(c) or c.training.eval_every < c.training.steps),
        "evaluations to count: config.training.eval_every below config.training.steps",
    ),
    Rule(
        ("training.mesh.data",),
        _field_is("training.placement", "jit"),
        "config.training.placement = 'jit'; 'pmap' takes all devices",
    ),
    Rule(
        ("training.placement", "training.offload_optimizer"),
        lambda c, _: False,
        "--mode=train; in this mode lanes are placed on the devices (config.ablation.lane_execution), each on those of "
        "config.training.mesh",
        LANE_MODES,
    ),
    Rule(
        ("datasets.*.encoding",),
        _reads_text,
        "a reader of text files; this one reads no text, or knows its encoding",
    ),
    Rule(("datasets.*.markers",), lambda c, e: bool(e.marked), "marked spans: name them in marked"),
    Rule(("datasets.*.dev_fraction",), lambda c, e: not _has_split(e, "dev"), "a data set without a split 'dev'"),
    Rule(("datasets.*.test_fraction",), lambda c, e: not _has_split(e, "test"), "a data set without a split 'test'"),
    Rule(("datasets.*.group_by",), _carves, "dev_fraction or test_fraction, which keep groups together"),
    Rule(
        ("tasks.*.classes",),
        lambda c, e: _label_type(e) in ("class", "set", "tokens"),  # tokens: see `inputs`
        lambda: f"a kind of task whose classes can be named: {_kinds('class', 'set')}",
    ),
    Rule(
        ("tasks.*.label", "tasks.*.missing"),
        lambda c, e: _label_type(e) != "hidden",
        lambda: f"a kind of task with labels; {_kinds('hidden')} has none",
    ),
    Rule(
        ("tasks.*.options.length_penalty",),
        lambda c, e: _label_type(e) != "tokens" or e.options.get("beam", 1) != 1,
        "the option beam above 1; greedy search compares no lengths",
    ),
    Rule(("distillation.*.weights",), lambda c, e: len(e.teachers) != 1, "several teachers"),
    Rule(
        ("ablation.sweeps.*.low", "ablation.sweeps.*.high"),
        lambda c, e: not e.points,
        "a count of values from low to high; points lists the values themselves",
        ("ablate",),
    ),
    Rule(
        ("ablation.choices.*.alternatives",),
        lambda c, e: not e.settings,
        "a field that takes them; settings lists the alternatives itself",
        ("ablate",),
    ),
    Rule(
        ("ablation.options",),
        lambda c, _: c.ablation.method != "grid",
        "config.ablation.method = 'halving' or 'hypergradient'; 'grid' has none",
        ("ablate",),
    ),
    Rule(
        ("ablation.lr_factors",),
        lambda c, _: (
            c.ablation.limits
            and _sweeps_strength(c)
            and not any(entry.field == "optimizer.learning_rate" for entry in c.ablation.sweeps.values())
        ),
        "config.ablation.limits, a sweep of a penalty's strength, and no sweep of the learning rate",
        ("ablate",),
    ),
    Rule(
        ("ablation.intervals",),
        lambda c, _: c.ablation.num_seeds == 1,
        "config.ablation.num_seeds = 1; several seeds always have intervals",
        ("ablate",),
    ),
    _measure_rule("measure_every"),
    _measure_rule("lookahead"),
    _measure_rule("lookahead_steps"),
    _measure_rule("linearised_dimensions"),
    _measure_rule("linearised_examples"),
    _measure_rule("num_inputs"),
)


def idle_settings(config: Config, mode: str) -> dict[str, str]:
    """The options with a rule that differ from their defaults.

    Args:
      config: has all fields.
      mode: as in `--mode`.

    Returns:
      {field: "" where it acts, else a message with what would make it act}
    """
    defaults, messages = default.get_config(), {}
    for rule in RULES:
        needs = rule.needs if isinstance(rule.needs, str) else rule.needs()
        for pattern in rule.fields if mode in rule.modes else ():
            section, is_entry, field = pattern.partition(".*.")
            if is_entry:
                usual = _value(default.defaults(default.ENTRIES[section]), field)
                settings = [
                    (f"{section}.{name}.{field}", entry, _value(entry, field))
                    for name, entry in get_field(config, section).items()
                ]
            else:
                usual = _value(defaults, pattern)
                settings = [(pattern, None, _value(config, pattern))]
            for path, entry, value in settings:
                if value != usual and not messages.get(path):
                    idle = f"config.{path}: {value!r} has no effect here. It acts with {needs}"
                    messages[path] = "" if rule.acts(config, entry) else idle
    return messages


def _value(node: Any, field: str) -> Any:
    """The value of a field as plain data; None where a mapping has no such key."""
    for key in field.split("."):
        if key not in node:
            return None
        node = node[key]
    return to_plain(node)
