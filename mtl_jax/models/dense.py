"""The affine layer of all modules here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtl_jax.models.activation_sharding import axis_size

ADAPTER = "adapter"


class Dense(nn.Module):
    """x [..., D] -> dtype [..., features]. Parameters as of `flax.linen.Dense`: kernel [D, features] and, with
    `use_bias`, bias [features].

    All leading axes are joined for the product. On CPU the gradient of the kernel then takes two thirds of the time:
    of a sum over two axes XLA makes a product of two transposed matrices, one of which it copies. Not where the tokens
    of a row are on several devices, which would have to be gathered for that.

    Where the params have an `ADAPTER`, such as `adapters.base.KernelAdapter`, that computes y from inputs and kernel.
    `row_axis` is the axis of the rows in its three-dimensional inputs, for dropout.
    """

    features: int
    dtype: Any = jnp.float32
    kernel_init: Callable[..., jax.Array] = nn.initializers.lecun_normal()
    bias_init: Callable[..., jax.Array] = nn.initializers.zeros_init()
    use_bias: bool = True
    row_axis: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32) if self.use_bias else None
        inputs = self._joined(x)
        if (adapter := adapter_of(self)) is not None:
            y = adapter(inputs, self._joined(adapter.drop(x, self.row_axis)), kernel, bias)
            return y.reshape(*x.shape[:-1], self.features)
        y = inputs @ kernel.astype(self.dtype)
        if bias is not None:
            y = y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)
        return y.reshape(*x.shape[:-1], self.features)

    def _joined(self, x: jax.Array) -> jax.Array:
        return (x if axis_size("sequence") > 1 else x.reshape(-1, x.shape[-1])).astype(self.dtype)


def adapter_of(module: nn.Module) -> Any:
    """The adapter among the parameters of a module, None without."""
    return module.get_variable("params", ADAPTER) if module.has_variable("params", ADAPTER) else None
