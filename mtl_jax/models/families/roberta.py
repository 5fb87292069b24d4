"""RoBERTa and the families that are RoBERTa on other texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from mtl_jax.models.families.bert import Bert


@dataclasses.dataclass(frozen=True)
class Roberta(Bert):
    """RoBERTa (Liu et al. 2019): BERT whose positions are counted from padding_idx + 1."""

    published = "RobertaModel"
    defaults: ClassVar[Mapping[str, int]] = {**Bert.defaults, "pad_token_id": 1, "vocab_size": 50265}

    @property
    def position_offset(self) -> int:
        """The row of the position table at which a text begins."""
        return self.pad_token + 1


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
