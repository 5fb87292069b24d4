"""Parallel forms of the step on 8 devices: each computes what one device computes, and moves what it should."""

import collections
import functools
import math
import types
import typing
from typing import Any, NamedTuple

import jax
import pytest
from train_steps import batch_of, largest_difference, steps

from benchmarks.hlo import collectives
from mtl_jax import checks
from mtl_jax.config import default
from mtl_jax.config.sections import Model
from mtl_jax.errors import UserError
from mtl_jax.evaluation.scores import abstract_arrays, placement_from_config
from mtl_jax.experiment.assemble import Experiment
from mtl_jax.models import activation_sharding
from mtl_jax.models.remat import REMAT_POLICIES
from mtl_jax.runs.build import build
from mtl_jax.training import placement as placements
from mtl_jax.training.parameter_paths import flatten
from mtl_jax.training.state import TrainState
from mtl_jax.training.step import train_step

pytestmark = pytest.mark.usefixtures("standard_promotion")
LAYERS, WIDTH, HEADS, INTERMEDIATE, TOKENS, ROWS = 2, 16, 4, 32, 16, 8
HARD = {"train_tasks": ("color", "long")}
MOMENTUM = {"optimizer__options": {"momentum": 0.9}}
RECURRENT = {"model__layer_type": "bilstm", "model__intermediate_size": 512, "model__initializer_range": 0.02}
COLUMNS = {**HARD, "sharing__trunk": "embed"}


@pytest.fixture(autouse=True)
def small_leaves_too(monkeypatch):
    """Leaves of this size are split over `fsdp` as large ones are."""
    monkeypatch.setattr(activation_sharding, "LARGE_LEAF", 256)


@pytest.fixture
def transformer(tiny):
    """A config of two transformer layers with SGD, which shows a gradient of the wrong size, on a mesh."""

    def make(mesh, **changes):
        fields = {
            "model__layer_type": "transformer",
            "model__num_layers": LAYERS,
            "model__hidden_size": WIDTH,
            "model__num_heads": HEADS,
            "model__intermediate_size": INTERMEDIATE,
            "model__initializer_range": 0.25,
            "model__dropout": 0.1,
            "data__row_length": TOKENS,
            "data__rows_per_block": ROWS,
            "optimizer__name": "sgd",
            "optimizer__learning_rate": 0.3,
            "training__mesh": {"data": 1, "fsdp": 1, "task": 1, "sequence": 1, "model": 1, **mesh},
        }
        return tiny(**(fields | changes))

    return make


class Placed(NamedTuple):
    """An experiment on the mesh of its config: its step, compiled, and shapes of the state with their shardings."""

    experiment: Experiment
    placement: placements.Placement
    compiled: Any
    state: TrainState


def place(config) -> Placed:
    checks.check(config)
    experiment = build(config)
    placement = placement_from_config(experiment)
    state = abstract_arrays(jax.eval_shape(lambda: experiment.init(0)), placement)
    step = placement.train(functools.partial(train_step, experiment.spec))
    compiled = step  # under pmap
    if config.training.placement == "jit":
        compiled = step.lower(state, placement.put_batch(batch_of(experiment)), experiment.hyper).compile()
    return Placed(experiment, placement, compiled, state)


def moved(placed: Placed) -> collections.Counter:
    """(kind, shape) -> how many, of a step."""
    return collections.Counter((one.kind, one.shape) for one in collectives(placed.compiled.as_text()))


def penalised(config):
    default.add_penalty(config, "l2", kind="l2_to_mean", strength=0.05)


WAYS = {
    "fsdp": ({"fsdp": 8}, HARD, None),
    "tensor": ({"data": 2, "model": 4}, HARD, None),
    "sequence": ({"data": 2, "sequence": 4}, HARD, None),
    "all, columns": ({"fsdp": 2, "sequence": 2, "model": 2}, COLUMNS, penalised),
    "task, tensor, fsdp": ({"fsdp": 2, "task": 2, "model": 2}, COLUMNS, penalised),
    "lora, remat": (
        {"fsdp": 2, "task": 2, "model": 2},
        {**HARD, "sharing__adapter": "lora", "model__remat_policy": "nothing_saveable"},
        None,
    ),
    "gradient methods": ({"fsdp": 2, "sequence": 2, "model": 2}, {**HARD, "aggregation__method": "mgda"}, None),
    "gradient methods, copies": ({"data": 4, "model": 2}, {**HARD, "aggregation__method": "graddrop"}, None),
    "micro-batches, offloaded momentum": (
        {"fsdp": 4, "model": 2},
        {**HARD, "training__grad_accum_steps": 2, "training__offload_optimizer": True, **MOMENTUM},
        None,
    ),
    "pmap, inputs in host memory": (
        {"data": -1},
        {**HARD, "training__placement": "pmap", "model__remat_policy": "offload_inputs"},
        None,
    ),
    "a recurrent layer": (
        {"fsdp": 2, "sequence": 2, "model": 2},
        {**HARD, **RECURRENT},
        None,
    ),
}


