"""The number by which steps and settings are chosen: against its formulas."""

import numpy as np
import pytest

from mtl_jax import checks
from mtl_jax.errors import UserError
from mtl_jax.evaluation.selection import AGGREGATES, Selection, relative_change

SCORES = {"a": 0.8, "b": 0.5}


def test_aggregates():
    single = {"a": 0.4, "b": 1.0}
    chosen = {name: Selection(name, {"a": 3.0}, single)(SCORES) for name in AGGREGATES}
    wanted = {
        "mean": 0.65,
        "min": 0.5,
        "geometric_mean": np.sqrt(0.4),
        "weighted": (3 * 0.8 + 0.5) / 4,
        "delta_m": (1.0 - 0.5) / 2,
    }
    assert chosen == pytest.approx(wanted)
    assert Selection("b")(SCORES) == 0.5 and Selection("c")(SCORES) is None
    for name in AGGREGATES:
        assert Selection(name)({}) is None
        if name != "mean":
            assert np.isnan(Selection(name, {}, single)({"a": None, "b": 0.5}))
    assert Selection("weighted", {"a": 0.0})({"a": None, "b": 0.5}) == 0.5
    assert Selection("geometric_mean")({"a": 0.0, "b": 0.5}) == 0 and np.isnan(Selection("geometric_mean")({"a": -1.0}))


def test_relative_changes_have_the_sign_of_their_metric():
    """Maninis et al. 2019, equation 4."""
    assert relative_change(SCORES, {"a": 0.4, "b": 1.0}, decreasing=("b",)) == pytest.approx((1.0 + 0.5) / 2)
    assert relative_change(SCORES, {"a": 0.4}) == pytest.approx(1.0)
    assert relative_change(SCORES, {"c": 0.4}) is None and relative_change(SCORES, {"a": 0.0}) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluation__selection": "maen"}, "did you mean 'mean'"),
        ({"evaluation__selection": "delta_m"}, "single_task_scores: 'delta_m' compares"),
        ({"evaluation__selection": "weighted", "evaluation__selection_weights": {"tag": 1.0}}, "did you mean 'tags'"),
        ({"evaluation__selection_weights": {"tags": 1.0}}, "selection = 'weighted'"),
    ],
)
def test_bad_selection(tiny, changes, message):
    with pytest.raises(UserError, match=message):
        checks.check(tiny(**changes), "train")
