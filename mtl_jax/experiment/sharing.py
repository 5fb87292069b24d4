"""From `config.sharing` to the parts between layers and tasks: mixers, experts, adapters, readouts, cascades."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import jax

from mtl_jax.config.sections import Config, Sharing
from mtl_jax.data.batch import BatchLayout
from mtl_jax.errors import UserError
from mtl_jax.models import ownership
from mtl_jax.models.adapters import ADAPTERS, Adapter
from mtl_jax.models.mixers import MIXERS
from mtl_jax.models.mixers.base import Mixer
from mtl_jax.models.network_spec import SharingSpec
from mtl_jax.models.ownership import ExpertColumns, Owner, Owners
from mtl_jax.models.readouts import READOUTS
from mtl_jax.tasks.base import Features, Params, Task

Cascades = Mapping[str, Sequence[str]]  # task -> tasks whose labels are fed to its head
Part = TypeVar("Part")  # a mixer, an adapter, a readout


def build_sharing(
    config: Config, owners: Owners, tasks: Mapping[str, Task], layout: BatchLayout, cached: tuple[str, ...]
) -> tuple[Owners, SharingSpec]:
    """The owners of all layers, mixers and adapters, and the parts between layers and tasks.

    Args:
      config: checked.
      owners: of the layers, from `ownership.assign_owners`.
      tasks: by name.
      layout: of the training batches.
      cached: layers whose outputs are cached, see `frozen_layers`.

    Raises:
      UserError: what does not fit, by field.
    """
    sharing, names = config.sharing, layout.tasks
    owners, mixers = _with_mixers(sharing, dict(owners), layout)
    layers = tuple(path for path in owners if not path.startswith("mixer_"))
    adapters = _adapters(sharing, owners, layers, len(names))
    owners |= _adapter_owners(sharing, owners, adapters, names, tuple(config.tasks))
    readout = _construct("readout_options", lambda: READOUTS[sharing.readout](**sharing.readout_options.to_dict()))
    head_layers = _head_layers(sharing, names, tuple(config.tasks), layers)
    cascades = {task: tuple(sources) for task, sources in sharing.cascades.items() if sources}
    order = ownership.cascade_order(tuple(config.tasks), cascades)
    cascades = {task: sources for task in names if (sources := tuple(s for s in cascades.get(task, ()) if s in names))}
    _require_fed_upwards(cascades, head_layers, layers)
    _require_passable(sharing, owners, mixers, readout.reads_all, head_layers)
    _require_above(cached, mixers, adapters, readout.reads_all, head_layers, owners)
    return owners, SharingSpec(
        mixers,
        adapters,
        readout,
        head_layers,
        cascades,
        tuple(name for name in order if name in names),
        _label_distribution(tasks),
        _class_counts(tasks, cascades),
    )


def _construct(field: str, make: Callable[[], Part]) -> Part:
    """make(), with its errors as those of the field."""
    try:
        return make()
    except (TypeError, ValueError) as error:
        raise UserError(f"config.sharing.{field}: {error}") from None


def _with_mixers(
    sharing: Sharing, owners: dict[str, Owner], layout: BatchLayout
) -> tuple[dict[str, Owner], dict[str, Mixer]]:
    """Owners including those of experts and mixers, and {layer: the mixer of columns after it}."""
    if not sharing.mixer:
        return owners, {}
    tasks, chosen = len(layout.tasks), tuple(sharing.mixer_layers)
    mixer = _construct("mixer_options", lambda: MIXERS[sharing.mixer](tasks, **sharing.mixer_options.to_dict()))
    if mixer.experts:
        above, gates = ownership.expert_layers(owners, sharing.mixer, chosen, mixer.default_layers, sharing.trunk)
        if mixer.apply is None and gates != above[-1:]:  # of a task at the top alone
            raise UserError(
                f"config.sharing.mixer_layers: {sharing.mixer!r} joins columns at the top only; leave it empty"
            )
        if sharing.tied:
            raise UserError(f"config.sharing.tied: the experts of {sharing.mixer!r} are no columns of the tasks")
        names = ownership.expert_names(layout.tasks, mixer.columns)
        owners |= dict.fromkeys(above, ExpertColumns(mixer.columns, names))
    else:
        gates = ownership.mixed_layers(owners, chosen, mixer.default_layers)
    owners |= {ownership.mixer_path(path): (0,) * tasks for path in gates}
    return owners, dict.fromkeys(gates, mixer)


def make_adapter(sharing: Sharing, tasks: int) -> Adapter:
    """The adapter of a config, for so many tasks."""
    kind, options = ADAPTERS[sharing.adapter], sharing.adapter_options.to_dict()
    if "tasks" in inspect.signature(kind).parameters:
        options = {"tasks": tasks, **options}
    return _construct("adapter_options", lambda: kind(**options))


def _adapters(sharing: Sharing, owners: Owners, layers: tuple[str, ...], tasks: int) -> dict[str, Adapter]:
    if not sharing.adapter:
        return {}
    adapter = make_adapter(sharing, tasks)
    chosen = tuple(sharing.adapter_layers) or tuple(path for path in layers if path != "embed")
    if not chosen:
        raise UserError(
            f"config.sharing.adapter: {sharing.adapter!r} stands on layers above the embeddings, and there are none "
            "(config.model.num_layers = 0)"
        )
    for path in chosen:
        if path not in layers or path == "embed":
            raise UserError(f"config.sharing.adapter_layers: {path!r} is none of the layers {', '.join(layers[1:])}")
    return dict.fromkeys((path for path in layers if path in chosen), adapter)


def _adapter_owners(
    sharing: Sharing,
    owners: Owners,
    adapters: Mapping[str, Adapter],
    names: Sequence[str],
    all_tasks: Sequence[str],
) -> dict[str, Owner]:
    """The owners of adapters, and of what all owners of one have in common, by path. On experts, experts own them."""
    everyone = (0,) * len(names)
    count = sum(path.startswith("layer_") for path in owners)
    fields = ("adapter_owner", "adapter_groups")
    of_tasks = ownership.assign_owners(
        names, count, sharing.adapter_owner, sharing.adapter_groups.to_dict(), all_tasks, fields
    )
    result: dict[str, Owner] = {}
    for path, adapter in adapters.items():
        for_all = of_tasks[path] == everyone and (len(names) > 1 or sharing.adapter_owner != "none")
        by_experts = isinstance(owners[path], ExpertColumns) and not for_all
        result[ownership.adapter_path(path)] = owners[path] if by_experts else of_tasks[path]
        if adapter.init_shared:
            result[ownership.shared_adapter_path(path)] = everyone
    return result


def _head_layers(
    sharing: Sharing, names: Sequence[str], all_tasks: Sequence[str], layers: Sequence[str]
) -> dict[str, str]:
    """{task of `names`: the layer that its head reads}, where the config gives one."""
    for task, path in sharing.head_layers.items():
        if task not in all_tasks:
            raise UserError(
                f"config.sharing.head_layers: there is no task {task!r}; the tasks are {', '.join(all_tasks)}"
            )
        if path not in layers:
            raise UserError(f"config.sharing.head_layers.{task}: {path!r} is none of the layers {', '.join(layers)}")
    return {task: path for task, path in sharing.head_layers.items() if task in names}


def _class_counts(tasks: Mapping[str, Task], cascades: Cascades) -> dict[str, int]:
    """{task whose labels are fed: number of classes C}."""
    classes = {}
    for fed, sources in cascades.items():
        for source in sources:
            if not tasks[source].defines("distribution"):
                raise UserError(
                    f"config.sharing.cascades.{fed}: {source!r} has no classes whose distribution at each token could "
                    "be fed; tasks with classes of documents or words have"
                )
            classes[source] = len(tasks[source].names)
    return classes


def _label_distribution(tasks: Mapping[str, Task]) -> Callable[..., jax.Array]:
    """(task, parameters of its head, hidden, segment, start, length) -> distribution of its classes at each token."""

    def distribute(task: str, params: Params, *inputs: jax.Array) -> jax.Array:
        return tasks[task].distribution(params, Features(*inputs))

    return distribute


def _require_fed_upwards(cascades: Cascades, head_layers: Mapping[str, str], layers: Sequence[str]) -> None:
    """Raises UserError where labels would be fed to a head below the one that predicts them."""
    for fed, sources in cascades.items():
        for source in sources:
            low, high = (layers.index(head_layers.get(task, layers[-1])) for task in (source, fed))
            if low > high:
                raise UserError(
                    f"config.sharing.cascades.{fed}: the head of {source!r} is at {layers[low]!r}, above that of "
                    f"{fed!r} at {layers[high]!r}; labels can only be fed upwards (config.sharing.head_layers)"
                )


def _require_passable(
    sharing: Sharing, owners: Owners, mixers: Mapping[str, Mixer], reads_all: bool, head_layers: Mapping[str, str]
) -> None:
    """Raises UserError where a head reads between experts, which are the columns of no task."""
    if not any(isinstance(owner, ExpertColumns) for owner in owners.values()):
        return
    if reads_all:
        raise UserError(
            f"config.sharing.readout: {sharing.readout!r} reads every layer, but those of {sharing.mixer!r} are "
            "experts; take 'top'"
        )
    for task, path in head_layers.items():
        if isinstance(owners[path], ExpertColumns) and path not in mixers:
            raise UserError(
                f"config.sharing.head_layers.{task}: after {path!r} there are experts without a gate; choose a layer "
                f"of the trunk or one of {', '.join(mixers)}"
            )


def _require_above(
    cached: Sequence[str],
    mixers: Mapping[str, Mixer],
    adapters: Mapping[str, Adapter],
    reads_all: bool,
    head_layers: Mapping[str, str],
    owners: Owners,
) -> None:
    """Raises UserError where something reads a cached layer other than the topmost, whose outputs alone are stored."""
    for path in cached:
        readers = {
            "a mixer": path in mixers,
            "an adapter": path in adapters,
            "experts": isinstance(owners[path], ExpertColumns),
            "a head": path != cached[-1] and (reads_all or path in head_layers.values()),
        }
        for name, reads in readers.items():
            if reads:
                raise UserError(
                    f"config.optimizer.cache_frozen: there is {name} at {path!r}, but only the outputs of "
                    f"{cached[-1]!r} are cached of the frozen layers; set cache_frozen = False"
                )
