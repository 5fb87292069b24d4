"""Meta-learning in the step against autodiff of each task by itself, however the batch is packed, cut and placed."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_steps import DESCENT, RATE, batch_of, gradient_of_step, placed, step_of

from mtl_jax import checks
from mtl_jax.balancing import WEIGHTINGS
from mtl_jax.config import default
from mtl_jax.errors import UserError
from mtl_jax.evaluation.scores import placement_from_config, restore_params
from mtl_jax.runs import train
from mtl_jax.runs.build import build
from mtl_jax.storage import workdir as folders
from mtl_jax.storage.metrics_log import read_metrics
from mtl_jax.training import objective as terms
from mtl_jax.training.gradients import task_views
from mtl_jax.training.parameter_paths import flatten, with_leaves
from mtl_jax.training.step import train_step

pytestmark = pytest.mark.usefixtures("standard_promotion")
INNER = 0.5
QUICK = {"model__num_layers": 0, "train_tasks": ("color", "long")}


def config_of(tiny, method="maml", **changes):
    meta = {"meta__method": method, "meta__inner_learning_rate": INNER, "meta__inner_steps": 2}
    return tiny(**{**DESCENT, **meta, "model__dropout": 0.0, **changes})


def step_key(experiment):
    return jax.random.fold_in(jax.random.wrap_key_data(experiment.init(0).key), 0)


def sides(experiment, bounds):
    """One flat batch [B, A·R, ...] for each (low, high)."""
    batch, layout = batch_of(experiment), experiment.spec.objective.layout
    number = jax.jit(
        lambda key: task_views.assign_split(layout, experiment.spec.data_gradient.meta.records, batch, key)
    )(step_key(experiment))
    actual = []
    for low, high in bounds:
        part = task_views.mask_labels(layout, batch, number, low, high)
        joined = jax.tree.map(lambda leaf: np.concatenate(list(leaf), axis=1), part._replace(dataset=None))
        actual.append(joined._replace(dataset=batch.dataset[0]))
    return actual


def by_hand(experiment, support, query, first_order=False):
    """The K losses and Σ_k ∇L_k(Θ'_k)."""
    losses, gradients = each_by_hand(experiment, support, query, first_order)
    return losses, jax.tree.map(lambda *g: sum(g), *gradients)


def each_by_hand(experiment, support, query, first_order=False):
    """The K losses and ∇L_k(Θ'_k) by plain autodiff over whole passes of the network, a task at a time."""
    objective, state = experiment.spec.objective, experiment.init(0)
    trained = {path: leaf for path, leaf in flatten(state.params).items() if path in experiment.spec.multipliers}
    adapts = experiment.spec.data_gradient.meta.adapts

    def loss(trained, batch, k):
        params = with_leaves(state.params, {**flatten(state.params), **trained})
        total = terms.loss_denominators(objective, batch, experiment.hyper)
        return terms.loss_contributions(objective, params, batch, experiment.hyper, None, total)[k]

    def after(trained, k):
        for _ in range(experiment.spec.data_gradient.meta.steps):
            gradient = jax.grad(loss)(trained, support, k)
            if first_order:
                gradient = jax.lax.stop_gradient(gradient)
            trained = {p: x - INNER * gradient[p] if p in adapts else x for p, x in trained.items()}
        return loss(trained, query, k)

    @jax.jit
    def total(trained):
        actual = [jax.value_and_grad(after)(trained, k) for k in range(len(objective.tasks))]
        return jnp.stack([value for value, _ in actual]), [gradient for _, gradient in actual]

    return jax.device_get(total(trained))


def compare(differs, what, actual, wanted, most=2e-5):
    for path, leaf in wanted.items():
        size = np.abs(leaf).max() + 1e-6
        differs(what, actual[path] / size, leaf / size, most)


CASES = {
    "first order, with a CRF": {"meta__method": "fomaml", "model__num_layers": 0},
    "columns, micro-batches": {"sharing__trunk": "none", "training__grad_accum_steps": 2, **QUICK},
    "mixed columns": {
        "sharing__trunk": "none",
        "sharing__mixer": "cross_stitch",
        "sharing__mixer_layers": ("embed",),
        **QUICK,
    },
    "head only": {"meta__inner_params": "^heads/", **QUICK},
    "frozen embeddings, drawn data sets": {
        "optimizer__freeze": ("^embed/",),
        "data__mixing": "size",
        "data__blocks_per_batch": 3,
        **QUICK,
    },
    "loss weights that read losses": {"loss_weights__method": "gls", **QUICK},
}


@pytest.mark.parametrize("case", CASES)
def test_each_task_by_itself(tiny, case, differs):
    experiment = build(config_of(tiny, **CASES[case]))
    support, query = sides(experiment, [(0.0, 0.5), (0.5, 1.0)])
    losses, wanted = by_hand(experiment, support, query, experiment.spec.data_gradient.meta.method == "fomaml")
    actual, metrics = gradient_of_step(experiment)
    differs("losses after adaptation", metrics["losses"], losses, 1e-5)
    if case.startswith("loss weights"):  # of alike heads and owners the sum is told by any one part
        assert np.ptp(metrics["alpha"]) > 0
        path = "heads/color/output/kernel"
        wanted, actual = {path: wanted[path] * metrics["alpha"][0]}, {path: actual[path]}
    compare(differs, f"meta-gradients, {case}, relative", actual, wanted)


@pytest.mark.parametrize("case", ["first order, with a CRF", "mixed columns"])
def test_outer_gradients_are_aggregated(tiny, case, differs):
    """CAGrad's weights of the products of the tasks' gradients after adaptation."""
    experiment = build(config_of(tiny, **CASES[case], aggregation__method="cagrad"))
    support, query = sides(experiment, [(0.0, 0.5), (0.5, 1.0)])
    _, gradients = each_by_hand(experiment, support, query, experiment.spec.data_gradient.meta.method == "fomaml")
    actual, metrics = gradient_of_step(experiment)
    masks, weights = experiment.spec.data_gradient.shared.masks, metrics["balanced"]["weights"]
    assert any(path.startswith("embed/") and mask.all() for path, mask in masks.items())
    shared = np.stack([np.concatenate([np.ravel(g[path]) for path in masks], dtype=np.float64) for g in gradients])
    gram = shared @ shared.T
    products = metrics["balanced"]["cosine"] * np.outer(*[metrics["balanced"]["task_norms"]] * 2)
    differs("products after adaptation, relative", products / gram.max(), gram / gram.max(), 2e-5)
    by_hand_weights = WEIGHTINGS["cagrad"]().update(
        jnp.asarray(gram, jnp.float32), (), key=None, present=jnp.ones(len(gram), bool)
    )[0]
    differs("weights of the outer gradients", weights, by_hand_weights, 1e-4)
    wanted = {
        path: sum(g[path] * (w if path in masks else 1.0) for g, w in zip(gradients, weights, strict=True))
        for path in actual
    }
    compare(differs, f"aggregated meta-gradients, {case}, relative", actual, wanted)


def test_auxiliary_losses_are_added_before_adaptation(tiny, differs):
    changes = {"sharing__trunk": "embed", "model__num_layers": 1, "sharing__mixer": "shared_private"}
    experiment = build(config_of(tiny, "fomaml", **{**QUICK, "model__layer_type": "cnn", **changes}))
    support, query = sides(experiment, [(0.0, 0.5), (0.5, 1.0)])
    _, wanted = by_hand(experiment, support, query, first_order=True)
    objective, state, key = experiment.spec.objective, experiment.init(0), step_key(experiment)
    micro = jax.tree.map(lambda leaf: leaf[0], batch_of(experiment))
    totals = terms.Denominators(jnp.ones(2), terms.auxiliary_denominators(objective, micro))

    @jax.jit
    @jax.grad
    def added(flat):
        params, progress = with_leaves(state.params, flat), jnp.float32(0.0)
        _, losses = terms.contributions(
            objective, params, micro, experiment.hyper, key, totals=totals, progress=progress
        )
        return sum(
            experiment.hyper.auxiliary[name] * loss for name, loss in zip(objective.auxiliary, losses, strict=True)
        )

    gradient, metrics = gradient_of_step(experiment)
    wanted = jax.tree.map(jnp.add, wanted, added(flatten(state.params)))
    compare(differs, "meta-gradients with auxiliary losses, relative", gradient, wanted)
    assert set(metrics["auxiliary"]) == {"adversarial", "orthogonality"}


def test_reptile_against_descent_by_hand(tiny, differs):
    """(Θ − Θ') / rate, each inner step on its part of the examples; with one step it is joint training."""
    experiment = build(config_of(tiny, "reptile", **QUICK))
    parts = sides(experiment, [(0.0, 0.5), (0.5, 1.0)])
    objective, state, wanted = experiment.spec.objective, experiment.init(0), 0

    @jax.jit
    @jax.grad
    def gradient_of(flat, part, k):
        params, total = with_leaves(state.params, flat), terms.loss_denominators(objective, part, experiment.hyper)
        return terms.loss_contributions(objective, params, part, experiment.hyper, None, total)[k]

    for k in range(2):
        flat = begin = flatten(state.params)
        for part in parts:
            gradient = gradient_of(flat, part, k)
            flat = {path: leaf - INNER * gradient[path] for path, leaf in flat.items()}
        own = {path: (leaf - flat[path]) / INNER for path, leaf in begin.items()}
        wanted = own if not wanted else {path: leaf + own[path] for path, leaf in wanted.items()}
    compare(differs, "Reptile against descent by hand, relative", gradient_of_step(experiment)[0], wanted, 1e-4)
    once = build(config_of(tiny, "reptile", meta__inner_steps=1, **QUICK))
    joint = build(config_of(tiny, "", **QUICK))
    compare(differs, "Reptile of one step is joint training", gradient_of_step(once)[0], gradient_of_step(joint)[0])


@pytest.mark.parametrize(
    ("method", "change"), [("maml", {"meta__inner_learning_rate": 0.0}), ("fomaml", {"meta__inner_steps": 0})]
)
def test_without_inner_steps_it_is_training_on_the_query(tiny, method, change, differs):
    """Dropout and all."""
    changes = {"model__dropout": 0.3, **QUICK}
    experiment = build(config_of(tiny, method, **changes, **change))
    (query,) = sides(experiment, [(0.5, 1.0)])
    plain = gradient_of_step(build(config_of(tiny, "", **changes)), batch=jax.tree.map(lambda leaf: leaf[None], query))
    actual = gradient_of_step(experiment)
    compare(differs, "no inner step, rate 0", actual[0], plain[0])
    differs("their losses", actual[1]["losses"], plain[1]["losses"], 1e-6)


def test_sides_are_of_records(tiny):
    """Disjoint, together all; examples of one record on one side; other examples at the next step."""
    experiment = build(config_of(tiny, data__row_length=5, data__rows_per_block=24, model__num_layers=0))
    layout, records = experiment.spec.objective.layout, experiment.spec.data_gradient.meta.records
    assert records is not None  # sentences of more than five words are several examples
    batch = jax.tree.map(lambda leaf: leaf[None], experiment.batches(0).batch(0))
    number = np.asarray(task_views.assign_split(layout, records, batch, jax.random.key(3)))
    support, query = (task_views.mask_labels(layout, batch, number, *bounds) for bounds in ((0.0, 0.5), (0.5, 1.0)))
    for name in layout.tasks:
        one, other, whole = (np.asarray(b.labels[name]["mask"]) for b in (support, query, batch))
        assert not (one & other).any() and ((one | other) == whole).all() and one.any() and other.any()
    by_record: dict = {}
    for block in range(len(layout.datasets)):
        for example, value in zip(batch.example[0, block].ravel(), number[0, block].ravel(), strict=True):
            if example >= 0:
                by_record.setdefault((block, records[block, example]), []).append(value)
    assert max(map(len, by_record.values())) > 1 and all(len(set(values)) == 1 for values in by_record.values())
    again = np.asarray(task_views.assign_split(layout, records, batch, jax.random.key(4)))
    assert (again[batch.example >= 0] != number[batch.example >= 0]).all()
    keys = jax.random.split(jax.random.key(0), 40)
    many = np.asarray(jax.vmap(lambda key: task_views.assign_split(layout, records, batch, key))(keys))[
        :, batch.example >= 0
    ]
    assert 0.47 < (many < 0.5).mean() < 0.53 and 0.2 < (many < 0.25).mean() < 0.3


def test_tasks_of_a_step_and_tasks_without_examples(tiny, differs):
    experiment = build(config_of(tiny, meta__tasks_per_step=1, **QUICK))
    seen = set()
    state, step = experiment.init(0), step_of(experiment)
    for _ in range(8):
        state, metrics = step(state._replace(params=experiment.init(0).params), batch_of(experiment), experiment.hyper)
        assert metrics["present"].sum() == 1
        seen.add(int(metrics["present"].argmax()))
    assert seen == {0, 1}
    batch = batch_of(experiment)
    batch.labels["color"]["mask"][:] = False
    actual, metrics = gradient_of_step(build(config_of(tiny, **QUICK)), batch=batch)
    assert metrics["present"].tolist() == [False, True] and np.isfinite(metrics["losses"]).all()
    assert all(np.isfinite(leaf).all() for leaf in actual.values())
    assert not actual["heads/color/output/kernel"].any() and actual["heads/long/output/kernel"].any()


def test_eight_devices_as_one(tiny, differs):
    changes = {"training__grad_accum_steps": 2, "model__dropout": 0.2, "meta__inner_steps": 1, **QUICK}
    experiment = build(config_of(tiny, data__rows_per_block=8, **changes))
    one, _ = gradient_of_step(experiment)
    for kind in ("jit", "pmap"):
        many, _ = gradient_of_step(experiment, placed(experiment, kind))
        compare(differs, "meta-gradients on 8 devices against one", many, one)


def test_heads_that_start_from_zero(tiny, differs):
    """The first inner step moves nothing but the head; the task's own head is neither read nor changed."""
    experiment = build(config_of(tiny, "fomaml", meta__head_init="zero", **QUICK))
    actual, metrics = gradient_of_step(experiment)
    differs("the loss of a zero head", metrics["support"], np.log([3.0, 2.0]), 1e-6)
    assert not any(leaf.any() for path, leaf in actual.items() if path.startswith("heads/"))
    assert actual["embed/word/embedding"].any()


def test_penalties_and_lanes(tiny, differs):
    """λ·∇Ω comes on top; the inner rate is an argument that lanes differ in."""
    config = config_of(tiny, sharing__trunk="none", model__column_init="independent", **QUICK)
    bare, _ = gradient_of_step(build(config))
    default.add_penalty(config, "l2", kind="l2_to_mean", strength=0.5)
    experiment = build(config)
    actual, _ = gradient_of_step(experiment)
    path = "embed/word/embedding"
    leaf = np.asarray(flatten(experiment.init(0).params)[path])
    differs("with a penalty", actual[path] - bare[path], leaf - leaf.mean(axis=0), 1e-5)

    state, batch, rates = experiment.init(0), batch_of(experiment), jnp.asarray([0.0, INNER, 2.0])
    hypers = jax.vmap(lambda rate: experiment.hyper._replace(inner_learning_rate=rate))(rates)
    lanes, _ = jax.jit(jax.vmap(lambda h: train_step(experiment.spec, state, batch, h)))(hypers)
    moved = (leaf - np.asarray(flatten(lanes.params)[path])) / RATE
    differs("a lane against the step alone", moved[1], actual[path], 1e-5)
    assert np.abs(moved[2] - moved[0]).max() > 1e-4


def test_a_run_that_goes_on_ends_bitwise_as_the_one_that_was_not_cut(tiny, tmp_path):
    config = tiny(
        meta__method="maml",
        meta__tasks_per_step=1,
        model__dropout=0.2,
        training__steps=6,
        training__max_to_keep=3,
        training__checkpoint_every=3,
        training__eval_every=0,
        evaluation__checkpoint="last",
        **QUICK,
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train.train(config, folders.prepare(whole))
    shutil.copytree(whole, cut)
    (cut / "summary.json").unlink()
    shutil.rmtree(cut / "checkpoints" / "6")
    train.train(config, cut)
    experiment = build(config)
    saved = (restore_params(experiment, placement_from_config(experiment), d, "6").params for d in (whole, cut))
    for one, other in zip(*map(jax.tree.leaves, saved), strict=True):
        np.testing.assert_array_equal(one, other)
    lines = read_metrics(cut)
    assert lines == read_metrics(whole) and [line["step"] for line in lines if line["kind"] == "train"] == [
        *range(1, 7)
    ]
    for line in lines[:6]:
        assert [task for task, loss in line["support"].items() if loss is not None] == [
            task for task, loss in line["loss"].items() if loss is not None
        ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"meta__method": "mamla"}, "config.meta.method: 'mamla' is none of '', 'maml'"),
        ({"meta__support_fraction": 1.0}, "config.meta.support_fraction: 1.0 should be at least 0.0 and at most 0.99"),
        ({"meta__inner_params": "("}, "config.meta.inner_params: '(' is not a regular expression"),
        (
            {"meta__method": "reptile", "meta__inner_params": "^heads/"},
            "config.meta.inner_params: reptile updates only",
        ),
        ({"meta__method": "reptile", "meta__inner_steps": 0}, "config.meta.inner_steps: reptile learns"),
        (
            {"aggregation__method": "pcgrad", "aggregation__level": "representation"},
            "config.aggregation.level: 'representation', but with config.meta.method = 'maml' after adaptation",
        ),
    ],
)
def test_configs_are_checked(tiny, changes, message):
    with pytest.raises(UserError) as error:
        checks.check(config_of(tiny, **changes))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"meta__inner_params": "^layer_07/"}, "config.meta.inner_params: '^layer_07/' matches no parameter"),
        ({"meta__tasks_per_step": 3}, "config.meta.tasks_per_step: 3 tasks a step, but 2 are trained"),
        (
            {"meta__head_init": "zero", "meta__inner_params": "^embed/"},
            "config.meta.head_init: task 'color' has no output layer",
        ),
        ({"loss_weights__method": "famo"}, "config.loss_weights.method: 'famo' needs more than losses"),
        ({"aggregation__method": "modo"}, "config.aggregation.method: 'modo' compares the halves of a batch"),
    ],
)
def test_what_does_not_fit_the_model_is_said(tiny, changes, message):
    with pytest.raises(UserError) as error:
        build(config_of(tiny, **{**QUICK, **changes}))
    assert message in str(error.value)
