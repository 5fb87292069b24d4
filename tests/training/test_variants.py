"""The same numbers with and without jit, under pmap and on several devices; and one program for every λ and rate."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import sharing
from mtl_jax.config import default
from mtl_jax.evaluation import evaluator as evaluator_module
from mtl_jax.evaluation.evaluator import evaluation_program
from mtl_jax.evaluation.scores import make_evaluator, placement_from_config
from mtl_jax.runs.build import build
from mtl_jax.tasks import crf, losses, segment_softmax
from mtl_jax.tasks.tags import legal_transitions
from mtl_jax.training.placement import make_placement
from mtl_jax.training.step import train_step

C = 3
RNG = np.random.default_rng(0)
EMISSIONS = RNG.normal(size=(4, C)).astype(np.float32)
MOVE, START, END = (RNG.normal(size=shape).astype(np.float32) for shape in ((C, C), (C,), (C,)))
COLUMNS = RNG.normal(size=(3, 2, 4)).astype(np.float32)


def scores():
    """{path: score} of all paths through `EMISSIONS`."""
    actual = {}
    for path in itertools.product(range(C), repeat=len(EMISSIONS)):
        moves = sum(MOVE[a, b] for a, b in itertools.pairwise(path))
        actual[path] = START[path[0]] + END[path[-1]] + moves + EMISSIONS[range(len(path)), path].sum()
    return actual


class Variants(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_the_crf_is_the_sum_over_all_paths(self):
        legal = legal_transitions(("A", "B", "C"), "")
        params = {"move": MOVE, "start": START, "end": END}

        @self.variant
        def run(emissions, segment, params):
            total = crf.log_partition(emissions, segment, params, legal)
            return total[:, -1], crf.viterbi(emissions, segment, params, legal)

        total, best = run(EMISSIONS[None], np.ones((1, len(EMISSIONS)), np.int32), params)
        every = scores()
        np.testing.assert_allclose(total, [np.log(np.sum(np.exp(list(every.values()))))], rtol=1e-5)
        assert tuple(np.asarray(best)[0].tolist()) == max(every, key=every.get)

    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_losses(self):
        target = np.eye(C, dtype=np.float32)[[0, 2, 1, 1]]
        actual = self.variant(functools.partial(losses.cross_entropy, smoothing=0.1))(EMISSIONS, target)
        p = np.exp(EMISSIONS) / np.exp(EMISSIONS).sum(-1, keepdims=True)
        np.testing.assert_allclose(actual, -((0.9 * target + 0.1 / C) * np.log(p)).sum(-1), rtol=1e-5)
        group, usable = np.asarray([[1, 1, 2]], np.int32), np.asarray([[True, True, True]])
        actual = self.variant(segment_softmax.log_softmax)(EMISSIONS[:1], group, usable)
        first = np.exp(EMISSIONS[0, :2])
        np.testing.assert_allclose(actual, [[*np.log(first / first.sum()), 0.0]], atol=1e-6)

    @chex.variants(with_jit=True, without_jit=True, with_device=True)
    def test_penalties(self):
        mean = COLUMNS.mean(0)
        actual = self.variant(sharing.PENALTIES["l2_to_mean"])(COLUMNS)
        np.testing.assert_allclose(actual, ((COLUMNS - mean) ** 2).sum(), rtol=1e-5)
        actual = self.variant(sharing.PENALTIES["trace_norm"])(COLUMNS)
        np.testing.assert_allclose(actual, np.linalg.svd(COLUMNS.reshape(3, -1), compute_uv=False).sum(), rtol=1e-4)


@pytest.fixture
def experiment(tiny, standard_promotion):
    config = tiny(train_tasks=("color", "long"), sharing__trunk="none", model__layer_type="cnn", optimizer__name="sgd")
    default.add_penalty(config, "l2", kind="l2_to_mean", strength=0.01)
    return build(config)


def batch_of(experiment, step):
    return jax.tree.map(lambda leaf: leaf[None], experiment.batches(0).batch(step))


def test_every_step_and_every_value_of_a_swept_field_is_one_trace(experiment):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(state, batch, hyper):
        return train_step(experiment.spec, state, batch, hyper)

    state, hyper = experiment.init(0), experiment.hyper
    for number in range(3):
        changed = hyper._replace(
            learning_rate=hyper.learning_rate * 2, strength={name: s + 0.1 for name, s in hyper.strength.items()}
        )
        state, hyper = step(state, batch_of(experiment, number), hyper)[0], changed
    assert int(state.step) == 3
    with pytest.raises(AssertionError, match="traced"):  # another type would be another program
        step(state, batch_of(experiment, 0), hyper._replace(learning_rate=jnp.bfloat16(0.1)))


def test_evaluations_of_all_splits_and_of_data_sets_of_like_size_are_one_trace(experiment, monkeypatch):
    chex.clear_trace_counter()
    made, whole = [], evaluation_program

    def counted(objective, *others):
        made.append(objective)
        return chex.assert_max_traces(whole(objective, *others), n=1)

    monkeypatch.setattr(evaluator_module, "evaluation_program", counted)
    evaluator = make_evaluator(experiment, placement_from_config(experiment))
    params = experiment.init_params(0)
    actual = [evaluator.score(params, split) for split in ("dev", "test", "dev")]
    assert len(made) == 1 and actual[0] == actual[2] and set(actual[1]) == {"color", "long"}


def test_pmap_is_faked_on_one_device(experiment):
    """The step of `training.placement = "pmap"` under vmap, where it can be debugged: that of all rows at once."""
    whole, _ = jax.jit(functools.partial(train_step, experiment.spec))(
        experiment.init(0), batch_of(experiment, 0), experiment.hyper
    )
    with chex.fake_pmap(jit_result=True):
        shape = {"data": jax.device_count(), "task": 1, "model": 1}
        placement = make_placement("pmap", shape, experiment.spec.slices, len(experiment.tasks))
        step = placement.train(functools.partial(train_step, experiment.spec))
        state = jax.device_get(placement.put_state(experiment.init(0)))
        state, _ = step(state, jax.device_get(placement.put_batch(batch_of(experiment, 0))), experiment.hyper)
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[0], state.params), whole.params, atol=1e-5)
