"""The tables of levels name the same levels, and those of the kinds of tasks are among them."""

from mtl_jax.data.labels.label_spec import LEVELS as LABEL_LEVELS
from mtl_jax.data.packing.packed_labels import LEVEL_PACKERS
from mtl_jax.evaluation.label_levels import LEVELS
from mtl_jax.tasks import TASK_KINDS


def test_every_level_is_packed_and_scored():
    drawn = {name for name, level in LEVELS.items() if level.drawn}
    assert set(LABEL_LEVELS) == set(LEVELS) == set(LEVEL_PACKERS) | drawn
    assert {level for kind in TASK_KINDS.values() for level in kind.levels} == set(LEVELS)
