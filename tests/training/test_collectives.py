"""What a train step moves between 8 devices, read from the compiled program: no penalty gathers the tasks' stacks."""

import collections

import jax
import numpy as np
import pytest

from benchmarks.hlo import collectives
from mtl_jax.config import default
from mtl_jax.evaluation.scores import abstract_arrays, placement_from_config
from mtl_jax.experiment.penalties import task_stacks
from mtl_jax.models import activation_sharding
from mtl_jax.runs.build import build
from mtl_jax.training.parameter_paths import flatten
from mtl_jax.training.step import train_step

pytestmark = pytest.mark.usefixtures("standard_promotion")
OF_THE_GRAM = {
    "mean": {"kind": "l2_to_mean"},
    "pairs": {"kind": "l2_pairwise"},
    "trace": {"kind": "trace_norm"},
    "outside": {"kind": "subspace", "options": {"dim": 1}},
    "covariance": {"kind": "mtrl"},
    "kernel": {"kind": "kernel"},
    "determinant": {"kind": "log_det"},
    "anchor": {"kind": "l2_to_anchor"},
}
TASKS = ("color", "long")


def moved(tiny, mesh, penalties):
    """The collectives of a step, (kind, shape) -> how many, and the shapes of the stacks."""
    config = tiny(
        train_tasks=TASKS,
        sharing__trunk="none",
        model__layer_type="cnn",
        model__hidden_size=16,
        data__rows_per_block=8,
        training__mesh={"data": mesh[0], "task": mesh[1], "model": mesh[2]},
    )
    for name, fields in penalties.items():
        default.add_penalty(config, name, strength=0.1, **fields)
    experiment = build(config)
    placed = placement_from_config(experiment)
    state = abstract_arrays(jax.eval_shape(lambda: experiment.init(0)), placed)
    batch = placed.put_batch(jax.tree.map(lambda leaf: leaf[None], experiment.batches(0).batch(0)))
    step = placed.train(lambda s, b, h, axis: train_step(experiment.spec, s, b, h, axis))
    text = step.lower(state, batch, experiment.hyper).compile().as_text()
    stacks = task_stacks(flatten(state.params), experiment.owners)
    if mesh[2] > 1:  # else nothing is tested
        assert any("model" in leaf.sharding.spec for leaf in stacks.values())
    return collections.Counter((one.kind, one.shape) for one in collectives(text)), stacks


@pytest.fixture
def small_leaves_too(monkeypatch):
    """Leaves of this size are split over `model` as large ones are."""
    monkeypatch.setattr(activation_sharding, "LARGE_LEAF", 256)


def test_a_penalty_of_the_gram_moves_no_more_than_the_gram(tiny, small_leaves_too):
    plain, _ = moved(tiny, (1, 1, 8), {})
    with_penalties, _ = moved(tiny, (1, 1, 8), OF_THE_GRAM)
    added = with_penalties - plain
    assert added, "nothing was added: the penalties are not there, or features are not sharded"
    assert all(np.prod(shape) <= len(TASKS) ** 2 for _, shape in added), added


def test_stacks_over_tasks_are_not_gathered(tiny):
    mesh = (4, 2, 1)
    plain, stacks = moved(tiny, mesh, {})
    with_penalties, _ = moved(tiny, mesh, OF_THE_GRAM)
    small = min(leaf.size for leaf in stacks.values() if leaf.ndim > 2)
    added = {(kind, shape) for kind, shape in with_penalties - plain if kind != "all-to-all"}
    assert all(np.prod(shape) < small for _, shape in added), added
