"""Adapters on shared layers, of one task, of groups, of all: float64 numpy, columns one by one, penalties on them."""

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
from mtl_jax.models.adapters.base import LayerPlace, joined
from mtl_jax.models.adapters.merge import merged_layers
from mtl_jax.models.dropout import Noise
from mtl_jax.models.layers import LAYERS
from mtl_jax.models.layers.transformer import SelfAttention
from mtl_jax.runs.build import build
from mtl_jax.training.parameter_paths import flatten
from mtl_jax.training.placement import make_placement

pytestmark = pytest.mark.usefixtures("standard_promotion")
KINDS = {
    "bottleneck": {"size": 3},
    "fusion": {"size": 3},
    "lora": {"rank": 2, "params": "kernel$"},
    "dora": {"rank": 2, "params": "kernel$"},
    "hydra_lora": {"rank": 2, "params": "kernel$"},
    "mtl_lora": {"rank": 2, "params": "kernel$", "ups": 2},
    "lora_experts": {"rank": 2, "experts": 3, "top_k": 2},
    "ia3": {"params": "kernel$", "inputs": "recurrent"},
}
SUMS = {  # kinds whose sum with a layer is a layer
    "lora": ("lora", {}),
    "shared a": ("lora", {"shared": "a"}),
    "shared b": ("lora", {"shared": "b"}),
    "shared lora": ("lora", {"shared": "lora"}),
    "dora": ("dora", {}),
    "mtl_lora": ("mtl_lora", {"ups": 2}),
    "task": ("lora_experts", {"experts": 3, "router": "task"}),
    "ia3": ("ia3", {}),
}
X, SEGMENT = jax.random.normal(jax.random.key(0), (2, 5, 8)), np.ones((2, 5), np.int32)
LAYER = LAYERS["transformer"](8, 2, 12)


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


def parts_of(adapter, params, module, seed=1):
    """The parameters of one owner and those of all as one tree, with values."""
    place = LayerPlace(params, 8, module)
    shared = adapter.init_shared(jax.random.key(3), place) if adapter.init_shared else {}
    return random_like(joined(adapter.init(jax.random.key(2), place), shared), seed)


def layer_params():
    return random_like(LAYER.init(jax.random.key(1), X, SEGMENT)["params"])


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def bottleneck_in_float64(own, x):
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    y = y * own["layer_norm"]["scale"] + own["layer_norm"]["bias"]
    y = np.maximum(y @ own["down"]["kernel"] + own["down"]["bias"], 0)
    return x + y @ own["up"]["kernel"] + own["up"]["bias"]


def test_bottleneck_and_fusion_in_float64(differs):
    x = np.random.default_rng(0).normal(size=(2, 4, 5))
    for adapter in (adapters.bottleneck(3), adapters.fusion(3, size=2)):
        params = parts_of(adapter, {}, None) if adapter.init_shared is None else None
        place = LayerPlace({}, 5, None)
        shared = adapter.init_shared(jax.random.key(3), place) if adapter.init_shared else {}
        params = random_like(joined(adapter.init(jax.random.key(0), place), shared))
        own = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
        if adapter.init_shared is None:
            wanted = bottleneck_in_float64(own, x)
        else:
            z = np.stack([bottleneck_in_float64(jax.tree.map(lambda leaf, n=n: leaf[n], own), x) for n in range(3)])
            weights = softmax(np.einsum("rtd,nrtd->rtn", x @ own["query"], z @ own["key"]))
            wanted = np.einsum("rtn,nrtd->rtd", weights, z @ own["value"])
        differs("adapter in float64", adapter.after(params, jnp.asarray(x, jnp.float32)), wanted, 1e-5)


def sum_in_float64(way, own, w, b):
    """(kernel, bias) of one kernel by the papers' formulas."""
    change = lambda a, b: 3.0 * own[a] @ own[b]  # noqa: E731  alpha / rank = 3
    match way:
        case "lora" | "shared a" | "shared b":
            return w + change("a", "b"), b
        case "shared lora":
            return w + change("a", "b") + change("shared_a", "shared_b"), b
        case "dora":
            total = w + change("a", "b")
            magnitude = np.linalg.norm(w, axis=0) + own["magnitude"]
            return magnitude * total / np.linalg.norm(total, axis=0), b
        case "mtl_lora":
            up = np.einsum("i,iro->ro", softmax(own["weights"] / 0.5), own["ups"])
            return w + 3.0 * own["a"] @ own["transform"] @ up, b
        case "task":
            return w + 3.0 * np.einsum("e,eir,ero->io", softmax(own["weights"]), own["experts_a"], own["experts_b"]), b
        case "ia3":
            return (
                (w * own["output_scale"], b * own["output_scale"])
                if "output_scale" in own
                else (own["input_scale"][:, None] * w, b)
            )


