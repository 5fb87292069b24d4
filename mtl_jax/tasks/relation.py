"""The relation between two marked spans of a text."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mtl_jax.tasks import features, heads, losses, options
from mtl_jax.tasks.base import Features, Labels, Params, Task
from mtl_jax.tasks.classification import Classification, check_loss

POOLS = ("start", "mean", "first")


@dataclasses.dataclass(frozen=True)
class Relation(Classification):
    """One of C classes for two spans with markers around them (Soares et al. 2019, "Matching the Blanks").

    Options as in `Classification`, but

    pool   "start": the vectors of the markers before both spans, joined (entity start, their figure 3 (f));
           "mean": the means over the tokens between the markers, joined (mention pooling, figure 3 (e));
           "first": the first token of the text, [CLS] (figure 3 (d))
    """

    levels = ("pair",)
    reads_right = True
    head_kind = ""
    distribution = Task.distribution  # there is none: it belongs to two spans, which other layers do not know

    level: str = "pair"
    pool: str = "start"

    def __post_init__(self):
        if len(self.names) < 2:
            raise options.option_error(self.name, "label", f"train has fewer than two classes: {', '.join(self.names)}")
        if self.level != "pair":
            raise options.option_error(
                self.name, "kind", f"needs two marked spans, these labels are of level {self.level!r}"
            )
        options.require_choice(self.name, "pool", self.pool, POOLS)
        options.require_flag(self.name, "pooler", self.pooler)
        options.require_integer(self.name, "hidden", self.hidden)
        heads.check_form(self)
        check_loss(self)

    def init(self, key: jax.Array, width: int) -> Params:
        """Parameters of the head over features of width D = `width`, float32."""
        joined = width if self.pool == "first" else 2 * width
        return heads.init_head(key, joined, len(self.names), self.hidden, self.pooler)

    def logits(self, params: Params, features_: Features, labels: Labels) -> jax.Array:
        """float32 [R, E, C]; of `labels` the markers are read."""
        return losses.blank_padding(heads.apply_head(params, self._vectors(features_, labels)), self.class_count)

    def _vectors(self, features_: Features, labels: Labels) -> jax.Array:
        """What the classes are scored by, [R, E, D] or [R, E, 2 D]."""
        if self.pool == "first":
            return features.pool(features_, "first")
        mark = labels["mark"]
        spans = [self._span(features_.hidden, mark[..., 2 * n], mark[..., 2 * n + 1]) for n in (0, 1)]
        joined = jnp.concatenate(spans, axis=-1)
        return jnp.where((features_.length > 0)[..., None], joined, 0.0)

    def _span(self, hidden: jax.Array, before: jax.Array, after: jax.Array) -> jax.Array:
        """float32 [R, E, D] of the spans between markers at `before` and `after`, int32[R, E] each."""
        if self.pool == "start":
            return features.gather_tokens(hidden, before).astype(jnp.float32)
        at = jnp.arange(hidden.shape[1], dtype=jnp.int32)[None, None, :]
        inside = ((at > before[..., None]) & (at < after[..., None])).astype(jnp.float32)
        total = jnp.einsum("ret,rtd->red", inside, hidden.astype(jnp.float32), precision="highest")
        return total / jnp.maximum(inside.sum(-1), 1.0)[..., None]
