"""The inputs of heads: entries of several blocks and tasks as one array."""

import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.data.batch import BatchLayout
from mtl_jax.models.head_inputs import HeadInputs

OWN = BatchLayout(("a", "b"), ("x", "y", "z"), (0, 0, 1), ((0,), (1,)))
DRAWN = BatchLayout(("a", "b"), ("x", "y", "z"), (0, 0, 1), ((0, 1), (0, 1)))


def features(count, width=4):
    return jnp.asarray(np.random.default_rng(width).normal(size=(count, 2, 3, width)).astype(np.float32))


def test_entries_of_blocks_of_their_own():
    narrow, wide = features(2), features(1, 6)  # x and y read one stream of block 0, z another width in block 1
    inputs = HeadInputs((narrow, wide), jnp.asarray([0, 1]), ((0, -1), (1, -1), (-1, 2)), OWN)
    by_task = inputs.by_task()
    np.testing.assert_array_equal(by_task["y"], narrow[1])
    np.testing.assert_array_equal(by_task["z"], wide[0])
    assert inputs.take(np.asarray([0, 0]), np.asarray([[0, -1], [1, -1]])) is narrow
    swapped = inputs.take(np.asarray([0, 0]), np.asarray([[1, -1], [0, -1]]))
    np.testing.assert_array_equal(swapped, narrow[::-1])
    with pytest.raises(ValueError, match="different widths"):
        inputs.take(np.asarray([0, 1]), np.asarray([[0, -1], [-1, 2]]))
    with pytest.raises(ValueError, match="'x' has no features in block 1"):
        inputs.take(np.asarray([1]), np.asarray([[0, 0]]))


@pytest.mark.parametrize("dataset", [(0, 1), (1, 0), (1, 1)])
def test_the_task_of_a_drawn_block_is_picked_by_its_data_set(dataset):
    stored = features(6)
    inputs = HeadInputs((stored,), jnp.asarray(dataset), ((0, 3), (1, 4), (2, 5)), DRAWN)
    taken = inputs.take(np.asarray([0, 1]), np.asarray([[1, 2], [1, 2]]))  # y on a, z on b
    for block, locked in enumerate(dataset):
        np.testing.assert_array_equal(taken[block], stored[(1, 2)[locked] + 3 * block])
    # where a block has no such task, anything but NaN
    assert np.isfinite(inputs.take(np.asarray([0, 1]), np.asarray([[-1, 2], [0, -1]]))).all()
