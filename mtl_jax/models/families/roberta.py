"""RoBERTa and the families that are RoBERTa on other texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from mtl_jax.models.families.bert import Bert
from mtl_jax.models.families.published_heads import PublishedHead, language_head, linear_heads, pooled_head
from mtl_jax.tasks.heads import HeadForm


@dataclasses.dataclass(frozen=True)
class Roberta(Bert):
    """RoBERTa (Liu et al. 2019): BERT whose positions are counted from padding_idx + 1."""

    published = "RobertaModel"
    defaults: ClassVar[Mapping[str, int]] = {**Bert.defaults, "pad_token_id": 1, "vocab_size": 50265}

    @property
    def position_offset(self) -> int:
        """The row of the position table at which a text begins."""
        return self.pad_token + 1

    def published_heads(self) -> Mapping[str, PublishedHead]:
        """See `Architecture.published_heads`."""
        name, form = self.published.removesuffix("Model"), HeadForm("first", self.width, "tanh")
        return roberta_heads(name, "roberta.", form, self.masked_form("gelu"))


def roberta_heads(name: str, prefix: str, text: HeadForm, masked: HeadForm) -> dict[str, PublishedHead]:
    """The heads of RoBERTa, whose classifier has an inner layer and whose choices have the pooler."""
    sequence, choice = f"{name}ForSequenceClassification", f"{name}ForMultipleChoice"
    return {
        "sequence": pooled_head(sequence, prefix, text, "classifier.dense", "classifier.out_proj"),
        "choice": pooled_head(choice, prefix, text, f"{prefix}pooler.dense"),
        **linear_heads(name, prefix),
        "masked": language_head(name, prefix, masked),
    }


@dataclasses.dataclass(frozen=True)
class XLMRoberta(Roberta):
    """XLM-R (Conneau et al. 2020)."""

    published = "XLMRobertaModel"
    defaults: ClassVar[Mapping[str, int]] = {**Bert.defaults, "pad_token_id": 1}


@dataclasses.dataclass(frozen=True)
class Camembert(Roberta):
    """CamemBERT (Martin et al. 2020)."""

    published = "CamembertModel"
    defaults: ClassVar[Mapping[str, int]] = {**Bert.defaults, "pad_token_id": 1}
