"""EuroBERT."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from mtl_jax.models.families.llama import Llama
from mtl_jax.models.families.published_heads import PublishedHead, linear_heads, pooled_head
from mtl_jax.tasks.heads import HeadForm


@dataclasses.dataclass(frozen=True)
class EuroBert(Llama):
    """EuroBERT (Boizard et al. 2025): the layers of Llama with attention in both directions."""

    published = "EuroBertModel"
    causal: ClassVar[bool] = False
    defaults: ClassVar[Mapping[str, Any]] = {
        **Llama.defaults,
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "rms_norm_eps": 1e-5,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
    }

    def published_heads(self) -> Mapping[str, PublishedHead]:
        """See `Architecture.published_heads`."""
        text = pooled_head(
            "EuroBertForSequenceClassification",
            "model.",
            HeadForm("first", self.width, "gelu"),
            "dense",
            pool_field="classifier_pooling",
            pools={"first": "bos", "mean": "mean"},
        )
        scores = HeadForm("", output_bias=self.mlp_bias)
        masked = PublishedHead("EuroBertForMaskedLM", "model.", scores, {"output": "lm_head"}, tied_output=True)
        return {"sequence": text, **linear_heads("EuroBert", "model.", ("token",)), "masked": masked}
