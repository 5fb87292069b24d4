"""Adapters that add a matrix of low rank to kernels: LoRA and its forms for several tasks.

Kernels are [inputs, outputs] here, so that a change is A B with A [inputs, r] and B [r, outputs]: the transposes of the
papers' A and B.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from mtl_jax.models.adapters.base import HIGHEST, Adapter, KernelAdapter, KernelOptions, Leaves, adapter_of_kernels
from mtl_jax.models.mixers.base import require_choice, require_integer

PARAMS = "(query|value|input)/kernel$"  # query and value of a transformer, the input kernels of recurrent layers


class LowRank(KernelAdapter, kw_only=True):
    """x W + x A B + b, for a token r·(inputs + outputs) products more than without."""

    a: jax.Array
    b: jax.Array

    def __call__(self, inputs, dropped, kernel, bias):
        y = inputs @ kernel.astype(inputs.dtype)
        y = y + (dropped @ self.a.astype(inputs.dtype)) @ self.b.astype(inputs.dtype)
        return add_bias(y, bias)

    def merge(self, kernel, bias):
        return kernel + jnp.matmul(self.a, self.b, precision=HIGHEST), bias


class Decomposed(LowRank, kw_only=True):
    """m ⊙ (x W + x A B) / ‖W + A B‖ + b, norms of columns; m = ‖W‖ + `magnitude`. Of the norms there is no gradient."""

    magnitude: jax.Array

    def _scale(self, kernel: jax.Array) -> jax.Array:
        """float32 [F]. ‖w + A b‖² = ‖w‖² + 2 wᵀA b + bᵀ(AᵀA) b: no sum is formed."""
        kernel, a, b = map(jax.lax.stop_gradient, (kernel.astype(jnp.float32), self.a, self.b))
        before = jnp.square(kernel).sum(axis=0)
        crossed = jnp.matmul(a.T, kernel, precision=HIGHEST) * b  # [r, F]
        inner = jnp.matmul(jnp.matmul(a.T, a, precision=HIGHEST), b, precision=HIGHEST) * b
        after = before + (2.0 * crossed + inner).sum(axis=0)
        return (jnp.sqrt(before) + self.magnitude) * jax.lax.rsqrt(jnp.maximum(after, jnp.finfo(jnp.float32).tiny))

    def __call__(self, inputs, dropped, kernel, bias):
        y = super().__call__(inputs, dropped, kernel, None)
        return add_bias(y * jnp.broadcast_to(self._scale(kernel).astype(y.dtype), y.shape), bias)

    def merge(self, kernel, bias):
        return (kernel + jnp.matmul(self.a, self.b, precision=HIGHEST)) * self._scale(kernel)[None], bias


def add_bias(y: jax.Array, bias: jax.Array | None) -> jax.Array:
    """y [..., F] plus the bias, if there is one."""
    return y if bias is None else y + jnp.broadcast_to(bias.astype(y.dtype), y.shape)


def random_factor(key: jax.Array, inputs: int, rank: int) -> jax.Array:
    """A at the start, [inputs, r]."""
    return jax.random.normal(key, (inputs, rank), jnp.float32) / inputs**0.5


def lora(rank: int = 8, alpha: float = 16.0, dropout: float = 0.0, params: str = PARAMS, shared: str = "") -> Adapter:
    """W + (α / r) A B in place of chosen kernels W (Hu et al. 2022, equation 3).

    Args:
      rank: r.
      alpha: α.
      dropout: of the inputs of A.
      params: regex found in the paths of kernels inside the layer; the default are query and value of a transformer,
        and the input kernels of recurrent layers.
      shared: what all tasks have in common, whoever owns the rest: "" nothing | "a": A (Tian et al. 2024) | "b": B, so
        that the kernels of the tasks are W + U_k Vᵀ with one V | "lora": a LoRA in addition to that of the owner.

    Params: <path of kernel>/{a [inputs, r], b [r, outputs]}, of a shared LoRA also {shared_a, shared_b}; b starts at
    zero, but where it is shared a does.

    Raises:
      ValueError: at `init`, where no kernel matches; for options that are out of range.
    """
    require_integer("rank", rank, 1)
    require_choice("shared", shared, ("", "a", "b", "lora"))
    factor = alpha / rank

    def a(key, shape):
        return jnp.zeros((shape[0], rank), jnp.float32) if shared == "b" else random_factor(key, shape[0], rank)

    def b(key, shape):
        if shared != "b":
            return jnp.zeros((rank, shape[1]), jnp.float32)
        return jax.random.normal(key, (rank, shape[1]), jnp.float32) / rank**0.5

    draws = {"a": a, "b": b}

    def draw(names: str, prefix: str = ""):
        return lambda key, path, shape: {prefix + name: draws[name](key, shape) for name in names}

    def make(leaves: Leaves) -> LowRank:
        own_b = factor * leaves["b"]
        if shared != "lora":
            return LowRank(a=leaves["a"], b=own_b)
        return LowRank(
            a=jnp.concatenate([leaves["a"], leaves["shared_a"]], axis=1),
            b=jnp.concatenate([own_b, factor * leaves["shared_b"]]),
        )

    options = KernelOptions(params, dropout)
    if shared == "lora":
        return adapter_of_kernels(options, draw("ab"), make, draw("ab", "shared_"))
    if shared:
        return adapter_of_kernels(options, draw("b" if shared == "a" else "a"), make, draw(shared))
    return adapter_of_kernels(options, draw("ab"), make)


def dora(rank: int = 8, alpha: float = 16.0, dropout: float = 0.0, params: str = PARAMS) -> Adapter:
    """m ⊙ (W + (α / r) A B) / ‖W + (α / r) A B‖, norms of columns, in place of chosen kernels W (DoRA: Liu et al. 2024,
    equation 5; section 4.3: without a gradient of the norm).

    The parameter is m − ‖W‖, which starts at zero; where W itself is trained m moves with its norm.

    Args, raises: as `lora`.

    Params: <path of kernel>/{a [inputs, r], b [r, outputs], magnitude [outputs]}; b and magnitude start at zero.
    """
    require_integer("rank", rank, 1)

    def init_owned(key, path, shape):
        del path
        return {
            "a": random_factor(key, shape[0], rank),
            "b": jnp.zeros((rank, shape[1]), jnp.float32),
            "magnitude": jnp.zeros((shape[1],), jnp.float32),
        }

    def make(leaves: Leaves) -> Decomposed:
        return Decomposed(a=leaves["a"], b=(alpha / rank) * leaves["b"], magnitude=leaves["magnitude"])

    return adapter_of_kernels(KernelOptions(params, dropout), init_owned, make)


def mtl_lora(
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    params: str = PARAMS,
    ups: int = 3,
    temperature: float = 0.5,
) -> Adapter:
    """W + (α / r) A Λ_k Σ_i softmax(w_k / τ)_i B_i: shared A and B_i, and of each owner Λ_k and weights w_k (MTL-LoRA:
    Yang et al. 2024, arXiv 2410.09437).

    Args:
      rank, alpha, dropout, params: as in `lora`.
      ups: number of B_i.
      temperature: τ.

    Params: <path of kernel>/{a [inputs, r], ups [n, r, outputs]} of all, {transform [r, r], weights [n]} of an owner;
    B_i starts at zero, Λ_k at the identity, w_k at random, without which all B_i would stay equal.

    Raises: as `lora`.
    """
    require_integer("rank", rank, 1)
    require_integer("ups", ups, 1)
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature!r}")

    def init_owned(key, path, shape):
        del path, shape
        return {
            "transform": jnp.eye(rank, dtype=jnp.float32),
            "weights": jax.random.uniform(key, (ups,), jnp.float32, -1.0, 1.0) / ups**0.5,
        }

    def common(key, path, shape):
        del path
        return {"a": random_factor(key, shape[0], rank), "ups": jnp.zeros((ups, rank, shape[1]), jnp.float32)}

    def make(leaves: Leaves) -> LowRank:
        weights = jax.nn.softmax(leaves["weights"] / temperature)
        up = jnp.tensordot(weights, leaves["ups"], 1, precision=HIGHEST)
        return LowRank(a=leaves["a"], b=(alpha / rank) * jnp.matmul(leaves["transform"], up, precision=HIGHEST))

    return adapter_of_kernels(KernelOptions(params, dropout), init_owned, make, common)