@pytest.mark.parametrize("way", SUMS)
def test_adapted_kernels_in_float64_merged_and_not(way, differs):
    """The sum by formula; and a layer with the adapter gives what the layer with the sum gives, with its gradient."""
    kind, options = SUMS[way]
    if kind != "ia3":
        options = {"rank": 2, "alpha": 6.0, "params": "(query|intermediate)/kernel$", **options}
    adapter, params = adapters.ADAPTERS[kind](**options), layer_params()
    own = parts_of(adapter, params, LAYER)
    merged, flat = flatten(adapter.bind(own, params)), flatten(params)
    changed = {path.rpartition("/")[0] for path in flatten(own)}
    assert len(changed) == (3 if kind == "ia3" else 2)
    for path in changed:
        bias = path.replace("kernel", "bias")
        leaves = {k.rpartition("/")[2]: v for k, v in flatten(own).items() if k.startswith(path + "/")}
        leaves, w, b = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (leaves, flat[path], flat[bias]))
        for name, wanted in zip((path, bias), sum_in_float64(way, leaves, w, b), strict=True):
            differs(f"{way} in float64", merged[name], wanted, 2e-6)

    def output(own, *module):
        return LAYER.apply({"params": adapter.bind(own, params, *module)}, X, SEGMENT)

    differs(f"{way} by its parts", output(own, LAYER), output(own), 1e-4)
    gradients = [jax.grad(lambda own, m=m: jnp.sum(output(own, *m) ** 2))(own) for m in ((LAYER,), ())]
    for path, leaf in flatten(gradients[1]).items():
        differs(f"gradient of {way} by its parts", flatten(gradients[0])[path] / 100, leaf / 100, 1e-3)


def test_lora_of_a_transformer_forms_no_kernel():
    adapter, params = adapters.lora(rank=2, params="kernel$"), layer_params()
    own = parts_of(adapter, params, LAYER)

    def loss(own):
        return jnp.sum(LAYER.apply({"params": adapter.bind(own, params, LAYER)}, X, SEGMENT) ** 2)

    traced = jax.make_jaxpr(jax.grad(loss))(own)
    shapes = {variable.aval.shape for equation in _equations(traced.jaxpr) for variable in equation.outvars}
    assert (2, 5, 12) in shapes and not shapes & {(8, 8), (8, 12), (12, 8)}, shapes


@pytest.mark.parametrize(
    ("kind", "options"),
    [("lora_experts", {"experts": 3}), ("lora_experts", {"experts": 3, "top_k": 2}), ("hydra_lora", {"experts": 3})],
)
def test_gated_experts_in_float64(kind, options, differs):
    """A kernel's experts, weighed for each token; the others of its layer are as they were."""
    adapter, params = adapters.ADAPTERS[kind](rank=2, alpha=6.0, params="^output/kernel", **options), layer_params()
    own = parts_of(adapter, params, LAYER)
    change = adapter.bind(own, params, LAYER)["output"]["adapter"]
    x, leaves = np.random.default_rng(0).normal(size=(7, 12)), jax.tree.map(np.float64, own["output"]["kernel"])
    gates = softmax(x @ leaves["router"])
    if options.get("top_k"):
        gates = np.where(gates == gates.min(-1, keepdims=True), 0, gates)
        gates /= gates.sum(-1, keepdims=True)
    a = leaves["experts_a"] if kind == "lora_experts" else np.stack([leaves["a"]] * 3)
    w, b = np.float64(params["output"]["kernel"]), np.float64(params["output"]["bias"])
    wanted = x @ w + b + 3.0 * np.einsum("ne,ni,eir,ero->no", gates, x, a, leaves["experts_b"])
    narrow = jnp.asarray(x, jnp.float32)
    differs(
        "experts in float64", change(narrow, narrow, params["output"]["kernel"], params["output"]["bias"]), wanted, 2e-4
    )
    with pytest.raises(ValueError, match="read each token"):
        adapter.bind(own, params)


