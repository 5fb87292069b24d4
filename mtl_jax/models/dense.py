"""The affine layer of all modules here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtl_jax.models.activation_sharding import axis_size

FACTORS = "low_rank"


class Dense(nn.Module):
    """x [..., D] -> dtype [..., features]. Parameters as of `flax.linen.Dense`: kernel [D, features] and, with
    `use_bias`, bias [features].

    All leading axes are joined for the product. On CPU the gradient of the kernel then takes two thirds of the time:
    of a sum over two axes XLA makes a product of two transposed matrices, one of which it copies. Not where the tokens
    of a row are on several devices, which would have to be gathered for that.

    Where the params have `FACTORS`, {a [D, r], b [r, features]}, a @ b is added to the kernel, without forming it.
    """

    features: int
    dtype: Any = jnp.float32
    kernel_init: Callable[..., jax.Array] = nn.initializers.lecun_normal()
    bias_init: Callable[..., jax.Array] = nn.initializers.zeros_init()
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        y = x if axis_size("sequence") > 1 else x.reshape(-1, x.shape[-1])
        inputs = y.astype(self.dtype)
        y = inputs @ kernel.astype(self.dtype)
        if self.has_variable("params", FACTORS):
            a, b = (self.get_variable("params", FACTORS)[name].astype(self.dtype) for name in ("a", "b"))
            y = y + (inputs @ a) @ b
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), jnp.float32)
            y = y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)
        return y.reshape(*x.shape[:-1], self.features)
