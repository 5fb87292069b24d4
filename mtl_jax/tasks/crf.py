"""Linear-chain conditional random field (Lafferty et al. 2001) over packed rows.

A row holds several sequences one after another: segment int32[R, Q] = 1, 2, ... and 0 in the padding. Every recurrence
restarts where the segment changes, so that each sequence gives what it gives alone. Values of sequences are at
their last word, [R, Q], zero elsewhere.

    score(y) = start[y_1] + Σ_t emission[t, y_t] + Σ_t move[y_t, y_t+1] + end[y_n]

Illegal moves have the finite score FORBIDDEN, never -inf: (-inf) - (-inf) has no gradient.
"""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.tasks.base import Params
from mtl_jax.tasks.tags import TransitionMask

FORBIDDEN = -1e9
FEW_PREDECESSORS = 2  # tags with at most this many legal predecessors are summed one by one


def init_params(classes: int) -> Params:
    """{"move": [C, C] from, to, "start": [C], "end": [C]}, float32 zeros."""
    return {"move": jnp.zeros((classes, classes)), "start": jnp.zeros(classes), "end": jnp.zeros(classes)}


def log_partition(
    emissions: jax.Array, segment: jax.Array, params: Params, legal: TransitionMask, allowed: jax.Array | None = None
) -> jax.Array:
    """log Σ_y exp(score(y)) of each sequence over the legal paths, [R, Q] at the last words.

    emissions [R, Q, C]; `allowed` bool[R, Q, C] leaves only the paths through allowed tags. At most about FORBIDDEN
    where no path is left.
    """
    _check_shapes(emissions, segment, params)
    if allowed is not None:
        chex.assert_equal_shape([emissions, allowed])
        emissions = jnp.where(allowed, emissions, FORBIDDEN)
    prefix = _prefix_sums(emissions, segment, params, legal)
    end = _masked(params["end"], legal.end)
    total = jax.nn.logsumexp(prefix + jnp.broadcast_to(end, prefix.shape), axis=-1)
    return jnp.where(last_words(segment), total, 0.0)


def score(emissions: jax.Array, segment: jax.Array, tags: jax.Array, params: Params) -> jax.Array:
    """Score of the path `tags` int32[R, Q] of each sequence, legal or not, [R, Q] at the last words."""
    _check_shapes(emissions, segment, params)
    chex.assert_equal_shape([tags, segment])
    first, last = first_words(segment), last_words(segment)
    local = jnp.take_along_axis(emissions, tags[..., None], axis=-1)[..., 0]
    local += jnp.where(first, params["start"][tags], params["move"][jnp.roll(tags, 1, axis=1), tags])
    local += jnp.where(last, params["end"][tags], 0.0)
    before = jnp.cumsum(local, axis=1) - local
    return jnp.where(last, local + before - _at_first_word(before, first), 0.0)


def negative_log_likelihood(
    emissions: jax.Array, segment: jax.Array, value: jax.Array, mask: jax.Array, params: Params, legal: TransitionMask
) -> jax.Array:
    """-log p(known labels) of each sequence, [R, Q] at the last words, 0 where no label is known.

    value int32[R, Q], mask bool[R, Q]: tags of words with mask False are summed out (partial supervision, Tsuboi et
    al. 2008). Labels that no legal path can pass through must have mask False, see `reachable`.
    """
    chex.assert_equal_shape([value, mask, segment])
    chex.assert_type([value, mask], [int, bool])  # ~ of numbers is no negation
    tag = jnp.arange(emissions.shape[-1], dtype=value.dtype)
    allowed = (value[..., None] == tag[None, None, :]) | ~mask[..., None]
    # the free and the constrained sum in one scan
    both = jnp.concatenate([emissions, jnp.where(allowed, emissions, FORBIDDEN)])
    free, constrained = jnp.split(log_partition(both, jnp.concatenate([segment, segment]), params, legal), 2)
    known = mask.astype(jnp.int32)
    before = jnp.cumsum(known, axis=1) - known
    any_known = known + before > _at_first_word(before, first_words(segment))
    return jnp.where(any_known, free - constrained, 0.0)


def marginals(emissions: jax.Array, segment: jax.Array, params: Params, legal: TransitionMask) -> jax.Array:
    """p(y_t = c | x), [R, Q, C]: the gradient of the log-partition in the emissions; zeros in the padding."""
    return jax.grad(lambda e: log_partition(e, segment, params, legal).sum())(emissions)


