"""From a config to how the gradients of K tasks are computed: by taps in one backward pass, or by K pullbacks."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

from mtl_jax.balancing import weightings
from mtl_jax.balancing.gradient_combination import Aggregation
from mtl_jax.balancing.loss_weights import LossWeights
from mtl_jax.balancing.weightings import Weighting
from mtl_jax.config.sections import Config
from mtl_jax.data.batch import BatchLayout
from mtl_jax.errors import UserError
from mtl_jax.experiment.sharing import make_adapter
from mtl_jax.models.layers import LAYERS
from mtl_jax.models.ownership import ExpertColumns, Owners, SliceOwners, adapter_path, owner_count
from mtl_jax.models.readouts import READOUTS
from mtl_jax.training.gradients import aggregated, per_task
from mtl_jax.training.gradients.aggregated import AggregatedGradient
from mtl_jax.training.gradients.base import DataGradient
from mtl_jax.training.gradients.meta_learning import MetaLearningGradient
from mtl_jax.training.gradients.pullbacks import PullbackGradient
from mtl_jax.training.gradients.stacked import SharedSlices, shared_slices
from mtl_jax.training.objective import Objective

MakeLossWeights = Callable[..., LossWeights]  # (**traced options) -> the method
MakeAggregation = Callable[..., Aggregation]  # (**traced options) -> the method
MANY = 8  # tasks on one batch from which on pullbacks are taken, see `_faster_by_pullbacks`


class TrainedParameters(NamedTuple):
    """paths of the trained parameters, with the names of tasks; owners of layers; slices {path: owner group of each
    slice}; trained, the paths with the names of groups of tasks.
    """

    paths: Collection[str]
    owners: Owners
    slices: SliceOwners
    trained: Collection[str]


class Methods(NamedTuple):
    """loss_weights, aggregation: (**traced options) -> the method; None for the plain sum."""

    loss_weights: MakeLossWeights
    aggregation: MakeAggregation | None

    @property
    def needs(self) -> frozenset[str]:
        """What the loss weights read of gradients."""
        return self.loss_weights().needs & {"gradient_norms", "gram", "gradients"}

    @property
    def read_gradients(self) -> bool:
        """Whether the gradients of the tasks are needed."""
        return self.aggregation is not None or bool(self.needs)

    @property
    def halves(self) -> int:
        """2 where the aggregation compares two halves of a batch."""
        made = self.aggregation() if self.aggregation else None
        return 2 if isinstance(made, Weighting) and made.halves else 1


def plain_sum() -> Aggregation:
    """The aggregation where only the loss weights read gradients."""
    return weightings.sum()


def make_task_gradients(
    config: Config, methods: Methods, parameters: TrainedParameters, objective: Objective
) -> DataGradient:
    """The data gradient of methods that read the gradients of the tasks.

    Raises:
      UserError: no parameter is shared; options that do not fit.
    """
    entry, halves, aggregation = config.aggregation, methods.halves, methods.aggregation or plain_sum
    if methods.needs and (entry.level, entry.gradient_storage, halves) != ("parameters", "copies", 1):
        raise UserError(
            f"config.loss_weights.method: {config.loss_weights.method!r} reads gradients of complete batches over "
            "parameters: take config.aggregation.level = 'parameters', gradient_storage = 'copies', and no method of "
            "halves"
        )
    slices = shared_by_losses(config, methods, parameters, objective)
    _check_batches(config, halves)
    if entry.level == "representation":
        _check_representation(config)
    joined = joined_by(config, objective, parameters.owners)
    if entry.jacobian == "taps" and joined:
        raise UserError(
            f"config.aggregation.jacobian: 'taps' splits the gradient of each weight by task, but {joined} gives a "
            "loss several ways to a weight; take 'auto' or 'vjp'"
        )
    by_pullbacks = entry.jacobian == "vjp" or (entry.jacobian == "auto" and _faster_by_pullbacks(config, objective))
    if not joined and not by_pullbacks:
        tapped = per_task.shared_parameters(
            tuple(parameters.paths), parameters.owners, entry.level, entry.gradient_storage, halves
        )
        if tapped and not aggregated.batch_refusal(tapped, config.training.grad_accum_steps, config.training.placement):
            if entry.pullbacks_at_once > 1:
                raise UserError(
                    f"config.aggregation.pullbacks_at_once: {entry.pullbacks_at_once}, but here one backward pass "
                    "gives all gradients; leave it out, or set config.aggregation.jacobian = 'vjp'"
                )
            return AggregatedGradient(methods.loss_weights, aggregation, tapped, parameters.slices)
    return PullbackGradient(
        methods.loss_weights,
        aggregation,
        slices,
        at_once=entry.pullbacks_at_once,
        halves=halves,
        storage=entry.gradient_storage,
        hidden_at=_common_layer(parameters.owners) if entry.level == "representation" else "",
    )


def shared_by_losses(
    config: Config, methods: Methods, parameters: TrainedParameters, objective: Objective
) -> SharedSlices:
    """The trained slices that several losses reach. Raises UserError where there is none."""
    numbers = {group.name: group.numbers for group in objective.groups}
    slices = shared_slices(parameters.trained, objective.network.reach, numbers, len(objective.tasks))
    if not slices.masks:
        groups = ", config.sharing.task_groups" * bool(config.sharing.task_groups)
        raise UserError(
            f"{_who(config, methods)} reads the gradients of the tasks over shared parameters, and no trained "
            f"parameter is shared (config.sharing.trunk = {config.sharing.trunk!r}{groups}); take method = 'sum', or "
            "loss weights that read losses"
        )
    return slices


def _who(config: Config, methods: Methods) -> str:
    """The method that asks for gradients."""
    entry = config.aggregation
    if methods.aggregation is None:
        return f"config.loss_weights.method: {config.loss_weights.method!r}"
    return f"config.aggregation.method: {entry.method!r}{' with smoothing' * (entry.smoothing > 0)}"


def joined_by(config: Config, objective: Objective, owners: Owners) -> str:
    """What in the config makes the loss of a task reach shared parameters in several ways, "" where nothing does."""
    sharing = config.sharing
    adapter = make_adapter(sharing, len(objective.tasks)) if sharing.adapter else None
    for field, joins in (
        ("mixer", sharing.mixer),
        ("cascades", sharing.cascades),
        ("adapter", adapter is not None and (adapter.bind is not None or _shares_adapters(owners))),
    ):
        if joins:
            return f"config.sharing.{field}"
    if objective.auxiliary:
        return f"the auxiliary loss {objective.auxiliary[0]!r}"
    tied = [name for name, task in objective.tasks.items() if task.tied]
    return f"config.tasks.{tied[0]}.options.tied" if tied else ""


def _shares_adapters(owners: Owners) -> bool:
    """Whether several tasks have parameters of adapters in common, of which there are no taps."""
    adapters = [owner for path, owner in owners.items() if path.startswith("adapter_")]
    return any(isinstance(owner, ExpertColumns) or owner_count(owner) < len(owner) for owner in adapters)


def _faster_by_pullbacks(config: Config, objective: Objective) -> bool:
    """Whether K pullbacks take less time where taps are possible, too: as measured (benchmarks/gradient_methods.py), of
    layers without attention on a batch that many tasks read.
    """
    layout, entry = objective.layout, config.aggregation
    attends = bool(config.model.pretrained) or getattr(LAYERS[config.model.layer_type], "attends", False)
    return (
        not attends
        and all(len(layout.reads(task)) == len(layout.candidates) for task in layout.tasks)
        and len(layout.datasets) == 1
        and len(layout.tasks) >= MANY
        and (entry.level, entry.gradient_storage) == ("parameters", "copies")
    )


def _common_layer(owners: Owners) -> str:
    """The last layer up to which all tasks have one representation. Raises UserError where there is none."""
    common = ""
    for path in owners:
        if path == "embed" or path.startswith("layer_"):
            adapter = owners.get(adapter_path(path))
            if owner_count(owners[path]) > 1 or (adapter is not None and owner_count(adapter) > 1):
                break
            common = path
    if not common:
        raise UserError(
            "config.aggregation.level: 'representation' compares gradients of the outputs of a layer that all tasks "
            "share, and the lowest layer has several columns or adapters; take 'parameters'"
        )
    return common


def _check_representation(config: Config) -> None:
    """Raises UserError where some head reads anything else than the representation's successors."""
    readout = READOUTS[config.sharing.readout](**config.sharing.readout_options)
    if readout.reads_all or config.sharing.head_layers:
        raise UserError(
            "config.aggregation.level: 'representation' needs heads that read only the last layer "
            "(config.sharing.readout = 'top', no head_layers): other losses depend on layers below without the "
            "representation"
        )


