"""Adapters of each task's own on shared layers: nothing at the start, float64 numpy, penalties on them alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from train_steps import steps

from mtl_jax import checks
from mtl_jax.config import default
from mtl_jax.errors import UserError
from mtl_jax.models import adapters
from mtl_jax.models.layers import LAYERS
from mtl_jax.runs.build import build
from mtl_jax.training.parameter_paths import flatten
from mtl_jax.training.placement import make_placement

pytestmark = pytest.mark.usefixtures("standard_promotion")
KINDS = {"bottleneck": {"size": 3}, "lora": {"rank": 2, "params": "kernel$"}}


def config_of(tiny, kind, **changes):
    return tiny(
        **{
            "train_tasks": ("color", "long"),
            "model__num_layers": 2,
            "sharing__adapter": kind,
            "sharing__adapter_options": ConfigDict(KINDS.get(kind, {})),
            **{k: ConfigDict(v) if isinstance(v, dict) else v for k, v in changes.items()},
        }
    )


def random_like(params, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params)


def test_bottleneck_in_float64(differs):
    adapter, rng = adapters.bottleneck(3), np.random.default_rng(0)
    params, x = random_like(adapter.init(jax.random.key(0), {}, 5)), rng.normal(size=(2, 4, 5))
    own = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    y = y * own["layer_norm"]["scale"] + own["layer_norm"]["bias"]
    y = np.maximum(y @ own["down"]["kernel"] + own["down"]["bias"], 0)
    wanted = x + y @ own["up"]["kernel"] + own["up"]["bias"]
    differs("adapter in float64", adapter.after(params, jnp.asarray(x, jnp.float32)), wanted, 1e-5)


def test_lora_in_float64(differs):
    adapter, rng = adapters.lora(rank=2, alpha=6.0, params="query"), np.random.default_rng(0)
    layer = {
        "attention": {"query": {"kernel": rng.normal(size=(4, 5)).astype(np.float32), "bias": np.zeros(5)}},
        "output": {"kernel": np.ones((5, 4), np.float32)},
    }
    params = random_like(adapter.init(jax.random.key(0), layer, 5))
    own = params["attention"]["query"]["kernel"]
    assert own["a"].shape == (4, 2) and own["b"].shape == (2, 5) and "output" not in params
    bound = adapter.bind(params, layer)
    change = 3.0 * np.asarray(own["a"], np.float64) @ np.asarray(own["b"], np.float64)
    wanted = layer["attention"]["query"]["kernel"] + change
    differs("LoRA in float64", bound["attention"]["query"]["kernel"], wanted, 2e-6)
    np.testing.assert_array_equal(bound["output"]["kernel"], layer["output"]["kernel"])


def test_lora_of_a_transformer_is_that_of_its_kernels_and_forms_none(differs):
    """The layer with factors for all its kernels, against the layer with the sums; nothing has a kernel's shape."""
    layer, adapter = LAYERS["transformer"](8, 2, 12), adapters.lora(rank=2, alpha=6.0, params="kernel$")
    x, segment = jax.random.normal(jax.random.key(0), (2, 5, 8)), jnp.ones((2, 5), jnp.int32)
    params = random_like(layer.init(jax.random.key(1), x, segment)["params"])
    own = random_like(adapter.init(jax.random.key(2), params, 8), 1)

    def output(own, *module):
        return layer.apply({"params": adapter.bind(own, params, *module)}, x, segment)

    differs("LoRA by its factors", output(own, layer), output(own), 1e-4)
    gradients = [jax.grad(lambda own, m=m: jnp.sum(output(own, *m) ** 2))(own) for m in ((layer,), ())]
    for path, leaf in flatten(gradients[1]).items():
        differs("gradient of LoRA by its factors", flatten(gradients[0])[path] / 100, leaf / 100, 1e-3)
    traced = jax.make_jaxpr(jax.grad(lambda own: jnp.sum(output(own, layer) ** 2)))(own)
    shapes = {variable.aval.shape for equation in _equations(traced.jaxpr) for variable in equation.outvars}
    assert (2, 5, 12) in shapes and not shapes & {(8, 8), (8, 12), (12, 8)}, shapes


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for part in equation.params.values():
            if hasattr(getattr(part, "jaxpr", part), "eqns"):
                yield from _equations(getattr(part, "jaxpr", part))


