"""From a config to everything that training, evaluation and prediction need."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from mtl_jax.data.batch import BatchLayout
from mtl_jax.data.corpus import Corpus
from mtl_jax.data.labels import target_sequences
from mtl_jax.data.sampler import BatchSampler
from mtl_jax.errors import UserError
from mtl_jax.experiment import frozen_layers
from mtl_jax.experiment.initial_values import insert_pretrained, pretrained_layers, random_params
from mtl_jax.experiment.inputs import make_mixing
from mtl_jax.experiment.model import Model, make_model
from mtl_jax.experiment.penalties import build_penalties
from mtl_jax.experiment.sharing import build_sharing
from mtl_jax.experiment.step_spec import make_step_spec
from mtl_jax.models import ownership
from mtl_jax.models.families.base import Architecture
from mtl_jax.models.layers.transformer import TransformerLayer
from mtl_jax.models.network import network
from mtl_jax.tasks import TASK_KINDS, Task, TaskData
from mtl_jax.tasks import make_task as make_task
from mtl_jax.tasks.distillation import Distillation
from mtl_jax.training.hyperparameters import Hyperparameters, hyperparameters_from_config
from mtl_jax.training.objective import Objective, auxiliary_name
from mtl_jax.training.parameter_paths import flatten
from mtl_jax.training.state import StepSpec, TrainState, init_state


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
    batches: Callable[[int], BatchSampler] | None
    tasks: dict[str, Task]
    owners: dict[str, tuple[int, ...]]
    objective_for: Callable[[BatchLayout], Objective]
    spec: StepSpec
    hyper: Hyperparameters
    init_params: Callable[[int], Any]
    init: Callable[[int], TrainState]
    model: Model


def assemble(config: Any, data: Corpus, architecture: Architecture | None, pretrained_params: Any) -> Experiment:
    """The functions of a config over data that were read already.

    Of `data` the model depends on vocabularies, tokenizer and label statistics only.
    """
    names = data.layout.tasks
    model = make_model(config, architecture, pretrained_params, data)
    owned = ownership.assign_owners(
        names, len(model.layers), config.sharing.trunk, config.sharing.task_groups.to_dict(), tuple(config.tasks)
    )
    tasks = {name: _task(config, name, data, model.embed.width) for name in names}
    kept = frozen_layers.frozen_layers(config, pretrained_params) if pretrained_params is not None else ()
    owned, sharing = build_sharing(config, owned, tasks, data.layout, kept)
    tables = _tables(config, owned, tasks)
    columns = config.model.column_execution
    if columns == "auto":
        columns = _fastest_columns(model, owned)

    def make_network(layout):
        return network(
            model.embed,
            model.layers,
            owned,
            layout,
            column_init=config.model.column_init,
            column_execution=columns,
            remat=config.model.remat,
            cached_layers=kept,
            sharing=sharing,
        )

    whole = make_network(data.layout)
    auxiliary = _auxiliary(config, whole, tasks)
    draw = functools.partial(random_params, whole, tasks)
    try:
        shapes = flatten(jax.eval_shape(draw, jax.random.key(0)))
    except ValueError as error:  # of options that fit no layer
        named = {what: config.sharing[what] for what in ("mixer", "adapter", "readout")}
        used = [f"{what} = {value!r}" for what, value in named.items() if value not in ("", "top")]
        raise UserError(f"{', '.join(['config.sharing', *used])}: {error}") from None
    draw = jax.jit(functools.partial(draw, known=pretrained_layers(model, shapes)))
    penalties, anchored = build_penalties(config.penalties, owned, names, tuple(config.tasks), shapes)

    def objective_for(layout):
        return Objective(
            layout,
            tasks,
            make_network(layout),
            penalties,
            dropout=config.model.dropout > 0,
            attention_dropout=config.model.attention_dropout > 0,
            auxiliary=tuple(auxiliary),
            tables=tables,
            teaching={
                name: Distillation(float(entry.temperature), entry.annealing)
                for name, entry in config.distillation.items()
                if name in tasks and entry.weight > 0  # else it is ordinary training, to the last bit
            },
        )

    spec = make_step_spec(config, objective_for, owned, shapes, data)
    hyper = hyperparameters_from_config(config, names, auxiliary)

    def init_params(seed):
        return insert_pretrained(config, model, data, draw(jax.random.key(seed)))

    begin = jax.jit(lambda params, hyper, key: init_state(spec, params, hyper, key, anchored))

    def init(seed):
        return begin(init_params(seed), hyper, jax.random.key(seed))

    train = {name: rows["train"] for name, rows in data.rows.items() if "train" in rows}

    first = (
        BatchSampler(train, data.layout, config.seed, config.data.rows_per_block, make_mixing(config))
        if train
        else None
    )
    batches = first.with_seed if first else None
    return Experiment(config, data, batches, tasks, owned, objective_for, spec, hyper, init_params, init, model)


def _auxiliary(config, net, tasks) -> dict[str, float]:
    """{what mixers and heads add to the losses of the tasks: its factor where the config names none}."""
    found = dict(net.auxiliary)
    for name, task in tasks.items():
        found |= {auxiliary_name(name, loss): factor for loss, factor in task.auxiliary.items()}
    for name in config.auxiliary:
        if name not in found:
            raise UserError(
                f"config.auxiliary: nothing in this config adds a loss {name!r}; there are {', '.join(found) or 'none'}"
            )
    return found


def _tables(config, owned, tasks) -> dict[str, int]:
    """{task: slice of the word vectors} of heads that are tied to them."""
    tied = [(k, name) for k, (name, task) in enumerate(tasks.items()) if task.tied]
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
    counts = [statistics["counts"].get(label, 0) for label in vocabulary.names] if "counts" in statistics else None
    spec = data.specs[name]
    copies = spec.target is not None and spec.target.copy
    given = TASK_KINDS[entry.kind].data_fields(
        TaskData(
            settings=settings,
            statistics=statistics,
            spans=vocabulary.spans,
            join=target_sequences.token_joiner(spec.target, data.tokenizer, vocabulary) if spec.target else None,
            source=target_sequences.copied_ids(vocabulary, data.tokenizer) if copies else (),
            mask_token=data.tokenizer.mask_id,
            table_width=table_width,
        )
    )
    return make_task(name, settings, spec.level, vocabulary.names, counts, given)
