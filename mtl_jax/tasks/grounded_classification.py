"""Classification of a text about pictures: every patch is combined with the words."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mtl_jax.tasks import features, heads, losses, options
from mtl_jax.tasks.base import Features, Labels, Params, Task
from mtl_jax.tasks.classification import Classification

_DROP = 0  # salt of the dropout


@dataclasses.dataclass(frozen=True)
class GroundedClassification(Classification):
    """One of C classes for each text with its pictures, by a relation network (Santoro et al. 2017, equation 1).

    f([mean_i z_i; max_i z_i; q]) with z_i = g([h_i; q; h_i ∘ q]), where h_i is the feature vector of patch i and q that
    of the words. Where the paper's g reads pairs of objects, this one reads one at a time, so that its cost is linear
    in the patches; g has two layers of width `hidden` with a GELU between them, f a GELU layer of that width.

    Options as in `Classification`, besides:
    pool      "max" or "mean": q from the features of the example's tokens other than patches
    hidden    width of both layers, 0 = D
    """

    head_kind = ""
    reads_pictures = True
    distribution = Task.distribution  # there is none: other layers do not tell patches from words

    pool: str = "max"

    def __post_init__(self):
        super().__post_init__()
        options.require_choice(self.name, "pool", self.pool, ("max", "mean"))
        if self.pooler:
            raise options.option_error(self.name, "pooler", "this head has hidden layers of its own; leave it out")

    def init(self, key: jax.Array, width: int) -> Params:
        """Parameters over features of width D = `width`, float32: g and f."""
        g_key, z_key, f_key, output_key = jax.random.split(key, 4)
        hidden = self.hidden or width
        return {
            "hidden": heads.inner_init(g_key, 3 * width, hidden),
            "patch": heads.inner_init(z_key, hidden, hidden),
            "joined": heads.inner_init(f_key, 2 * hidden + width, hidden),
            "output": heads.dense_init(output_key, hidden, len(self.names)),
        }

    def logits(self, params: Params, features_: Features, labels: Labels) -> jax.Array:
        """float32 [R, E, C]; `labels` is not read. An example without pictures, or without words, has zeros there."""
        del labels
        hidden = features_.hidden.astype(jnp.float32)
        words = features.pool(features_, self.pool, among=~features_.patch)
        words_at_tokens = features.repeat_at_tokens(words, features_.segment)
        inputs = jnp.concatenate([hidden, words_at_tokens, hidden * words_at_tokens], axis=-1)
        z = heads.dense(params["patch"], jax.nn.gelu(heads.dense(params["hidden"], inputs)))
        patches = features_._replace(hidden=z)
        parts = [features.pool(patches, how, among=features_.patch) for how in ("mean", "max")]
        joined = jax.nn.gelu(heads.dense(params["joined"], jnp.concatenate([*parts, words], axis=-1)))
        if features_.noise is not None:
            joined = features_.noise.drop(_DROP, joined)
        return losses.blank_padding(heads.dense(params["output"], joined), self.class_count)