def marginal_cross_entropy(
    emissions: jax.Array, segment: jax.Array, target: jax.Array, params: Params, legal: TransitionMask
) -> jax.Array:
    """-Σ_c q_c log p(y_t = c | x) of each word, [R, Q], for label distributions q = `target` [R, Q, C].

    The marginal likelihood of Kakade et al. (2002). Probabilities count as at least 1e-9, since q may lie on tags that
    no legal path takes.
    """
    chex.assert_equal_shape([target, emissions])
    return -(target * jnp.log(jnp.maximum(marginals(emissions, segment, params, legal), 1e-9))).sum(-1)


def viterbi(emissions: jax.Array, segment: jax.Array, params: Params, legal: TransitionMask) -> jax.Array:
    """The legal path of the highest score of each sequence, int32[R, Q]; -1 in the padding."""
    _check_shapes(emissions, segment, params)
    move, start, end = (_masked(params[n], getattr(legal, n)) for n in ("move", "start", "end"))
    first, last = (jnp.moveaxis(f(segment), 1, 0) for f in (first_words, last_words))
    scores = jnp.moveaxis(emissions, 1, 0)

    def forward(best, x):
        emission, is_first = x
        reached = (best[:, :, None] + move[None]).max(1)
        best = jnp.where(is_first[:, None], start[None], reached) + emission
        return best, best

    def backward(following, x):
        best, is_last = x
        onward = jnp.where(is_last[:, None], end[None], move.T[following])
        tag = jnp.argmax(best + onward, axis=-1).astype(jnp.int32)
        return tag, tag

    _, best = jax.lax.scan(forward, jnp.zeros_like(scores[0]), (scores, first))
    _, tags = jax.lax.scan(backward, jnp.zeros(segment.shape[0], jnp.int32), (best, last), reverse=True)
    return jnp.where(segment > 0, jnp.moveaxis(tags, 0, 1), -1)


def reachable(value: jax.Array, mask: jax.Array, segment: jax.Array, legal: TransitionMask) -> jax.Array:
    """`mask` bool[R, Q] less the labels that break the scheme, so that the rest always has a legal path.

    From left to right a label is kept if a legal path leads to it from the last label kept and on to the end.
    Ill-formed gold tags thus count as unknown words, one by one.
    """
    chex.assert_equal_shape([value, mask, segment])
    chex.assert_type([value, mask, segment], [int, bool, int])
    classes = len(legal.start)
    table = jnp.asarray(_reach(tuple(map(tuple, legal.move.tolist())), tuple(legal.start), tuple(legal.end)))
    start, end, longest = classes, classes + 1, table.shape[0]
    first, last = first_words(segment), last_words(segment)
    index = jnp.arange(segment.shape[1], dtype=jnp.int32)
    final = jax.lax.cummin(jnp.where(last, index[None], segment.shape[1]), axis=1, reverse=True)
    value = jnp.clip(value, 0, classes - 1)
    ends = table[jnp.clip(final - index[None], 0, longest - 1), value, end]

    def step(carry, x):
        last_tag, gap = carry  # of the last label that stays, and the moves since; `start` for none
        tag, known, is_first, can_end = x
        last_tag, gap = jnp.where(is_first, start, last_tag), jnp.where(is_first, 0, gap)
        keep = known & can_end & table[jnp.minimum(gap, longest - 1), last_tag, tag]
        return (jnp.where(keep, tag, last_tag), jnp.where(keep, 0, gap + 1)), keep

    row = jnp.zeros(segment.shape[0], jnp.int32)
    columns = tuple(jnp.moveaxis(x, 1, 0) for x in (value.astype(jnp.int32), mask & (segment > 0), first, ends))
    return jnp.moveaxis(jax.lax.scan(step, (row, row), columns)[1], 0, 1)


def _check_shapes(emissions: jax.Array, segment: jax.Array, params: Params) -> None:
    """Refuses what would broadcast: emissions [R, Q, C], segment int[R, Q], params of C tags."""
    chex.assert_rank(emissions, 3)
    chex.assert_shape(segment, emissions.shape[:2])
    chex.assert_type(segment, int)
    classes = emissions.shape[-1]
    chex.assert_shape([params["move"], params["start"], params["end"]], [(classes,) * 2, (classes,), (classes,)])


