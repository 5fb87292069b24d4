"""Greedy and beam search against all sequences there are, on small vocabularies."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.tasks import beam_search

BEGIN, END, V, L = 3, 2, 4, 4  # tokens 0 and 1, the end, the beginning


def model(seed, count):
    """A step whose log p depends on all tokens so far, through a cache, and its float64 twin on prefixes."""
    rng = np.random.default_rng(seed)
    first, moves, out = rng.normal(size=(count, 6)), rng.normal(size=(V, 6, 6)), 2.0 * rng.normal(size=(6, V))

    def step(cache, tokens, number):
        moved = jnp.einsum("nbi,nbij->nbj", cache, jnp.asarray(moves, jnp.float32)[tokens])
        state = jnp.tanh(moved + 0.1 * number.astype(jnp.float32))
        log_p = jax.nn.log_softmax(state @ jnp.asarray(out, jnp.float32)).at[..., BEGIN].set(beam_search.IMPOSSIBLE)
        return log_p, state

    def of(example, sequence):
        """log p of a sequence, its end included where it has one."""
        state, total = first[example], 0.0
        for number, (before, token) in enumerate(zip((BEGIN, *sequence), sequence, strict=False)):
            state = np.tanh(state @ moves[before] + 0.1 * number)
            scores = state @ out
            total += scores[token] - np.log(np.exp(scores).sum())
        return total

    def cache(width):
        return jnp.broadcast_to(jnp.asarray(first, jnp.float32)[:, None], (count, width, 6))

    return step, of, cache


def every_sequence():
    """All that end within L tokens, and all of L tokens that do not."""
    for n in range(L):
        yield from ((*s, END) for s in itertools.product((0, 1), repeat=n))
    yield from itertools.product((0, 1), repeat=L)


def padded(sequence):
    tokens = [t for t in sequence if t != END]
    return tokens + [-1] * (L - len(tokens))


@functools.lru_cache
def found(seed, width, alpha, count=5, greedy=False):
    step, of, cache = model(seed, count)
    ends = {"begin": BEGIN, "end": END, "max_length": L}
    if greedy:
        run = jax.jit(lambda c, a: beam_search.greedy_search(step, c, a, **ends))
    else:
        run = jax.jit(lambda c, a: beam_search.beam_search(step, c, a, **ends, width=width, alpha=alpha))
    return jax.device_get(run(cache(width), jnp.arange(count) != 2)), of


@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_a_wide_beam_finds_the_best_of_all_sequences_in_their_order(alpha, differs):
    width = 40  # more than the 15 that end and 16 that are cut
    result, of = found(0, width, alpha)
    for example in (0, 1, 3, 4):
        scores = {s: of(example, s) / ((5 + len(s)) / 6) ** alpha for s in every_sequence()}
        ranked = sorted(scores, key=lambda s: -scores[s])
        assert [list(t) for t in result.tokens[example][: len(ranked)]] == [padded(s) for s in ranked]
        differs(
            "beam search against all sequences", result.score[example][: len(ranked)], [scores[s] for s in ranked], 2e-5
        )
        assert (result.score[example][len(ranked) :] <= beam_search.IMPOSSIBLE).all()
    assert (result.tokens[2] == -1).all()  # no example, no text


def test_width_one_is_greedy_whatever_the_penalty():
    (greedy, of), (beam, _) = found(1, 1, 0.0, greedy=True), found(1, 1, 3.0)
    np.testing.assert_array_equal(greedy.tokens, beam.tokens)
    lengths = set()
    for example in (0, 1, 3, 4):  # by hand: the likeliest next token each time
        sequence = ()
        while len(sequence) < L and END not in sequence:
            sequence += (max((0, 1, END), key=lambda t: of(example, (*sequence, t))),)
        assert padded(sequence) == list(greedy.tokens[example, 0])
        assert greedy.score[example, 0] == pytest.approx(of(example, sequence), abs=1e-5)
        lengths.add(len(sequence))
    assert len(lengths) > 1


def test_neighbours_do_not_matter_and_no_beam_is_better_than_all():
    (three, _), (all_, _) = (found(3, width, 0.0) for width in (3, 40))
    assert (three.score[:, 0] <= all_.score[:, 0] + 1e-6).all()
    step, _, cache = model(3, 5)
    ends = {"begin": BEGIN, "end": END, "max_length": L}
    alone = jax.jit(lambda c, a: beam_search.beam_search(step, c, a, **ends, width=3, alpha=0.0))
    for example in (0, 4):
        result = jax.device_get(alone(cache(3), jnp.arange(5) == example))
        np.testing.assert_array_equal(result.tokens[example], three.tokens[example])
