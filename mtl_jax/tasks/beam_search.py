"""Greedy and beam search with a cache, batched over N examples, inside `jit`.

A step generates one token of each of B hypotheses of each example:

    step(cache, tokens int32[N, B], number) -> (log p of the next token float32[N, B, V], cache)

`tokens` are the last ones, `number` = 0, 1, ... counts them (int32 scalar); all leaves of the cache have leading axes
[N, B], unless `reorder` says otherwise. The loops end when every example is done, at `max_length` at the latest. What
an example gets does not depend on the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Step = Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, Any]]
IMPOSSIBLE = -1e30  # log p of what is excluded; finite, so that the difference of two is no NaN


def reorder_cache(cache: Any, parents: jax.Array) -> Any:
    """The leaves [N, A, ...] of a cache at `parents` [N, B]: [N, B, ...]."""
    return jax.tree.map(lambda leaf: _take(leaf, parents), cache)


class SearchResult(NamedTuple):
    """tokens int32[N, B, L], the best hypothesis first, -1 after its end, without the end token;
    score float32[N, B], log p over the length penalty, NEVER where there is no such hypothesis.
    """

    tokens: jax.Array
    score: jax.Array


def length_penalty(length: jax.Array, alpha: float) -> jax.Array:
    """((5 + |Y|) / 6)^α of Wu et al. (2016, eq. 14); |Y| counts the end token. float32."""
    return ((5.0 + length.astype(jnp.float32)) / 6.0) ** alpha


def greedy_search(
    step: Step, cache: Any, active: jax.Array, *, begin: int | jax.Array, end: int, max_length: int
) -> SearchResult:
    """The most likely token at each step, until `end` or `max_length` tokens (`end` counted). B = 1, score = log p.

    Args:
      step, cache: see the head of this file; B = 1.
      active: bool[N], False for places without an example, which yield no tokens.
      begin: the token before the first, int32[N] where it differs.
    """
    count = active.shape[0]

    def more(state):
        number, done, *_ = state
        return (number < max_length) & ~done.all()

    def write(state):
        number, done, last, tokens, score, cache = state
        log_p, cache = step(cache, last[:, None], number)
        token = jnp.argmax(log_p[:, 0], axis=-1).astype(jnp.int32)
        score = score + jnp.where(done, 0.0, jnp.max(log_p[:, 0], axis=-1))
        ended = done | (token == end)
        tokens = tokens.at[:, number].set(jnp.where(ended, -1, token))
        return number + 1, ended, token, tokens, score, cache

    first = jnp.broadcast_to(jnp.asarray(begin, jnp.int32), (count,))
    tokens = jnp.full((count, max_length), -1, jnp.int32)
    state = (jnp.int32(0), ~active, first, tokens, jnp.zeros((count,), jnp.float32), cache)
    _, _, _, tokens, score, _ = jax.lax.while_loop(more, write, state)
    return SearchResult(tokens[:, None], jnp.where(active, score, IMPOSSIBLE)[:, None])


class _Beam(NamedTuple):
    """number  tokens written; done [N]; open hypotheses: last [N, B], tokens [N, B, L], log_p [N, B]; ended ones as
    `SearchResult`; cache.
    """

    number: jax.Array
    done: jax.Array
    last: jax.Array
    tokens: jax.Array
    log_p: jax.Array
    ended: SearchResult
    cache: Any


def beam_search(
    step: Step,
    cache: Any,
    active: jax.Array,
    *,
    begin: int | jax.Array,
    end: int,
    max_length: int,
    width: int,
    alpha: float,
    reorder: Callable[[Any, jax.Array], Any] = reorder_cache,
) -> SearchResult:
    """Beam search over B = `width` hypotheses.

    Of the continuations of all open hypotheses the best B non-ended ones stay open. One that ends counts where it is
    among the best B, and an example is done when B have ended (as fairseq does, Ott et al. 2019): width 1 is greedy
    search. Hypotheses that are open after `max_length` tokens count as they are.

    Args:
      step, cache, active, begin: as in `greedy_search`, for B = `width`.
      end: the token that ends a hypothesis.
      max_length: tokens at most, `end` counted.
      alpha: of the length penalty.
      reorder: (cache, parents int32[N, B]) -> the cache of the hypotheses that continue those.
    """
    count = active.shape[0]

    def more(state: _Beam):
        return (state.number < max_length) & ~state.done.all()

    def write(state: _Beam):
        log_p, cache = step(state.cache, state.last, state.number)
        size = log_p.shape[-1]
        total = (state.log_p[:, :, None] + log_p).reshape(count, width * size)
        score, index = jax.lax.top_k(total, min(2 * width, width * size))
        parent, token = index // size, (index % size).astype(jnp.int32)
        possible = score > IMPOSSIBLE / 2
        ends = (token == end) & possible
        before = _take(state.tokens, parent)
        after = before.at[:, :, state.number].set(token)

        penalised = score / length_penalty(state.number + 1, alpha)
        counts = ends & (jnp.arange(score.shape[1]) < width)[None]
        ended = _best(state.ended, SearchResult(before, jnp.where(counts, penalised, IMPOSSIBLE)), width)
        ended = jax.tree.map(lambda old, new: _where(state.done, old, new), state.ended, ended)

        open_score, chosen = jax.lax.top_k(jnp.where(ends | ~possible, IMPOSSIBLE, score), min(width, score.shape[1]))
        chosen, open_score = _widen(chosen, open_score, width)
        parents = _take(parent, chosen)
        done = state.done | (ended.score > IMPOSSIBLE / 2).all(axis=1) | (open_score <= IMPOSSIBLE / 2).all(axis=1)
        cache = reorder(cache, parents)
        return _Beam(state.number + 1, done, _take(token, chosen), _take(after, chosen), open_score, ended, cache)

    no_tokens = jnp.full((count, width, max_length), -1, jnp.int32)
    only_first = jnp.where(jnp.arange(width) == 0, 0.0, IMPOSSIBLE)
    state = _Beam(
        jnp.int32(0),
        ~active,
        jnp.broadcast_to(jnp.asarray(begin, jnp.int32).reshape(-1, 1), (count, width)),
        no_tokens,
        jnp.broadcast_to(only_first, (count, width)),
        SearchResult(no_tokens, jnp.full((count, width), IMPOSSIBLE)),
        cache,
    )
    state = jax.lax.while_loop(more, write, state)
    is_open = ~state.done[:, None] & (state.log_p > IMPOSSIBLE / 2)
    open_scores = jnp.where(is_open, state.log_p / length_penalty(state.number, alpha), IMPOSSIBLE)
    return _best(state.ended, SearchResult(state.tokens, open_scores), width)


def _best(left: SearchResult, right: SearchResult, width: int) -> SearchResult:
    """The best of both, [N, width]."""
    tokens, score = (jnp.concatenate(pair, axis=1) for pair in zip(left, right, strict=True))
    score, index = jax.lax.top_k(score, width)
    return SearchResult(jnp.where((score > IMPOSSIBLE / 2)[:, :, None], _take(tokens, index), -1), score)


def _widen(chosen: jax.Array, score: jax.Array, width: int) -> tuple[jax.Array, jax.Array]:
    """Places for `width` hypotheses where there are fewer continuations."""
    lacking = ((0, 0), (0, width - score.shape[1]))
    return jnp.pad(chosen, lacking), jnp.pad(score, lacking, constant_values=IMPOSSIBLE)


def _take(leaf: jax.Array, index: jax.Array) -> jax.Array:
    """leaf [N, A, ...] at index [N, B]: [N, B, ...]."""
    return jax.vmap(lambda one, at: one[at])(leaf, index)


def _where(condition: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
    return jnp.where(condition.reshape(-1, *(1,) * (old.ndim - 1)), old, new)