@pytest.mark.parametrize("columns", ["vmap", "unroll", "map"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_nothing_at_the_start_then_a_column_for_each_task(tiny, differs, kind, columns):
    """At the start the shared trunk; with values, each task as a network of its own with its adapter alone."""
    adapted = build(config_of(tiny, kind, model__column_execution=columns, data__mixing="size"))
    hard = build(config_of(tiny, "", sharing__adapter_options={}, data__mixing="size"))
    params, batch = adapted.init_params(0), adapted.batches(0).batch(0)
    apply, plain = (e.spec.objective.network.apply for e in (adapted, hard))
    for task, value in plain(params, batch).hidden.items():
        differs("adapters at the start", apply(params, batch).hidden[task], value, 1e-6)
    params = {path: random_like(tree) if path.startswith("adapter") else tree for path, tree in params.items()}
    actual = apply(params, batch).hidden
    remaining = adapters.ADAPTERS[kind](**KINDS[kind])
    module, drawn = adapted.model.layers[0], int(batch.dataset[0])  # the one block holds a drawn data set
    task = adapted.corpus.layout.tasks[adapted.corpus.layout.dataset_of.index(drawn)]
    x = params["embed"]["word"]["embedding"][0][batch.tokens[0]]
    for number in range(2):
        layer = jax.tree.map(lambda leaf: leaf[0], params[f"layer_{number:02d}"])
        own = jax.tree.map(lambda leaf: leaf[list(adapted.tasks).index(task)], params[f"adapter_{number:02d}"])
        layer = remaining.bind(own, layer) if remaining.bind else layer
        x = module.apply({"params": layer}, x, batch.segment[0])
        x = remaining.after(own, x) if remaining.after else x
    differs("a task with its adapters", actual[task], x, 1e-5)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_frozen_encoder_with_penalties_on_the_adapters(tiny, kind):
    config = config_of(tiny, kind, optimizer__freeze=("^embed/", "^layer_"))
    default.add_penalty(config, "l2", strength=5.0, params="^adapter_")
    experiment = build(config)
    state, metrics = steps(experiment)
    before = flatten(experiment.init_params(0))
    for path, leaf in flatten(state.params).items():
        frozen = path.startswith(("embed/", "layer_"))
        assert np.array_equal(leaf, before[path]) == frozen, path
    slices = experiment.spec.slices
    assert all(slices[path] == (0, 1) for path in before if path.startswith("adapter_"))
    assert float(metrics["penalty"]["l2"]) > 0
    free = build(config_of(tiny, kind, optimizer__freeze=("^embed/", "^layer_")))
    apart = {}
    for name, e in (("drawn", experiment), ("free", free)):
        leaves = flatten(steps(e)[0].params)
        apart[name] = sum(np.square(leaf[0] - leaf[1]).sum() for p, leaf in leaves.items() if p.startswith("adapter_"))
    assert apart["drawn"] < apart["free"]


def test_eight_devices_as_one(tiny, differs):
    experiment = build(config_of(tiny, "lora", optimizer__name="sgd", optimizer__learning_rate=0.3))
    mesh = {"data": jax.device_count(), "task": 1, "model": 1}
    alone, _ = steps(experiment)
    spread, _ = steps(experiment, placement=make_placement("jit", mesh, experiment.spec.slices, len(experiment.tasks)))
    for path, leaf in flatten(alone.params).items():
        differs("LoRA on 8 devices against one", flatten(spread.params)[path], leaf, 2e-6)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("lora", {"sharing__adapter_options": {"params": "nothing"}}, "finds no kernel of a layer; there are"),
        ("lora", {"sharing__adapter_options": {"params": "("}}, "not a regular expression"),
        ("lora", {"aggregation__method": "pcgrad"}, "config.sharing.adapter"),
        ("bottleneck", {"sharing__adapter_options": {"size": 0}}, "size must be a whole number ≥ 1"),
        (
            "bottleneck",
            {"sharing__adapter_layers": ("layer_09",)},
            "'layer_09' is none of the layers layer_00, layer_01",
        ),
        ("prefix", {"sharing__adapter_options": {}}, "'prefix' is none of 'bottleneck', 'lora'"),
        ("", {"sharing__adapter_options": {"rank": 2}}, "does nothing"),
    ],
)
def test_bad_input(tiny, kind, changes, message):
    config = config_of(tiny, kind, **changes)
    with pytest.raises(UserError, match=message):
        checks.check(config)
        build(config)
