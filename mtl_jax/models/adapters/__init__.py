"""Adapters: small parameters on layers, owned by all tasks, by groups or by one. A new kind is one function and a line.

Initially they change nothing, but for prefixes. Their leaves are [O, ...] at paths `adapter_03`, and what all owners
have in common [1, ...] at `adapter_shared_03`, so that penalties on "^adapter_" act on them only, and
`optimizer.freeze` = ("^embed/", "^layer_") trains nothing else of the encoder.
"""

from __future__ import annotations

from collections.abc import Callable

from mtl_jax.models.adapters.base import Adapter
from mtl_jax.models.adapters.bottleneck import bottleneck, fusion
from mtl_jax.models.adapters.experts import hydra_lora, lora_experts
from mtl_jax.models.adapters.low_rank import dora, lora, mtl_lora
from mtl_jax.models.adapters.prefix import prefix
from mtl_jax.models.adapters.scaling import ia3

ADAPTERS: dict[str, Callable[..., Adapter]] = {  # (**options) -> Adapter; an argument `tasks` is K
    "bottleneck": bottleneck,
    "fusion": fusion,
    "lora": lora,
    "dora": dora,
    "hydra_lora": hydra_lora,
    "mtl_lora": mtl_lora,
    "lora_experts": lora_experts,
    "ia3": ia3,
    "prefix": prefix,
}
