"""Columns over a function apply(params, x): each task computes with the copies that it has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import sharing

KEYS = jax.random.split(jax.random.key(0), 4)
TREES = [
    {
        "trunk": {"kernel": jax.random.normal(key, (4, 3))},
        "mid": [jax.random.normal(key, (3, 3)), jnp.ones(3)],
        "head": jax.random.normal(jax.random.fold_in(key, 1), (3, 2)),
    }
    for key in KEYS[:3]
]
X = jax.random.normal(KEYS[3], (3, 5, 4))
OWNERS = {"^mid": (0, 0, 1), "^mid/1": (0, 1, 1), "^head": range(3)}


def apply(params, x):
    x = jnp.tanh(x @ params["trunk"]["kernel"])
    return jnp.tanh(x @ params["mid"][0] + params["mid"][1][None]) @ params["head"]


def test_each_task_computes_with_its_copies():
    columns = sharing.columns(TREES[0], 3, OWNERS)
    stored = columns.stack(*TREES)
    assert jax.tree.map(len, stored) == {"trunk": {"kernel": 1}, "mid": [2, 2], "head": 3}
    outputs = columns.apply(apply)(stored, X)
    parts = [(0, 0, 0), (0, 0, 1), (2, 1, 2)]  # of which tree the two parts of mid, and the head's task
    for k, (kernel, bias, _) in enumerate(parts):
        params = {"trunk": TREES[0]["trunk"], "mid": [TREES[kernel]["mid"][0], TREES[bias]["mid"][1]]}
        np.testing.assert_allclose(outputs[k], apply(params | {"head": TREES[k]["head"]}, X[k]), rtol=1e-6)
        np.testing.assert_allclose(apply(columns.of_task(stored, k), X[k]), outputs[k], rtol=1e-6)
    assert list(columns.stacks(stored)) == ["head"]


def test_the_gradient_of_a_copy_is_the_sum_over_its_tasks():
    columns = sharing.columns(TREES[0], 3, OWNERS)
    stored = columns.stack(TREES[0])
    gradient = jax.grad(lambda stored: (columns.apply(apply)(stored, X) ** 2).sum())(stored)
    single = [jax.grad(lambda p, k=k: (apply(p, X[k]) ** 2).sum())(TREES[0]) for k in range(3)]
    np.testing.assert_allclose(gradient["trunk"]["kernel"][0], sum(g["trunk"]["kernel"] for g in single), rtol=1e-4)
    np.testing.assert_allclose(gradient["mid"][0][0], single[0]["mid"][0] + single[1]["mid"][0], rtol=1e-4)
    np.testing.assert_allclose(gradient["head"][2], single[2]["head"], rtol=1e-4)


@pytest.mark.parametrize(
    "owners, message",
    [
        ({"tail": range(3)}, "'tail' fits no parameter; there are head, mid/0"),
        ({"head": (0, 1)}, "for each of 3 tasks"),
        ({"head": (0, 2, 2)}, "an owner from 0 on"),
    ],
)
def test_mistakes(owners, message):
    with pytest.raises(ValueError, match=message):
        sharing.columns(TREES[0], 3, owners)
