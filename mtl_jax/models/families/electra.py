"""ELECTRA."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax.numpy as jnp

from mtl_jax.models.embeddings import BertEmbeddings
from mtl_jax.models.families.base import PublishedTensor, dense_tensors
from mtl_jax.models.families.bert import Bert
from mtl_jax.models.families.config_fields import ConfigFields
from mtl_jax.models.families.published_heads import PublishedHead, linear_heads, masked_head, pooled_head
from mtl_jax.tasks.heads import HeadForm


@dataclasses.dataclass(frozen=True)
class ProjectedBert(Bert):
    """BERT whose tables have fewer features than its layers, with an affine map between them.

    embedding_width  features of the tables
    projection       published name of the map
    always_projects  whether there is a map where both are equal
    """

    projection: ClassVar[str]
    always_projects: ClassVar[bool] = False
    default_embedding_size: ClassVar[int] = 128

    embedding_width: int = 0

    @property
    def table_width(self) -> int:
        return self.embedding_width

    @property
    def is_projected(self) -> bool:
        """Whether there is a map."""
        return self.always_projects or self.embedding_width != self.width

    def embeddings(self, dtype: Any = jnp.float32) -> BertEmbeddings:
        return super().embeddings(dtype).clone(projected_width=self.width if self.is_projected else 0)

    @classmethod
    def more_fields(cls, fields: ConfigFields) -> dict[str, Any]:
        return {"embedding_width": fields.integer("embedding_size", cls.default_embedding_size)}

    def published_config(self) -> dict[str, Any]:
        return {**super().published_config(), "embedding_size": self.embedding_width}

    def encoder_tensors(self) -> Iterator[PublishedTensor]:
        if self.is_projected:
            yield from dense_tensors(self.projection, ("embed", "projection"), self.embedding_width, self.width)


@dataclasses.dataclass(frozen=True)
class Electra(ProjectedBert):
    """ELECTRA (Clark et al. 2020), generator or discriminator: BERT whose tables may have fewer features."""

    published = "ElectraModel"
    projection = "embeddings_project"
    defaults: ClassVar[Mapping[str, int]] = {
        **Bert.defaults,
        "hidden_size": 256,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
    }

    def published_heads(self) -> Mapping[str, PublishedHead]:
        """See `Architecture.published_heads`."""
        form, classifier, summary = HeadForm("first", self.width, "gelu"), "classifier", "sequence_summary.summary"
        names = ("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head")
        return {
            "sequence": pooled_head(
                "ElectraForSequenceClassification",
                "electra.",
                form,
                f"{classifier}.dense",
                f"{classifier}.out_proj",
            ),
            "choice": pooled_head(
                "ElectraForMultipleChoice", "electra.", form, summary, activation_field="summary_activation"
            ),
            **linear_heads("Electra", "electra."),
            "masked": masked_head("ElectraForMaskedLM", "electra.", self.masked_form("gelu"), names, ()),
        }