def _check_batches(config: Config, halves: int) -> None:
    """Raises UserError for batches of which there are no two halves."""
    rows = config.data.rows_per_block
    if halves == 2 and rows % 2:
        raise UserError(
            f"config.data.rows_per_block: {rows} rows cannot be split in two halves, which this aggregation needs"
        )
    if halves == 2 and config.aggregation.level == "representation":
        raise UserError(
            "config.aggregation.level: the halves of a batch have no common representation; take 'parameters'"
        )


def describe(gradient: DataGradient, layout: BatchLayout) -> str:
    """What the K gradients of a run cost, for the start of a run; "" where they come from one backward pass."""
    count = len(layout.tasks)
    if isinstance(gradient, MetaLearningGradient):
        return f"gradients of {count} tasks after adaptation are stored together" * (gradient.shared is not None)
    if not isinstance(gradient, PullbackGradient):
        return ""
    rows = count * gradient.halves
    if gradient.hidden_at:
        return (
            f"gradients of {count} tasks: one forward pass, {rows} backward passes down to {gradient.hidden_at!r}, and "
            "one through all layers"
        )
    passes, units = f"{rows} backward passes", 1 + 2 * rows
    if gradient.storage == "layers":
        passes, units = f"{rows} backward passes and products with the Jacobian", 3 + 5 * rows
    return f"gradients of {count} tasks: one forward pass, {passes}; about {units / 3:.1f} times the plain step"
