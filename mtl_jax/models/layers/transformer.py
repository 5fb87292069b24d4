"""The transformer layer of the BERT and RoBERTa families, over packed rows."""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtl_jax.errors import UserError
from mtl_jax.models.attention import attend
from mtl_jax.models.dense import Dense, adapter_of
from mtl_jax.models.dropout import Noise, dropout
from mtl_jax.models.layers.base import Layer


def gelu(x: jax.Array) -> jax.Array:
    """x·Φ(x) (Hendrycks & Gimpel 2016), in float32 whatever the dtype of x.

    By erf as PyTorch does, on CPU in half the time of `jax.nn.gelu`; the erfc of that is more precise in relative
    terms far below zero, where the value is next to nothing.
    """
    y = x.astype(jnp.float32)
    return (0.5 * y * (1.0 + jax.lax.erf(y * math.sqrt(0.5)))).astype(x.dtype)


# Names as in the published configurations (`hidden_act`).
ACTIVATIONS = {
    "gelu": gelu,
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}


def activation_named(name: str):
    """The function of a published activation name. UserError for an unknown one."""
    if name not in ACTIVATIONS:
        raise UserError(f"activation {name!r} is not known; choose one of {', '.join(sorted(ACTIVATIONS))}")
    return ACTIVATIONS[name]


_COLUMNS, _ROWS = (False, True), (True, False)  # which axis of a kernel [in, out] is split


class TransformerLayer(Layer):
    """Post-LayerNorm encoder layer (Vaswani et al. 2017) exactly as in BERT and RoBERTa.

    Parameters: attention/{query,key,value,output}, attention/layer_norm, intermediate, output, layer_norm;
    kernels are [in, out]. LayerNorm, residual sums and softmax are float32 whatever the compute dtype.
    """

    positions = True
    attends = True
    family = "bert"
    # Shoeybi et al. 2019, section 3: a device has some heads and some of the intermediate features, and sums follow
    # the two output projections
    tensor_parallel: ClassVar = {
        **{f"attention/{name}/kernel": _COLUMNS for name in ("query", "key", "value")},
        **{f"attention/{name}/bias": (True,) for name in ("query", "key", "value")},
        "attention/output/kernel": _ROWS,
        "intermediate/kernel": _COLUMNS,
        "intermediate/bias": (True,),
        "output/kernel": _ROWS,
    }
    dense = tuple(path.removesuffix("/kernel") for path in tensor_parallel if path.endswith("/kernel"))
    divisors = ("num_heads", "intermediate_size")

    hidden_size: int
    num_heads: int
    intermediate_size: int
    activation: str = "gelu"
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, segment: jax.Array, noise: Noise | None = None) -> jax.Array:
        """x [R, T, D], segment int32[R, T] -> dtype [R, T, D]."""
        if x.shape[-1] != self.hidden_size:
            raise UserError(
                f"a transformer layer of width {self.hidden_size} cannot read features of width {x.shape[-1]}"
            )
        x = self.self_attention(x, segment, noise)
        init = nn.initializers.normal(self.initializer_range)
        y = Dense(self.intermediate_size, dtype=self.dtype, kernel_init=init, name="intermediate")(x)
        y = activation_named(self.activation)(y)
        y = Dense(self.hidden_size, dtype=self.dtype, kernel_init=init, name="output")(y)
        return add_and_normalise(x, dropout(noise, 2, y), self.layer_norm_eps, self.dtype)

    def self_attention(self, x: jax.Array, segment: jax.Array, noise: Noise | None) -> jax.Array:
        """x [R, T, D] -> dtype [R, T, D], with residual and LayerNorm. Families whose attention differs replace it."""
        return self.attention_module()(x, segment, noise)

    def attention_module(self) -> SelfAttention:
        """Attention as in BERT, at `attention`."""
        sizes = self.hidden_size, self.num_heads, self.layer_norm_eps, self.initializer_range
        return SelfAttention(*sizes, self.dtype, name="attention")


class SelfAttention(nn.Module):
    """Multi-head attention inside segments, output projection, residual and LayerNorm."""

    width: int
    heads: int
    layer_norm_eps: float
    initializer_range: float
    dtype: Any

    @nn.compact
    def __call__(
        self, x: jax.Array, segment: jax.Array, noise: Noise | None = None, bias: jax.Array | None = None
    ) -> jax.Array:
        """x [R, T, D], bias float32 [H, T, T] of the scores -> dtype [R, T, D]."""
        if self.width % self.heads:
            raise UserError(f"width {self.width} is not a multiple of the {self.heads} attention heads")

        def dense(name):
            init = nn.initializers.normal(self.initializer_range)
            return Dense(self.width, dtype=self.dtype, kernel_init=init, name=name)

        split = (*x.shape[:-1], self.heads, self.width // self.heads)
        query, key, value = (dense(name)(x).reshape(split) for name in ("query", "key", "value"))
        y = attend(query, key, value, segment, noise, bias=bias, prefix=adapter_of(self))
        y = dense("output")(y.reshape(x.shape))
        return add_and_normalise(x, dropout(noise, 1, y), self.layer_norm_eps, self.dtype)


def add_and_normalise(x: jax.Array, y: jax.Array, eps: float, dtype: Any) -> jax.Array:
    """LayerNorm(x + y) in float32. Its module becomes `layer_norm` of the module that calls."""
    total = x.astype(jnp.float32) + y.astype(jnp.float32)
    return nn.LayerNorm(eps, dtype=jnp.float32, use_fast_variance=False, name="layer_norm")(total).astype(dtype)
