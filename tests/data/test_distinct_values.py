"""Different values and membership against Python's sets."""

import numpy as np
import pytest

from mtl_jax.data.distinct_values import distinct, is_among


@pytest.mark.parametrize("dtype", (np.uint64, np.int32, "S8", "U3"))
@pytest.mark.parametrize("sizes", ((0, 0), (0, 5), (5, 0), (40, 30), (1000, 7)))
def test_as_sets(dtype, sizes):
    rng = np.random.default_rng(0)
    values, others = (rng.integers(0, 60, size).astype(dtype) for size in sizes)
    assert distinct(values).tolist() == sorted(set(values.tolist()))
    expected = [value in set(others.tolist()) for value in values.tolist()]
    assert is_among(values, np.sort(others)).tolist() == expected


def test_nan_is_one_value():
    np.testing.assert_array_equal(distinct(np.asarray([np.nan, 2.0, np.nan, 1.0])), [1.0, 2.0, np.nan])
