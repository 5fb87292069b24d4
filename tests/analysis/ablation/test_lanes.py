"""Lanes against solo runs, layouts and devices against each other, frozen lanes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.analysis.ablation import engine as engines
from mtl_jax.analysis.ablation import lane_program, lanes, plan, traced_fields
from mtl_jax.config import default
from mtl_jax.errors import UserError
from mtl_jax.models import activation_sharding
from mtl_jax.runs.build import build
from mtl_jax.training.step import train_step

pytestmark = pytest.mark.usefixtures("standard_promotion")
SEEDS = (0, 1, 2)
QUICK = {"train_tasks": ("color", "long")}  # without a CRF, which takes half of the time to compile


def grid(tiny, **changes):
    config = tiny(sharing__trunk="none", training__steps=60, **changes)
    default.add_penalty(config, "l2", kind="l2_to_mean", strength=0.1)
    default.add_sweep(config, "strength", field="penalties.l2.strength", points=(0.0, 0.01, 0.3, 200.0))
    config.ablation.lr_factors = (1.0,)
    return config


def trained(config, layout, steps, only=None, resident="auto", mesh=lanes.NO_MESH):
    """The states [S, L] of the sweep's program (or the ends) after some steps, and what was built."""
    config.ablation.data_placement = resident
    one = next(p for p in plan.make_plan(config, lambda c: None).programs if p.name == (only or "sharing"))
    built = lane_program.build(one, lane_program.Sources())
    shape = lanes.shape_of(len(SEEDS), len(built.settings), layout, mesh)
    engine = engines.Engine(built, shape, engines.resident(built, shape.mesh, 1 << 30))
    states, losses = engine.init(SEEDS)
    active = np.zeros((shape.seeds, shape.lanes), bool)
    active[: len(SEEDS), : len(built.settings)] = True
    hyper = engine.hyper(range(len(built.settings)))
    for start in range(0, steps, 25):
        states, losses = engine.advance(
            states, losses, hyper, active=active, seeds=SEEDS, start=start, steps=min(25, steps - start)
        )
    used = {axis for leaf in jax.tree.leaves(states.params) for axis in leaf.sharding.spec}
    assert used >= {axis for axis in mesh if axis != "data"}  # parameters are split
    return jax.device_get(states), jax.device_get(losses), built


def solo(config, setting, seed, steps):
    """The same lane by the plain step: final state and mean losses."""
    config = traced_fields.with_values(config, {**setting.fields, "seed": seed})
    experiment = build(config)
    step = jax.jit(lambda state, batch: train_step(experiment.spec, state, batch, experiment.hyper))
    state, total = experiment.init(seed), 0.0
    batches = experiment.batches(seed)
    for number in range(steps):
        state, metrics = step(state, jax.tree.map(lambda leaf: leaf[None], batches.batch(number)))
        total = total + np.asarray(metrics["losses"], np.float64)
    return jax.device_get(state), total / steps


def distance(a, b):
    """‖a − b‖/‖b‖ over two trees."""
    pairs = [
        (np.asarray(x, np.float64), np.asarray(y, np.float64))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    ]
    return np.sqrt(sum(((x - y) ** 2).sum() for x, y in pairs) / sum((y**2).sum() for _, y in pairs))


@pytest.mark.parametrize(("layer", "rate"), [("bilstm", 0.3), ("transformer", 0.05)])
def test_a_lane_is_its_solo_run_sgd(tiny, differs, layer, rate):
    quick = QUICK if layer == "transformer" else {}
    config = grid(tiny, model__layer_type=layer, optimizer__name="sgd", optimizer__learning_rate=rate, **quick)
    states, _, built = trained(config, "map", 100)
    actual = lambda s, i: jax.tree.map(lambda leaf: leaf[s, i], states.params)  # noqa: E731
    for s, i in ((2, 1), (1, 3)):
        alone, _ = solo(config, built.settings[i], SEEDS[s], 100)
        differs(f"lane against its solo run, SGD, {layer}", distance(actual(s, i), alone.params), 0.0, 1e-6)
    assert distance(actual(0, 0), actual(0, 2)) > 1e-3 and distance(actual(0, 0), actual(1, 0)) > 1e-3
    assert built.settings[3].fields["penalties.l2.proximal"]  # λ = 200 diverges as a gradient
    assert "penalties.l2.proximal" not in built.settings[2].fields


def test_a_lane_is_its_solo_run_adamw(tiny, differs):
    """Where gradients are balanced, too."""
    config = grid(tiny, aggregation__method="cagrad")
    config.sharing.trunk = "embed"
    _, losses, built = trained(config, "vmap", 50)
    for s, i in ((2, 3),):
        _, alone = solo(config, built.settings[i], SEEDS[s], 50)
        differs("losses of a lane against its solo run, AdamW", losses.total[s, i] / losses.count[s, i], alone, 1e-4)


