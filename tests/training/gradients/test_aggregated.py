"""Balanced gradients against K passes of plain autodiff, whatever is shared and however the batch is cut."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train_steps import DESCENT, batch_of, gradient_of_step, placed, step_of

from mtl_jax.balancing import GRADIENT_TRANSFORMS, WEIGHTINGS
from mtl_jax.errors import UserError
from mtl_jax.models import gradient_taps
from mtl_jax.runs.build import build
from mtl_jax.training import objective as terms
from mtl_jax.training.parameter_paths import flatten, with_leaves
from mtl_jax.training.step import train_step

pytestmark = pytest.mark.usefixtures("standard_promotion")
TREE = {"embed": (("color", "tags"), ("long",)), "layer_00": (("color",), ("tags", "long"))}


PLAIN_TAGS = {"tasks__tags__options__crf": False}  # a CRF takes half of the time to compile
balanced_by_hand = jax.jit(functools.partial(WEIGHTINGS["cagrad"]().update, state=(), key=None))


def config_of(tiny, method="cagrad", **changes):
    return tiny(**{**DESCENT, "model__dropout": 0.2, "aggregation__method": method, **changes})


def by_task(experiment):
    """The K gradients by K passes, [{path: leaf}], float64, summed over micro-batches."""
    state, batch = experiment.init(0), batch_of(experiment)
    objective = experiment.spec.objective
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), 0)
    total = sum(terms.loss_denominators(objective, micro, experiment.hyper) for micro in _micro(batch))

    @jax.jit
    def gradients(micro):
        def losses(flat):
            params = with_leaves(state.params, flat)
            return terms.loss_contributions(objective, params, micro, experiment.hyper, key, total)

        return jax.jacrev(losses)(flatten(state.params))

    actual = [jax.device_get(gradients(micro)) for micro in _micro(batch)]
    summed = jax.tree.map(lambda *leaves: sum(np.asarray(leaf, np.float64) for leaf in leaves), *actual)
    return [jax.tree.map(lambda leaf, k=k: leaf[k], summed) for k in range(len(experiment.tasks))]


def _micro(batch):
    return [jax.tree.map(lambda leaf, i=i: leaf[i], batch) for i in range(batch.tokens.shape[0])]


def shared_mask(experiment, path, shape):
    """1 in the slices of a leaf that several tasks use."""
    groups = np.asarray(experiment.spec.slices[path]) == len(experiment.tasks)
    return np.broadcast_to(groups.reshape(-1, *(1,) * (len(shape) - 1)), shape) if not path.startswith("heads") else 0.0


def expected(experiment, gradients, weights):
    """Σ_k weights_k g_k where shared, the plain sum elsewhere."""
    result = {}
    for path, leaf in gradients[0].items():
        mask = shared_mask(experiment, path, leaf.shape)
        result[path] = sum(g[path] * (mask * w + (1 - mask)) for g, w in zip(gradients, weights, strict=True))
    return result


def gram_of(experiment, gradients):
    flat = np.stack(
        [
            np.concatenate([(g[path] * shared_mask(experiment, path, g[path].shape)).ravel() for path in sorted(g)])
            for g in gradients
        ]
    )
    return flat @ flat.T


QUICK = {"model__num_layers": 0, "train_tasks": ("color", "long")}  # bags of words without a CRF compile quickly
TRANSFORMER = {"model__layer_type": "transformer", "model__num_heads": 2, "model__intermediate_size": 16}
CASES = {
    "hard": {},
    "transformer": TRANSFORMER,
    "columns": {"sharing__trunk": "embed", **PLAIN_TAGS},
    "tree": {"sharing__task_groups": TREE, **PLAIN_TAGS},
    "drawn": {"data__mixing": "size", **PLAIN_TAGS},
    "micro-batches": {"training__grad_accum_steps": 2, **PLAIN_TAGS},
    "drawn, micro-batches, tree": {
        "data__mixing": "size",
        "training__grad_accum_steps": 3,
        "sharing__task_groups": TREE,
        **PLAIN_TAGS,
    },
    "frozen": {"optimizer__freeze": ("^embed/",), **PLAIN_TAGS},
    "remat": {"model__remat_policy": "nothing_saveable", **PLAIN_TAGS},
    "in turns": {
        "model__layer_type": "transformer",
        "model__num_heads": 2,
        "model__intermediate_size": 16,
        **PLAIN_TAGS,
    },
}


@pytest.mark.parametrize(
    ("case", "memory"), [*((case, "copies") for case in CASES), ("hard", "layers"), ("tree", "layers")]
)
def test_gradients_told_apart_are_those_of_k_passes(tiny, case, memory, differs, monkeypatch):
    asked = []
    if case == "in turns":  # as on one CPU device
        monkeypatch.setattr(gradient_taps, "_on_single_cpu", lambda: asked.append(True) or True)
    experiment = build(config_of(tiny, aggregation__gradient_storage=memory, **CASES[case]))
    gradients = by_task(experiment)
    actual, metrics = gradient_of_step(experiment)
    gram = gram_of(experiment, [{p: g[p] for p in experiment.spec.multipliers} for g in gradients])
    assert bool(asked) == (case == "in turns")
    notes = metrics["balanced"]
    scale = np.sqrt(np.outer(np.diag(gram), np.diag(gram)))
    products = notes["cosine"] * np.outer(notes["task_norms"], notes["task_norms"])
    differs(
        f"products of gradients against {len(gradients)} passes, relative",
        products / (scale + 1e-9),
        gram / (scale + 1e-9),
        1e-5,
    )
    wanted = expected(experiment, gradients, notes["weights"])
    for path in experiment.spec.multipliers:
        size = np.abs(wanted[path]).max() + 1e-6
        differs("balanced gradients against K passes, relative", actual[path] / size, wanted[path] / size, 1e-5)
    present = jnp.asarray(metrics["present"])
    weights, _ = balanced_by_hand(gram.astype(np.float32), present=present)
    differs("weights in the step against those of the products", notes["weights"], weights, 1e-5)


def test_eight_devices_as_one(tiny, differs):
    experiment = build(config_of(tiny, data__rows_per_block=8, training__grad_accum_steps=2, **PLAIN_TAGS))
    one, on_one = gradient_of_step(experiment)
    for kind in ("jit", "pmap"):
        many, on_many = gradient_of_step(experiment, placed(experiment, kind))
        for path in one:
            size = np.abs(one[path]).max() + 1e-6
            differs("balanced gradients on 8 devices against one", many[path] / size, one[path] / size, 1e-5)
        differs("their weights", on_many["balanced"]["weights"], on_one["balanced"]["weights"], 1e-5)


@pytest.mark.parametrize("method", sorted({*WEIGHTINGS, *GRADIENT_TRANSFORMS} - {"sum"}))
def test_every_method_trains(tiny, method):
    changes = {"optimizer__learning_rate": 0.3, **QUICK}
    if method in ("krum", "trimmed_mean"):
        del changes["train_tasks"]  # these need three tasks
    if method == "krum":
        changes["aggregation__options"] = {"byzantine": 0}
    experiment = build(config_of(tiny, method, **changes))
    state, step = experiment.init(0), step_of(experiment)
    losses = []
    for number in range(12):
        state, metrics = step(state, batch_of(experiment, number), experiment.hyper)
        losses.append(float(metrics["losses"].sum()))
    assert int(state.bad_steps) == 0 and np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < np.mean(losses[:3])


def test_representations_of_one_text(tiny, differs):
    """Gradients of what the trunk gives out, by the chain rule through a table of representations."""
    config = config_of(tiny, "mgda", aggregation__level="representation", model__dropout=0.0, **PLAIN_TAGS)
    experiment = build(config)
    state, batch, objective = experiment.init(0), batch_of(experiment), experiment.spec.objective
    micro, layout = _micro(batch)[0], objective.layout
    features = objective.network.apply(state.params, micro).features
    hidden = features.by_task()
    parts = {name: terms.task_batch(objective, micro, name) for name in layout.tasks}
    total = terms.loss_denominators(objective, micro, experiment.hyper)

    def loss(name, hidden):
        part, head = parts[name], parts[name].heads(state.params)
        read = part.features(features)._replace(hidden=hidden)
        scores = part.group.form.logits(head, read, part.labels)
        return part.group.form.loss(head, scores, part.labels).sum() / total[layout.tasks.index(name)]

    @jax.jit
    def gradients_of(hidden):
        return {name: jax.grad(lambda h, n=name: loss(n, h))(hidden[name]) for name in layout.tasks}

    gradients = gradients_of(hidden)
    wanted = np.zeros((3, 3))
    for i, a in enumerate(layout.tasks):
        for j, b in enumerate(layout.tasks):
            if layout.dataset_of[i] == layout.dataset_of[j]:
                wanted[i, j] = float((gradients[a] * gradients[b]).sum())
    actual, metrics = gradient_of_step(experiment)
    notes = metrics["balanced"]
    products = notes["cosine"] * np.outer(notes["task_norms"], notes["task_norms"])
    differs("products of gradients of representations", products / wanted.max(), wanted / wanted.max(), 1e-5)
    for path, leaf in expected(experiment, by_task(experiment), notes["weights"]).items():
        size = np.abs(leaf).max() + 1e-6
        differs("gradients balanced by representations, relative", actual[path] / size, leaf / size, 1e-5)


def test_halves_of_a_batch(tiny, differs):
    """The products that MoDo sees: gradients of the mean losses of the two halves of the rows."""
    experiment = build(config_of(tiny, "modo", model__dropout=0.0, **PLAIN_TAGS))
    state, batch, objective = experiment.init(0), batch_of(experiment), experiment.spec.objective

    @jax.jit
    def gradients_of(micro):
        def losses(flat):
            params, total = with_leaves(state.params, flat), terms.loss_denominators(objective, micro, experiment.hyper)
            return terms.loss_contributions(objective, params, micro, experiment.hyper, None, total)

        return jax.jacrev(losses)(flatten(state.params))

    of_half = []
    for rows in (slice(0, 2), slice(2, 4)):
        micro = _micro(batch)[0]
        labels = {name: {k: v[:, rows] for k, v in of_task.items()} for name, of_task in micro.labels.items()}
        by_row = {f: v for f, v in micro._asdict().items() if f not in ("labels", "dataset") and v is not None}
        micro = micro._replace(labels=labels, **{f: v[:, rows] for f, v in by_row.items()})
        actual = jax.device_get(gradients_of(micro))
        shared = [path for path in sorted(actual) if not path.startswith("heads")]
        of_half.append(np.concatenate([actual[path].reshape(3, -1) for path in shared], axis=1))
    wanted = of_half[0] @ of_half[1].T
    actual, metrics = gradient_of_step(experiment)
    notes = metrics["balanced"]
    products = notes["cosine"] * np.outer(notes["task_norms"], notes["task_norms"])
    norms = np.sqrt(np.maximum(np.diag(wanted), 0))
    differs("norms from halves", notes["task_norms"] / norms.max(), norms / norms.max(), 1e-5)
    live = np.outer(norms, norms) > 0
    differs("products of halves", np.where(live, products - wanted, 0) / wanted.max(), 0 * wanted, 1e-5)
    weighed = expected(experiment, by_task(experiment), notes["weights"])
    for path, leaf in weighed.items():
        size = np.abs(leaf).max() + 1e-6
        differs("gradient from halves, relative", actual[path] / size, leaf / size, 1e-5)


def test_loss_weights_see_the_gradients(tiny, differs):
    """GradNorm's slope and DB-MTL's α from the norms of K passes."""
    experiment = build(
        config_of(tiny, "sum", loss_weights__method="db_mtl", loss_weights__options={"beta": 0.0}, **PLAIN_TAGS)
    )
    gradients = by_task(experiment)
    norms = np.sqrt(np.diag(gram_of(experiment, gradients)))
    _, metrics = gradient_of_step(experiment)
    logs = norms / metrics["losses"]
    differs("α of DB-MTL, relative", metrics["alpha"] / (logs.max() / norms), np.ones(3), 1e-5)
    for method in ("gradnorm", "excess_mtl", "famo", "kl", "dtp"):
        experiment = build(config_of(tiny, "sum", loss_weights__method=method, optimizer__learning_rate=0.05, **QUICK))
        state, step = experiment.init(0), step_of(experiment)
        for number in range(4):
            state, metrics = step(state, batch_of(experiment, number), experiment.hyper)
        assert np.isfinite(metrics["alpha"]).all() and int(state.bad_steps) == 0
        if method == "famo":
            assert np.ptp(np.asarray(metrics["alpha"])) > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sharing__trunk": "none"}, r"config.aggregation.method: 'cagrad'.*sharing.trunk = 'none'"),
        ({"aggregation__options": {"c": 1.5}}, r"config.aggregation.options: c must lie in"),
        ({"aggregation__options": {"cc": 1.5}}, r"config.aggregation.options: .*cc"),
        ({"train_tasks": ("color",)}, "needs at least two tasks"),
        ({"aggregation__method": "krum"}, r"config.aggregation.options: krum\(1, 1\) needs at least 4 tasks"),
        (
            {"aggregation__method": "graddrop", "aggregation__gradient_storage": "layers"},
            "config.aggregation.gradient_storage",
        ),
        ({"aggregation__method": "graddrop", "aggregation__smoothing": 0.5}, "config.aggregation.smoothing"),
        ({"aggregation__method": "modo", "data__rows_per_block": 5}, "two halves"),
        (
            {"aggregation__method": "aligned_mtl", "aggregation__options": {"preference": (1.0, 2.0)}},
            "preference has 2 numbers for 3 tasks",
        ),
        (
            {"aggregation__method": "sum", "loss_weights__method": "gradnorm", "sharing__trunk": "none"},
            "config.loss_weights.method: 'gradnorm'",
        ),
    ],
)
def test_what_cannot_be_balanced_is_said(tiny, changes, message):
    with pytest.raises(UserError, match=message):
        build(config_of(tiny, **changes))


def test_tasks_on_one_text_share_its_forward_pass(tiny):
    """Products in the program: one forward and K backward passes, where the plain step has one of each."""
    base = {
        "train_tasks": ("tags", "long"),
        "model__layer_type": "transformer",
        "model__num_heads": 2,
        "model__hidden_size": 32,
    }

    def products(**changes):
        experiment = build(config_of(tiny, **base, **changes))
        state, step = jax.eval_shape(lambda: experiment.init(0)), lambda *a: train_step(experiment.spec, *a)
        return product_flops(jax.make_jaxpr(step)(state, batch_of(experiment), experiment.hyper).jaxpr)

    tasks = 2  # of which the products of gradients are K² more of the size of the parameters
    told_apart, plain = products(), products(method="sum")
    assert 1.3 * plain < told_apart < 1.03 * (1 + 2 * tasks) / 3 * plain


def product_flops(jaxpr):
    """Of the matrix products in a jaxpr; a loop's body counts as often as it runs."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = np.prod([equation.invars[0].aval.shape[axis] for axis in contracted])
            total += 2 * inner * np.prod(equation.outvars[0].aval.shape)
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                part = getattr(part, "jaxpr", part)
                if hasattr(part, "eqns"):
                    total += equation.params.get("length", 1) * product_flops(part)
    return total
