"""Wrong shapes that would broadcast are refused where they come in, while a program is traced: nothing is compiled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.models.attention import attend
from mtl_jax.models.layers.convolution import CNN
from mtl_jax.models.layers.recurrent import LSTM, RNN, BiLSTM
from mtl_jax.runs.build import build
from mtl_jax.tasks import crf, distillation, features, losses, make_task, segment_softmax
from mtl_jax.tasks.base import Features
from mtl_jax.tasks.decoder import TokenScores
from mtl_jax.tasks.generation import Generation
from mtl_jax.tasks.metrics import evaluate
from mtl_jax.tasks.tags import legal_transitions
from mtl_jax.training.step import train_step

R, Q, E, T, C, D = 2, 5, 3, 6, 4, 8
LEGAL = legal_transitions(("O", "A", "B", "C"), "")


def f(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def i(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def b(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.bool_)


def with_params(function, *arguments):
    """`function(..., params, legal)` of the CRF."""
    params = {"move": f(C, C), "start": f(C), "end": f(C)}
    return lambda *given: function(*given[:-1], given[-1], LEGAL), (*arguments, params)


def layer(module):
    return lambda x, segment: module.init_with_output(jax.random.key(0), x, segment)[0]


def pooled(how):
    return lambda hidden, segment, start, among: features.pool(Features(hidden, segment, start, start), how, among)


def taught(share, teacher):
    task = make_task("r", {"kind": "regression", "low": 0.0, "high": 1.0}, "text", (), None, {})
    labels = {"value": jnp.ones((R, E)), "mask": jnp.ones((R, E), bool)}
    labels |= {"teacher": teacher, "teacher_mask": jnp.ones((R, E), bool)}
    return distillation.loss(task, distillation.Distillation(1.0, False), {}, jnp.ones((R, E)), labels, share)


def regression(logits, value, mask):
    task = make_task("r", {"kind": "regression", "low": 0.0, "high": 1.0}, "text", (), None, {})
    return task.loss({}, logits, {"value": value, "mask": mask})


def generation(vocabulary, value, mask, slot):
    labels = {"value": value, "mask": mask, "slot": slot}
    return Generation("g", ("a",) * C).loss({}, TokenScores(vocabulary, None, None, None), labels)


CASES = {  # (function, right arguments), the number of an argument and a wrong one in its place
    "cross-entropy": ((losses.cross_entropy, (f(R, E, C), f(R, E, C))), 1, f(1, E, C)),
    "cross-entropy of one distribution": ((losses.cross_entropy, (f(R, E, C), f(R, E, C))), 1, f(C)),
    "binary cross-entropy": ((losses.binary_cross_entropy, (f(R, E, C), f(R, E, C))), 1, f(R, 1, C)),
    "class sums": ((losses.class_sums, (f(R, E, C), f(R, E, C))), 0, f(1, E, C)),
    "ids and mask": ((lambda v, m: losses.soft_targets({"value": v, "mask": m}, C), (i(R, E), b(R, E))), 1, b(R, 1)),
    "distributions": (
        (lambda v, m: losses.soft_targets({"value": v, "mask": m}, C), (f(R, E, C), b(R, E))),
        0,
        f(R, E, 1),
    ),
    "partition, segments": (with_params(crf.log_partition, f(R, Q, C), i(R, Q)), 1, i(1, Q)),
    "partition, moves": (
        with_params(crf.log_partition, f(R, Q, C), i(R, Q)),
        2,
        {"move": f(1, C), "start": f(C), "end": f(C)},
    ),
    "score of tags": (
        (
            lambda e, s, t, p: crf.score(e, s, t, p),
            (f(R, Q, C), i(R, Q), i(R, Q), {"move": f(C, C), "start": f(C), "end": f(C)}),
        ),
        2,
        i(1, Q),
    ),
    "likelihood, labels": (with_params(crf.negative_log_likelihood, f(R, Q, C), i(R, Q), i(R, Q), b(R, Q)), 2, i(R, 1)),
    "likelihood, a mask of numbers": (
        with_params(crf.negative_log_likelihood, f(R, Q, C), i(R, Q), i(R, Q), b(R, Q)),
        3,
        i(R, Q),
    ),
    "marginals": (with_params(crf.marginal_cross_entropy, f(R, Q, C), i(R, Q), f(R, Q, C)), 2, f(1, Q, C)),
    "viterbi": (with_params(crf.viterbi, f(R, Q, C), i(R, Q)), 2, {"move": f(C, C), "start": f(1), "end": f(C)}),
    "softmax in groups": ((segment_softmax.log_softmax, (f(R, Q), i(R, Q), b(R, Q))), 2, b(R, 1)),
    "mean of tokens": ((pooled("mean"), (f(R, T, D), i(R, T), i(R, E), b(R, T))), 3, b(1, T)),
    "largest of tokens": ((pooled("max"), (f(R, T, D), i(R, T), i(R, E), b(R, T))), 1, i(1, T)),
    "vectors at tokens": ((features.gather_tokens, (f(R, T, D), i(R, Q))), 1, i(1, Q)),
    "sums by example": ((lambda v, s: features.sum_by_example(v, s, E), (f(R, Q), i(R, Q))), 0, f(1, Q)),
    "squared error": ((regression, (f(R, E), f(R, E), b(R, E))), 1, f(R, 1)),
    "written tokens": ((generation, (f(R, Q, C), i(R, Q), b(R, Q), i(R, Q))), 2, b(1, Q)),
    "a share for each": ((taught, (f(), f(R, E))), 0, f(E)),
    "attention": (
        (functools.partial(attend, noise=None), (f(R, T, 2, D), f(R, T, 2, D), f(R, T, 2, D), i(R, T))),
        3,
        i(1, T),
    ),
    "RNN": ((layer(RNN(D)), (f(R, T, D), i(R, T))), 1, i(1, T)),
    "LSTM": ((layer(LSTM(D)), (f(R, T, D), i(R, T))), 1, i(1, T)),
    "BiLSTM": ((layer(BiLSTM(D)), (f(R, T, D), i(R, T))), 1, i(1, T)),
    "CNN": ((layer(CNN(D, residual=False)), (f(R, T, D), i(R, T))), 1, i(1, T)),
}


@pytest.mark.parametrize("name", CASES)
def test_what_would_broadcast_is_refused(name):
    (function, right), number, wrong = CASES[name]
    with jax.numpy_rank_promotion("allow"):  # as for those who use the functions
        jax.eval_shape(function, *right)
        stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((7, *x.shape), x.dtype), right)
        jax.eval_shape(jax.vmap(function), *stacked)  # what is checked does not count the axes of a vmap
        with pytest.raises(AssertionError, match="Chex"):
            jax.eval_shape(function, *right[:number], wrong, *right[number + 1 :])


def test_columns_of_numbers_are_not_scored_as_a_matrix():
    assert evaluate("mse", np.zeros(3), np.ones(3), ()) == 1.0
    with pytest.raises(AssertionError, match="Chex"):
        evaluate("mse", np.zeros(3), np.ones((3, 1)), ())


@pytest.fixture
def traced(tiny, standard_promotion):
    """train_step of two tasks with spec and batch as they come, and changes of them; shapes alone."""
    experiment = build(tiny(train_tasks=("color", "long"), sharing__trunk="none"))
    state = jax.eval_shape(experiment.init, 0)
    batch = jax.tree.map(lambda leaf: leaf[None], experiment.batches(0).batch(0))

    def run(change_spec=lambda spec: spec, change_batch=lambda batch: batch):
        step = functools.partial(train_step, change_spec(experiment.spec))
        return jax.eval_shape(step, state, change_batch(batch), experiment.hyper)

    return run


def test_a_method_of_ones_own_gives_a_weight_for_each_task(traced):
    after, metrics = traced()
    assert metrics["alpha"].shape == (2,) and after.step.shape == ()

    def with_alpha(shape):
        def changed(spec):
            def method(**options):
                whole = spec.data_gradient.loss_weights(**options)

                def update(signals, state):
                    _, extra, state = whole.update(signals, state)
                    return jnp.ones(shape), extra, state

                return whole._replace(update=update)

            return spec._replace(data_gradient=spec.data_gradient._replace(loss_weights=method))

        return changed

    traced(with_alpha((2,)))
    with jax.numpy_rank_promotion("allow"):
        for shape in ((), (1,), (2, 1)):
            with pytest.raises(AssertionError, match="Chex"):
                traced(with_alpha(shape))


def test_rows_of_a_batch_have_one_shape(traced):
    def one_row(batch):
        return batch._replace(segment=batch.segment[:, :, :1])

    with jax.numpy_rank_promotion("allow"), pytest.raises(AssertionError, match="Chex"):
        traced(change_batch=one_row)
