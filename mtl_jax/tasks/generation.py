"""A text for each text: a decoder over the encoder's features, trained by teacher forcing, searched in evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.tasks import beam_search, features, options, recurrent_decoder, transformer_decoder
from mtl_jax.tasks.base import Features, Labels, Params, Task, TaskData
from mtl_jax.tasks.decoder import MASKED_SCORE, Decoder, DecoderSizes, SourceMasks, Targets, TokenScores

UNKNOWN, BEGIN, END = range(3)  # the first names of every vocabulary of targets
TOKENS = ("words", "tokenizer")
DECODERS: dict[str, Decoder] = {"transformer": transformer_decoder.TRANSFORMER, "lstm": recurrent_decoder.LSTM}
_HEADS = 4


@dataclasses.dataclass(frozen=True)
class Generation(Task):
    """A sequence of the C = len(names) tokens for each text; cross-entropy of each token given those before it.

    metrics          names in METRICS, the first is the task's score
    decoder          "transformer" | "lstm" with attention, see `transformer_decoder` and `recurrent_decoder`; both drop
                     features at the rates of the model's layers
    layers           of the decoder, at least 1
    heads            of the transformer's attention, 0 = 4; that of the LSTM has one
    width            of its layers, of a transformer a multiple of `heads`; 0 = that of the encoder's features
    intermediate     width of the transformer's feed-forward layers; 0 = four times `width`
    copy             tokens may also be copied from the input, those too that the vocabulary lacks: the next token is
                     of the mixture g · p(vocabulary) + (1 - g) · p(places of the input) (See et al. 2017)
    label_smoothing  ε in [0, 1), spread over the vocabulary (Szegedy et al. 2016)
    beam             hypotheses of the search; 1 = greedy
    length_penalty   α of the beam search (Wu et al. 2016)
    tokens, min_count, max_size, max_length   what a token is and how many there are, see
                     `mtl_jax.data.labels.target_sequences.TargetSpec`; the search ends at max_length too
    join, source     not options, the data give them: what makes a text of tokens; for a task that copies the target of
                     each token id of the input, -1 for none, -2 for what is never copied
    """

    predicts = "texts"
    label_type = "tokens"
    levels = ("sequence",)
    from_data = ("join", "source")
    silent = (UNKNOWN, END)

    name: str
    names: tuple[str, ...]
    level: str = "sequence"
    metrics: tuple[str, ...] = ("bleu", "rougeL", "exact_match", "token_accuracy", "perplexity")
    decoder: str = "transformer"
    layers: int = 2
    heads: int = 0
    width: int = 0
    intermediate: int = 0
    copy: bool = False
    label_smoothing: float = 0.1
    beam: int = 1
    length_penalty: float = 0.6
    tokens: str = "words"
    min_count: int = 1
    max_size: int = 0
    max_length: int = 64
    join: Callable[[Sequence[str]], str] = " ".join
    source: tuple[int, ...] = ()

    def __post_init__(self):
        if self.level != "sequence":
            raise options.option_error(
                self.name, "kind", f"writes sequences, the labels here are of level {self.level!r}"
            )
        if self.layers == 0:
            raise options.option_error(self.name, "layers", "0 leaves no decoder to write with; at least 1")
        options.require_choice(self.name, "decoder", self.decoder, DECODERS)
        for field in ("layers", "beam", "min_count"):
            options.require_integer(self.name, field, getattr(self, field), 1)
        for field in ("heads", "width", "intermediate", "max_size"):
            options.require_integer(self.name, field, getattr(self, field))
        for field in ("heads", "intermediate"):
            if getattr(self, field) and not self._decoder.multi_head:
                having = ", ".join(name for name, decoder in DECODERS.items() if decoder.multi_head)
                problem = f"belongs to decoders with several heads ({having}); leave it out with {self.decoder!r}"
                raise options.option_error(self.name, field, problem)
        options.require_integer(self.name, "max_length", self.max_length, 2)
        options.require_flag(self.name, "copy", self.copy)
        options.require_choice(self.name, "tokens", self.tokens, TOKENS)
        options.require_number(self.name, "label_smoothing", self.label_smoothing, 0.0, 1.0)
        options.require_number(self.name, "length_penalty", self.length_penalty, 0.0)
        if self.width:
            self._check_width(self.width, "width")

    @classmethod
    def data_fields(cls, data: TaskData) -> dict[str, Any]:
        """See `Task.data_fields`."""
        return {"join": data.join, "source": data.source}

    def init(self, key: jax.Array, width: int) -> Params:
        """Parameters of the decoder over features of width D = `width`, float32."""
        if not self.width:
            self._check_width(width, "heads")
        decoder_width = self.width or width
        intermediate = self.intermediate or 4 * decoder_width
        sizes = DecoderSizes(len(self.names), width, decoder_width, self.layers, intermediate, self.copy)
        return self._decoder.init(key, sizes)

    def logits(self, params: Params, features_: Features, labels: Labels) -> TokenScores:
        """Scores [R, Q, ...] of each token of the targets given those before it.

        Of `labels` also the values are read: teacher forcing.
        """
        decoder = self._decoder
        memory = decoder.encode_memory(params, features_.hidden, self._heads)
        first = labels["position"] == 0
        before = jnp.where(first, BEGIN, jnp.roll(labels["value"], 1, axis=1))
        targets = Targets(before, labels["position"], labels["segment"])
        source = self._source_masks(features_, labels["slot"])
        scores = decoder.score_targets(params, memory, targets, source, features_.noise)
        return scores._replace(ids=self._ids(features_)) if self.copy else scores

    def loss(self, params: Params, logits: TokenScores, labels: Labels, slots: int | None = None) -> jax.Array:
        """Summed loss of each example's tokens, float32 [R, E] with E = `slots`; with slots=None [R, Q]."""
        value, smoothing = labels["value"], self.label_smoothing
        chex.assert_shape([value, labels["mask"], labels["slot"]], logits.vocabulary.shape[:2])
        nll = -_log_p(logits, value)
        if smoothing:
            nll = (1.0 - smoothing) * nll - smoothing * jax.nn.log_softmax(logits.vocabulary).mean(axis=-1)
        return features.sum_by_example(jnp.where(labels["mask"], nll, 0.0), labels["slot"], slots)

    def weight(self, labels: Labels, slots: int | None = None) -> jax.Array:
        """Tokens of each example's target, float32 [R, E], or [R, Q] as in `loss`."""
        return features.sum_by_example(labels["mask"].astype(jnp.float32), labels["slot"], slots)

    def metric_sums(self, logits: TokenScores, labels: Labels) -> jax.Array:
        """Over all targets, float32 [3]: tokens that are the likeliest given those before, Σ -log p, tokens."""
        likeliest = jnp.argmax(_distribution(logits), axis=-1)
        mask = labels["mask"]
        right = mask & (likeliest == labels["value"])
        nll = jnp.where(mask, -_log_p(logits, labels["value"]), 0.0)
        return jnp.stack([right.sum(dtype=jnp.float32), nll.sum(), mask.sum(dtype=jnp.float32)])

    def generate(self, params: Params, features_: Features) -> dict[str, jax.Array]:
        """The best hypothesis of each example: value int32[R, E, L], its tokens, -1 after them, L = `max_length`;
        score float32[R, E], its log probability, with beams over the length penalty.
        """
        rows, slots = features_.start.shape
        beams, length = self.beam, self.max_length
        decoder = self._decoder
        memory = decoder.encode_memory(params, features_.hidden, self._heads)
        slot = jnp.repeat(jnp.broadcast_to(jnp.arange(slots), (rows, slots)), beams, axis=1)  # [R, S]
        source = self._source_masks(features_, slot)
        ids = self._ids(features_) if self.copy else None
        by_row, by_example = (rows, slots * beams), (rows * slots, beams)

        def reshaped(cache, shape):
            return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[2:]), cache)

        def step(cache, tokens, number):
            cache, tokens = reshaped(cache, by_row), tokens.reshape(by_row)
            scores, cache = decoder.step(params, memory, cache, tokens, number, source)
            log_p = _distribution(scores._replace(ids=ids))
            log_p = log_p.at[..., jnp.asarray([UNKNOWN, BEGIN])].set(beam_search.IMPOSSIBLE)
            return log_p.reshape(*by_example, -1), reshaped(cache, by_example)

        cache = reshaped(decoder.initial_cache(params, memory, source.member, length), by_example)
        active = (features_.length > 0).reshape(-1)
        ends = {"begin": BEGIN, "end": END, "max_length": length}
        if beams == 1:
            result = beam_search.greedy_search(step, cache, active, **ends)
        else:
            result = beam_search.beam_search(step, cache, active, **ends, width=beams, alpha=self.length_penalty)
        return {
            "value": result.tokens[:, 0].reshape(rows, slots, length),
            "score": result.score[:, 0].reshape(rows, slots),
        }

    def to_texts(self, value: Any, sources: Sequence[Sequence[str]] = ()) -> list[str]:
        """The texts that ids int [N, L] stand for, -1 left out; `sources` [N] are the tokens to copy from."""
        return [self._text(ids, sources[n] if sources else ()) for n, ids in enumerate(np.asarray(value))]

    def decode(self, value: Any, score: Any, source: Sequence[str] = ()) -> dict[str, Any]:
        """One text's prediction for JSON: {"text", "score"}."""
        return {"text": self._text(np.asarray(value), source), "score": float(score)}

    def _text(self, ids: np.ndarray, source: Sequence[str]) -> str:
        names = self.names
        return self.join([names[i] if i < len(names) else source[i - len(names)] for i in ids[ids >= 0].tolist()])

    def _source_masks(self, features_: Features, slot: jax.Array) -> SourceMasks:
        """The tokens that sequences in the slots `slot` int32[R, Q] read."""
        member = features_.segment[:, None, :] == slot[:, :, None] + 1
        if not self.copy:
            return SourceMasks(member, None)
        return SourceMasks(member, member & (self._targets(features_) != -2)[:, None, :])

    def _targets(self, features_: Features) -> jax.Array:
        """int32[R, T], see `source`."""
        return jnp.asarray(np.asarray(self.source, np.int32))[features_.tokens]

    def _ids(self, features_: Features) -> jax.Array:
        """int32[R, T], the id that each token of the input has as a target; C + its place where it has none."""
        target = self._targets(features_)
        begin = jnp.take_along_axis(features_.start, jnp.maximum(features_.segment - 1, 0), axis=1)
        place = jnp.maximum(jnp.arange(target.shape[1])[None] - begin, 0)
        return jnp.where(target == -1, len(self.names) + place, jnp.maximum(target, 0))

    @property
    def _decoder(self) -> Decoder:
        return DECODERS[self.decoder]

    @property
    def _heads(self) -> int:
        return self.heads or _HEADS

    def _check_width(self, width: int, field: str) -> None:
        if self._decoder.multi_head and (width % self._heads or width % 2):
            problem = f"a decoder of width {width} with {self._heads} heads; the width has to be even and a multiple"
            raise options.option_error(self.name, field, problem)


