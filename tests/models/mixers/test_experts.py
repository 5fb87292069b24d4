"""Experts behind gates: float64 numpy, brute force over codes, what they become with one expert or no private one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from train_steps import steps

from mtl_jax import checks
from mtl_jax.config import default
from mtl_jax.errors import UserError
from mtl_jax.models.layers import LAYERS
from mtl_jax.models.mixers import experts
from mtl_jax.models.mixers.base import MixerPlace
from mtl_jax.runs.build import build
from mtl_jax.training import objective as terms
from mtl_jax.training.parameter_paths import flatten
from mtl_jax.training.placement import make_placement
from mtl_jax.training.step import train_step

pytestmark = pytest.mark.usefixtures("standard_promotion")
K, R, T, D, WIDTH = 2, 2, 5, 4, 3
SEGMENT = np.asarray([[1, 1, 2, 2, 0], [1, 1, 1, 0, 0]], np.int32)


def softmax(scores):
    e = np.exp(scores - scores.max())
    return e / e.sum()


def random_like(params, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("top", [True, False])
def test_gates_weigh_what_a_task_may_use(level, top, differs):
    mixer = experts.ple(K, shared=2, private=1, level=level)
    assert mixer.columns == (None, None, 0, 1) and mixer.streams == 3
    params = random_like(mixer.init(jax.random.key(0), MixerPlace(WIDTH, D, top, 2)))
    assert params["kernel"].shape == (K if top else K + 1, WIDTH, 4)
    rng = np.random.default_rng(1)
    outputs, inputs = rng.normal(size=(4, R, T, D)), rng.normal(size=(3, R, T, WIDTH))
    actual = jax.jit(mixer.apply)(params, outputs.astype(np.float32), inputs.astype(np.float32), SEGMENT)
    wanted = np.zeros((len(params["kernel"]), R, T, D))
    for g, r, t in np.ndindex(wanted.shape[:3]):
        x = inputs[g, r, t] if level == "token" else inputs[g, r, SEGMENT[r] == SEGMENT[r, t]].mean(axis=0)
        may = [0, 1, 2, 3] if g == K else [0, 1, 2 + g]
        kernel, bias = (np.asarray(params[name][g], np.float64) for name in ("kernel", "bias"))
        weights = softmax((x @ kernel + bias)[may])
        wanted[g, r, t] = weights @ outputs[may, r, t]
    differs("gates of experts", actual, wanted, 2e-6)


@pytest.mark.parametrize("columns", [3, 4, 5])
def test_dselect_by_enumeration_of_codes(columns, differs):
    """A product over bits, for each code; codes beyond the experts stand for the first ones again."""
    seen, chosen, gamma = np.ones((1, columns), bool), 2, 0.8
    params = experts.dselect_init(jax.random.key(0), seen, WIDTH, chosen, gamma)
    start = experts.dselect_weights(params, jnp.zeros((1, R, T, WIDTH)), seen, gamma)
    assert np.abs(np.asarray(start) - 1 / columns).max() < 0.25  # near uniform, uneven where codes are wrapped
    params = random_like(params)
    x = np.random.default_rng(2).normal(size=(1, R, T, WIDTH)).astype(np.float32)
    actual = np.asarray(experts.dselect_weights(params, jnp.asarray(x), seen, gamma))
    entropy = np.asarray(experts.dselect_entropy(params, jnp.asarray(x), gamma))
    own = {name: np.asarray(leaf[0], np.float64) for name, leaf in params.items()}
    for r, t in np.ndindex(R, T):
        alpha = softmax(x[0, r, t] @ own["weight"] + own["weight_bias"])
        z = np.einsum("d,dkm->km", x[0, r, t], own["code"]) + own["code_bias"]
        inner = -2 / gamma**3 * z**3 + 3 / (2 * gamma) * z + 0.5
        s = np.where(z <= -gamma / 2, 0.0, np.where(z >= gamma / 2, 1.0, inner))
        weights, h = np.zeros(columns), 0.0
        for bits in itertools.product([0, 1], repeat=s.shape[1]):
            number = sum(bit << j for j, bit in enumerate(bits))
            for k in range(chosen):
                p = np.prod([s[k, j] if bit else 1 - s[k, j] for j, bit in enumerate(bits)])
                weights[number % columns] += alpha[k] * p
                h -= p * np.log(p) if p > 0 else 0.0
        np.testing.assert_allclose(actual[0, r, t], weights, atol=2e-6)
        np.testing.assert_allclose(entropy[0, r, t], h, atol=5e-6)
    assert abs(actual.sum(axis=-1) - 1).max() < 1e-6


def test_decided_codes_use_so_many_experts_at_most_and_have_finite_gradients():
    seen = np.ones((1, 8), bool)
    params = random_like(experts.dselect_init(jax.random.key(0), seen, WIDTH, 2, 0.01))
    x = jnp.asarray(np.random.default_rng(3).normal(size=(1, R, T, WIDTH)), jnp.float32)
    weights = np.asarray(experts.dselect_weights(params, x, seen, 0.01))
    assert ((weights > 0).sum(axis=-1) <= 2).all()
    gradient = jax.grad(
        lambda p: (experts.dselect_weights(p, x, seen, 0.01)[..., 0] + experts.dselect_entropy(p, x, 0.01)).sum()
    )(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def config_of(tiny, kind, options=(), **changes):
    return tiny(
        **{
            "train_tasks": ("color", "long"),
            "sharing__trunk": "embed",
            "sharing__mixer": kind,
            "model__num_layers": 2,
            "sharing__mixer_options": ConfigDict(dict(options)),
            "optimizer__name": "sgd",
            "optimizer__learning_rate": 0.3,
            **changes,
        }
    )


@pytest.mark.parametrize("layer", ["bilstm", "transformer"])
def test_one_expert_is_hard_sharing(tiny, differs, layer):
    changes = {"model__layer_type": layer, "model__num_heads": 2, "model__intermediate_size": 16}
    one = build(config_of(tiny, "mmoe", {"experts": 1}, **changes))
    hard = build(config_of(tiny, "", sharing__trunk="all", **changes))
    (actual, metrics), (wanted, expected) = steps(one), steps(hard)
    for path, leaf in flatten(wanted.params).items():
        differs("one expert against hard sharing", flatten(actual.params)[path], leaf, 1e-6)
    differs("their losses", metrics["losses"], expected["losses"], 1e-6)


def test_without_private_experts_it_is_mmoe(tiny, differs):
    mmoe = build(config_of(tiny, "mmoe", {"experts": 3}))
    cgc = build(config_of(tiny, "cgc", {"shared": 3, "private": 0}))
    (actual, _), (wanted, _) = steps(cgc), steps(mmoe)
    for path, leaf in flatten(wanted.params).items():
        differs("CGC without private experts against MMoE", flatten(actual.params)[path], leaf, 0.0)


def test_progressive_layered_extraction_layer_by_layer(tiny, differs):
    """The whole network against layers applied by hand."""
    experiment = build(config_of(tiny, "ple", {"shared": 1, "private": 1}, model__dropout=0.0))
    params, batch = experiment.init_params(0), experiment.batches(0).batch(0)
    params = {path: random_like(tree, 3) if path.startswith("mixer") else tree for path, tree in params.items()}
    actual = experiment.spec.objective.network.apply(params, batch).hidden
    module = LAYERS["bilstm"](hidden_size=8)
    for k, task in enumerate(experiment.tasks):
        block = experiment.corpus.layout.dataset_of[k]
        segment = batch.segment[block]
        words = params["embed"]["word"]["embedding"][0][batch.tokens[block]]
        streams = [words, words, words]  # of both tasks, and the shared one
        for number in range(2):
            read = [streams[2], streams[0], streams[1]]
            layer = params[f"layer_{number:02d}"]
            out = [
                module.apply({"params": jax.tree.map(lambda leaf, c=c: leaf[c], layer)}, read[c], segment)
                for c in range(3)
            ]
            gates = jax.tree.map(lambda leaf: np.asarray(leaf[0], np.float64), params[f"mixer_{number:02d}"])
            may = [[0, 1], [0, 2], [0, 1, 2]]
            new = []
            for g in range(2 if number else 3):
                scores = np.asarray(streams[g], np.float64) @ gates["kernel"][g] + gates["bias"][g]
                weights = np.apply_along_axis(softmax, -1, scores[..., may[g]])
                new.append(sum(weights[..., i, None] * np.asarray(out[c]) for i, c in enumerate(may[g])))
            streams = [np.asarray(x, np.float32) for x in new]
        differs("PLE against layers by hand", actual[task], streams[k], 2e-6)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("mmoe", {"experts": 3, "gate": "dselect_k"}),
        ("cgc", {"level": "sequence"}),
        ("ple", {"shared": 1, "private": 1, "gate": "dselect_k"}),
        ("ple", {"shared": 0}),
    ],
)
def test_experts_train(tiny, kind, options):
    changes = {"optimizer__name": "adamw", "optimizer__learning_rate": 1e-2, "data__mixing": "size"}
    factors = ConfigDict({"gate_entropy": 0.1} if "gate" in options else {})
    experiment = build(config_of(tiny, kind, options, auxiliary_loss_weights=factors, **changes))
    state, metrics = steps(experiment)
    assert np.isfinite(metrics["losses"]).all() and np.isfinite(metrics["total"])
    before = flatten(experiment.init_params(0))
    unmoved = {path for path, leaf in flatten(state.params).items() if np.array_equal(leaf, before[path])}
    assert not unmoved
    if "gate" in options:
        assert metrics["auxiliary"]["gate_entropy"] > 0


def test_private_experts_are_of_one_task(tiny):
    experiment = build(config_of(tiny, "cgc", {"shared": 1, "private": 2}))
    objective, params = experiment.spec.objective, experiment.init_params(0)
    batch = experiment.batches(0).batch(0)
    total = terms.loss_denominators(objective, batch, experiment.hyper)

    def color(params):
        return terms.loss_contributions(objective, params, batch, experiment.hyper, jax.random.key(0), total)[0]

    for path, leaf in flatten(jax.jit(jax.grad(color))(params)).items():
        if path.startswith("layer_"):
            assert all(np.abs(leaf[c]).max() > 0 for c in (0, 1, 2)), path  # the shared one, and those of color
            assert not np.abs(leaf[3:]).any(), path
    slices = experiment.spec.slices["layer_00/forward/input/kernel"]
    assert slices == (2, 0, 0, 1, 1)  # clipped with what is shared, with color, with long


def test_eight_devices_and_lanes_as_one(tiny, differs):
    experiment = build(config_of(tiny, "cgc"))
    mesh = {"data": jax.device_count(), "task": 1, "model": 1}
    alone, _ = steps(experiment)
    spread, _ = steps(experiment, placement=make_placement("jit", mesh, experiment.spec.slices, len(experiment.tasks)))
    for path, leaf in flatten(alone.params).items():
        differs("experts on 8 devices against one", flatten(spread.params)[path], leaf, 2e-6)
    batch = jax.tree.map(lambda leaf: np.asarray(leaf)[None], experiment.batches(0).batch(0))
    twice = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), experiment.init(0))
    lanes, _ = jax.jit(jax.vmap(lambda s: train_step(experiment.spec, s, batch, experiment.hyper)))(twice)
    one, _ = steps(experiment, 1)
    for path, leaf in flatten(one.params).items():
        differs("experts in lanes", flatten(lanes.params)[path][1], leaf, 2e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sharing__trunk": "none"}, "experts above a trunk that all tasks share"),
        ({"sharing__trunk": "all"}, "these are not: none"),
        ({"sharing__mixer_options": {"experts": 0}}, "one expert at least"),
        ({"sharing__mixer_options": {"experts": 2, "gate": "dselect_k", "chosen": 3}}, "a task has 2 experts"),
        ({"sharing__mixer_options": {"gate": "hard"}}, "gate must be one of softmax, dselect_k"),
        ({"sharing__mixer_layers": ("layer_00",)}, "name 'layer_01' too"),
        ({"sharing__mixer_layers": ("embed", "layer_01")}, "is below the experts"),
        ({"sharing__readout": "mixture"}, "are experts; take 'top'"),
        ({"sharing__head_layers": {"color": "layer_00"}}, "experts without a gate"),
        ({"sharing__tied": True}, "are no columns of the tasks"),
        ({"auxiliary_loss_weights": {"adversarial": 1.0}}, "nothing in this config adds a loss 'adversarial'"),
    ],
)
def test_bad_input(tiny, changes, message):
    config = config_of(tiny, "mmoe", **{k: ConfigDict(v) if isinstance(v, dict) else v for k, v in changes.items()})
    with pytest.raises(UserError, match=message):
        checks.check(config)
        build(config)


@pytest.mark.parametrize(("proximal", "private"), [(False, 1), (True, 1), (True, 2)])
def test_a_penalty_draws_the_experts_of_the_tasks_together_and_no_shared_one(tiny, proximal, private):
    actual = {}
    for strength in (0.0, 1.0):
        config = config_of(
            tiny,
            "cgc",
            {"shared": 1, "private": private},
            model__dropout=0.0,
            optimizer__clip_norm=0.0,
            model__num_layers=1,
            optimizer__learning_rate=0.1,
        )
        default.add_penalty(config, "p", kind="l2_to_mean", strength=strength, proximal=proximal)
        experiment = build(config)
        actual[strength] = flatten(steps(experiment, 1)[0].params)
    own = slice(1, None)
    for path, without in actual[0.0].items():
        with_ = actual[1.0][path]
        if not path.startswith("layer_"):
            np.testing.assert_allclose(with_, without, atol=1e-6, err_msg=path)
            continue
        np.testing.assert_allclose(with_[0], without[0], atol=1e-6, err_msg=path)  # the shared one
        if path.endswith("kernel"):
            apart = [np.asarray(leaf[own]).reshape(2, private, -1) for leaf in (with_, without)]
            near, far = (np.linalg.norm(x[0] - x[1]) for x in apart)
            assert near < 0.95 * far, path
            np.testing.assert_allclose(apart[0].mean(axis=0), apart[1].mean(axis=0), atol=1e-5, err_msg=path)


def test_a_penalty_where_all_experts_are_shared(tiny):
    config = config_of(tiny, "mmoe", {"experts": 2})
    default.add_penalty(config, "p", kind="l2_to_mean", strength=1.0)
    with pytest.raises(UserError, match=r"experts at layer_00, layer_01 serve all tasks .*'cgc' or 'ple' with private"):
        build(config)