@pytest.mark.parametrize("hidden", [0, 3])
def test_a_prefix_is_attended_to_by_all_tokens(hidden, differs):
    """One head against float64 numpy with the prefix among keys and values; texts still do not see each other."""
    layer = LAYERS["transformer"](8, 1, 12)
    adapter, params = adapters.prefix(2, hidden), layer_params()
    own = parts_of(adapter, params, layer)
    bound = adapter.bind(own, params, layer)
    segment = np.asarray([[1, 1, 2, 2, 2], [1, 1, 1, 0, 0]], np.int32)
    leaves = jax.tree.map(np.float64, own["attention"]["prefix"])
    if hidden:
        inner = np.tanh(leaves["embedding"] @ leaves["first"]["kernel"] + leaves["first"]["bias"])
        both = inner @ leaves["second"]["kernel"] + leaves["second"]["bias"]
        leaves = {"key": both[:, :8], "value": both[:, 8:]}
    maps = jax.tree.map(np.float64, params["attention"])
    x = np.float64(X)
    query, key, value = (x @ maps[n]["kernel"] + maps[n]["bias"] for n in ("query", "key", "value"))
    scores = np.einsum("rtd,rsd->rts", query, key)
    scores = np.where(segment[:, :, None] == segment[:, None], scores, -np.inf)
    scores = np.concatenate([np.einsum("rtd,pd->rtp", query, leaves["key"]), scores], -1) / np.sqrt(8)
    values = np.concatenate([np.broadcast_to(leaves["value"], (2, 2, 8)), value], 1)
    y = x + np.einsum("rts,rsd->rtd", softmax(scores), values) @ maps["output"]["kernel"] + maps["output"]["bias"]
    y = (y - y.mean(-1, keepdims=True)) / y.std(-1, keepdims=True)
    y = y * maps["layer_norm"]["scale"] + maps["layer_norm"]["bias"]
    attended = SelfAttention(8, 1, 1e-12, 0.02, jnp.float32).apply({"params": bound["attention"]}, X, segment)
    differs("attention with a prefix in float64", attended, y, 1e-4)


def test_dropout_of_the_factors_inputs_alone(differs):
    """Its mean is what the adapter adds without; the layer itself drops nothing, and rows have keys of their own."""
    adapter, params = adapters.lora(rank=2, alpha=6.0, dropout=0.5, params="^output/kernel"), layer_params()
    own = parts_of(adapter, params, LAYER)
    keys = jax.random.split(jax.random.key(5), 3000)
    x = jnp.broadcast_to(X[:1], (3000, 5, 8))
    noise = Noise(keys, None, None, jnp.float32(0.5))
    change = adapter.bind(own, params, LAYER, noise)["output"]["adapter"]
    dropped = change.drop(jnp.broadcast_to(jnp.ones(12), (3000, 5, 12)), 0)
    assert set(np.unique(dropped).tolist()) == {0.0, 2.0}
    differs("mean of what is kept", dropped.mean(0), np.ones((5, 12)), 0.1)
    np.testing.assert_array_equal(
        change.drop(jnp.swapaxes(dropped, 0, 1), 1), jnp.swapaxes(change.drop(dropped, 0), 0, 1)
    )
    quiet = noise._replace(adapter_rate=jnp.float32(0.0))
    bound = [adapter.bind(own, params, LAYER, n) for n in (quiet, None)]
    without = [LAYER.apply({"params": b}, x[:2], np.ones((2, 5), np.int32)) for b in bound[1:]]
    rows = quiet._replace(keys=keys[:2])
    with_zero = LAYER.apply({"params": adapter.bind(own, params, LAYER, rows)}, x[:2], np.ones((2, 5), np.int32))
    np.testing.assert_array_equal(with_zero, without[0])


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
    remaining = adapters.ADAPTERS[kind](**({"tasks": 2} if kind == "fusion" else {}), **KINDS[kind])
    module, drawn = adapted.model.layers[0], int(batch.dataset[0])  # the one block holds a drawn data set
    task = adapted.corpus.layout.tasks[adapted.corpus.layout.dataset_of.index(drawn)]
    x = params["embed"]["word"]["embedding"][0][batch.tokens[0]]
    for number in range(2):
        layer = jax.tree.map(lambda leaf: leaf[0], params[f"layer_{number:02d}"])
        own = jax.tree.map(lambda leaf: leaf[list(adapted.tasks).index(task)], params[f"adapter_{number:02d}"])
        own = joined(own, jax.tree.map(lambda leaf: leaf[0], params.get(f"adapter_shared_{number:02d}", {})))
        layer = remaining.bind(own, layer, module) if remaining.bind else layer
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
    owners = {path: (2,) if path.startswith("adapter_shared_") else (0, 1) for path in before}
    assert all(slices[path] == owners[path] for path in before if path.startswith("adapter_"))
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    trained = [leaf for path, leaf in before.items() if not path.startswith(("embed/", "layer_"))]
    assert 0 <= sum(leaf.size for leaf in moments) - 2 * sum(leaf.size for leaf in trained) < 9  # AdamW, and counts
    assert float(metrics["penalty"]["l2"]) > 0
    free = build(config_of(tiny, kind, optimizer__freeze=("^embed/", "^layer_")))
    apart = {}
    for name, e in (("drawn", experiment), ("free", free)):
        leaves = {path: leaf for path, leaf in flatten(steps(e)[0].params).items() if owners.get(path) == (0, 1)}
        apart[name] = sum(np.square(leaf[0] - leaf[1]).sum() for p, leaf in leaves.items() if p.startswith("adapter_"))
    assert apart["drawn"] < apart["free"]