def _log_p(scores: TokenScores, value: jax.Array) -> jax.Array:
    """log p of the tokens `value` int32[R, Q] under scores [R, Q, ...]: [R, Q]."""
    log_p = jax.nn.log_softmax(scores.vocabulary)
    classes = log_p.shape[-1]
    written = jnp.take_along_axis(log_p, jnp.minimum(value, classes - 1)[..., None], axis=-1)[..., 0]
    if scores.gate is None:
        return written
    written = jnp.where(value < classes, written + jax.nn.log_sigmoid(scores.gate), MASKED_SCORE)
    same = scores.ids[:, None, :] == value[:, :, None]
    copies = jax.nn.logsumexp(jnp.where(same, scores.pointer, MASKED_SCORE), axis=-1)
    return jnp.logaddexp(written, copies + jax.nn.log_sigmoid(-scores.gate))


def _distribution(scores: TokenScores) -> jax.Array:
    """log p of all tokens, float32 [R, Q, C]; with copying [R, Q, C + T]."""
    log_p = jax.nn.log_softmax(scores.vocabulary)
    if scores.gate is None:
        return log_p
    gate = scores.gate[..., None]
    written = jnp.exp(log_p + jax.nn.log_sigmoid(gate))
    copied = jnp.exp(scores.pointer + jax.nn.log_sigmoid(-gate))
    places = copied.shape[-1]
    both = jnp.concatenate([written, jnp.zeros((*written.shape[:-1], places), jnp.float32)], axis=-1)

    def add(p, by_place, ids):  # one place of one row
        return p.at[ids].add(by_place)

    both = jax.vmap(jax.vmap(add, (0, 0, None)))(both, copied, scores.ids)
    return jnp.log(jnp.maximum(both, jnp.finfo(jnp.float32).tiny))
