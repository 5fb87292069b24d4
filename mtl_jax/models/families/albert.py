"""ALBERT."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from mtl_jax.models.families.bert import Bert
from mtl_jax.models.families.electra import ProjectedBert
from mtl_jax.models.families.published_heads import PublishedHead, linear_heads, masked_head, pooled_head
from mtl_jax.tasks.heads import HeadForm


@dataclasses.dataclass(frozen=True)
class Albert(ProjectedBert):
    """ALBERT (Lan et al. 2020): BERT whose layers have one set of weights, and whose tables have fewer features."""

    published = "AlbertModel"
    tied_layers = True
    projection = "encoder.embedding_hidden_mapping_in"
    always_projects = True
    defaults: ClassVar[Mapping[str, int]] = {
        **Bert.defaults,
        "hidden_size": 4096,
        "num_attention_heads": 64,
        "intermediate_size": 16384,
        "vocab_size": 30000,
    }
    required: ClassVar[Mapping[str, Any]] = {**Bert.required, "num_hidden_groups": 1, "inner_group_num": 1}
    default_activation: ClassVar[str] = "gelu_new"
    layer_name: ClassVar[str] = "encoder.albert_layer_groups.0.albert_layers.{}"
    part_names: ClassVar[Mapping[str, str]] = {
        "query": "attention.query",
        "key": "attention.key",
        "value": "attention.value",
        "attention_output": "attention.dense",
        "attention_norm": "attention.LayerNorm",
        "intermediate": "ffn",
        "output": "ffn_output",
        "norm": "full_layer_layer_norm",
    }

    def published_heads(self) -> Mapping[str, PublishedHead]:
        """See `Architecture.published_heads`."""
        form, text = HeadForm("first", self.width, "tanh"), ("SequenceClassification", "MultipleChoice")
        names = ("predictions.dense", "predictions.LayerNorm", "predictions.decoder")
        biases, masked = ("predictions.bias", "predictions.decoder.bias"), self.masked_form(self.activation)
        return {
            **{
                kind: pooled_head(f"AlbertFor{name}", "albert.", form, "albert.pooler")
                for kind, name in zip(("sequence", "choice"), text, strict=True)
            },
            **linear_heads("Albert", "albert."),
            "masked": masked_head("AlbertForMaskedLM", "albert.", masked, names, biases),
        }
