"""From a config to everything that training, evaluation and prediction need."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax import tasks as task_kinds
from mtl_jax.balancing import OF_GRADIENTS, WEIGHTINGS, loss_weights, weightings
from mtl_jax.data import targets
from mtl_jax.data.batch import Layout
from mtl_jax.data.batches import Batches
from mtl_jax.data.corpus import Corpus
from mtl_jax.errors import UserError
from mtl_jax.models import ownership
from mtl_jax.models.architecture import Architecture
from mtl_jax.models.network import network
from mtl_jax.models.transformer import TransformerLayer
from mtl_jax.schemes.distillation import Distillation
from mtl_jax.tasks.base import Task
from mtl_jax.training import balanced, between, frozen, meta, owners, soft_sharing, task_gradients
from mtl_jax.training.balanced import Aggregation
from mtl_jax.training.initial import Model, make_model, pretrained_layers, random_params, with_pretrained
from mtl_jax.training.objective import Objective, auxiliary_name
from mtl_jax.training.optimizer import Hyper, OptimizerSpec, hyper_from, multipliers
from mtl_jax.training.paths import flatten, matching
from mtl_jax.training.signals import has_classes
from mtl_jax.training.sources import encoder_notes, load_corpus, load_encoder, load_vit, metric_notes, mixing
from mtl_jax.training.step import StepSpec, TrainState, init_state


class Experiment(NamedTuple):
    """A config made real.

    corpus         the data
    batches        (seed) -> training batches; None where there is no training data (prediction)
    tasks          {task: Task}
    owners         path of layer -> owner of each task
    objective_for  layout -> objective over batches of that layout
    spec           what is static about the train step
    hyper          the config's hyperparameters
    init_params    (seed) -> parameters before the first step, pretrained values in their places
    init           (seed) -> state before the first step
    model          the modules
    """

    config: Any
    corpus: Corpus
    batches: Callable[[int], Batches] | None
    tasks: dict[str, Task]
    owners: dict[str, tuple[int, ...]]
    objective_for: Callable[[Layout], Objective]
    spec: StepSpec
    hyper: Hyper
    init_params: Callable[[int], Any]
    init: Callable[[int], TrainState]
    model: Model


def build(config: Any, taught: bool = True, read: Callable[..., Any] | None = None) -> Experiment:
    """Reads weights and data, and builds the functions. `config` has passed `mtl_jax.config.check`.

    `taught` = False leaves the teachers of `config.distillation` alone: for what reads no soft labels. `read` stands in
    the place of `datasets.read`.

    Raises:
      UserError: what is wrong with the config, the data or the weights.
    """
    encoder = load_encoder(config)
    data = frozen.with_outputs(config, load_data(config, encoder, taught, read), encoder)
    patches = load_vit(config, data.pictures, encoder.architecture.width if encoder else config.model.width)
    if encoder is None:
        return assemble(config, data, None, {"embed": {"patches": patches}} if patches else None)
    if patches:
        encoder.params["embed"]["patches"] = patches
    data = data._replace(notes=(*data.notes, *encoder_notes(config, encoder)))
    return assemble(config, data, encoder.architecture, encoder.params)


def load_data(config: Any, encoder: Any, taught: bool = True, read: Callable[..., Any] | None = None) -> Corpus:
    """The data of a config, with the soft labels of its teachers."""
    from mtl_jax.training import teachers  # which assembles experiments of its own

    data = load_corpus(config, encoder, read)
    data = data._replace(notes=(*data.notes, *metric_notes(config, data)))
    return teachers.with_soft_labels(config, data) if taught else data


def assemble(config: Any, data: Corpus, architecture: Architecture | None, pretrained_params: Any) -> Experiment:
    """The functions of a config over data that were read already.

    Of `data` the model depends on vocabularies, tokenizer and label statistics only.
    """
    names = data.layout.tasks
    model = make_model(config, architecture, pretrained_params, data)
    owned = ownership.assign(
        names, len(model.layers), config.sharing.trunk, config.sharing.groups.to_dict(), tuple(config.tasks)
    )
    tasks = {name: _task(config, name, data, model.embed.width) for name in names}
    kept = frozen.frozen_layers(config, pretrained_params) if pretrained_params is not None else ()
    owned, sharing = between.build(config, owned, tasks, data.layout, kept)
    tables = _tables(config, owned, tasks)
    columns = config.model.columns
    if columns == "auto":
        columns = _fastest_columns(model, owned)

    def make_network(layout):
        return network(
            model.embed, model.layers, owned, layout,
            column_init=config.model.column_init, columns=columns, remat=config.model.remat, kept=kept, sharing=sharing,
        )  # fmt: skip

    whole = make_network(data.layout)
    auxiliary = _auxiliary(config, whole, tasks)
    draw = functools.partial(random_params, whole, tasks)
    try:
        shapes = flatten(jax.eval_shape(draw, jax.random.key(0)))
    except ValueError as error:  # of options that fit no layer
        named = {what: config.sharing[what] for what in ("mixer", "adapter", "read")}
        used = [f"{what} = {value!r}" for what, value in named.items() if value not in ("", "top")]
        raise UserError(f"{', '.join(['config.sharing', *used])}: {error}") from None
    draw = jax.jit(functools.partial(draw, known=pretrained_layers(model, shapes)))
    penalties, anchored = soft_sharing.build(config.penalties, owned, names, tuple(config.tasks), shapes)

    def objective_for(layout):
        return Objective(
            layout, tasks, make_network(layout), penalties,
            dropout=config.model.dropout > 0, attention_dropout=config.model.attention_dropout > 0,
            auxiliary=tuple(auxiliary), tables=tables,
            teaching={
                name: Distillation(float(entry.temperature), entry.annealing)
                for name, entry in config.distillation.items()
                if name in tasks and entry.weight > 0  # else it is ordinary training, to the last bit
            },
        )  # fmt: skip

    spec = _step_spec(config, objective_for, owned, shapes, data)
    hyper = hyper_from(config, names, auxiliary)

    def init_params(seed):
        return with_pretrained(config, model, data, draw(jax.random.key(seed)))

    begin = jax.jit(lambda params, hyper, key: init_state(spec, params, hyper, key, anchored))

    def init(seed):
        return begin(init_params(seed), hyper, jax.random.key(seed))

    train = {name: rows["train"] for name, rows in data.rows.items() if "train" in rows}

    first = Batches(train, data.layout, config.seed, config.data.rows, mixing(config)) if train else None
    batches = first.with_seed if first else None
    return Experiment(config, data, batches, tasks, owned, objective_for, spec, hyper, init_params, init, model)


def _auxiliary(config, net, tasks) -> dict[str, float]:
    """{what mixers and heads add to the losses of the tasks: its factor where the config names none}."""
    found = dict(net.added)
    for name, task in tasks.items():
        found |= {auxiliary_name(name, loss): factor for loss, factor in getattr(task, "auxiliary", {}).items()}
    for name in config.auxiliary:
        if name not in found:
            raise UserError(
                f"config.auxiliary: nothing in this config adds a loss {name!r}; there are {', '.join(found) or 'none'}"
            )
    return found


def _tables(config, owned, tasks) -> dict[str, int]:
    """{task: slice of the word vectors} of heads that are tied to them."""
    tied = [(k, name) for k, (name, task) in enumerate(tasks.items()) if getattr(task, "tied", False)]
    if tied and isinstance(owned["embed"], ownership.ExpertColumns):
        raise UserError(
            f"config.tasks.{tied[0][1]}.options.tied: the word vectors are experts (config.sharing.mixer = "
            f"{config.sharing.mixer!r}), which belong to no task"
        )
    return {name: owned["embed"][k] for k, name in tied}


def _fastest_columns(model: Model, owned) -> str:
    """As measured. Transformers on CPU win by being written out, which is compiled once a column, so up to eight."""
    if jax.default_backend() != "cpu" or not any(isinstance(layer, TransformerLayer) for layer in model.layers):
        return "vmap"
    return "unroll" if max(ownership.owner_count(owner) for owner in owned.values()) <= 8 else "map"


def _task(config, name, data, table_width) -> Task:
    entry, vocabulary = config.tasks[name], data.vocabularies[name]
    statistics = data.statistics["tasks"][name]["train"]
    settings = {"kind": entry.kind, "metrics": tuple(entry.metrics), **entry.options.to_dict()}
    if entry.kind == "regression" and not settings.keys() & {"low", "high", "mean", "scale"}:
        settings |= {"mean": statistics["mean"], "scale": statistics["std"] or 1.0}  # standardised by train
    counts = [statistics["counts"].get(label, 0) for label in vocabulary.names] if "counts" in statistics else None
    spec, given = data.specs[name], {}
    if spec.target:
        given["join"] = targets.joiner(spec.target, data.tokenizer, vocabulary)
        given["source"] = targets.copied_ids(vocabulary, data.tokenizer) if spec.target.copy else ()
    if entry.kind == "tagging":
        given["spans"] = vocabulary.spans
    if entry.kind == "masked_lm":
        given |= {"mask_token": data.tokenizer.mask, "table_width": table_width}
    return task_kinds.make(name, settings, spec.level, vocabulary.names, counts, given)


def _loss_weights(config, sizes):
    """(options of the method that are traced) -> the method."""
    method, options = config.loss_weights.method, config.loss_weights.options.to_dict()
    if method == "by_size":
        options["sizes"] = sizes
    make = functools.partial(loss_weights.LOSS_WEIGHTS[method], **options)
    try:
        make()
    except (TypeError, ValueError) as error:
        raise UserError(f"config.loss_weights.options: {error}") from None
    return make


def _with_classes(config, method, objective):
    """The method, unless it asks for distributions of classes and no task has classes."""
    if "divergences" in method().needs and not any(has_classes(task) for task in objective.tasks.values()):
        raise UserError(f"config.loss_weights.method: {config.loss_weights.method!r} needs a task with classes")
    return method


def _aggregation(config, tasks: int):
    """(options of the method that are traced) -> the method. None for the plain sum."""
    entry = config.aggregation
    options = entry.options.to_dict()
    if entry.method == "sum" and not entry.smoothing:
        if options:
            raise UserError(f"config.aggregation.options: 'sum' has no option {next(iter(options))!r}")
        return None
    if tasks < 2:
        raise UserError(f"config.aggregation.method: {entry.method!r} needs two tasks at least, there is one")
    if entry.method in OF_GRADIENTS:
        for field, value, only in (("level", entry.level, "parameters"), ("memory", entry.memory, "copies")):
            if value != only:
                raise UserError(f"config.aggregation.{field}: {entry.method!r} reads the gradients, it needs {only!r}")
        if entry.smoothing:
            raise UserError(f"config.aggregation.smoothing: {entry.method!r} has no weights that could be smoothed")
        if "halves" in options:
            raise UserError("config.aggregation.options: training gives no halves to a method that reads gradients")
    by_method = OF_GRADIENTS.get(entry.method)
    if by_method and "tasks" in inspect.signature(by_method).parameters:
        options["tasks"] = tasks

    def make(**traced) -> Aggregation:
        if by_method:
            return Aggregation(None, by_method(**{**options, **traced}))
        weighting = WEIGHTINGS[entry.method](**{**options, **traced})
        if entry.smoothing:
            weighting = weightings.cr_mogm(weighting, entry.smoothing)
        return Aggregation(weighting, None)

    def tried():
        """Once, on shapes, for what depends on K."""
        method, some = make(), jnp.zeros((tasks, tasks))
        present = jnp.ones(tasks, bool)
        if method.weighting:
            return method.weighting.update(some, method.init(tasks, {}), key=jax.random.key(0), present=present)[0]
        return method.transform.update({"x": some}, method.init(tasks, {"x": some[0]}), present=present)[0]

    try:
        jax.eval_shape(tried)
    except (TypeError, ValueError) as error:
        raise UserError(f"config.aggregation.options: {error}") from None
    return make


def _plain_sum() -> Aggregation:
    """What is taken where the loss weights alone read the gradients."""
    return Aggregation(weightings.WEIGHTINGS["sum"](), None)


def _shared(config, method, aggregation, trained, owned, tasks, auxiliary):
    """What the K gradients are told apart for; None where no method asks for them."""
    needs = method().needs & {"gradient_norms", "gram", "gradients"}
    if aggregation is None and not needs:
        return None
    halves = 2 if aggregation and aggregation().weighting and aggregation().weighting.halves else 1
    who = (
        f"config.aggregation.method: {config.aggregation.method!r}"
        f"{' with smoothing' * (config.aggregation.smoothing > 0)}"
        if aggregation
        else f"config.loss_weights.method: {config.loss_weights.method!r}"
    )
    if needs and (config.aggregation.level, config.aggregation.memory, halves) != ("parameters", "copies", 1):
        raise UserError(
            f"config.loss_weights.method: {config.loss_weights.method!r} reads gradients of whole batches over "
            "parameters: take config.aggregation.level = 'parameters', memory = 'copies', and no method of halves"
        )
    for field, joins in (("mixer", config.sharing.mixer), ("feeds", config.sharing.feeds),
                         ("adapter", config.sharing.adapter == "lora")):  # fmt: skip
        if joins:
            raise UserError(
                f"{who} needs the gradients of the tasks apart, which config.sharing.{field} brings together; leave it "
                "out, or take methods that read losses"
            )
    if auxiliary:
        raise UserError(
            f"{who} combines the losses of the tasks, and knows nothing of {', '.join(auxiliary)}; take methods that "
            "read losses"
        )
    if tied := [name for name, task in tasks.items() if getattr(task, "tied", False)]:
        raise UserError(
            f"{who} needs the gradients of the tasks apart; that of task {tied[0]!r} reaches the word vectors through "
            f"its head too: set config.tasks.{tied[0]}.options.tied = False"
        )
    found = task_gradients.shared_of(tuple(trained), owned, config.aggregation.level, config.aggregation.memory, halves)
    if found is None:
        groups = ", config.sharing.groups" * bool(config.sharing.groups)
        raise UserError(
            f"{who} reads the gradients of the tasks over what they share, and no parameter that is trained is shared "
            f"(config.sharing.trunk = {config.sharing.trunk!r}{groups}); take method = 'sum', or loss weights that "
            "read losses"
        )
    if found.level == "representation" and (config.sharing.read != "top" or config.sharing.depths):
        raise UserError("config.aggregation.level: 'representation' needs heads that read the last layer alone "
                        "(config.sharing.read = 'top', no depths)")  # fmt: skip
    training = config.training
    if problem := balanced.require(found, config.data.rows, training.accumulate, training.placement):
        raise UserError(problem)
    return found


def _step_spec(config, objective_for, owned, shapes, data) -> StepSpec:
    optimizer, steps, objective = config.optimizer, config.training.steps, objective_for(data.layout)
    frozen = matching(shapes, optimizer.freeze)
    for regex in optimizer.freeze:
        if not matching(shapes, (regex,)):
            raise UserError(
                f"config.optimizer.freeze: {regex!r} matches no parameter; paths look like {next(iter(shapes))}"
            )
    for name, group in optimizer.groups.items():
        if (found := matching(shapes, (group["leaves"],))) and found <= frozen:
            raise UserError(
                f"config.optimizer.groups.{name}.leaves: {group['leaves']!r} finds none but frozen parameters, which "
                "have no learning rate; narrow config.optimizer.freeze"
            )
    trained = [path for path in shapes if path not in frozen]
    if not trained:
        raise UserError("config.optimizer.freeze: nothing is left to train")
    sizes = [data.statistics["tasks"][name]["train"]["known"] for name in objective.tasks]
    method, aggregation = _loss_weights(config, sizes), _aggregation(config, len(objective.tasks))
    shared = _shared(config, method, aggregation, trained, owned, objective.tasks, objective.auxiliary)
    if shared and aggregation is None:
        aggregation = _plain_sum
    return StepSpec(
        objective=objective,
        loss_weights=_with_classes(config, method, objective),
        aggregation=aggregation,
        shared=shared,
        meta=meta.spec_of(config, objective_for, trained, data, method),
        optimizer=OptimizerSpec(
            name=optimizer.name, b1=optimizer.b1, b2=optimizer.b2, eps=optimizer.eps, momentum=optimizer.momentum,
            warmup_steps=round(optimizer.warmup * steps), schedule=optimizer.schedule, steps=steps,
        ),
        slices=owners.slice_owners(shapes, owned, tuple(objective.tasks)),
        multipliers={path: factor for path, factor in multipliers(shapes, optimizer.groups).items() if path in trained},
        clip=optimizer.clip,
        max_bad_steps=config.training.max_bad_steps,
    )  # fmt: skip
