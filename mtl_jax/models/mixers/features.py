"""Mixers over a list of features of any model."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mtl_jax.models.mixers.base import Mixer, MixerPlace, Params


def init_mixer(mixer: Mixer, key: jax.Array, features: Sequence[jax.Array], inputs: int | None = None) -> Params:
    """Parameters of a mixer for `mix_features`; `inputs`: the width of its inputs, by default that of the features."""
    width = features[0].shape[-1]
    return mixer.init(key, MixerPlace(inputs or width, width, top=True, datasets=1))


def mix_features(
    mixer: Mixer,
    params: Params,
    features: Sequence[jax.Array],
    inputs: Sequence[jax.Array] | None = None,
    segment: jax.Array | None = None,
) -> list[jax.Array]:
    """The features of each task after a mixer.

    Args:
      mixer: of `MIXERS`, e.g. `MIXERS["cross_stitch"](2)`.
      params: of `init_mixer`.
      features: of each column, all [N, D] (a text each) or [N, T, D] (tokens): of the K tasks, or of the experts.
      inputs: of the columns, one for each task (for experts the features of the trunk, K times), as `features`; by
        default the features.
      segment: int32[N, T], 0 for padding; by default all tokens of a row are one text.

    Returns:
      K arrays [N, D'] or [N, T, D'].

    Raises:
      ValueError: another number of columns or inputs than the mixer has; one that mixes only within the network.
    """
    if mixer.apply is None:
        raise ValueError("this mixer computes the columns of each task by itself, and has no list of all features")
    inputs = features if inputs is None else inputs
    for name, given, count in (("features", features, len(mixer.columns)), ("inputs", inputs, mixer.streams)):
        if len(given) != count:
            raise ValueError(f"the mixer has {count} {name}, not {len(given)}")
    by_token = features[0].ndim == 3
    outputs, streams = (jnp.stack(list(arrays)) for arrays in (features, inputs))
    if not by_token:
        outputs, streams = outputs[:, :, None], streams[:, :, None]
    if segment is None:
        segment = jnp.ones(outputs.shape[1:3], jnp.int32)
    mixed = mixer.apply(params, outputs, streams, segment)
    return list(mixed if by_token else mixed[:, :, 0])