@pytest.mark.parametrize("name", WAYS)
def test_equals_one_device(transformer, differs, name):
    mesh, changes, change = WAYS[name]
    config = transformer(mesh, **changes)
    if change:
        change(config)
    experiment, placement, compiled, _ = place(config)
    state = placement.put_state(experiment.init(0))
    for number in range(3):
        state, _ = compiled(state, placement.put_batch(batch_of(experiment, number)), experiment.hyper)
    one, _ = steps(experiment, 3)
    assert largest_difference(one.params, jax.device_get(experiment.init(0).params)) > 1e-2
    spread = jax.device_get(placement.replicated(state).params)
    differs(f"parameters, {name} on 8 devices against one", largest_difference(spread, one.params), 0, 1e-5)


def test_fsdp_gathers_parameters_and_no_activations(transformer):
    """Each kernel once for the whole step, as nothing is computed again; gradients are summed, or scattered."""
    placed = place(transformer({"fsdp": 8}, **HARD))
    kernels = {path: leaf for path, leaf in flatten(placed.state.params).items() if leaf.ndim == 3}
    wanted = collections.Counter()
    for path, leaf in kernels.items():
        if "fsdp" in leaf.sharding.spec and not path.startswith(("embed/", "heads/")):
            wanted[leaf.shape[1:]] += 1
    gathered = collections.Counter()
    for (kind, shape), count in moved(placed).items():
        if kind == "all-gather" and shape in wanted:
            gathered[shape] += count
    assert sum(wanted.values()) == 6 * LAYERS and gathered == wanted
    activations = 2 * ROWS // 8 * TOKENS * WIDTH  # of one device
    parameters = {leaf.shape[1:] for leaf in flatten(placed.state.params).values()}
    large = [shape for _, shape in moved(placed) if math.prod(shape) >= activations]
    assert all(shape in parameters or shape[1:] in parameters for shape in large), large


