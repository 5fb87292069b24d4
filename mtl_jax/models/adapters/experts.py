"""Adapters with several matrices of low rank for a kernel, which a gate weighs for each token or for each owner."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from mtl_jax.models.adapters.base import Adapter, KernelAdapter, KernelOptions, Leaves, adapter_of_kernels
from mtl_jax.models.adapters.low_rank import PARAMS, LowRank, add_bias, lora, random_factor
from mtl_jax.models.mixers.base import require_choice, require_integer


class GatedExperts(KernelAdapter, kw_only=True):
    """x W + Σ_e g_e(x) x A_e B_e + b, g = softmax(x R); all experts in one pair of products.

    a       [E, D, r], or [D, r] where the experts have one A
    b       [E, r, F]
    router  R [D, E]
    top_k   only so many experts have a weight, renormalised; 0: all
    """

    a: jax.Array
    b: jax.Array
    router: jax.Array
    top_k: int = flax.struct.field(pytree_node=False, default=0)

    def gates(self, inputs: jax.Array) -> jax.Array:
        """float32 [..., E] of inputs [..., D]."""
        weights = jax.nn.softmax(jnp.matmul(inputs.astype(jnp.float32), self.router), axis=-1)
        if not self.top_k:
            return weights
        lowest = jax.lax.top_k(weights, self.top_k)[0][..., -1:]
        weights = jnp.where(weights >= lowest, weights, 0.0)
        return weights / weights.sum(axis=-1, keepdims=True)

    def __call__(self, inputs, dropped, kernel, bias):
        dtype, experts, rank = inputs.dtype, *self.b.shape[:2]
        down = self.a if self.a.ndim == 2 else jnp.swapaxes(self.a, 0, 1).reshape(self.a.shape[1], -1)
        inner = (dropped @ down.astype(dtype)).reshape(*dropped.shape[:-1], -1, rank)
        inner = self.gates(inputs).astype(dtype)[..., None] * inner
        inner = inner.reshape(*dropped.shape[:-1], experts * rank)
        y = inputs @ kernel.astype(dtype) + inner @ self.b.astype(dtype).reshape(experts * rank, -1)
        return add_bias(y, bias)

    def merge(self, kernel, bias):
        raise ValueError("the gates of experts read each token: the sum is no kernel")


def lora_experts(
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    params: str = PARAMS,
    experts: int = 4,
    router: str = "token",
    top_k: int = 0,
) -> Adapter:
    """W + (α / r) Σ_e g_e A_e B_e: LoRA experts that all tasks share, and the gate of each owner.

    g = softmax(x R) of the kernel's input x as in LoRAMoE (Dou et al. 2024, equations 4, 5); with `top_k` = 2 as in
    MixLoRA (Li et al. 2024, section 3.2), but its loss of balance. With `adapter_owner` = "all" there is one gate for
    all tasks as there, with "none" one for each (Ma et al. 2018). `router` = "task": g = softmax(w_k) of the owner
    alone (MOELoRA: Liu et al. 2023). MoLE (Wu et al. 2024) differs in that its gates read what the experts give out.

    Args:
      rank, alpha, dropout, params: as in `lora`.
      experts: E.
      router: "token" | "task".
      top_k: of "token": only the so many largest weights count, renormalised; 0: all.

    Params: <path of kernel>/{experts_a [E, inputs, r], experts_b [E, r, outputs]} of all, {router [inputs, E]} or
    {weights [E]} of an owner; experts_b and weights start at zero.

    Raises: as `lora`; for kernels other than those of dense modules where gates read tokens.
    """
    require_integer("rank", rank, 1)
    require_integer("experts", experts, 1)
    require_choice("router", router, ("token", "task"))
    _check_top_k(top_k, experts, router == "token")

    def common(key, path, shape):
        del path
        keys = jax.random.split(key, experts)
        return {
            "experts_a": jax.vmap(lambda key: random_factor(key, shape[0], rank))(keys),
            "experts_b": jnp.zeros((experts, rank, shape[1]), jnp.float32),
        }

    def by_task(leaves: Leaves) -> LowRank:
        a, b = leaves["experts_a"], (alpha / rank) * leaves["experts_b"]
        weighted = jax.nn.softmax(leaves["weights"])[:, None, None] * b
        return LowRank(a=jnp.swapaxes(a, 0, 1).reshape(a.shape[1], -1), b=weighted.reshape(-1, b.shape[-1]))

    if router == "task":

        def weights(key, path, shape):
            del key, path, shape
            return {"weights": jnp.zeros((experts,), jnp.float32)}

        return adapter_of_kernels(KernelOptions(params, dropout), weights, by_task, common)
    return _gated("experts_a", KernelOptions(params, dropout, fixed=False), (experts, top_k, alpha / rank), common)


def hydra_lora(
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    params: str = PARAMS,
    experts: int = 0,
    top_k: int = 0,
) -> Adapter:
    """W + (α / r) A Σ_e g_e(x) B_e: one A of all tasks, and several B (HydraLoRA: Tian et al. 2024, equation 4).

    Args:
      rank, alpha, dropout, params: as in `lora`.
      experts: number of B_e that all tasks share, with a gate softmax(x R) of each owner; 0: each owner has one B, the
        task stands for the gate.
      top_k: as in `lora_experts`.

    Params: <path of kernel>/{a [inputs, r]} of all, {b [r, outputs]} of an owner; with experts {a, experts_b
    [E, r, outputs]} of all, {router [inputs, E]} of an owner.

    Raises: as `lora_experts`.
    """
    require_integer("experts", experts, 0)
    _check_top_k(top_k, experts, experts > 0)
    if not experts:
        return lora(rank, alpha, dropout, params, shared="a")
    require_integer("rank", rank, 1)

    def common(key, path, shape):
        del path
        return {
            "a": random_factor(key, shape[0], rank),
            "experts_b": jnp.zeros((experts, rank, shape[1]), jnp.float32),
        }

    return _gated("a", KernelOptions(params, dropout, fixed=False), (experts, top_k, alpha / rank), common)


def _gated(a: str, options: KernelOptions, gates: tuple[int, int, float], common) -> Adapter:
    """Experts with gates that read tokens. `a`: name of the leaf of A; `gates`: E, top_k, α / r."""
    experts, top_k, factor = gates

    def init_owned(key, path, shape):
        del path
        return {"router": 0.02 * jax.random.normal(key, (shape[0], experts), jnp.float32)}

    def make(leaves: Leaves) -> GatedExperts:
        return GatedExperts(a=leaves[a], b=factor * leaves["experts_b"], router=leaves["router"], top_k=top_k)

    return adapter_of_kernels(options, init_owned, make, common)


def _check_top_k(top_k: int, experts: int, has_gates: bool) -> None:
    require_integer("top_k", top_k, 0)
    if top_k and not has_gates:
        raise ValueError("top_k is of gates that read tokens, and there are none")
    if top_k > experts:
        raise ValueError(f"top_k must be at most experts = {experts}, not {top_k}")
