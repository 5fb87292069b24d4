"""Penalties on factors of adapters and on their products, from a config, against float64 numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from train_steps import steps

from mtl_jax.config import default
from mtl_jax.errors import UserError
from mtl_jax.models.adapters import ADAPTERS
from mtl_jax.runs.build import build
from mtl_jax.training.parameter_paths import flatten

KERNEL = "adapter_00/forward/input/kernel"
pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture
def make(tiny):
    def make(kind, penalty, owner="none", **options):
        options = {"rank": 2, "alpha": 6.0, "params": "forward/input/kernel$", **options}
        config = tiny(
            train_tasks=("color", "long"),
            sharing__adapter=kind,
            sharing__adapter_options=ConfigDict(options),
            sharing__adapter_owner=owner,
            optimizer__freeze=("^embed/", "^layer_"),
        )
        default.add_penalty(config, "p", **penalty)
        return config

    return make


def value_of(experiment, seed=0):
    """Ω at random values of the adapters, and these values in float64."""
    rng = np.random.default_rng(seed)
    flat = {
        path: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) if path.startswith("adapter_") else leaf
        for path, leaf in flatten(experiment.init_params(0)).items()
    }
    penalty = experiment.spec.objective.penalties["p"]
    value = jax.jit(lambda flat: penalty.value(flat, flat, {}))(flat)
    return value, {path: np.asarray(leaf, np.float64) for path, leaf in flat.items() if path.startswith("adapter_")}


def product(kind, leaves, options, k):
    own = {path.removeprefix(f"{KERNEL}/"): leaf[k] for path, leaf in leaves.items() if path.startswith(KERNEL)}
    shared = KERNEL.replace("adapter_", "adapter_shared_")
    own |= {path.removeprefix(f"{shared}/"): leaf[0] for path, leaf in leaves.items() if path.startswith(shared)}
    if kind == "mtl_lora":
        weights = np.exp(own["weights"] / 0.5)
        up = np.tensordot(weights / weights.sum(), own["ups"], 1)
        return 3.0 * own["a"] @ own["transform"] @ up
    total = own["a"] @ own["b"]
    return 3.0 * (total + own["shared_a"] @ own["shared_b"] if options.get("shared") == "lora" else total)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("lora", {}), ("lora", {"shared": "lora"}), ("hydra_lora", {}), ("lora", {"shared": "b"}), ("mtl_lora", {})],
)
def test_penalties_of_products(make, kind, options, differs):
    for name in ("l2_to_mean", "trace_norm"):
        experiment = build(
            make(kind, {"kind": name, "strength": 1.0, "params": "^adapter_", "on": "product"}, **options)
        )
        value, leaves = value_of(experiment)
        matrix = np.stack([product(kind, leaves, options, k).ravel() for k in range(2)])
        distance = ((matrix - matrix.mean(0)) ** 2).sum()
        wanted = distance if name == "l2_to_mean" else np.linalg.svd(matrix, compute_uv=False).sum()
        differs(f"{name} of products in a config", value / wanted, 1.0, 1e-5)


@pytest.mark.parametrize("owner", ["none", "all"])
def test_low_rank_is_of_both_factors_whoever_owns_them(make, owner, differs):
    """The trace norm's bound ½(‖U‖² + ‖V‖²) of U_k Vᵀ; a step of training makes both smaller than without."""
    penalty = {"kind": "low_rank", "strength": 1.0, "params": "^adapter_"}
    experiment = build(make("lora", penalty, owner, shared="b"))
    value, leaves = value_of(experiment)
    assert {path.split("/")[0] for path in leaves} == {"adapter_00", "adapter_shared_00"}
    wanted = 0.5 * sum(np.square(leaf).sum() for leaf in leaves.values())
    differs("low_rank of U_k and V", value / wanted, 1.0, 1e-6)
    state, metrics = steps(experiment)
    assert np.isfinite(float(metrics["column_distance"]["p"]))
    free = steps(build(make("lora", {**penalty, "strength": 0.0}, owner, shared="b")))[0]
    for path in (f"{KERNEL}/a", KERNEL.replace("adapter_", "adapter_shared_") + "/b"):
        assert np.square(flatten(state.params)[path]).sum() < np.square(flatten(free.params)[path]).sum()


def test_gradients_of_a_product_reach_both_factors(make):
    config = make("lora", {"kind": "l2_to_mean", "strength": 10.0, "params": "^adapter_", "on": "product"})
    experiment = build(config)
    state, metrics = steps(experiment, 4)
    assert float(metrics["penalty"]["p"]) > 0 and np.isfinite(float(metrics["penalty_ratio"]["p"]))
    config.penalties.p.strength = 0.0
    free = steps(build(config), 4)[0]
    apart = []
    for params in (state.params, free.params):
        a, b = (flatten(params)[f"{KERNEL}/{name}"] for name in "ab")
        changes = np.asarray(a) @ np.asarray(b)
        apart.append(np.square(changes[0] - changes[1]).sum())
    assert 0 < apart[0] < apart[1]


@pytest.mark.parametrize(
    ("kind", "penalty", "message"),
    [
        ("lora", {"kind": "group_lasso"}, r"penalties\.p\.on: 'group_lasso' reads the entries of a matrix"),
        (
            "lora",
            {"kind": "trace_norm", "proximal": True},
            r"penalties\.p\.proximal: .* rank is above that of the factors",
        ),
        ("lora_experts", {"kind": "trace_norm"}, r"penalties\.p\.on: 'product' is of adapters that add a matrix"),
    ],
)
def test_what_has_no_product(make, kind, penalty, message):
    with pytest.raises(UserError, match=message):
        build(make(kind, {"strength": 1.0, "on": "product", **penalty}))
    assert ADAPTERS["ia3"]().factors is None