@pytest.mark.parametrize(
    ("kind", "tasks", "options"),
    [("lora", 1, KINDS["lora"]), ("lora_experts", 2, {**KINDS["lora_experts"], "dropout": 0.2})],
)
def test_eight_devices_as_one(tiny, differs, kind, tasks, options):
    changes = {"sharing__adapter_options": options, "optimizer__name": "sgd", "optimizer__learning_rate": 0.3}
    experiment = build(config_of(tiny, kind, **changes))
    mesh = {"data": jax.device_count() // tasks, "task": tasks, "model": 1}
    alone, _ = steps(experiment)
    spread, _ = steps(experiment, placement=make_placement("jit", mesh, experiment.spec.slices, len(experiment.tasks)))
    for path, leaf in flatten(alone.params).items():
        differs(f"{kind} on 8 devices against one", flatten(spread.params)[path], leaf, 2e-6)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("lora", {"sharing__adapter_options": {"params": "nothing"}}, "finds no kernel of a layer; there are"),
        ("lora", {"sharing__adapter_options": {"params": "("}}, "not a regular expression"),
        ("bottleneck", {"sharing__adapter_options": {"size": 0}}, "size must be a whole number ≥ 1"),
        (
            "bottleneck",
            {"sharing__adapter_layers": ("layer_09",)},
            "'layer_09' is none of the layers layer_00, layer_01",
        ),
        ("prefixes", {"sharing__adapter_options": {}}, "'prefixes' is none of 'bottleneck', 'fusion'"),
        ("prefix", {"sharing__adapter_options": {}}, "no attention whose keys and values"),
        ("lora_experts", {"sharing__adapter_options": {"params": "kernel$"}}, "finds .*recurrent/kernel, whose inputs"),
        ("lora_experts", {"sharing__adapter_options": {"top_k": 5}}, "top_k must be at most experts = 4"),
        ("lora", {"sharing__adapter_owner": "layer_07"}, "config.sharing.adapter_owner: 'layer_07' is none of"),
        (
            "lora",
            {"sharing__adapter_groups": {"layer_00": (("color",),)}},
            "adapter_groups.layer_00: in no group: long",
        ),
        ("", {"sharing__adapter_options": {"rank": 2}}, "does nothing"),
    ],
)
def test_bad_input(tiny, kind, changes, message):
    config = config_of(tiny, kind, **changes)
    with pytest.raises(UserError, match=message):
        checks.check(config)
        build(config)


def owners_config(tiny, kind, **changes):
    """Three tasks, two of them on the same texts."""
    return config_of(tiny, kind, train_tasks=("color", "tags", "long"), **changes)


