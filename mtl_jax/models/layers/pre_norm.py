"""The transformer layer with normalisation before attention and feed-forward, over packed rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtl_jax.models.attention import attend
from mtl_jax.models.dense import Dense
from mtl_jax.models.dropout import Noise, dropout
from mtl_jax.models.layers.base import Layer
from mtl_jax.models.layers.transformer import TransformerLayer, activation_named
from mtl_jax.models.relative_positions import RelativeBias, rotate, segment_positions


class HeadSpec(NamedTuple):
    """The heads of attention: their number, that of keys and values (a divisor), features of each, and the factor on
    the products, None for features^−½.
    """

    queries: int
    keys: int
    features: int
    scale: float | None = None


class PositionSpec(NamedTuple):
    """How attention sees positions.

    theta         base of rotary positions; 0: none
    window        largest distance of tokens that attend to each other; 0: any
    buckets       of the relative bias of all layers; 0: none
    max_distance  from which on all distances are in one bucket
    """

    theta: float = 0.0
    window: int = 0
    buckets: int = 0
    max_distance: int = 0


class NormSpec(NamedTuple):
    """Normalisations: "layer" (with or without offset) or "rms", and their epsilon."""

    kind: str
    eps: float
    bias: bool = False


class PreNormLayer(Layer):
    """x + attention(norm(x)), then x + feed-forward(norm(x)) (Xiong et al. 2020), as in ModernBERT, EuroBERT and T5.

    Parameters: attention_norm, attention/{query,key,value,output}, mlp_norm, intermediate, gate, output; of the encoder
    as a whole `relative` (with buckets) and `final_norm`. Normalisation, residual sums and softmax are float32.

    gated           act(x W) · (x V) between the maps of the feed-forward (Shazeer 2020) instead of act(x W)
    attention_bias, mlp_bias  whether their affine maps have an offset
    first_norm      whether there is a normalisation before attention (not in the lowest layer of ModernBERT)
    final_norm      whether the normalisation after the top layer follows
    final_dropout   whether dropout follows it (T5)
    """

    positions = True
    attends = True
    dense = (*TransformerLayer.dense, "gate")

    hidden_size: int
    heads: HeadSpec
    intermediate_size: int
    activation: str
    norm: NormSpec
    position: PositionSpec = PositionSpec()
    gated: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False
    first_norm: bool = True
    final_norm: bool = False
    final_dropout: bool = False
    initializer_range: float = 0.02
    dtype: Any = jnp.float32

    @property
    def encoder_parts(self) -> tuple[str, ...]:
        """See `models.encoder_parts`."""
        return ("relative",) * bool(self.position.buckets) + ("final_norm",) * self.final_norm

    @nn.compact
    def __call__(self, x: jax.Array, segment: jax.Array, noise: Noise | None = None) -> jax.Array:
        """x [R, T, D], segment int32[R, T] -> dtype [R, T, D]."""
        y = _normalised(self.norm, x, self.dtype, "attention_norm") if self.first_norm else x
        bias = None
        if self.position.buckets:
            relative = self.position.buckets, self.position.max_distance, self.heads.queries, self.initializer_range
            bias = RelativeBias(*relative, name="relative")(x.shape[1])
        attention = GroupedAttention(
            self.heads, self.position, self.attention_bias, self.initializer_range, self.dtype, name="attention"
        )
        x = self._added(x, dropout(noise, 1, attention(y, segment, noise, bias)))
        x = self._added(x, dropout(noise, 2, self._feed_forward(x)))
        if self.final_norm:
            x = _normalised(self.norm, x, self.dtype, "final_norm")
        return dropout(noise, 3, x) if self.final_dropout else x

    def _feed_forward(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.normal(self.initializer_range)

        def dense(features: int, name: str, inputs: jax.Array) -> jax.Array:
            options = {"dtype": self.dtype, "kernel_init": init, "use_bias": self.mlp_bias}
            return Dense(features, **options, name=name)(inputs)

        y = _normalised(self.norm, x, self.dtype, "mlp_norm")
        inner = activation_named(self.activation)(dense(self.intermediate_size, "intermediate", y))
        if self.gated:
            inner = inner * dense(self.intermediate_size, "gate", y)
        return dense(self.hidden_size, "output", inner)

    def _added(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return (x.astype(jnp.float32) + y.astype(jnp.float32)).astype(self.dtype)


class GroupedAttention(nn.Module):
    """Multi-head attention inside segments and its output projection, with as many keys as queries or fewer."""

    heads: HeadSpec
    position: PositionSpec
    use_bias: bool
    initializer_range: float
    dtype: Any

    @nn.compact
    def __call__(
        self, x: jax.Array, segment: jax.Array, noise: Noise | None = None, bias: jax.Array | None = None
    ) -> jax.Array:
        """x [R, T, D], bias float32 [H, T, T] -> dtype [R, T, D]."""
        queries, keys, features, scale = self.heads

        def dense(width: int, name: str, inputs: jax.Array) -> jax.Array:
            init = nn.initializers.normal(self.initializer_range)
            return Dense(width, dtype=self.dtype, kernel_init=init, use_bias=self.use_bias, name=name)(inputs)

        counts = {"query": queries, "key": keys, "value": keys}
        query, key, value = (
            dense(count * features, name, x).reshape(*x.shape[:-1], count, features) for name, count in counts.items()
        )
        if self.position.theta:
            place = segment_positions(segment)
            query, key = (rotate(array, place, self.position.theta) for array in (query, key))
        y = attend(query, key, value, segment, noise, bias=bias, scale=scale, window=self.position.window)
        return dense(x.shape[-1], "output", y.reshape(*x.shape[:-1], queries * features))


def _normalised(norm: NormSpec, x: jax.Array, dtype: Any, name: str) -> jax.Array:
    """The normalised x, computed in float32."""
    options = {"dtype": jnp.float32, "use_fast_variance": False, "name": name}
    if norm.kind == "rms":
        return nn.RMSNorm(norm.eps, **options)(x.astype(jnp.float32)).astype(dtype)
    return nn.LayerNorm(norm.eps, use_bias=norm.bias, **options)(x.astype(jnp.float32)).astype(dtype)
