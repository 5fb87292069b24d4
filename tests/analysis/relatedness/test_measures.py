"""Measures of relatedness against their formulas in float64, grouping against all groupings."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg, stats

from mtl_jax.analysis.relatedness import grouping, measures
from mtl_jax.errors import UserError

K = 4


@pytest.fixture
def tree():
    rng = np.random.default_rng(0)
    return {"a": rng.normal(size=(K, 3, 2)).astype(np.float32), "b": rng.normal(size=(K, 5)).astype(np.float32)}


def flat(tree):
    return np.concatenate([leaf.reshape(K, -1) for leaf in tree.values()], axis=1).astype(np.float64)


def cosine(x):
    lengths = np.linalg.norm(x, axis=1)
    return x @ x.T / np.outer(lengths, lengths)


def test_cosines(tree, differs):
    x = flat(tree)
    differs("cosines of gradients", measures.gradient_cosine(tree), cosine(x), 1e-6)
    differs("cosines of parameters", measures.parameter_cosine(tree), cosine(x - x.mean(axis=0)), 1e-6)
    anchor = jax.tree.map(lambda leaf: leaf[0] * 0.5, tree)
    differs("cosines from an anchor", measures.parameter_cosine(tree, anchor), cosine(x - 0.5 * x[0]), 1e-6)


def test_mtrl_correlation(tree, differs):
    root = np.real(linalg.sqrtm(flat(tree) @ flat(tree).T))
    wanted = root / np.sqrt(np.outer(np.diag(root), np.diag(root)))
    differs("correlations of MTRL", measures.mtrl_correlation(tree), wanted, 1e-5)
    equal = jax.tree.map(lambda leaf: np.repeat(leaf[:1], K, axis=0), tree)
    differs("of equal tasks", measures.mtrl_correlation(equal), np.ones((K, K)), 1e-3)


def test_tag_affinity_of_quadratics(differs):
    """L_k = ½ ‖θ − c_k‖²: a step on i brings j (η g_i·g_j − ½ η² g_i²) / L_j."""
    rng = np.random.default_rng(1)
    centres, theta, rate = rng.normal(size=(3, 6)), rng.normal(size=6), 0.1
    gradients = theta - centres
    losses = 0.5 * (gradients**2).sum(axis=1)
    after = np.array([[0.5 * ((theta - rate * g - c) ** 2).sum() for c in centres] for g in gradients])
    products = gradients @ gradients.T
    wanted = (rate * products - 0.5 * rate**2 * np.diag(products)[:, None]) / losses[None, :]
    differs("TAG affinity", measures.tag_affinity(jnp.asarray(losses, jnp.float32), after.astype("f4")), wanted, 1e-6)
    assert measures.tag_affinity(jnp.zeros(2), jnp.ones((2, 2))).tolist() == [[0, 0], [0, 0]]


def test_fisher_distance(tree, differs):
    fisher = jax.tree.map(np.square, tree)
    fisher["a"][:, 0, 0] = 0.0
    x = flat(fisher)
    wanted = np.zeros((K, K))
    for i, j in itertools.product(range(K), repeat=2):
        live = x[i] + x[j] > 0
        a, b = (x[k][live] / (x[i] + x[j])[live] for k in (i, j))
        wanted[i, j] = 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    differs("Task2Vec distances", measures.fisher_distance(fisher), wanted, 1e-6)
    assert np.isfinite(measures.fisher_distance({"x": jnp.zeros((2, 3))})).all()


def test_representations(differs):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(3, 20, 5)).astype(np.float32)
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    x[1] = 3.0 * x[0] @ rotation + 7.0
    centred = x.astype(np.float64) - x.mean(axis=1, keepdims=True)
    wanted = np.array(
        [
            [np.linalg.norm(b.T @ a) ** 2 / np.linalg.norm(a.T @ a) / np.linalg.norm(b.T @ b) for b in centred]
            for a in centred
        ]
    )
    actual = measures.cka(x)
    differs("CKA", actual, wanted, 1e-5)
    assert actual[0, 1] == pytest.approx(1.0, abs=1e-5)
    above = np.triu_indices(20, 1)
    pairs = [1 - np.corrcoef(column)[above] for column in x.astype(np.float64)]
    wanted = np.array([[stats.spearmanr(a, b).statistic for b in pairs] for a in pairs])
    differs("RSA", measures.rsa(x), wanted, 1e-3)
    with pytest.raises(ValueError, match="three inputs"):
        measures.rsa(x[:, :2])
    assert (
        np.isfinite(measures.cka(jnp.zeros((2, 4, 3)))).all() and np.isfinite(measures.rsa(np.zeros((2, 4, 3)))).all()
    )


def test_labels(differs):
    counts = np.array([[5.0, 1, 0], [1, 5, 4]], np.float32)
    shares = (counts + 1) / (counts + 1).sum(axis=1, keepdims=True)
    wanted = [[stats.entropy(a, b) for b in shares] for a in shares]
    differs("KL of labels", measures.label_divergence(counts), wanted, 1e-6)
    first, second = np.array([0, 0, 1, 1, 2, -1]), np.array([1, 1, 0, 0, 2, 0])
    assert measures.mutual_information(first, second) == pytest.approx(1.0)
    assert measures.mutual_information(first, np.zeros(6, int)) == 0.0
    a, b = np.repeat([0, 1], 8), np.tile([0, 1], 8)
    assert measures.mutual_information(a, b) == pytest.approx(0.0, abs=1e-12)
    assert measures.mutual_information(-a - 1, b) == 0.0


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("budget", [1, 2, 3])
def test_best_groups_are_the_best_of_all(count, budget):
    for seed in range(4):
        gains = np.random.default_rng(seed).normal(size=(count, count))
        of = grouping.gains_from_pairs(gains)
        groups = [c for n in range(1, count + 1) for c in itertools.combinations(range(count), n)]
        best = -np.inf
        for size in range(1, budget + 1):
            for chosen in itertools.combinations(groups, size):
                locked = np.full(count, -np.inf)
                for group in chosen:
                    locked[list(group)] = np.maximum(locked[list(group)], of(group))
                best = max(best, locked.sum())
        actual = grouping.best_groups(count, budget, of)
        assert actual.exact and actual.gain == pytest.approx(best) and len(actual.groups) <= budget
        served = [of(actual.groups[g])[actual.groups[g].index(k)] for k, g in enumerate(actual.served)]
        assert sum(served) == pytest.approx(best)


def test_many_tasks_are_grouped_greedily():
    """Two families of tasks that help within and harm across."""
    family = np.arange(12) % 2
    gains = np.where(family[:, None] == family[None, :], 0.1, -0.1)
    actual = grouping.best_groups(12, 2, grouping.gains_from_pairs(gains))
    assert not actual.exact and actual.gain == pytest.approx(1.2)
    assert {tuple(group) for group in actual.groups} == {tuple(range(0, 12, 2)), tuple(range(1, 12, 2))}
    with pytest.raises(ValueError, match="a task and a group"):
        grouping.best_groups(3, 0, grouping.gains_from_pairs(np.zeros((3, 3))))


def test_auxiliary_tasks():
    gains = np.array([[0, 0.3, 0], [0.1, 0, 0], [-0.2, 0.5, 0]])
    assert grouping.auxiliary_tasks(gains, 1, 5) == (2, 0)
    assert grouping.auxiliary_tasks(gains, 1, 1) == (2,)
    assert grouping.auxiliary_tasks(gains, 2, 3) == ()


def test_a_tree_of_tasks_by_hand(tmp_path):
    """a and b are close, c closer to them than d; counts of groups go up with the layers."""
    similarity = np.asarray([[0, 9, 5, 1], [9, 0, 5, 1], [5, 5, 0, 2], [1, 1, 2, 0]], float)
    tasks, counts = ("a", "b", "c", "d"), {"layer_00": 1, "layer_01": 2, "layer_02": 3, "layer_03": 4}
    wanted = {
        "layer_00": (("a", "b", "c", "d"),),
        "layer_01": (("a", "b", "c"), ("d",)),
        "layer_02": (("a", "b"), ("c",), ("d",)),
        "layer_03": (("a",), ("b",), ("c",), ("d",)),
    }
    assert grouping.similarity_tree(similarity, tasks, counts) == wanted
    gain = [[None if i == j else {"mean": s} for j, s in enumerate(row)] for i, row in enumerate(similarity.tolist())]
    measures_ = {"kl": {"distance": True, "matrix": (-similarity).tolist()}}
    notes = {"tasks": list(tasks), "gain": gain, "measures": measures_}
    (tmp_path / "relatedness.json").write_text(json.dumps(notes))
    assert grouping.tree_of_run(tmp_path, counts) == wanted == grouping.tree_of_run(tmp_path, counts, "kl")
    for bad, message in (({"layer_00": 3, "layer_01": 2}, "do not decrease"), ({"layer_00": 5}, "from 1 to 4")):
        with pytest.raises(UserError, match=message):
            grouping.similarity_tree(similarity, tasks, bad)
    with pytest.raises(UserError, match="no measure 'tag'"):
        grouping.tree_of_run(tmp_path, counts, "tag")
    with pytest.raises(UserError, match="no such file"):
        grouping.tree_of_run(tmp_path / "none", counts)
