"""Exact optima against scipy's minimiser, duality and limits, on designs counted from the words themselves."""

import numpy as np
import pytest
import scipy.optimize
import sklearn.metrics
from linear_tasks import linear_config

from mtl_jax import checks
from mtl_jax.analysis.ablation.exact_optima import REFERENCES
from mtl_jax.errors import UserError
from mtl_jax.experiment.inputs import load_corpus


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path))


def solved(kind="l2_to_mean", strength=0.02, **changes):
    """(config, {task: {split: (X, y scaled, y)}} counted from the words, α, the reference)."""
    config = linear_config(kind if kind != "tied" else "l2_to_mean", **changes)
    checks.check(config)
    corpus = load_corpus(config, None)
    actual = REFERENCES["linear"](config, corpus, kind, strength)
    data = {}
    for k in range(3):
        splits = {s: split.records for s, split in corpus.splits[f"d{k}"].items()}
        train = np.array([r.fields["label"] for r in splits["train"]], np.float32)
        mean, scale = (1.0, 2.0) if k == 1 else (train.mean(dtype=np.float64), train.std(dtype=np.float64))
        data[f"t{k}"] = {}
        for split, records in splits.items():
            x = np.zeros((len(records), corpus.tokenizer.size))
            for row, record in zip(x, records, strict=True):
                for word in record.fields["words"]:
                    row[corpus.tokenizer.vocabulary.index(word)] += 1 / 3
            y = np.array([r.fields["label"] for r in records], np.float32).astype(float)
            data[f"t{k}"][split] = x, (y - mean) / scale, y, mean, scale
    return config, data, np.array([1.0, 1.0, 0.5]), actual


def loss(weights, data, alpha):
    parts = zip(alpha, data.values(), weights, strict=True)
    return sum(a * np.mean((d["train"][0] @ w - d["train"][1]) ** 2) for a, d, w in parts)


def l2_to_mean(weights):
    return np.sum((weights - weights.mean(0)) ** 2)


def test_l2_to_mean_is_what_a_minimiser_finds():
    _, data, alpha, actual = solved()

    def objective(flat):
        weights = flat.reshape(3, -1)
        return loss(weights, data, alpha) + 0.02 * l2_to_mean(weights)

    best = scipy.optimize.minimize(objective, np.zeros(actual.weights.size), method="BFGS", options={"gtol": 1e-9})
    assert actual.objective == pytest.approx(objective(actual.weights.ravel()), rel=1e-7)  # float32 mean and std
    assert actual.objective <= best.fun + 1e-7
    np.testing.assert_allclose(actual.weights, best.x.reshape(3, -1), atol=2e-4)
    assert actual.notes == []


def test_pairwise_is_k_times_the_distance_to_the_mean():
    pairwise, mean = solved("l2_pairwise", 0.02)[3], solved("l2_to_mean", 0.06)[3]
    np.testing.assert_allclose(pairwise.weights, mean.weights, atol=1e-9)
    assert pairwise.objective == pytest.approx(mean.objective)


def test_its_ends_are_single_tasks_and_tied_ones():
    *_, alone = solved(strength=0.0)
    *_, nearly_alone = solved(strength=1e-9)
    *_, nearly_tied = solved(strength=1e6)
    *_, tied = solved("tied", 0.0)
    _, data, alpha, _ = solved()
    for w, d in zip(alone.weights, data.values(), strict=True):
        x, y = d["train"][:2]
        np.testing.assert_allclose(x.T @ (x @ w - y), 0, atol=1e-5)
    np.testing.assert_allclose(nearly_alone.weights, alone.weights, atol=1e-5)
    np.testing.assert_allclose(nearly_tied.weights, tied.weights, atol=1e-5)
    assert np.ptp(tied.weights, axis=0).max() == 0
    gradient = sum(
        a * d["train"][0].T @ (d["train"][0] @ w - d["train"][1]) / 32
        for a, w, d in zip(alpha, tied.weights, data.values(), strict=True)
    )
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


