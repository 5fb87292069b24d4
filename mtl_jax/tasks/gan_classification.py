"""Classification with a generator of features and a discriminator that knows one class more: "generated"."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp

from mtl_jax.tasks import features, heads, options
from mtl_jax.tasks.base import Features, Labels, Params, Task
from mtl_jax.tasks.classification import Classification

_SLOPE = 0.2  # of the leaky ReLUs, as published
_TINY = 1e-8  # added inside of logarithms, as published


@dataclasses.dataclass(frozen=True)
class AdversarialClassification(Classification):
    """GAN-BERT: semi-supervised classification over features of the encoder (Croce et al. 2020, section 3).

    The discriminator is a hidden layer and C + 1 classes, the last of which is "generated"; predictions and the loss of
    labelled texts are those of the first C. All texts count, labelled or not:
      discriminator  −log(1 − p_fake(x)) − log p_fake(G(z)), a generated text for each text (section 3.2)
      generator      −log(1 − p_fake(G(z))) + ‖mean f(x) − mean f(G(z))‖² / D', f the hidden layer of width D'
    Each trains its own side only: the generator's loss does not reach the discriminator and the encoder, the
    discriminator's does not reach the generator. The means of f are over the texts of one device and micro-batch.
    Several such tasks over one shared encoder are MT-GAN-BERT (Breazzano et al. 2021).

    Options as in `Classification`, where `hidden` is the width D' of the discriminator and of the generator, 0 = D;
    besides:
    noise       width of z ~ N(0, 1)
    drop        dropout of the hidden layers of both, in the two losses above; the loss of labelled texts has none
    """

    head_kind = ""
    auxiliary: ClassVar[Mapping[str, float]] = {"discriminator": 1.0, "generator": 1.0}

    form = Task.form  # there is none: the last class of the discriminator is no class of the task

    noise: int = 100
    drop: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        options.require_integer(self.name, "noise", self.noise, 1)
        options.require_number(self.name, "drop", self.drop, 0.0, 0.9)
        if self.pooler:
            raise options.option_error(
                self.name, "pooler", "the discriminator has a hidden layer of its own; leave it out"
            )

    def init(self, key: jax.Array, width: int) -> Params:
        """Parameters over features of width D = `width`, float32: discriminator and generator, two layers each."""
        keys, hidden = jax.random.split(key, 4), self.hidden or width
        start = jax.nn.initializers.lecun_normal()
        return {
            "discriminator": {
                "hidden": heads.dense_init(keys[0], width, hidden, start),
                "output": heads.dense_init(keys[1], hidden, len(self.names) + 1),
            },
            "generator": {
                "hidden": heads.dense_init(keys[2], self.noise, hidden, start),
                "output": heads.dense_init(keys[3], hidden, width, start),
            },
        }

    def logits(self, params: Params, features_: Features, labels: Labels) -> jax.Array:
        """float32 [R, E, C]; `labels` is not read."""
        del labels
        inner = _hidden(params["discriminator"], features.pool(features_, self.pool))
        return heads.dense(params["discriminator"]["output"], inner)[..., :-1]

    def auxiliary_losses(self, params: Params, features_: Features, keys: jax.Array) -> dict[str, jax.Array]:
        """{"discriminator", "generator"}: float32 sums over the texts of these rows.

        Args:
          params: of the head.
          features_: of the rows; texts of length 0 do not exist.
          keys: typed PRNG keys [R].
        """
        exists = (features_.length > 0).astype(jnp.float32)  # [R, E]
        real = features.pool(features_, self.pool)
        slots = exists.shape[1]

        def draw(key):
            """z [E, noise], and keys for the dropout of the three hidden layers."""
            z_key, *drops = jax.random.split(key, 4)
            return jax.random.normal(z_key, (slots, self.noise), jnp.float32), jnp.stack(drops)

        z, drops = jax.vmap(draw)(keys)
        generator, discriminator = params["generator"], params["discriminator"]
        fake = heads.dense(generator["output"], self._dropped(_hidden(generator, z), drops[:, 0]))

        def discriminate(discriminator, x, key):
            inner = self._dropped(_hidden(discriminator, x), key)
            return inner, jax.nn.softmax(heads.dense(discriminator["output"], inner))[..., -1]

        _, real_is_fake = discriminate(discriminator, real, drops[:, 1])
        _, fake_is_fake = discriminate(discriminator, jax.lax.stop_gradient(fake), drops[:, 2])
        fixed = jax.lax.stop_gradient(discriminator)
        fake_inner, fooled = discriminate(fixed, fake, drops[:, 2])
        real_inner, _ = discriminate(fixed, jax.lax.stop_gradient(real), drops[:, 1])

        count = exists.sum()
        weight = exists[..., None] / jnp.maximum(count, 1.0)
        difference = (weight * real_inner).sum(axis=(0, 1)) - (weight * fake_inner).sum(axis=(0, 1))
        losses = -jnp.log(1.0 - real_is_fake + _TINY) - jnp.log(fake_is_fake + _TINY)
        return {
            "discriminator": (exists * losses).sum(),
            "generator": (exists * -jnp.log(1.0 - fooled + _TINY)).sum() + count * (difference**2).mean(),
        }

    def _dropped(self, x: jax.Array, keys: jax.Array) -> jax.Array:
        """Inverted dropout of x [R, E, D'] by keys [R]."""
        if not self.drop:
            return x
        mask = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - self.drop, x.shape[1:]))(keys)
        return jnp.where(mask, x / (1.0 - self.drop), 0.0)


def _hidden(params: Params, x: jax.Array) -> jax.Array:
    return jax.nn.leaky_relu(heads.dense(params["hidden"], x), _SLOPE)
