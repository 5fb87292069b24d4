"""From a config to everything that training, evaluation and prediction need. No file is read here."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from mtl_jax.config.sections import Config
from mtl_jax.data.batch import BatchLayout
from mtl_jax.data.corpus import Corpus
from mtl_jax.data.labels import target_sequences
from mtl_jax.data.sampler import BatchSampler
from mtl_jax.errors import UserError
from mtl_jax.experiment import frozen_layers
from mtl_jax.experiment.frozen_tasks import Masks, frozen_parts
from mtl_jax.experiment.initial_values import insert_pretrained, pretrained_layers, random_params
from mtl_jax.experiment.inputs import make_mixing
from mtl_jax.experiment.model import Model, make_model
from mtl_jax.experiment.penalties import build_penalties
from mtl_jax.experiment.sharing import build_sharing
from mtl_jax.experiment.step_spec import make_step_spec, treat
from mtl_jax.experiment.task_groups import build_groups, group_names, head_shapes
from mtl_jax.models import ownership
from mtl_jax.models.encoder_parts import part_owners, weight_paths
from mtl_jax.models.families.base import Architecture
from mtl_jax.models.network import Network, network
from mtl_jax.models.network_spec import SharingSpec
from mtl_jax.models.ownership import Owners
from mtl_jax.tasks import TASK_KINDS, Task, TaskData, make_task
from mtl_jax.tasks.distillation import Distillation
from mtl_jax.tasks.groups import split_heads
from mtl_jax.tasks.heads import HeadForm
from mtl_jax.training.hyperparameters import Hyperparameters, hyperparameters_from_config
from mtl_jax.training.objective import Objective, Params, auxiliary_name
from mtl_jax.training.parameter_paths import flatten
from mtl_jax.training.state import StepSpec, TrainState, init_state


class Experiment(NamedTuple):
    """The objects and functions of a config.

    corpus         the data
    batches        (seed) -> training batches; None where there is no training data (prediction)
    tasks          {task: Task}
    owners         path of what has parameters (layer, mixer, adapters, part of the encoder as a whole) -> owner of each
                   task
    objective_for  layout -> objective over batches of that layout
    spec           static settings of the train step
    hyper          the hyperparameters in the config
    init_params    (seed) -> parameters before the first step, with the pretrained values
    init           (seed) -> state before the first step
    init_from      (parameters, seed) -> the same state, on the devices of the parameters
    model          the modules
    sharing        what stands between layers and tasks
    beginning      where the initial values are those of another run, what is known of it, see `runs.init_from`
    frozen         {path: part that stays as it is}, heads by the name of their task, see `frozen_tasks`
    shapes         {path: shape} of all parameters, those of heads by the name of their task
    """

    config: Config
    corpus: Corpus
    batches: Callable[[int], BatchSampler] | None
    tasks: dict[str, Task]
    owners: Owners
    objective_for: Callable[[BatchLayout], Objective]
    spec: StepSpec
    hyper: Hyperparameters
    init_params: Callable[[int], Params]
    init: Callable[[int], TrainState]
    init_from: Callable[[Params, int], TrainState]
    model: Model
    sharing: SharingSpec
    frozen: Masks
    shapes: Mapping[str, jax.ShapeDtypeStruct]
    beginning: Any = None

    def by_name(self, params: Params) -> Params:
        """The parameters with the head of each task by its name, in its true shapes, as in files."""
        return {**params, "heads": split_heads(self.spec.objective.groups, params["heads"])}


def assemble(
    config: Config, data: Corpus, architecture: Architecture | None, pretrained_params: Params | None
) -> Experiment:
    """The experiment of a config over data that are in memory.

    The model depends only on the vocabularies, the tokenizer and the label statistics of `data`.

    Raises:
      UserError: what does not fit together, by field.
    """
    names = data.layout.tasks
    model = make_model(config, architecture, pretrained_params, data)
    tasks = {name: _task(config, name, data, model) for name in names}
    cached = frozen_layers.frozen_layers(config, architecture, pretrained_params)
    owners = ownership.assign_owners(
        names, len(model.layers), config.sharing.trunk, config.sharing.task_groups.to_dict(), tuple(config.tasks)
    )
    owners, sharing = build_sharing(config, owners, tasks, data.layout, cached)
    owners |= part_owners(owners, model.layers)
    tables = _tables(config, owners, tasks)
    network_for = functools.partial(_network, config, model, owners, cached, sharing)
    train_network = network_for(data.layout)
    auxiliary = _auxiliary(config, train_network, tasks)
    shapes, heads = _shapes(config, train_network, sharing, tasks)
    frozen = frozen_parts(config.init_from, names, owners, sharing, shapes)
    treatment, teaching = treat(config, shapes, frozen), _teaching(config, tasks)
    groups = build_groups(
        data,
        tasks,
        heads,
        network=train_network,
        sharing=sharing,
        treatment=treatment,
        teaching=teaching,
        tables=tables,
        optimizer=config.optimizer.name,
    )
    data = data._replace(layout=dataclasses.replace(data.layout, groups=group_names(groups)))
    known = pretrained_layers(model, shapes)
    draw = jax.jit(functools.partial(random_params, train_network, groups, known=known))
    penalties, remembered = build_penalties(
        config.penalties, owners, names, tuple(config.tasks), shapes, sharing.adapters
    )
    objective = Objective(
        data.layout,
        tasks,
        network_for(data.layout),
        penalties,
        dropout=config.model.dropout > 0,
        attention_dropout=config.model.attention_dropout > 0,
        adapter_dropout=config.sharing.adapter_options.get("dropout", 0.0) > 0,
        auxiliary=tuple(auxiliary),
        teaching=teaching,
        groups=groups,
    )

    def objective_for(layout: BatchLayout) -> Objective:
        layout = dataclasses.replace(layout, groups=data.layout.groups)
        return objective._replace(layout=layout, network=network_for(layout))

    spec = make_step_spec(config, objective_for, owners, treatment, data)._replace(
        frozen={path: mask for path, mask in frozen.items() if path in treatment.trained}
    )
    hyper = hyperparameters_from_config(config, names, auxiliary)

    def init_params(seed: int) -> Params:
        return insert_pretrained(config, model, data, draw(jax.random.key(seed)))

    make_state = jax.jit(lambda params, hyper, key: init_state(spec, params, hyper, key, remembered))

    def init_from(params: Params, seed: int) -> TrainState:
        return make_state(params, hyper, jax.random.key(seed))

    weights = weight_paths(owners, len(model.layers), _tied(model))
    return Experiment(
        config,
        data,
        _batches(config, data),
        tasks,
        {path: owner for path, owner in owners.items() if weights.get(path, path) == path},
        objective_for,
        spec,
        hyper,
        init_params,
        init=lambda seed: init_from(init_params(seed), seed),
        init_from=init_from,
        model=model,
        sharing=sharing,
        frozen=frozen,
        shapes=shapes,
    )


def _network(
    config: Config, model: Model, owners: Owners, cached: tuple[str, ...], sharing: SharingSpec, layout: BatchLayout
) -> Network:
    """The network over batches of a layout. `cached`: layers whose outputs are computed beforehand."""
    columns = config.model.column_execution
    return network(
        model.embed,
        model.layers,
        owners,
        layout,
        column_init=config.model.column_init,
        column_execution=_fastest_columns(model, owners) if columns == "auto" else columns,
        remat_policy=config.model.remat_policy,
        cached_layers=cached,
        sharing=sharing,
        tied_layers=_tied(model),
    )


def _tied(model: Model) -> bool:
    return bool(model.architecture and model.architecture.tied_layers)


def _shapes(
    config: Config, net: Network, sharing: SharingSpec, tasks: Mapping[str, Task]
) -> tuple[dict[str, jax.ShapeDtypeStruct], dict[str, Any]]:
    """{path: shape} of all parameters, and the shapes of the heads by task.

    Raises UserError for options of `config.sharing` that fit no layer."""
    try:
        heads = head_shapes(net, sharing, tasks)
        return flatten({**jax.eval_shape(net.init, jax.random.key(0)), "heads": heads}), heads
    except ValueError as error:
        fields = {field: config.sharing[field] for field in ("mixer", "adapter", "readout")}
        used = [f"{field} = {value!r}" for field, value in fields.items() if value not in ("", "top")]
        raise UserError(f"{', '.join(['config.sharing', *used])}: {error}") from None


def _teaching(config: Config, tasks: Mapping[str, Task]) -> dict[str, Distillation]:
    """{task: how it learns from teachers}; without weight a task is trained as if it had none, to the last bit."""
    return {
        name: Distillation(float(entry.temperature), entry.annealing)
        for name, entry in config.distillation.items()
        if name in tasks and entry.weight > 0
    }


def _batches(config: Config, data: Corpus) -> Callable[[int], BatchSampler] | None:
    """(seed) -> training batches; None without training data."""
    train = {name: rows["train"] for name, rows in data.rows.items() if "train" in rows}
    if not train:
        return None
    sampler = BatchSampler(train, data.layout, config.seed, config.data.rows_per_block, make_mixing(config))
    return sampler.with_seed


def _auxiliary(config: Config, net: Network, tasks: Mapping[str, Task]) -> dict[str, float]:
    """{auxiliary loss of a mixer or a head: its default factor}."""
    factors = dict(net.auxiliary)
    for name, task in tasks.items():
        factors |= {auxiliary_name(name, loss): factor for loss, factor in task.auxiliary.items()}
    for name in config.auxiliary_loss_weights:
        if name not in factors:
            known = ", ".join(factors) or "none"
            raise UserError(
                f"config.auxiliary_loss_weights: nothing in this config adds a loss {name!r}; there are {known}"
            )
    return factors


def _tables(config: Config, owners: Owners, tasks: Mapping[str, Task]) -> dict[str, int]:
    """{task: slice of the word vectors} of heads that are tied to them."""
    tied = [(k, name) for k, (name, task) in enumerate(tasks.items()) if task.tied]
    if tied and isinstance(owners["embed"], ownership.ExpertColumns):
        raise UserError(
            f"config.tasks.{tied[0][1]}.options.tied: the word vectors are experts (config.sharing.mixer = "
            f"{config.sharing.mixer!r}), which belong to no task"
        )
    return {name: owners["embed"][k] for k, name in tied}


def _fastest_columns(model: Model, owners: Owners) -> str:
    """As measured: transformers on CPU are fastest unrolled. That compiles each column, so only up to eight."""
    if jax.default_backend() != "cpu" or not any(getattr(layer, "attends", False) for layer in model.layers):
        return "vmap"
    return "unroll" if max(ownership.owner_count(owner) for owner in owners.values()) <= 8 else "map"


def _task(config: Config, name: str, data: Corpus, model: Model) -> Task:
    """The task of this name."""
    entry, vocabulary = config.tasks[name], data.vocabularies[name]
    statistics = data.statistics["tasks"][name]["train"]
    settings = {"kind": entry.kind, "metrics": tuple(entry.metrics), **entry.options.to_dict()}
    counts = [statistics["counts"].get(label, 0) for label in vocabulary.names] if "counts" in statistics else None
    spec, causal = data.specs[name], bool(model.architecture and model.architecture.causal)
    if TASK_KINDS[entry.kind].continues and not causal:
        raise UserError(
            f"config.tasks.{name}.kind: {entry.kind!r} continues the text with the trunk itself, so "
            f"config.model.pretrained has to name a decoder; {'generation'!r} has one of its own for any trunk"
        )
    copies = spec.target is not None and spec.target.copy
    given = TASK_KINDS[entry.kind].data_fields(
        TaskData(
            settings=settings,
            statistics=statistics,
            spans=vocabulary.spans,
            join=target_sequences.token_joiner(spec.target, data.tokenizer, vocabulary) if spec.target else None,
            source=target_sequences.copied_ids(vocabulary, data.tokenizer) if copies else (),
            mask_token=data.tokenizer.mask_id,
            table_width=model.embed.width,
            published_heads=_published_forms(model.architecture),
            causal=causal,
            end_token=data.tokenizer.end_id,
            lm_head=causal and not model.architecture.tied_head,
            softcap=model.architecture.final_softcap if causal else 0.0,
        )
    )
    return make_task(name, settings, spec.level, vocabulary.names, counts, given)


def _published_forms(architecture: Architecture | None) -> dict[str, HeadForm]:
    heads = architecture.published_heads() if architecture else {}
    return {kind: head.form for kind, head in heads.items()}