def first_words(segment: jax.Array) -> jax.Array:
    """bool[R, Q]: the first word of each sequence, and every position of the padding."""
    return (segment != jnp.pad(segment, ((0, 0), (1, 0)))[:, :-1]) | (segment == 0)


def last_words(segment: jax.Array) -> jax.Array:
    """bool[R, Q]: the last word of each sequence."""
    return (segment != jnp.pad(segment, ((0, 0), (0, 1)))[:, 1:]) & (segment > 0)


def _masked(scores: jax.Array, legal: np.ndarray) -> jax.Array:
    return jnp.where(legal, scores, FORBIDDEN)


def _at_first_word(sums: jax.Array, first: jax.Array) -> jax.Array:
    """At every position the entry of `sums` [R, Q] at the first word of its sequence."""
    index = jnp.arange(sums.shape[1], dtype=jnp.int32)
    source = jax.lax.cummax(jnp.where(first, index[None], 0), axis=1)
    return jnp.take_along_axis(sums, source, axis=1)


def _prefix_sums(emissions: jax.Array, segment: jax.Array, params: Params, legal: TransitionMask) -> jax.Array:
    """log of the summed paths up to each word that end in each tag, [R, Q, C]."""
    move, start = _masked(params["move"], legal.move), _masked(params["start"], legal.start)
    advance = _advance(move, legal.move)

    @jax.checkpoint  # the sums over predecessors are cheaper to repeat than to keep: C² for each word
    def step(sums, x):
        emission, is_first = x
        sums = jnp.where(is_first[:, None], start[None], advance(sums)) + emission
        return sums, sums

    columns = (jnp.moveaxis(emissions, 1, 0), jnp.moveaxis(first_words(segment), 1, 0))
    return jnp.moveaxis(jax.lax.scan(step, jnp.zeros_like(emissions[:, 0]), columns)[1], 0, 1)


def _advance(move: jax.Array, legal: np.ndarray):
    """The step sums [M, C] -> log Σ_i exp(sums_i + move_ij) [M, C], five times faster than the plain formula.

    The plain formula takes C² exponentials. Here tags that share their set of legal predecessors also share the
    maximum over it, and their sums are one matrix product, which then cannot underflow (but for learned moves into one
    tag that lie more than 80 nats from each other); I-X, with its two predecessors, is summed directly.
    """
    classes = len(legal)
    column = np.arange(classes)
    count = legal.sum(0)
    few = count <= FEW_PREDECESSORS
    # own tag first, then the other legal predecessors, filled up with illegal ones
    order = np.argsort(np.where(legal, 0, 2) + (column[:, None] != column[None, :]), axis=0, kind="stable")[
        :FEW_PREDECESSORS
    ]
    direct = [(source, move[source, column]) for source in np.where(few, order, column)]
    patterns = np.unique(legal[:, ~few], axis=1).T
    highest = jax.lax.stop_gradient(move.max(0))
    weights = jnp.exp(move - highest[None])

    def advance(sums: jax.Array) -> jax.Array:
        terms = [(sums if (s == column).all() else sums[:, s]) + onward[None] for s, onward in direct]
        top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, terms))
        result = top + jnp.log(sum(jnp.exp(t - top) for t in terms))
        for pattern in patterns:
            from_pattern = jnp.where(pattern[None], sums, 2 * FORBIDDEN)
            top = jax.lax.stop_gradient(from_pattern.max(-1, keepdims=True))
            total = jnp.matmul(jnp.exp(from_pattern - top), weights, precision="highest")
            total = top + highest[None] + jnp.log(jnp.maximum(total, 1e-37))
            result = jnp.where((legal.T == pattern).all(1)[None], total, result)
        return result

    return advance


@functools.lru_cache(maxsize=64)
def _reach(move: tuple[tuple[bool, ...], ...], start: tuple[bool, ...], end: tuple[bool, ...]) -> np.ndarray:
    """bool[G, C + 2, C + 2]: [g, a, b] = a legal path of g + 1 moves from a to b; C stands for start, C + 1 for end."""
    classes = len(start)
    one = np.zeros((classes + 2, classes + 2), bool)
    one[:classes, :classes], one[classes, :classes], one[:classes, classes + 1] = move, start, end
    powers = [one]
    while len(powers) < 2 * classes + 2:
        further = (powers[-1].astype(np.float32) @ one.astype(np.float32)) > 0
        if (further == powers[-1]).all():
            break
        powers.append(further)
    return np.stack(powers)
