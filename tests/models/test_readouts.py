"""How heads read: mixtures, attention over the trunk (MTAN), depths; labels that are fed upwards."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from train_steps import steps

from mtl_jax import checks
from mtl_jax.errors import UserError
from mtl_jax.models import ownership, readouts
from mtl_jax.runs.build import build
from mtl_jax.tasks.base import Features
from mtl_jax.training import objective as terms
from mtl_jax.training.parameter_paths import flatten

pytestmark = pytest.mark.usefixtures("standard_promotion")
LAYERS = {"model__num_layers": 2, "model__dropout": 0.0}


def config_of(tiny, **changes):
    return tiny(
        **{
            "train_tasks": ("color", "long"),
            **LAYERS,
            **{k: ConfigDict(v) if isinstance(v, dict) else v for k, v in changes.items()},
        }
    )


def hidden(experiment, params, batch):
    return experiment.spec.objective.network.apply(params, batch).hidden


def test_heads_read_a_mixture_of_layers(tiny, differs):
    """β = (0, 1) is the last layer; of a stack of layers it is their weighted sum, by single networks."""
    mixed = {"sharing__trunk": "none", "sharing__mixer": "sluice"}
    mixture = build(config_of(tiny, sharing__readout="mixture", **mixed))
    top, lower = build(config_of(tiny, **mixed)), build(config_of(tiny, **{**mixed, "model__num_layers": 1}))
    params, batch = mixture.init_params(0), mixture.batches(0).batch(0)
    assert params["heads"]["color"]["layers"].tolist() == [[0.5, 0.5]]
    by_layer = [hidden(e, params, batch) for e in (lower, top)]
    for beta in ([0.0, 1.0], [0.3, -0.7]):
        heads = {task: {**head, "layers": jnp.asarray([beta])} for task, head in params["heads"].items()}
        actual = hidden(mixture, {**params, "heads": heads}, batch)
        for task in mixture.tasks:
            wanted = beta[0] * by_layer[0][task] + beta[1] * by_layer[1][task]
            differs("a mixture of layers", actual[task], wanted, 1e-6)
    state, _ = steps(mixture)
    assert np.abs(np.asarray(state.params["heads"]["color"]["layers"]) - 0.5).max() > 1e-4


def test_attention_over_the_trunk_in_float64(differs):
    rng = np.random.default_rng(0)
    widths, R, T = (3, 4, 5), 2, 6
    reader = readouts.attention(hidden=7)
    start = reader.init(jax.random.key(0), widths)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), start)
    layers = [rng.normal(size=(R, T, width)) for width in widths]
    actual = reader.apply(params, [jnp.asarray(layer, jnp.float32) for layer in layers])
    own = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["attention"])

    def affine(p, x):
        return x @ p["kernel"] + p["bias"]

    def mask(p, x):
        return 1 / (1 + np.exp(-affine(p["second"], np.maximum(affine(p["first"], x), 0))))

    picked = mask(own["00"], layers[0]) * layers[1]
    passed = np.maximum(affine(own["01"]["pass"], picked), 0)
    picked = mask(own["01"], np.concatenate([layers[1], passed], axis=-1)) * layers[2]
    differs("MTAN in float64", actual, picked, 5e-6)


def test_a_mask_of_ones_is_hard_sharing(tiny, differs):
    attending, hard = build(config_of(tiny, sharing__readout="attention")), build(config_of(tiny))
    params, batch = attending.init_params(0), attending.batches(0).batch(0)
    for head in params["heads"].values():
        for layer in head["attention"].values():
            layer["second"] = {"kernel": 0 * layer["second"]["kernel"], "bias": layer["second"]["bias"] + 30.0}
    actual, wanted = hidden(attending, params, batch), hidden(hard, params, batch)
    for task in attending.tasks:
        differs("masks of ones", actual[task], wanted[task], 1e-6)
    state, metrics = steps(attending)
    before = flatten(attending.init_params(0))
    assert np.isfinite(metrics["losses"]).all()
    assert not [path for path, leaf in flatten(state.params).items() if np.array_equal(leaf, before[path])]


@pytest.mark.parametrize("trunk", ["all", "none"])
@pytest.mark.parametrize("mixing", ["all", "size"])
def test_a_head_at_a_lower_layer(tiny, differs, trunk, mixing):
    changes = {"sharing__trunk": trunk, "data__mixing": mixing, "train_tasks": ("color", "tags", "long")}
    low = build(config_of(tiny, sharing__head_layers={"tags": "layer_00"}, **changes))
    top, lower = build(config_of(tiny, **changes)), build(config_of(tiny, **{**changes, "model__num_layers": 1}))
    params, batch = low.init_params(0), low.batches(0).batch(0)
    actual, wanted = hidden(low, params, batch), hidden(top, params, batch)
    for task in ("color", "long"):
        differs("heads at the top", actual[task], wanted[task], 0.0)
    differs("a head at a lower layer", actual["tags"], hidden(lower, params, batch)["tags"], 0.0)


def test_a_column_whose_head_is_low_is_mixed_into_those_above(tiny, differs):
    mixed = {"sharing__trunk": "none", "sharing__mixer": "cross_stitch"}
    low, top = (
        build(config_of(tiny, sharing__head_layers={"color": "layer_00"}, **mixed)),
        build(config_of(tiny, **mixed)),
    )
    params, batch = low.init_params(0), low.batches(0).batch(0)
    actual, wanted = hidden(low, params, batch), hidden(top, params, batch)
    differs("a column above that of a low head", actual["long"], wanted["long"], 0.0)
    assert np.abs(actual["color"] - wanted["color"]).max() > 1e-3


def feeding(tiny, **changes):
    return build(
        config_of(
            tiny,
            **{
                "train_tasks": ("color", "tags", "long"),
                "sharing__head_layers": {"tags": "layer_00"},
                "sharing__cascades": {"long": ("tags", "color"), "color": ("tags",)},
                **changes,
            },
        )
    )


def with_feeds(params, scale, seed=1):
    rng = np.random.default_rng(seed)
    heads = dict(params["heads"])
    for task, head in heads.items():
        if "feeds" in head:
            drawn = jax.tree.map(lambda leaf: scale * rng.normal(size=leaf.shape), head["feeds"])
            heads[task] = {**head, "feeds": jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), drawn)}
    return {**params, "heads": heads}


@pytest.mark.parametrize("trunk", ["all", "none"])
def test_a_cascade_by_hand(tiny, differs, trunk):
    """tags (low) feeds color and long; color feeds long, both at the top: each step from networks without feeds."""
    experiment = feeding(tiny, sharing__trunk=trunk)
    depths = {"sharing__head_layers": {"tags": "layer_00"}, "train_tasks": ("color", "tags", "long")}
    plain = build(config_of(tiny, sharing__trunk=trunk, **depths))
    names = list(experiment.tasks)
    silent, batch = with_feeds(experiment.init_params(0), 0.0), experiment.batches(0).batch(0)
    for task, value in hidden(plain, silent, batch).items():
        differs("labels embedded as zeros", hidden(experiment, silent, batch)[task], value, 0.0)

    params = with_feeds(experiment.init_params(0), 1.0)
    actual = hidden(experiment, params, batch)
    module = experiment.model.layers[0]

    def of(task, path):
        o = experiment.owners[path][names.index(task)]
        return {"params": jax.tree.map(lambda leaf: leaf[o], params[path])}

    def head_of(task):
        return jax.tree.map(lambda leaf: leaf[0], params["heads"][task])

    def probabilities(task, x, block):
        arrays = batch.segment[block], batch.start[block], batch.length[block]
        return experiment.tasks[task].distribution(head_of(task), Features(x, *arrays))

    def climb(task, block):
        """Features of a task on any block, from the bottom up."""
        segment = batch.segment[block]
        tokens = [a[block] for a in (batch.tokens, batch.position, batch.token_type, batch.segment)]
        x = module.apply(of(task, "layer_00"), experiment.model.embed.apply(of(task, "embed"), *tokens), segment)
        if task == "tags":
            return x
        fed = head_of(task)["feeds"]
        x = x + probabilities("tags", climb("tags", block), block) @ fed["tags"]["embedding"]
        x = module.apply(of(task, "layer_01"), x, segment)
        if task == "long":
            x = x + probabilities("color", climb("color", block), block) @ fed["color"]["embedding"]
        return x

    for task in names:
        block = experiment.corpus.layout.dataset_of[names.index(task)]
        differs("a cascade by hand", actual[task], climb(task, block), 2e-6)


def test_a_cascade_trains_and_tells_the_head_below(tiny):
    experiment = feeding(tiny, data__mixing="size")
    state, metrics = steps(experiment)
    assert np.isfinite(metrics["losses"]).all()
    before = flatten(experiment.init_params(0))
    fed = {path: leaf for path, leaf in flatten(state.params).items() if "feeds" in path}
    assert len(fed) == 3 and not [path for path, leaf in fed.items() if np.array_equal(leaf, before[path])]
    objective, params, batch = experiment.spec.objective, experiment.init_params(0), experiment.batches(0).batch(0)

    def long(params):
        total = terms.loss_denominators(objective, batch, experiment.hyper)
        return terms.loss_contributions(objective, params, batch, experiment.hyper, jax.random.key(0), total)[2]

    gradient = jax.jit(jax.grad(long))(params)["heads"]
    assert np.abs(gradient["color"]["output"]["kernel"]).max() > 0  # through what it is fed
    assert np.isfinite(gradient["tags"]["output"]["kernel"]).all()


def test_orders_and_circles():
    tasks = ("a", "b", "c")
    assert ownership.cascade_order(tasks, {"a": ("c",), "b": ("a", "c")}) == ("c", "a", "b")
    with pytest.raises(UserError, match="in a circle: a → b → c → a"):
        ownership.cascade_order(tasks, {"b": ("a",), "c": ("b",), "a": ("c",)})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sharing__readout": "mean"}, "'mean' is none of 'top', 'mixture', 'attention'"),
        ({"sharing__readout": "mixture", "model__num_layers": 0}, "no layer above the embeddings"),
        ({"sharing__readout_options": {"hidden": 3}}, "readout_options: .*unexpected keyword"),
        ({"sharing__head_layers": {"colour": "embed"}}, "no task 'colour'"),
        ({"sharing__head_layers": {"color": "layer_05"}}, "'layer_05' is none of the layers"),
        ({"sharing__cascades": {"color": ("color",)}}, "in a circle: color → color"),
        ({"sharing__cascades": {"color": ("long",), "long": ("color",)}}, "in a circle"),
        ({"sharing__cascades": {"color": "long"}}, r"a tuple of task names, e.g. \('long',\)"),
        ({"sharing__cascades": {"color": ("pos",)}}, "no task 'pos'"),
        (
            {"sharing__cascades": {"color": ("long",)}, "sharing__head_layers": {"color": "embed"}},
            "labels can only be fed upwards",
        ),
    ],
)
def test_bad_input(tiny, changes, message):
    config = config_of(tiny, **changes)
    with pytest.raises(UserError, match=message):
        checks.check(config)
        build(config)


def test_a_number_has_no_label_set(tiny):
    config = config_of(tiny, sharing__cascades={"color": ("long",)})
    config.tasks.long.kind, config.tasks.long.options = "regression", ConfigDict()
    config.tasks.long.label = "size"
    for file in pathlib.Path(config.datasets.sentences.path).glob("sentences.*.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("\n".join(json.dumps({**line, "size": len(line["words"])}) for line in lines))
    with pytest.raises(UserError, match="'long' has no classes whose distribution"):
        build(config)
