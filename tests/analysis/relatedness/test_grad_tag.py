"""Grad-TAG: linearised examples against jax.grad, fits against scipy, estimates against models that are linear."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from mtl_jax.analysis.relatedness import grad_tag
from mtl_jax.analysis.relatedness.grad_tag import Linearisation, Linearised, fit, predicted_gains
from mtl_jax.runs.build import build
from mtl_jax.training import objective as terms
from mtl_jax.training.parameter_paths import flatten, with_leaves

pytestmark = pytest.mark.usefixtures("standard_promotion")


def examples(rng, truth, count=60):
    x = rng.normal(size=(count, len(truth)))
    return Linearised(np.zeros(count), x * np.sign(x @ truth + rng.normal(size=count))[:, None])


def test_a_fit_is_the_optimum(differs):
    rng = np.random.default_rng(0)
    parts = [examples(rng, rng.normal(size=8)) for _ in range(2)]
    wide = [Linearised(rng.normal(size=5), rng.normal(size=(5, 40)))]
    for group, weights in ((parts, (1.0, 0.5)), (wide, (1.0,))):

        def loss(delta, group=group, weights=weights):
            each = [np.logaddexp(0, -(p.odds + p.gradient @ delta)).mean() for p in group]
            return np.dot(weights, each) + 0.05 * delta @ delta

        wanted = optimize.minimize(loss, np.zeros(group[0].gradient.shape[1]), tol=1e-12).x
        differs("a fit", fit(group, weights, 0.1), wanted, 1e-4)


def test_related_tasks_are_predicted_to_help():
    rng = np.random.default_rng(1)
    truth = rng.normal(size=20)
    directions = {"a": truth, "b": truth, "c": -truth}
    made = {t: {"train": examples(rng, d, 30), "dev": examples(rng, d, 400)} for t, d in directions.items()}
    gains = predicted_gains(made, (1.0, 1.0, 1.0))
    assert gains[0, 1] > 0.01 and gains[1, 0] > 0.01 and (gains[2, :2] < -0.01).all() and gains[0, 0] == 0
    made["c"]["dev"] = Linearised(np.zeros(0), np.zeros((0, 20)))
    assert np.isnan(predicted_gains(made, (1.0, 1.0, 1.0))[2]).all()


def test_features_are_gradients_of_log_odds(tiny, differs):
    """One class label and one tag sequence of packed rows, by jax.grad of the loss of the example alone."""
    experiment = build(tiny(model__num_layers=0, data__rows_per_block=4))
    params = experiment.init_params(0)
    trained = tuple(experiment.spec.multipliers)
    result = Linearisation(experiment, 4096, 7)(params)
    for task in ("color", "tags"):
        features = result[task]["train"]
        assert features.gradient.shape == (len(features.odds), 4096) and len(features.odds) <= 7
    corpus = experiment.corpus
    dataset = corpus.specs["tags"].dataset
    rows = jax.tree.map(lambda x: x, corpus.rows[dataset]["train"])
    layout = grad_tag.evaluation_layout(corpus.layout, dataset)
    objective = experiment.objective_for(layout)._replace(dropout=False, attention_dropout=False)
    batch = next(grad_tag.evaluation_batches(rows, objective.layout, 1))
    index = list(experiment.tasks).index("tags")
    number = 1  # the second example of the first row
    labels = {
        name: {**arrays, "mask": arrays["mask"] & (arrays["slot"] == number)} if "slot" in arrays else arrays
        for name, arrays in batch.labels.items()
    }
    single = batch._replace(labels=labels)
    total = terms.loss_denominators(objective, single, experiment.hyper)
    assert 0 < total[index] < terms.loss_denominators(objective, batch, experiment.hyper)[index]
    flat = flatten(params)

    def log_odds(leaves):
        changed = with_leaves(params, {**flat, **leaves})
        loss = terms.loss_contributions(objective, changed, single, experiment.hyper, None, total)[index]
        return -loss - jnp.log(1 - jnp.exp(-loss))

    value, gradient = jax.value_and_grad(log_odds)({path: flat[path] for path in trained})
    differs("log-odds", result["tags"]["train"].odds[number], value, 1e-5)
    length = np.sqrt(sum(float(jnp.sum(g**2)) for g in gradient.values()))
    differs("length of a sketch", np.linalg.norm(result["tags"]["train"].gradient[number]) / length, 1.0, 0.1)
    sketch = grad_tag._make_sketch({path: flat[path] for path in trained}, 4096, jax.random.key(0))
    differs("its sketch", result["tags"]["train"].gradient[number], sketch(gradient), 1e-4)