def test_tensor_parallel_sums_once_in_each_half_layer(transformer, monkeypatch):
    """Forward once after attention and once after the MLP; backward once for the MLP and once for each of query, key
    and value, which the CPU's compiler, unlike that of TPUs, does not add before. No parameter is moved.
    """
    monkeypatch.setattr(activation_sharding, "LARGE_LEAF", 1 << 16)  # the embeddings are complete
    placed = place(transformer({"data": 2, "model": 4}, **HARD))
    tokens = 2 * ROWS // 2 * TOKENS
    of_activations = {key: count for key, count in moved(placed).items() if math.prod(key[1]) == tokens * WIDTH}
    assert of_activations == {("all-reduce", (tokens, WIDTH)): LAYERS * (2 + 1 + 3)}
    assert {kind for kind, _ in moved(placed)} == {"all-reduce"}
    state = flatten(placed.state.params)
    shards = {path: leaf.sharding.shard_shape(leaf.shape)[1:] for path, leaf in state.items()}
    assert shards["layer_00/attention/query/kernel"] == (WIDTH, WIDTH // 4)
    assert shards["layer_00/attention/output/kernel"] == (WIDTH // 4, WIDTH)
    assert shards["layer_01/intermediate/kernel"] == (WIDTH, INTERMEDIATE // 4)
    assert shards["layer_01/output/kernel"] == (INTERMEDIATE // 4, WIDTH)


def test_sequence_gathers_keys_and_values_only(transformer):
    placed = place(transformer({"data": 2, "sequence": 4}, **HARD))
    rows = 2 * ROWS // 2
    gathered = {key: count for key, count in moved(placed).items() if "all-gather" in key}
    keys = {key: count for key, count in gathered.items() if math.prod(key[1]) >= rows * TOKENS * WIDTH}
    assert keys == {("all-gather", (rows, TOKENS, HEADS, WIDTH // HEADS)): 2 * LAYERS}
    kinds = {kind for kind, shape in moved(placed)}
    assert kinds == {"all-gather", "all-reduce"}


def test_rows_stay_where_they_are(transformer):
    """Blocks pass a shared layer together: joining them moves no row to another device."""
    placed = place(transformer({"data": 8}, **HARD))
    parameters = {leaf.shape for leaf in flatten(placed.state.params).values()}
    sizes = {math.prod(shape) for shape in parameters}
    for kind, shape in moved(placed):
        assert kind == "all-reduce" or math.prod(shape) <= 2 * ROWS, (kind, shape)  # texts' indices at most
        assert math.prod(shape) in sizes or math.prod(shape) <= 2 * ROWS, (kind, shape)


def test_offloaded_state_is_in_host_memory(transformer):
    config = transformer({"fsdp": 8}, training__offload_optimizer=True, **HARD, **MOMENTUM)
    placed = place(config)
    kinds = {(leaf.size >= 256, leaf.sharding.memory_kind) for leaf in jax.tree.leaves(placed.state.opt_state)}
    assert kinds == {(True, "pinned_host"), (False, "device")}
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(placed.state.params)} == {"device"}
    state = placed.placement.put_state(placed.experiment.init(0))
    after, _ = placed.compiled(state, placed.placement.put_batch(batch_of(placed.experiment)), placed.experiment.hyper)
    same = jax.tree.map(lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), after, placed.state)
    assert jax.tree.all(same), same
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(after.opt_state) if leaf.size >= 256} == {
        "pinned_host"
    }


@pytest.mark.parametrize("policy", REMAT_POLICIES)
def test_what_is_kept_changes_no_result(transformer, differs, policy):
    config = transformer({"fsdp": 4, "model": 2}, **HARD, model__remat_policy=policy)
    placed = place(config)
    state = placed.placement.put_state(placed.experiment.init(0))
    state, _ = placed.compiled(state, placed.placement.put_batch(batch_of(placed.experiment)), placed.experiment.hyper)
    plain = build(transformer({}, **HARD))
    one, _ = steps(plain, 1)
    differs(f"parameters, {policy}", largest_difference(jax.device_get(state.params), one.params), 0, 1e-5)


def test_policies_are_the_choices_of_the_config():
    assert typing.get_args(typing.get_type_hints(Model)["remat_policy"]) == tuple(REMAT_POLICIES)


@pytest.mark.parametrize(
    ("mesh", "changes", "message"),
    [
        ({"data": 1, "model": 8}, {}, r"config.model.num_heads: 4 cannot be split over 8 .*model may be 1, 2, 4"),
        ({"data": 2, "model": 4}, {"model__intermediate_size": 30}, "intermediate_size: 30 .*model may be 1, 2, 3, 5"),
        ({"data": 1, "sequence": 8}, {"data__row_length": 12}, "config.data.row_length: 12 .*take a multiple of 8"),
        ({"fsdp": 8}, {"data__rows_per_block": 4}, "rows_per_block: 4 cannot .*data × fsdp.*take a multiple of 8"),
        ({"fsdp": 2}, {"training__placement": "pmap"}, "mesh.fsdp: 'pmap' splits rows only"),
        ({}, {"training__placement": "pmap", "training__offload_optimizer": True}, "offload_optimizer: 'pmap'"),
        ({"data": 3}, {}, "does not make 8 devices"),
    ],
)
def test_what_cannot_be_placed_is_named(transformer, mesh, changes, message):
    experiment = build(transformer(mesh, **HARD, **changes))
    with pytest.raises(UserError, match=message):
        placement_from_config(experiment)


def test_a_platform_without_host_memory_is_named(transformer, monkeypatch):
    memory = [types.SimpleNamespace(kind="device")]
    device = types.SimpleNamespace(platform="metal", addressable_memories=lambda: memory)
    policies = ("dots_saveable", "offload_dots")
    keeps, offloads = (build(transformer({"data": 8}, **HARD, model__remat_policy=name)) for name in policies)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    placement_from_config(keeps)
    with pytest.raises(UserError, match=r"config\.model\.remat_policy: metal has no memory"):
        placement_from_config(offloads)
    with pytest.raises(UserError, match=r"config\.x: metal has no memory of kind 'pinned_host' here, only device"):
        placements.require_host_memory("config.x")
