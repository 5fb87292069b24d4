"""Balanced gradients by K pullbacks against K calls of `jax.grad`, for every way in which tasks reach parameters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_steps import DESCENT, batch_of, gradient_of_step, placed, step_of

from mtl_jax.balancing import WEIGHTINGS
from mtl_jax.config import default
from mtl_jax.errors import UserError
from mtl_jax.runs.build import build
from mtl_jax.training import objective as terms
from mtl_jax.training.gradients.aggregated import AggregatedGradient
from mtl_jax.training.gradients.pullbacks import PullbackGradient
from mtl_jax.training.parameter_paths import flatten, with_leaves
from mtl_jax.training.token_corruption import corrupt_batch

pytestmark = pytest.mark.usefixtures("standard_promotion")
balanced_by_hand = jax.jit(functools.partial(WEIGHTINGS["cagrad"]().update, state=(), key=None))
PLAIN = {"tasks__tags__options__crf": False, "model__layer_type": "cnn"}
VJP = {"aggregation__jacobian": "vjp"}
EXPERTS = {"sharing__trunk": "embed", "train_tasks": ("color", "long")}


def mixer(name, **options):
    return {"sharing__mixer": name, "sharing__mixer_options": options}


def config_of(tiny, method="cagrad", gan=False, masked=False, **changes):
    config = tiny(**{**DESCENT, "model__dropout": 0.2, "aggregation__method": method, **PLAIN, **changes})
    if gan:
        config.tasks.color.kind = "gan_classification"
        config.tasks.color.options = {"hidden": 6, "noise": 4}
    if masked:
        default.add_task(config, "hidden", kind="masked_lm", dataset="texts", options={"tied": True})
    return config


def gradients_of_each(experiment):
    """(the K gradients, that of the auxiliary losses times their factors): {path: leaf}, summed over micro-batches."""
    state, batch, objective = experiment.init(0), batch_of(experiment), experiment.spec.objective
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), 0)
    batch = jax.vmap(lambda micro: corrupt_batch(objective, micro, key))(batch)
    micro = [jax.tree.map(lambda leaf, i=i: leaf[i], batch) for i in range(batch.tokens.shape[0])]
    total = sum(terms.loss_denominators(objective, part, experiment.hyper) for part in micro)
    texts = sum(terms.auxiliary_denominators(objective, part) for part in micro)
    factors = jnp.asarray([experiment.hyper.auxiliary[name] for name in objective.auxiliary], jnp.float32)
    trained = {path: leaf for path, leaf in flatten(state.params).items() if path in experiment.spec.multipliers}

    @jax.jit
    def of_one(part, number):
        def loss(flat):
            losses, added = terms.contributions(
                objective,
                with_leaves(state.params, {**flatten(state.params), **flat}),
                part,
                experiment.hyper,
                key,
                totals=terms.Denominators(total, texts),
                progress=jnp.float32(0.0),
            )
            return jnp.append(losses, jnp.dot(factors, added))[number]

        return jax.grad(loss)(trained)

    count = len(experiment.tasks)
    actual = [[jax.device_get(of_one(part, number)) for part in micro] for number in range(count + 1)]
    summed = [jax.tree.map(lambda *leaves: np.sum(np.asarray(leaves, np.float64), axis=0), *parts) for parts in actual]
    return summed[:count], summed[count]


def shared_mask(experiment, path, leaf):
    """1 in the slices that several losses reach."""
    mask = experiment.spec.data_gradient.shared.masks.get(path, np.zeros(len(leaf), bool))
    return np.broadcast_to(mask.reshape(-1, *(1,) * (leaf.ndim - 1)), leaf.shape)


def check_step(experiment, differs, placement=None):
    """The gradient of the first step, products and weights against K gradients by `jax.grad`."""
    gradients, auxiliary = gradients_of_each(experiment)
    actual, metrics = gradient_of_step(experiment, placement)
    notes, paths = metrics["balanced"], list(experiment.spec.multipliers)
    for path in paths:  # nothing that several losses reach is treated as if one did
        size = max(np.abs(g[path]).max() for g in gradients)
        reached = sum(np.abs(g[path]).reshape(len(g[path]), -1).max(axis=1) > 1e-5 * size for g in gradients) > 1
        mask = experiment.spec.data_gradient.shared.masks.get(path, np.zeros(len(reached), bool))
        assert not (reached & ~mask).any(), f"{path}: several losses reach slices {np.flatnonzero(reached & ~mask)}"
    flat = np.stack(
        [np.concatenate([(g[p] * shared_mask(experiment, p, g[p])).ravel() for p in paths]) for g in gradients]
    )
    gram = flat @ flat.T
    scale = np.sqrt(np.outer(np.diag(gram), np.diag(gram))) + 1e-9
    products = notes["cosine"] * np.outer(notes["task_norms"], notes["task_norms"])
    differs("products of pullbacks against jax.grad, relative", products / scale, gram / scale, 1e-5)
    weights, _ = balanced_by_hand(gram.astype(np.float32), present=jnp.asarray(metrics["present"]))
    differs("weights against those of the products", notes["weights"], weights, 2e-5)
    for path in paths:
        wanted = auxiliary[path] + sum(
            g[path] * np.where(shared_mask(experiment, path, g[path]), w, 1.0)
            for g, w in zip(gradients, notes["weights"], strict=True)
        )
        size = np.abs(wanted).max() + 1e-6
        differs("gradient by pullbacks against jax.grad, relative", actual[path] / size, wanted / size, 1e-5)


CASES = {
    "hard": VJP,
    "tree": {
        **VJP,
        "sharing__task_groups": {"embed": (("color", "tags"), ("long",)), "layer_00": (("color",), ("tags", "long"))},
    },
    "cross_stitch": {**mixer("cross_stitch"), "sharing__trunk": "none"},
    "attention": {**mixer("attention"), "sharing__trunk": "embed", "aggregation__pullbacks_at_once": 2},
    "mmoe": {**mixer("mmoe", experts=2), **EXPERTS},
    "ple": {**mixer("ple", shared=1, private=1), "model__num_layers": 2, **EXPERTS},
    "shared_private": {**mixer("shared_private"), **EXPERTS},
    "lora": {"sharing__adapter": "lora", "model__layer_type": "bilstm", "train_tasks": ("color", "long")},
    "cascade": {"sharing__cascades": {"long": ("tags",)}},
    "gan": {"gan": True, "train_tasks": ("color", "long")},
    "tied head": {"masked": True, "train_tasks": ("color", "hidden")},
    "layers": {**mixer("mmoe", experts=2), **EXPERTS, "aggregation__gradient_storage": "layers"},
    "drawn, micro-batches": {
        **mixer("cgc", shared=1, private=1),
        **EXPERTS,
        "data__mixing": "size",
        "training__grad_accum_steps": 2,
    },
}
CASES |= {
    "sluice": {**mixer("sluice"), "sharing__trunk": "none"},
    "cgc": {**mixer("cgc", shared=1, private=1), **EXPERTS},
    "bottleneck": {**VJP, "sharing__adapter": "bottleneck"},
    "lora of all": {"sharing__adapter": "lora", "sharing__adapter_owner": "all", "model__layer_type": "bilstm"},
    "bottleneck of all": {"sharing__adapter": "bottleneck", "sharing__adapter_owner": "all"},
    "mtl_lora": {"sharing__adapter": "mtl_lora", "model__layer_type": "bilstm"},
    "fusion": {"sharing__adapter": "fusion"},
    "adapters below experts": {**mixer("mmoe", experts=2), "sharing__adapter": "bottleneck", "model__num_layers": 2,
                               **EXPERTS, "sharing__trunk": "layer_00", "sharing__adapter_layers": ("layer_00",)},
    "cascade of a mixer": {**mixer("cross_stitch"), "sharing__trunk": "none", "sharing__cascades": {"long": ("tags",)}},
    "layers, micro-batches": {"aggregation__gradient_storage": "layers", "training__grad_accum_steps": 2},
    "frozen": {**mixer("mmoe", experts=2), **EXPERTS, "optimizer__freeze": ("^embed/",)},
    "remat": {**mixer("mmoe", experts=2), **EXPERTS, "model__remat_policy": "nothing_saveable"},
}  # fmt: skip
QUICK = ("mtl_lora", "tree", "cross_stitch", "ple", "shared_private", "lora", "cascade", "layers", "tied head")


@pytest.mark.parametrize(
    "case", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_k_pullbacks_are_k_gradients(tiny, case, differs):
    experiment = build(config_of(tiny, **CASES[case]))
    assert isinstance(experiment.spec.data_gradient, PullbackGradient)
    check_step(experiment, differs)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["modo", "graddrop", "cagrad"])
@pytest.mark.parametrize("sharing", ["hard", "tree"])
def test_pullbacks_are_what_taps_split(tiny, method, sharing, differs):
    """Where both are possible."""
    results = []
    for jacobian in ("taps", "vjp"):
        changes = {**CASES[sharing], "aggregation__jacobian": jacobian, "model__dropout": 0.0}
        experiment = build(config_of(tiny, method, **changes))
        assert isinstance(experiment.spec.data_gradient, AggregatedGradient) == (jacobian == "taps")
        results.append(gradient_of_step(experiment))
    (taps, on_taps), (pullbacks, on_pullbacks) = results
    for name in ("task_norms", "cosine", "weights"):
        differs("pullbacks against taps", np.nan_to_num(on_pullbacks["balanced"][name]),
                np.nan_to_num(on_taps["balanced"][name]), 2e-5)  # fmt: skip
    for path, leaf in taps.items():
        size = np.abs(leaf).max() + 1e-6
        differs("gradient by pullbacks against taps, relative", pullbacks[path] / size, leaf / size, 2e-5)


def test_pullbacks_on_eight_devices(tiny, differs):
    """Experts, with the rows of a batch split over a mesh and by pmap."""
    experiment = build(config_of(tiny, data__rows_per_block=8, **CASES["cgc"]))
    one, on_one = gradient_of_step(experiment)
    for kind in ("jit", "pmap"):
        many, on_many = gradient_of_step(experiment, placed(experiment, kind))
        for path in one:
            size = np.abs(one[path]).max() + 1e-6
            differs("gradient by pullbacks on 8 devices against one", many[path] / size, one[path] / size, 1e-5)
        differs("their weights", on_many["balanced"]["weights"], on_one["balanced"]["weights"], 2e-5)


@pytest.mark.parametrize("sharing", ["mmoe", "cascade"])
def test_representations_below_what_joins_tasks(tiny, sharing, differs):
    """The weights come from products over the outputs of the last common layer; the gradient is that of K pullbacks."""
    config = config_of(tiny, aggregation__level="representation", **{**CASES[sharing], "train_tasks": ("tags", "long")})
    experiment = build(config)
    assert experiment.spec.data_gradient.hidden_at == ("embed" if sharing == "mmoe" else "layer_00")
    gradients, _ = gradients_of_each(experiment)
    actual, metrics = gradient_of_step(experiment)
    notes = metrics["balanced"]
    assert (notes["task_norms"] > 0).all() and abs(notes["cosine"][0, 1]) > 1e-4
    products = notes["cosine"] * np.outer(notes["task_norms"], notes["task_norms"])
    weights, _ = balanced_by_hand(products.astype(np.float32), present=jnp.asarray(metrics["present"]))
    differs("weights against those of the products", notes["weights"], weights, 2e-5)
    for path in experiment.spec.multipliers:
        wanted = sum(
            g[path] * np.where(shared_mask(experiment, path, g[path]), w, 1.0)
            for g, w in zip(gradients, notes["weights"], strict=True)
        )
        size = np.abs(wanted).max() + 1e-6
        differs("gradient balanced by representations, relative", actual[path] / size, wanted / size, 1e-5)


def test_loss_weights_read_pullbacks(tiny):
    changes = {**CASES["mmoe"], "loss_weights__method": "gradnorm", "optimizer__learning_rate": 0.05}
    experiment = build(config_of(tiny, "sum", **changes))
    state, step = experiment.init(0), step_of(experiment)
    for number in range(3):
        state, metrics = step(state, batch_of(experiment, number), experiment.hyper)
    assert np.ptp(np.asarray(metrics["alpha"])) > 0 and int(state.bad_steps) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({**CASES["cross_stitch"], "aggregation__jacobian": "taps"}, "config.aggregation.jacobian: 'taps'"),
        (
            {**CASES["cross_stitch"], "aggregation__level": "representation"},
            "config.aggregation.level: 'representation' compares gradients",
        ),
    ],
)
def test_what_cannot_be_pulled_back_is_said(tiny, changes, message):
    with pytest.raises(UserError, match=message):
        build(config_of(tiny, **changes))
