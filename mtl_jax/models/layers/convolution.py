"""Convolution over packed rows: what a kernel would take from another segment is zero, as beyond the ends of a text."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from mtl_jax.errors import UserError
from mtl_jax.models.dropout import Noise, dropout
from mtl_jax.models.layers.base import Layer
from mtl_jax.models.layers.transformer import activation_named


class CNN(Layer):
    """One-dimensional convolution, activation, optional residual (as in Kim 2014; Collobert et al. 2011).

    y_t = activation(b + Σ_o x_{t+o} W_o), o from −(n−1)//2 to n//2, n = kernel_size.

    residual  adds x to the output; D must then be `hidden_size`
    """

    hidden_size: int
    kernel_size: int = 3
    activation: str = "relu"
    residual: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, segment: jax.Array, noise: Noise | None = None) -> jax.Array:
        """x [R, T, D], segment int32[R, T] -> dtype [R, T, hidden_size].

        Dropout is on the output, before the residual.
        """
        chex.assert_rank(x, 3)
        chex.assert_shape(segment, x.shape[:2])
        tokens, features = x.shape[1:]
        if self.residual and features != self.hidden_size:
            raise UserError(
                f"a CNN layer of width {self.hidden_size} with residual cannot read features of width {features}"
            )
        init = nn.initializers.glorot_uniform(in_axis=(0, 1), out_axis=2)
        shape = (self.kernel_size, features, self.hidden_size)
        kernel = self.param("kernel", init, shape, jnp.float32).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros, (self.hidden_size,), jnp.float32)
        before, after = (self.kernel_size - 1) // 2, self.kernel_size // 2
        x = x.astype(self.dtype)
        padded = jnp.pad(x, ((0, 0), (before, after), (0, 0)))
        neighbour = jnp.pad(segment, ((0, 0), (before, after)), constant_values=-1)
        y = jnp.broadcast_to(bias, (*x.shape[:2], self.hidden_size))
        for tap in range(self.kernel_size):
            same = neighbour[:, tap : tap + tokens] == segment
            shifted = jnp.where(same[..., None], padded[:, tap : tap + tokens], jnp.zeros((), self.dtype))
            y = y + jnp.matmul(shifted, kernel[tap], preferred_element_type=jnp.float32)
        y = dropout(noise, 0, activation_named(self.activation)(y).astype(self.dtype))
        return x + y if self.residual else y
