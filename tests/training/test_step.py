"""The train step: what it computes, wherever it is placed and however its batch is cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_steps import largest_difference, placed, steps

from mtl_jax.config import default
from mtl_jax.errors import UserError
from mtl_jax.runs.build import build
from mtl_jax.training.parameter_paths import flatten

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_nothing_shared_without_penalty_is_training_alone(tiny, differs):
    """λ = 0 is single-task learning: AdamW, dropout, clipping and all."""
    together, _ = steps(build(tiny(sharing__trunk="none", model__dropout=0.3, optimizer__clip_norm=0.05)), 5)
    for k, task in enumerate(("color", "tags", "long")):
        config = tiny(sharing__trunk="none", model__dropout=0.3, optimizer__clip_norm=0.05, train_tasks=(task,))
        alone, _ = steps(build(config), 5)
        column = {
            path: jax.tree.map(lambda leaf, k=k: leaf[k : k + 1], together.params[path])
            for path in ("embed", "layer_00")
        }
        column["heads"] = {task: together.params["heads"][task]}
        differs("λ = 0 together against alone, AdamW", largest_difference(column, alone.params), 0, 2e-6)


def test_jit_and_pmap_and_one_device_agree(tiny, differs):
    config = tiny(optimizer__name="sgd", optimizer__learning_rate=0.3, model__dropout=0.2, sharing__trunk="none")
    default.add_penalty(config, "l2", kind="l2_to_mean", strength=0.05)
    experiment = build(config)
    one, _ = steps(experiment, 8)
    mesh, _ = steps(experiment, 8, placed(experiment))
    mapped, _ = steps(experiment, 8, placed(experiment, "pmap"))
    assert largest_difference(one.params, jax.device_get(experiment.init(0).params)) > 1e-2
    differs("parameters, jit on 8 devices against one, SGD", largest_difference(mesh.params, one.params), 0, 1e-5)
    differs("parameters, pmap on 8 devices against one, SGD", largest_difference(mapped.params, one.params), 0, 1e-5)


def test_task_axis_of_the_mesh(tiny):
    """Four columns over two shards of `task`, their features over two of `model`."""
    config = tiny(sharing__trunk="none", optimizer__name="sgd", model__dropout=0.0)
    default.add_task(config, "again", kind="classification", dataset="texts", label="color")
    default.add_penalty(config, "trace", kind="trace_norm", strength=0.01, options={"center": "mean"})
    experiment = build(config)
    plain, _ = steps(experiment, 4)
    sharded, _ = steps(experiment, 4, placed(experiment, mesh={"data": 2, "task": 2, "model": 2}))
    assert largest_difference(plain.params, sharded.params) < 1e-5


@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_factored_moments_on_eight_devices(tiny, differs, kind):
    """Adafactor has a row and a column of moments for each matrix of each owner; where the matrix lies, so do they."""
    config = tiny(sharing__trunk="none", model__layer_type="cnn", model__hidden_size=16, train_tasks=("color", "long"))
    config.optimizer.name, config.optimizer.options = "adafactor", {"min_dim_size_to_factor": 8}
    config.optimizer.learning_rate, config.model.dropout = 0.03, 0.0
    default.add_penalty(config, "l2", kind="l2_to_mean", strength=0.05)
    experiment = build(config)
    one, _ = steps(experiment, 4)
    mesh = {"data": 2, "task": 2, "model": 2} if kind == "jit" else None
    spread, _ = steps(experiment, 4, placed(experiment, kind, mesh))
    assert largest_difference(one.params, jax.device_get(experiment.init(0).params)) > 1e-2
    differs(
        f"parameters, {kind} on 8 devices against one, Adafactor",
        largest_difference(spread.params, one.params),
        0,
        1e-5,
    )


def test_accumulation_equals_the_whole_batch(tiny):
    """Two micro-batches of 8 rows are one of 16: sums and counts are divided once, though the masks differ."""
    common = {"optimizer__name": "sgd", "model__dropout": 0.0, "sharing__trunk": "none"}
    whole = build(tiny(data__rows_per_block=16, **common))
    parts = build(tiny(data__rows_per_block=8, training__grad_accum_steps=2, **common))
    np.testing.assert_array_equal(whole.batches(0).indices(0)[1][:, :8], parts.batches(0).indices(0)[1])
    assert largest_difference(steps(whole, 3)[0].params, steps(parts, 3)[0].params) < 1e-6


def test_a_step_that_is_not_finite_is_left_out_and_counted(tiny):
    experiment = build(tiny(sharing__trunk="none"))
    before = experiment.init(0)
    broken = experiment.hyper._replace(alpha=experiment.hyper.alpha.at[1].set(jnp.nan))
    after, _ = steps(experiment, 2, hyper=broken)
    assert largest_difference(after.params, jax.device_get(before.params)) == 0.0
    assert after.skipped.tolist() == [0, 2, 0, 0] and int(after.bad_steps) == 2 and int(after.step) == 2
    after, _ = steps(experiment, 1, state=jax.tree.map(jnp.asarray, after))
    assert int(after.bad_steps) == 0 and after.skipped.tolist() == [0, 2, 0, 0]


def test_strength_and_tied_weights_order_the_distances(tiny):
    from mtl_jax.evaluation.task_distances import task_distances

    def distance(config, strength):
        experiment = build(config)
        hyper = experiment.hyper._replace(strength={"l2": jnp.float32(strength)})
        actual = task_distances(experiment, steps(experiment, 10, hyper=hyper)[0].params)
        return max(pair["distance"] for pair in actual.values())

    config = tiny(sharing__trunk="none")
    default.add_penalty(config, "l2", kind="l2_to_mean", strength=1.0)
    free, near = distance(config, 0.0), distance(config, 1.0)
    config.sharing.tied = True
    tied = distance(config, 0.0)
    assert free > near > tied
    assert tied < 1e-5


def test_proximal_operator_behind_the_optimizer(tiny):
    """One SGD step on the losses, then the closed form of prox for L2 to the mean."""
    config = tiny(
        sharing__trunk="none",
        optimizer__name="sgd",
        optimizer__weight_decay=0.0,
        optimizer__warmup_ratio=0.0,
        optimizer__clip_norm=0.0,
    )
    plain, metrics = steps(build(config), 1)
    strength = 50.0  # far above what plain gradient steps stand: lr · 2λ = 1 at lr = 0.01
    default.add_penalty(config, "l2", kind="l2_to_mean", strength=strength, proximal=True)
    after, _ = steps(build(config), 1)
    t = float(metrics["learning_rate"]) * strength
    for path, leaf in flatten({k: v for k, v in plain.params.items() if k != "heads"}).items():
        mean = leaf.mean(axis=0, keepdims=True)
        np.testing.assert_allclose(flatten(after.params)[path], mean + (leaf - mean) / (1 + 2 * t), atol=1e-6)


def test_frozen_parameters_stay_and_have_no_moments(tiny):
    experiment = build(tiny(optimizer__freeze=("^embed/",)))
    state, _ = steps(experiment, 3)
    assert largest_difference(state.params["embed"], jax.device_get(experiment.init(0).params["embed"])) == 0.0
    assert not any(
        "embed" in jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)
    )


def test_a_group_learns_faster(tiny):
    changes = {
        "optimizer__name": "sgd",
        "optimizer__clip_norm": 0.0,
        "model__dropout": 0.0,
        "optimizer__weight_decay": 0.0,
    }
    plain = build(tiny(**changes))
    faster = build(tiny(**changes, optimizer__param_groups={"heads": {"params": "^heads/", "lr_multiplier": 10.0}}))
    start = jax.device_get(plain.init(0).params)
    one, ten = steps(plain, 1)[0].params, steps(faster, 1)[0].params
    jax.tree.map(
        lambda s, a, b: np.testing.assert_allclose(10 * (a - s), b - s, atol=1e-6),
        start["heads"],
        one["heads"],
        ten["heads"],
    )
    assert largest_difference(one["layer_00"], ten["layer_00"]) == 0.0


@pytest.mark.parametrize("mixing", ["size", "round_robin"])
def test_one_data_set_at_a_time_trains_all_tasks(tiny, mixing):
    config = tiny(data__mixing=mixing, sharing__trunk="none", model__dropout=0.0, optimizer__weight_decay=0.0)
    start = jax.device_get(build(config).init(0).params)
    state, metrics = steps(build(config), 1)
    drawn = int(build(config).batches(0).indices(0)[0][0])
    for k, (task, dataset) in enumerate((("color", 0), ("tags", 1), ("long", 1))):
        moved = largest_difference(state.params["heads"][task], start["heads"][task]) > 0
        assert moved == (dataset == drawn) == bool(metrics["present"][k])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer__freeze": ("nothing",)}, "config.optimizer.freeze: 'nothing' matches no parameter"),
        (
            {
                "optimizer__param_groups": {
                    "a": {"params": "^heads/", "lr_multiplier": 2.0},
                    "b": {"params": "tags", "lr_multiplier": 3.0},
                }
            },
            "in 'a' and in 'b'",
        ),
        ({"sharing__trunk": "layer_05"}, "config.sharing.trunk"),
        (
            {"sharing__trunk": "all", "penalty": {"kind": "l2_to_mean", "strength": 1.0}},
            "no task has parameters of its own",
        ),
        ({"sharing__trunk": "none", "penalty": {"kind": "l2_to_mean", "params": "typo"}}, "matches no leaf"),
        ({"sharing__trunk": "none", "penalty": {"kind": "subspace", "options": {"dims": 2}}}, "no option dims"),
        (
            {
                "sharing__trunk": "none",
                "penalty": {"kind": "trace_norm", "options": {"unfolding": "tt"}, "proximal": True},
            },
            "config.penalties.p.proximal: trace_norm has no option unfolding",
        ),
        (
            {"sharing__trunk": "none", "penalty": {"kind": "schatten", "proximal": True}},
            "no exact operator for 'schatten'",
        ),
        (
            {
                "sharing__trunk": "none",
                "penalty": {"kind": "laplacian", "options": {"edges": (("color", "typo", 1.0),)}},
            },
            "no task 'typo'",
        ),
    ],
)
def test_what_does_not_fit_is_named(tiny, changes, message):
    changes = dict(changes)
    penalty = changes.pop("penalty", None)
    config = tiny(**changes)
    if penalty:
        default.add_penalty(config, "p", **penalty)
    with pytest.raises(UserError, match=message):
        build(config)


def test_a_penalty_may_have_options_that_its_operator_lacks(tiny):
    config = tiny(sharing__trunk="none")
    default.add_penalty(config, "p", kind="trace_norm", options={"unfolding": "tucker"})
    assert build(config).spec.objective.penalties["p"].proximal is None
