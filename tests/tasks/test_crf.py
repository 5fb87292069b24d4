"""The CRF against the sum over all paths, written out in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.tasks import crf
from mtl_jax.tasks.tags import legal_transitions

CASES = [
    (("A", "B", "C", "D"), ""),
    (("A", "B"), ""),
    (("O", "B-X", "I-X"), "iob2"),
    (("B-X", "B-Y", "I-X", "I-Y"), "iob2"),
    (("O", "B-X", "E-X", "S-X"), "bioes"),
]
LENGTHS = (3, 1, 5, 2, 4)


def problem(seed, names, scheme, scale=2.0):
    """One row of five sequences with two positions of padding: emissions [Q, C], segment [Q], params, legal moves."""
    rng = np.random.default_rng(seed)
    c = len(names)
    segment = np.concatenate([np.repeat(np.arange(1, 6), LENGTHS), [0, 0]]).astype(np.int32)
    params = {"move": rng.normal(size=(c, c)), "start": rng.normal(size=c), "end": rng.normal(size=c)}
    return scale * rng.normal(size=(len(segment), c)), segment, params, legal_transitions(names, scheme)


def paths(emissions, params, legal):
    """All legal paths of one sequence with their scores, one by one."""
    n, c = emissions.shape
    out = {}
    for y in itertools.product(range(c), repeat=n):
        if legal.start[y[0]] and legal.end[y[-1]] and all(legal.move[a, b] for a, b in itertools.pairwise(y)):
            moves = sum(params["move"][a, b] for a, b in itertools.pairwise(y))
            out[y] = emissions[range(n), y].sum() + params["start"][y[0]] + params["end"][y[-1]] + moves
    return out


def log_sum(scores):
    scores = np.array(list(scores))
    return scores.max() + np.log(np.exp(scores - scores.max()).sum())


def on_device(emissions, segment, params, dtype=None):
    """The row twice, the second time with its padding in front."""
    rolled = np.roll(emissions, 2, axis=0), np.roll(segment, 2)
    rows = jnp.asarray(np.stack([emissions, rolled[0]]), dtype), jnp.asarray(np.stack([segment, rolled[1]]))
    return *rows, jax.tree.map(lambda x: jnp.asarray(x, dtype), params)


@pytest.mark.parametrize(("names", "scheme"), CASES)
def test_partition_viterbi_and_marginals_equal_enumeration(names, scheme, differs):
    emissions, segment, params, legal = problem(0, names, scheme)
    with jax.enable_x64(True):
        args = on_device(emissions, segment, params)
        log_z = np.asarray(jax.jit(crf.log_partition, static_argnums=3)(*args, legal))
        best = np.asarray(jax.jit(crf.viterbi, static_argnums=3)(*args, legal))
        marginal = np.asarray(jax.jit(crf.marginals, static_argnums=3)(*args, legal))
        scores = np.asarray(jax.jit(crf.score)(*args[:2], jnp.asarray(np.maximum(best, 0)), args[2]))
    assert log_z.dtype == np.float64
    for row, shift in ((0, 0), (1, 2)):
        for s in range(1, 6):
            where = np.flatnonzero(segment == s)
            table = paths(emissions[where], params, legal)
            where = where + shift
            expected = log_sum(table.values())
            differs("CRF log-partition against enumeration", log_z[row, where[-1]], expected, 1e-10)
            assert not log_z[row, where[:-1]].any()
            top = max(table, key=table.get)
            assert tuple(best[row, where]) == top
            np.testing.assert_allclose(scores[row, where[-1]], table[top], rtol=1e-12)
            p = np.zeros((len(where), len(names)))
            for y, value in table.items():
                p[range(len(y)), y] += np.exp(value - expected)
            differs("CRF marginals against enumeration", marginal[row, where], p, 1e-12)
    padding = np.stack([segment, np.roll(segment, 2)]) == 0
    assert (best[padding] == -1).all() and not log_z[padding].any() and not scores[padding].any()


@pytest.mark.parametrize(("names", "scheme"), CASES)
def test_unknown_words_are_summed_out(names, scheme):
    emissions, segment, params, legal = problem(1, names, scheme)
    rng = np.random.default_rng(2)
    value, mask = np.zeros(len(segment), np.int32), rng.random(len(segment)) < 0.5
    mask[segment == 4] = False
    mask &= segment > 0
    expected = np.zeros(len(segment))
    for s in range(1, 6):
        where = np.flatnonzero(segment == s)
        table = paths(emissions[where], params, legal)
        gold = list(table)[rng.integers(len(table))]
        value[where] = gold
        known = mask[where]
        fitting = [v for y, v in table.items() if all(a == b for a, b, k in zip(y, gold, known, strict=True) if k)]
        expected[where[-1]] = log_sum(table.values()) - log_sum(fitting)

    def loss(e, p):
        labels = (jnp.asarray(value)[None], jnp.asarray(mask)[None])
        return crf.negative_log_likelihood(e, jnp.asarray(segment)[None], *labels, p, legal)

    with jax.enable_x64(True):
        double = (jnp.asarray(emissions)[None], jax.tree.map(jnp.asarray, params))
        np.testing.assert_allclose(jax.jit(loss)(*double)[0], expected, atol=1e-12)
    single = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (jnp.asarray(emissions)[None], params))
    np.testing.assert_allclose(jax.jit(loss)(*single)[0], expected, atol=2e-5)


def test_derivatives_forward_reverse_and_second():
    emissions, segment, params, legal = problem(8, ("O", "B-X", "I-X"), "iob2")
    rng = np.random.default_rng(9)
    mask = (rng.random(len(segment)) < 0.7) & (segment > 0) & (segment != 4)
    value = np.where(rng.random(len(segment)) < 0.5, 0, 1).astype(np.int32)

    def loss(inputs):
        labels = (jnp.asarray(value)[None], jnp.asarray(mask)[None])
        return crf.negative_log_likelihood(inputs[0], jnp.asarray(segment)[None], *labels, inputs[1], legal).sum()

    with jax.enable_x64(True):
        inputs = (jnp.asarray(emissions)[None], jax.tree.map(jnp.asarray, params))
        direction = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), inputs)
        both = jax.jit(lambda x: jax.jvp(jax.grad(loss), (x,), (direction,)))
        gradient, hessian_vector = both(inputs)
        forward = jax.jit(lambda x: jax.jvp(loss, (x,), (direction,))[1])(inputs)
        ahead, behind = (jax.tree.map(lambda x, d, h=h: x + h * d, inputs, direction) for h in (1e-5, -1e-5))
        value_of = jax.jit(loss)
        quotient = (value_of(ahead) - value_of(behind)) / 2e-5
        quotients = jax.tree.map(lambda a, b: (a - b) / 2e-5, both(ahead)[0], both(behind)[0])
    reverse = sum(np.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True))
    np.testing.assert_allclose([reverse, forward], quotient, rtol=1e-7)
    for second, near in zip(jax.tree.leaves(hessian_vector), jax.tree.leaves(quotients), strict=True):
        np.testing.assert_allclose(second, near, atol=1e-6)
    assert not np.asarray(gradient[0][0])[segment == 4].any()  # no label there
    assert not np.asarray(gradient[1]["move"])[~legal.move].any()


@pytest.mark.parametrize("scale", [1.0, 100.0, 3000.0])
def test_float32_stays_right_when_scores_are_far_apart(scale):
    """At scale 3000 whole paths are thousands of nats apart: exponentials of raw scores would be 0 or inf."""
    emissions, segment, params, legal = problem(3, ("O", "B-X", "I-X", "B-Y", "I-Y"), "iob2", scale)
    expected = np.zeros(len(segment))
    for s in range(1, 6):
        where = np.flatnonzero(segment == s)
        expected[where[-1]] = log_sum(paths(emissions[where], params, legal).values())
    e, s, p = on_device(emissions, segment, params, jnp.float32)

    def total(e, p):
        each = crf.log_partition(e, s, p, legal)[0]
        return each.sum(), each

    grads, each = jax.jit(jax.grad(total, (0, 1), has_aux=True))(e, p)
    np.testing.assert_allclose(each, expected, rtol=1e-6)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    np.testing.assert_allclose(grads[0][0].sum(-1), segment > 0, atol=1e-5)  # marginals sum to one


@pytest.mark.parametrize("scheme", ["", "iob2", "bioes"])
def test_fast_sum_over_predecessors_equals_the_plain_one(scheme):
    rng = np.random.default_rng(4)
    prefixes = {"": "BI", "iob2": "BI", "bioes": "BIES"}[scheme]
    names = ("O", *sorted(f"{p}-{i}" for p in prefixes for i in range(9)))
    legal = legal_transitions(names, scheme).move
    move = np.where(legal, 3 * rng.normal(size=legal.shape), crf.FORBIDDEN)
    sums = 200 * rng.normal(size=(6, len(names)))
    plain = jax.nn.logsumexp(jnp.asarray(sums[:, :, None] + move[None], jnp.float32), axis=1)
    single = (jnp.asarray(x, jnp.float32) for x in (move, sums))
    fast = jax.jit(lambda move, sums: crf._advance(move, legal)(sums))(*single)
    np.testing.assert_allclose(fast, plain, rtol=1e-6, atol=1e-4)


def test_viterbi_is_legal_even_where_the_scores_ask_for_what_is_not():
    names = ("O", "B-X", "I-X", "E-X", "S-X", "B-Y", "I-Y", "E-Y", "S-Y")
    legal = legal_transitions(names, "bioes")
    rng = np.random.default_rng(5)
    segment = np.repeat(np.arange(1, 41), 5)[None].astype(np.int32)
    emissions = 1000 * rng.normal(size=(1, 200, 9)).astype(np.float32)
    emissions[..., 2] += 5000  # I-X everywhere, even at both ends
    args = jnp.asarray(emissions), jnp.asarray(segment), crf.init_params(9)
    tags = np.asarray(jax.jit(crf.viterbi, static_argnums=3)(*args, legal)).reshape(40, 5)
    for y in tags:
        assert legal.start[y[0]] and legal.end[y[-1]] and all(legal.move[a, b] for a, b in itertools.pairwise(y))
    assert (tags[:, 1:4] == 2).all()


@pytest.mark.parametrize(("names", "scheme"), CASES[2:])
def test_what_reachable_keeps_has_a_path_and_good_labels_are_all_kept(names, scheme):
    legal = legal_transitions(names, scheme)
    n, c = 4, len(names)
    table = list(paths(np.zeros((n, c)), {"move": np.zeros((c, c)), "start": np.zeros(c), "end": np.zeros(c)}, legal))
    every = np.array(list(itertools.product(range(c), repeat=n)), np.int32)
    rng = np.random.default_rng(6)
    known = rng.random(every.shape) < 0.8
    segment = jnp.ones(every.shape, jnp.int32)
    remaining = np.asarray(
        jax.jit(lambda v, m: crf.reachable(v, m, segment, legal))(jnp.asarray(every), jnp.asarray(known))
    )
    assert not (remaining & ~known).any() and remaining.any(1).sum() > len(every) // 2
    for y, k, mask in zip(every, known, remaining, strict=True):
        fits = [all(a == b for a, b, use in zip(path, y, mask, strict=True) if use) for path in table]
        assert any(fits)
        if any(all(a == b for a, b, use in zip(path, y, k, strict=True) if use) for path in table):
            assert (mask == k).all()


def test_a_soft_label_at_one_class_is_the_marginal_of_that_class():
    emissions, segment, params, legal = problem(7, ("O", "B-X", "I-X"), "iob2")
    e, s, p = on_device(emissions, segment, params, jnp.float32)
    target = jnp.zeros(e.shape).at[:, :, 0].set(0.25).at[:, :, 1].set(0.75)

    @jax.jit
    def loss_and_grad(e):
        def total(e):
            loss = crf.marginal_cross_entropy(e, s, target, p, legal)
            return jnp.where(s > 0, loss, 0.0).sum(), loss

        return jax.grad(total, has_aux=True)(e)

    grad, loss = loss_and_grad(e)
    m = np.asarray(jax.jit(crf.marginals, static_argnums=3)(e, s, p, legal))
    real = np.asarray(s) > 0
    expected = -0.25 * np.log(m[real][:, 0]) - 0.75 * np.log(m[real][:, 1])
    np.testing.assert_allclose(np.asarray(loss)[real], expected, rtol=1e-5)
    assert np.isfinite(grad).all() and np.abs(grad).max() > 0
