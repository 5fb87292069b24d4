"""Rotary positions (Su et al. 2021): their frequencies, and the ways to stretch them to longer texts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.errors import UserError


class Rotary(NamedTuple):
    """Frequencies, in radians a token, of pairs of a head's features, and the factor on sine and cosine."""

    frequencies: tuple[float, ...]
    amplitude: float = 1.0


def rotate(x: jax.Array, position: jax.Array, rotary: Rotary) -> jax.Array:
    """Halves of a head's features rotated against each other as in Llama.

    x [R, T, H, D/H], position int32[R, T]. Returns the dtype of x; computed in float32. Features beyond two for each
    frequency stay as they are.
    """
    half = len(rotary.frequencies)
    frequency = jnp.asarray(rotary.frequencies, jnp.float32)
    angle = position[:, :, None, None].astype(jnp.float32) * frequency.reshape(1, 1, 1, half)
    cos, sin = (function(angle) * jnp.float32(rotary.amplitude) for function in (jnp.cos, jnp.sin))
    first, second = x[..., :half].astype(jnp.float32), x[..., half : 2 * half].astype(jnp.float32)
    rotated = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate([*rotated, x[..., 2 * half :].astype(jnp.float32)], axis=-1).astype(x.dtype)


def base_rotary(theta: float, features: int) -> Rotary:
    """θ^(−2i/d) for i = 0 … d/2 − 1, of heads of d = `features`."""
    return Rotary(tuple(_base({"rope_theta": theta}, features).tolist()))


def rotary_from_config(parameters: Mapping[str, Any], features: int, where: str) -> Rotary:
    """The frequencies of an entry `rope_parameters` of a published config.json.

    Args:
      parameters: with rope_type, rope_theta and those of the type.
      features: of a head.
      where: names the entry in errors.

    Raises:
      UserError: a type that is not computed here, or a missing number.
    """
    parameters = dict(parameters)
    kind = parameters.get("rope_type", "default")
    if kind not in ROPE_TYPES:
        raise UserError(f"{where}: rope_type = {kind!r} is not supported, only {', '.join(map(repr, ROPE_TYPES))}")
    if parameters.get("truncate", True) is not True:
        raise UserError(f"{where}: truncate = {parameters['truncate']!r} is not supported, only True")
    try:
        frequencies, amplitude = ROPE_TYPES[kind](
            parameters, int(features * parameters.get("partial_rotary_factor", 1))
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{where}: {parameters!r} of rope_type {kind!r} lacks a number ({error})") from None
    return Rotary(tuple(np.asarray(frequencies, np.float32).tolist()), float(amplitude))


def _base(parameters: Mapping[str, Any], features: int) -> np.ndarray:
    exponent = np.arange(0, features // 2 * 2, 2, dtype=np.float32) / features
    return (1.0 / np.float32(parameters["rope_theta"]) ** exponent).astype(np.float32)


def _default(parameters: Mapping[str, Any], features: int) -> tuple[np.ndarray, float]:
    return _base(parameters, features), 1.0


def _linear(parameters: Mapping[str, Any], features: int) -> tuple[np.ndarray, float]:
    """All positions divided by a factor (Chen et al. 2023)."""
    return _base(parameters, features) / np.float32(parameters["factor"]), 1.0


def _llama3(parameters: Mapping[str, Any], features: int) -> tuple[np.ndarray, float]:
    """Long waves divided by the factor, short ones as they are, those between a mixture (Llama 3.1)."""
    base, factor = _base(parameters, features), parameters["factor"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    length = parameters["original_max_position_embeddings"]
    wave = 2 * np.float32(math.pi) / base
    smooth = (length / wave - low) / (high - low)
    between = (1 - smooth) * base / factor + smooth * base
    return np.where(wave > length / low, base / factor, np.where(wave < length / high, base, between)), 1.0


def _yarn(parameters: Mapping[str, Any], features: int) -> tuple[np.ndarray, float]:
    """YaRN (Peng et al. 2023)."""
    theta, factor = parameters["rope_theta"], parameters["factor"]
    length = parameters["original_max_position_embeddings"]

    def feature(rotations: float) -> float:  # of which so many fit into the length that the model was trained with
        return features * math.log(length / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(feature(parameters.get("beta_fast") or 32)), 0)
    high = min(math.ceil(feature(parameters.get("beta_slow") or 1)), features - 1)
    ramp = (np.arange(features // 2, dtype=np.float32) - low) / (high - low if high > low else 0.001)
    stretched = np.clip(ramp, 0, 1)
    base = _base(parameters, features)

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    amplitude = parameters.get("attention_factor")
    if amplitude is None:
        mixed, of_all = parameters.get("mscale"), parameters.get("mscale_all_dim")
        amplitude = magnitude(mixed) / magnitude(of_all) if mixed and of_all else magnitude(1.0)
    return base / factor * stretched + base * (1 - stretched), amplitude


# Names as in the published configurations (`rope_type`).
ROPE_TYPES: dict[str, Callable[[Mapping[str, Any], int], tuple[np.ndarray, float]]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