@pytest.mark.parametrize("strength", [0.003, 0.05, 0.3])
def test_trace_norm_has_no_duality_gap(strength):
    """min Σ a_k‖X_k w_k − y_k‖² + λ‖W‖* = max −Σ (θ_kᵀy_k + ‖θ_k‖²/4a_k) over ‖[X_kᵀθ_k]‖₂ ≤ λ."""
    _, data, alpha, actual = solved("trace_norm", strength)
    weights = actual.weights
    thetas = [
        2 * a / 32 * (d["train"][0] @ w - d["train"][1]) for a, w, d in zip(alpha, weights, data.values(), strict=True)
    ]
    norm = np.linalg.norm(np.stack([d["train"][0].T @ t for d, t in zip(data.values(), thetas, strict=True)]), 2)
    thetas = [t * min(1.0, strength / norm) for t in thetas]
    dual = -sum(t @ d["train"][1] + t @ t / (4 * a / 32) for a, t, d in zip(alpha, thetas, data.values(), strict=True))
    primal = loss(weights, data, alpha) + strength * np.linalg.svd(weights, compute_uv=False).sum()
    assert actual.objective == pytest.approx(primal, rel=1e-7)
    assert -1e-9 < primal - dual < 1e-6 * primal  # the mean and scale of the labels are float32
    assert actual.notes == []


def test_trace_norm_at_its_ends():
    np.testing.assert_allclose(solved("trace_norm", 1e-9)[3].weights, solved(strength=0.0)[3].weights, atol=1e-5)
    assert np.abs(solved("trace_norm", 10.0)[3].weights).max() < 1e-12


def test_scores_are_scikit_learns():
    _, data, _, actual = solved()
    for (name, splits), w in zip(data.items(), actual.weights, strict=True):
        assert set(actual.scores[name]) == {"dev"}
        x, scaled, y, mean, scale = splits["dev"]
        predicted = x @ w * scale + mean
        scores = actual.scores[name]["dev"]
        assert scores["r2"] == pytest.approx(sklearn.metrics.r2_score(y, predicted), abs=1e-6)
        assert scores["mse"] == pytest.approx(np.mean((predicted - y) ** 2), rel=1e-6)
        assert scores["loss"] == pytest.approx(np.mean((x @ w - scaled) ** 2), rel=1e-6)


def test_packing_changes_nothing():
    config, *_, packed = solved()
    config.data.packing = False
    single = REFERENCES["linear"](config, load_corpus(config, None), "l2_to_mean", 0.02)
    np.testing.assert_allclose(single.weights, packed.weights, atol=1e-9)


def test_too_few_examples_are_said():
    config = linear_config(strength=0.0, examples={"train": 3, "dev": 5})
    actual = REFERENCES["linear"](config, load_corpus(config, None), "l2_to_mean", 0.0)
    assert len(actual.notes) == 3
    assert "rank 3: least squares has many solutions" in actual.notes[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.num_layers": 1}, "config.model.num_layers: 1, but the reference 'linear' needs 0"),
        ({"model.dropout": 0.1}, "config.model.dropout: 0.1"),
        ({"optimizer.weight_decay": 0.1}, "config.optimizer.weight_decay"),
        ({"tasks.t0.options.head": "dense"}, "config.tasks.t0.options.head: 'dense'"),
        (
            {"model.layer_type": "transformer"},
            "config.model.layer_type: embeddings for 'transformer' have",
        ),
        ({"penalties.p.schedule": "rise"}, "config.penalties.p.schedule"),
        ({"penalties.p.params": "layer_00"}, "config.penalties.p.params"),
        ({"loss_weights.method": "by_size"}, "config.loss_weights.method"),
    ],
)
def test_what_is_not_linear(change, message):
    config = linear_config()
    corpus = load_corpus(config, None)
    config.update_from_flattened_dict(change)
    with pytest.raises(UserError, match=message):
        REFERENCES["linear"](config, corpus, "l2_to_mean", 0.1)


def test_a_penalty_without_a_known_optimum():
    config = linear_config()
    with pytest.raises(
        UserError, match="has no optimum for 'mtrl'; it has those of l2_to_mean, l2_pairwise, trace_norm"
    ):
        REFERENCES["linear"](config, load_corpus(config, None), "mtrl", 0.1)