@pytest.mark.parametrize("kind", ["lora", "bottleneck", "mtl_lora", "fusion"])
def test_adapters_of_all_and_of_groups(tiny, differs, kind):
    """One adapter for all tasks equals adapters of their own with equal values; groups lie between, by layer."""
    own = build(owners_config(tiny, kind))
    params = random_adapters(own.init_params(0))
    first = {
        path: jax.tree.map(lambda leaf: leaf[:1], tree) if path.startswith("adapter_0") else tree
        for path, tree in params.items()
    }
    equal = {
        path: jax.tree.map(lambda leaf: jnp.stack([leaf[0]] * 3), tree) if path.startswith("adapter_0") else tree
        for path, tree in params.items()
    }
    common = build(owners_config(tiny, kind, sharing__adapter_owner="all"))
    grouped = build(
        owners_config(
            tiny,
            kind,
            sharing__adapter_owner="layer_00",
            sharing__adapter_groups={"layer_01": (("color", "long"), ("tags",))},
        )
    )
    assert common.owners["adapter_00"] == (0, 0, 0) and grouped.owners["adapter_00"] == (0, 0, 0)
    assert grouped.owners["adapter_01"] == (0, 1, 0)
    slices = grouped.spec.slices
    by_layer = {path[:10]: slices[path] for path in slices if path.startswith("adapter_0")}
    assert by_layer == {"adapter_00": (3,), "adapter_01": (3, 1)}
    batch = own.batches(0).batch(0)
    hidden = {name: e.spec.objective.network.apply for name, e in (("own", own), ("common", common))}
    wanted = hidden["own"](equal, batch).hidden
    for task, value in hidden["common"](first, batch).hidden.items():
        differs("one adapter for all tasks", value, wanted[task], 1e-5)
    two = {**first, "adapter_01": jax.tree.map(lambda leaf: leaf[:2], params["adapter_01"])}
    spread = {**equal, "adapter_01": jax.tree.map(lambda leaf: leaf[jnp.array([0, 1, 0])], params["adapter_01"])}
    wanted = hidden["own"](spread, batch).hidden
    for task, value in grouped.spec.objective.network.apply(two, batch).hidden.items():
        differs("adapters of groups", value, wanted[task], 1e-5)
    jaxpr = jax.make_jaxpr(lambda p: common.spec.objective.network.apply(p, batch).features.arrays)(first)
    assert all(array.aval.shape[0] == 2 for array in jaxpr.jaxpr.outvars)  # a stream for each block, not each task


def random_adapters(params):
    small = lambda tree: jax.tree.map(lambda leaf: 0.3 * leaf, random_like(tree))  # noqa: E731
    return {path: small(tree) if path.startswith("adapter") else tree for path, tree in params.items()}


@pytest.mark.parametrize("kind", ["lora", "bottleneck", "mtl_lora"])
def test_adapters_of_experts(tiny, differs, kind):
    """Each expert owns one, like the layer; with equal values they equal one adapter of all."""
    experts = {"sharing__trunk": "embed", "sharing__mixer": "cgc"}
    own = build(owners_config(tiny, kind, **experts))
    common = build(owners_config(tiny, kind, **experts, sharing__adapter_owner="all"))
    assert own.owners["adapter_00"] == own.owners["layer_00"]
    params, batch = random_adapters(own.init_params(0)), own.batches(0).batch(0)
    adapters_of = [path for path in params if path.startswith("adapter_0")]
    first = {path: jax.tree.map(lambda leaf: leaf[:1], params[path]) for path in adapters_of}
    count = len(own.owners["layer_00"].names)
    equal = {path: jax.tree.map(lambda leaf: jnp.repeat(leaf, count, axis=0), tree) for path, tree in first.items()}
    wanted = own.spec.objective.network.apply({**params, **equal}, batch).hidden
    for task, value in common.spec.objective.network.apply({**params, **first}, batch).hidden.items():
        differs("one adapter for all experts", value, wanted[task], 1e-5)
    changed = own.spec.objective.network.apply(params, batch).hidden
    assert all(not np.allclose(changed[task], wanted[task], atol=1e-3) for task in wanted)


def test_merged_layers_are_those_of_a_task_with_its_adapter(tiny, differs):
    experiment = build(owners_config(tiny, "mtl_lora"))
    params, adapted = random_adapters(experiment.init_params(0)), experiment.spec.objective.network
    batch, kinds = (
        experiment.batches(0).batch(0),
        dict.fromkeys(("layer_00", "layer_01"), adapters.mtl_lora(**KINDS["mtl_lora"])),
    )
    merged = merged_layers(params, experiment.owners, kinds, 1)
    hard = build(owners_config(tiny, "", sharing__adapter_options={}))
    alone = {path: tree for path, tree in params.items() if not path.startswith("adapter")} | merged
    wanted = hard.spec.objective.network.apply(alone, batch).hidden["tags"]
    differs("merged layers", adapted.apply(params, batch).hidden["tags"], wanted, 1e-5)
    for kind in ("bottleneck", "lora_experts"):
        other = build(owners_config(tiny, kind))
        with pytest.raises(UserError, match="cannot be merged into"):
            merged_layers(other.init_params(0), other.owners, {"layer_00": adapters.ADAPTERS[kind](**KINDS[kind])}, 0)
