"""DistilBERT."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from mtl_jax.models.families.bert import Bert
from mtl_jax.models.families.published_heads import PublishedHead, linear_heads, masked_head, pooled_head
from mtl_jax.tasks.heads import HeadForm


@dataclasses.dataclass(frozen=True)
class DistilBert(Bert):
    """DistilBERT (Sanh et al. 2019): BERT without token types."""

    published = "DistilBertModel"
    defaults: ClassVar[Mapping[str, int]] = {
        **{field: value for field, value in Bert.defaults.items() if field != "type_vocab_size"},
        "num_hidden_layers": 6,
    }
    config_names: ClassVar[Mapping[str, str]] = {
        "num_hidden_layers": "n_layers",
        "hidden_size": "dim",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
    }
    # sinusoidal positions are a table like learned ones; transformers has no other epsilon
    required: ClassVar[Mapping[str, object]] = {**Bert.required, "layer_norm_eps": 1e-12}
    layer_name: ClassVar[str] = "transformer.layer.{}"
    part_names: ClassVar[Mapping[str, str]] = {
        "query": "attention.q_lin",
        "key": "attention.k_lin",
        "value": "attention.v_lin",
        "attention_output": "attention.out_lin",
        "attention_norm": "sa_layer_norm",
        "intermediate": "ffn.lin1",
        "output": "ffn.lin2",
        "norm": "output_layer_norm",
    }

    def published_heads(self) -> Mapping[str, PublishedHead]:
        """See `Architecture.published_heads`."""
        form, prefix = HeadForm("first", self.width, "relu"), "distilbert."
        names = ("vocab_transform", "vocab_layer_norm", "vocab_projector")
        return {
            "sequence": pooled_head("DistilBertForSequenceClassification", prefix, form, "pre_classifier"),
            "choice": pooled_head("DistilBertForMultipleChoice", prefix, form, "pre_classifier"),
            **linear_heads("DistilBert", prefix),
            "masked": masked_head("DistilBertForMaskedLM", prefix, self.masked_form(self.activation), names, ()),
        }