@pytest.mark.parametrize("name", ["adafactor", "muon"])
def test_a_lane_is_its_solo_run_by_any_optimizer(tiny, differs, name):
    """Learning rates as lanes, of optimizers whose state has other shapes than the parameters."""
    config = tiny(sharing__trunk="none", model__layer_type="cnn", optimizer__name=name, training__steps=60, **QUICK)
    config.optimizer.options = {"min_dim_size_to_factor": 4} if name == "adafactor" else {}
    default.add_sweep(config, "rate", field="optimizer.learning_rate", points=(1e-3, 1e-2))
    config.ablation.limits = False
    states, losses, built = trained(config, "map", 20)
    _, alone = solo(config, built.settings[1], SEEDS[2], 20)
    differs(f"losses of a lane against its solo run, {name}", losses.total[2, 1] / losses.count[2, 1], alone, 1e-4)
    assert distance(*(jax.tree.map(lambda leaf, i=i: leaf[2, i], states.params) for i in (0, 1))) > 1e-3


def test_tied_lanes_are_tied_and_single_ones_not(tiny):
    config = grid(tiny, **QUICK)
    states, _, built = trained(config, "map", 10, "ends")
    lines = [setting.line for setting in built.settings]
    table = states.params["embed"]["word"]["embedding"]  # [S, L, K, V, D]
    tied, single = table[:, lines.index("tied")], table[:, lines.index("single")]
    np.testing.assert_array_equal(tied, np.broadcast_to(tied[:, :1], tied.shape))
    assert np.abs(single - single[:, :1]).max() > 1e-3


@pytest.mark.parametrize(("layout", "resident"), [("vmap", "device"), ("map", "host")])
def test_layout_and_place_of_the_data_change_nothing(tiny, differs, layout, resident):
    config = grid(
        tiny,
        optimizer__name="sgd",
        data__mixing="size",
        data__blocks_per_batch=2,
        training__grad_accum_steps=2,
        **QUICK,
    )
    want, want_losses, _ = trained(config, "map", 30, resident="device")
    actual, found_losses, _ = trained(config, layout, 30, resident=resident)
    differs(f"lanes by {layout}, rows on the {resident}", distance(actual.params, want.params), 0.0, 1e-6)
    differs("their losses", found_losses.total, want_losses.total, 1e-4)


def test_a_lane_that_goes_non_finite_is_frozen_alone(tiny):
    config = grid(tiny, optimizer__name="sgd", optimizer__weight_decay=0.0, training__max_nonfinite_steps=3, **QUICK)
    config.ablation.sweeps = type(config.ablation.sweeps)(sort_keys=False)
    default.add_sweep(config, "rate", field="optimizer.learning_rate", points=(0.01, 3e38))
    states, _, _ = trained(config, "map", 30)
    assert (states.bad_steps[: len(SEEDS), 1] >= 3).all() and (states.bad_steps[: len(SEEDS), 0] == 0).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(states.params))
    alone = solo(config, plan.Setting("sharing", {}, {"optimizer.learning_rate": 0.01}), 0, 30)[0]
    first = jax.tree.map(lambda leaf: leaf[0, 0], states.params)
    assert distance(first, alone.params) <= 1e-6


@pytest.mark.parametrize(
    ("mesh", "layout", "resident"),
    [({"model": 2}, "map", "device"), ({"data": 2, "task": 2}, "vmap", "host"), ({"fsdp": 4}, "map", "device")],
)
def test_a_lane_on_a_mesh_is_the_lane_on_one_device(tiny, differs, monkeypatch, mesh, layout, resident):
    monkeypatch.setattr(activation_sharding, "LARGE_LEAF", 64)
    changes = {"model__layer_type": "transformer", "model__num_heads": 2, "model__intermediate_size": 16, **QUICK}
    config = grid(tiny, optimizer__name="sgd", optimizer__learning_rate=0.05, model__dropout=0.1, **changes)
    want, want_losses, _ = trained(config, layout, 30, resident=resident)
    actual, found_losses, _ = trained(config, layout, 30, resident=resident, mesh=mesh)
    cells = len(SEEDS), len(config.ablation.sweeps.strength.points)
    actual, want = (jax.tree.map(lambda x: x[: cells[0], : cells[1]], s.params) for s in (actual, want))
    differs(f"lanes on {mesh}, by {layout}", distance(actual, want), 0.0, 1e-5)
    totals = (x.total[: cells[0], : cells[1]] for x in (found_losses, want_losses))
    differs("their losses", *totals, 1e-4)


def test_a_mesh_that_does_not_divide_the_devices():
    with pytest.raises(UserError, match=r"takes 3, which 8 devices cannot be divided by; together .* 1, 2, 4, 8"):
        lanes.shape_of(1, 1, "map", {"model": 3})


def test_over_lanes_splits_either_axis():
    """What is sharded over 8 devices equals plain loops, whichever of S and L is filled up."""
    for seeds, settings in ((3, 8), (8, 1), (5, 3)):
        for layout in lanes.LAYOUTS:
            shape = lanes.shape_of(seeds, settings, layout)
            x = np.arange(shape.seeds * shape.lanes, dtype=np.float32).reshape(shape.seeds, shape.lanes)
            y = np.arange(shape.seeds, dtype=np.float32)
            whole = jax.jit(lanes.over_lanes(lambda a, b, c: a * 2 + b * c, "ls-", shape))
            np.testing.assert_array_equal(whole(x, y, jnp.float32(3.0)), 2 * x + 3 * y[:, None])
