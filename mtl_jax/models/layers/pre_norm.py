"""The transformer layer with normalisation before attention and feed-forward, over packed rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtl_jax.models import key_values
from mtl_jax.models.attention import attend, attend_to_memory
from mtl_jax.models.dense import Dense, adapter_of
from mtl_jax.models.dropout import Noise, dropout
from mtl_jax.models.key_values import LayerMemory
from mtl_jax.models.layers.base import Layer
from mtl_jax.models.layers.transformer import TransformerLayer, activation_named
from mtl_jax.models.relative_positions import RelativeBias, segment_positions
from mtl_jax.models.rotary import Rotary, rotate


class HeadSpec(NamedTuple):
    """The heads of attention.

    queries, keys  their number, and that of keys and values, a divisor
    features       of each
    scale          the factor on the products, None for features^−½
    softcap        see `attention.attend`
    normalised     whether queries and keys are normalised, each head by itself, as in Qwen3 and Gemma 3
    """

    queries: int
    keys: int
    features: int
    scale: float | None = None
    softcap: float = 0.0
    normalised: bool = False


class PositionSpec(NamedTuple):
    """How attention sees positions.

    rotary        frequencies of rotary positions; None: none
    window        largest distance of tokens that attend to each other; 0: any
    buckets       of the relative bias of all layers; 0: none
    max_distance  from which on all distances are in one bucket
    causal        whether tokens attend to none that follow
    """

    rotary: Rotary | None = None
    window: int = 0
    buckets: int = 0
    max_distance: int = 0
    causal: bool = False


class NormSpec(NamedTuple):
    """Normalisations: "layer" (with or without offset) or "rms", and their epsilon; `shifted`: the factor is 1 + scale
    (Gemma).
    """

    kind: str
    eps: float
    bias: bool = False
    shifted: bool = False


class PreNormLayer(Layer):
    """x + attention(norm(x)), then x + feed-forward(norm(x)) (Xiong et al. 2020), as in GPT-2, Llama,
    ModernBERT and T5.

    Parameters: attention_norm, attention/{query,key,value,output,query_norm,key_norm}, attention_post_norm, mlp_norm,
    intermediate, gate, output, mlp_post_norm; of the encoder as a whole `relative` (with buckets) and `final_norm`.
    Normalisation, residual sums and softmax are float32.

    gated           act(x W) · (x V) between the maps of the feed-forward (Shazeer 2020) instead of act(x W)
    attention_bias, mlp_bias  whether their affine maps have an offset
    output_bias     the same of the map after attention; None: as the others
    post_norm       whether attention and feed-forward are also normalised before they are added (Gemma 2)
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
    output_bias: bool | None = None
    mlp_bias: bool = False
    post_norm: bool = False
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
    def __call__(
        self, x: jax.Array, segment: jax.Array, noise: Noise | None = None, memory: LayerMemory | None = None
    ) -> jax.Array:
        """x [R, T, D], segment int32[R, T] -> dtype [R, T, D]. With `memory`, of a causal layer, T are the new
        tokens of sequences, see `models.key_values`.
        """
        y = _normalised(self.norm, x, self.dtype, "attention_norm") if self.first_norm else x
        bias = None
        if self.position.buckets:
            relative = self.position.buckets, self.position.max_distance, self.heads.queries, self.initializer_range
            bias = RelativeBias(*relative, name="relative")(x.shape[1])
        biases = (self.attention_bias, self.attention_bias if self.output_bias is None else self.output_bias)
        attention = GroupedAttention(
            self.heads, self.position, self.norm, biases, self.initializer_range, self.dtype, name="attention"
        )
        y = self._post_normalised(attention(y, segment, noise, bias, memory), "attention_post_norm")
        x = self._added(x, dropout(noise, 1, y))
        y = self._post_normalised(self._feed_forward(x), "mlp_post_norm")
        x = self._added(x, dropout(noise, 2, y))
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

    def _post_normalised(self, y: jax.Array, name: str) -> jax.Array:
        return _normalised(self.norm, y, self.dtype, name) if self.post_norm else y

    def _added(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return (x.astype(jnp.float32) + y.astype(jnp.float32)).astype(self.dtype)


class GroupedAttention(nn.Module):
    """Multi-head attention inside segments and its output projection, with as many keys as queries or fewer.
    `biases`: whether the maps before it, and the one after it, have an offset.
    """

    heads: HeadSpec
    position: PositionSpec
    norm: NormSpec
    biases: tuple[bool, bool]
    initializer_range: float
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        segment: jax.Array,
        noise: Noise | None = None,
        bias: jax.Array | None = None,
        memory: LayerMemory | None = None,
    ) -> jax.Array:
        """x [R, T, D], bias float32 [H, T, T] -> dtype [R, T, D]."""
        heads, position = self.heads, self.position
        features = heads.features

        def dense(width: int, name: str, inputs: jax.Array) -> jax.Array:
            init, use_bias = nn.initializers.normal(self.initializer_range), self.biases[name == "output"]
            return Dense(width, dtype=self.dtype, kernel_init=init, use_bias=use_bias, name=name)(inputs)

        counts = {"query": heads.queries, "key": heads.keys, "value": heads.keys}
        query, key, value = (
            dense(count * features, name, x).reshape(*x.shape[:-1], count, features) for name, count in counts.items()
        )
        if heads.normalised:
            query = _normalised(self.norm, query, self.dtype, "query_norm")
            key = _normalised(self.norm, key, self.dtype, "key_norm")
        if position.rotary:
            place = segment_positions(segment) if memory is None else memory.position
            query, key = (rotate(array, place, position.rotary) for array in (query, key))
        scores = {"scale": heads.scale, "softcap": heads.softcap, "window": position.window, "prefix": adapter_of(self)}
        if memory is None:
            key_values.store(self, keys=key, values=value)
            y = attend(query, key, value, segment, noise, bias=bias, causal=position.causal, **scores)
        else:
            prompt, written = key_values.module_keys(self, memory)
            new = {"keys": key, "values": value}
            written = {name: key_values.append(written[name], array, memory.number) for name, array in new.items()}
            key_values.store(self, **written)
            pairs = ((kept["keys"], kept["values"]) for kept in (prompt, written))
            y = attend_to_memory(query, *pairs, segment, memory, **scores)
        return dense(x.shape[-1], "output", y.reshape(*x.shape[:-1], heads.queries * features))


class ShiftedRMSNorm(nn.Module):
    """x / rms(x) · (1 + scale), as Gemma counts it, so that weight decay pulls the factor towards 1."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.zeros_init(), (x.shape[-1],), jnp.float32)
        normed = x * jax.lax.rsqrt(jnp.square(x).mean(axis=-1, keepdims=True) + self.eps)
        return normed * jnp.broadcast_to(1.0 + scale, x.shape)


def _normalised(norm: NormSpec, x: jax.Array, dtype: Any, name: str) -> jax.Array:
    """The normalised x, computed in float32."""
    if norm.kind == "rms" and norm.shifted:
        module: nn.Module = ShiftedRMSNorm(norm.eps, name=name)
    else:
        options = {"dtype": jnp.float32, "use_fast_variance": False, "name": name}
        module = (
            nn.RMSNorm(norm.eps, **options)
            if norm.kind == "rms"
            else nn.LayerNorm(norm.eps, use_bias=norm.bias, **options)
        )
    return module(x.astype(jnp.float32)).astype(dtype)
