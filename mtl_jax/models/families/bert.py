"""BERT, and what the families that follow it have in common with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self

import jax.numpy as jnp

from mtl_jax.errors import UserError
from mtl_jax.models.embeddings import BertEmbeddings
from mtl_jax.models.families.base import Architecture, PublishedTensor, dense_tensors, norm_tensors, table_tensor
from mtl_jax.models.families.config_fields import ENCODER_ONLY, ConfigFields
from mtl_jax.models.families.published_heads import PublishedHead, linear_heads, masked_head, pooled_head
from mtl_jax.models.layers.transformer import TransformerLayer
from mtl_jax.models.ownership import layer_path
from mtl_jax.tasks.heads import HeadForm


@dataclasses.dataclass(frozen=True)
class Bert(Architecture):
    """BERT (Devlin et al. 2019): layer norms after attention and feed-forward, absolute positions.

    max_positions  rows of the position table
    defaults       fields of config.json and the values that transformers takes where one is left out
    config_names   those fields that the family calls otherwise
    required       fields that change what the model computes, and the only value that is computed here
    layer_name     published name of a layer; `{}` is its number
    part_names     published names within a layer
    """

    published = "BertModel"
    words = "embeddings.word_embeddings.weight"
    defaults: ClassVar[Mapping[str, int]] = {
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "vocab_size": 30522,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "pad_token_id": 0,
    }
    config_names: ClassVar[Mapping[str, str]] = {}
    required: ClassVar[Mapping[str, Any]] = {**ENCODER_ONLY, "position_embedding_type": "absolute"}
    default_activation: ClassVar[str] = "gelu"
    default_eps: ClassVar[float] = 1e-12
    layer_name: ClassVar[str] = "encoder.layer.{}"
    part_names: ClassVar[Mapping[str, str]] = {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "attention_output": "attention.output.dense",
        "attention_norm": "attention.output.LayerNorm",
        "intermediate": "intermediate.dense",
        "output": "output.dense",
        "norm": "output.LayerNorm",
    }

    model_type: str
    layers: int
    width: int
    heads: int
    intermediate: int
    activation: str
    layer_norm_eps: float
    vocab_size: int
    max_positions: int
    type_vocab: int
    pad_token: int
    initializer_range: float = 0.02

    @property
    def position_offset(self) -> int:
        """The row of the position table at which a text begins."""
        return 0

    @property
    def position_rows(self) -> int:
        """Rows of the position table; 0 where there is none."""
        return self.max_positions

    @property
    def max_length(self) -> int:
        return self.max_positions - self.position_offset

    def embeddings(self, dtype: Any = jnp.float32) -> BertEmbeddings:
        """The module of the path `embed`."""
        return BertEmbeddings(
            vocab_size=self.vocab_size,
            width=self.table_width,
            max_positions=self.position_rows,
            type_vocab=self.type_vocab,
            position_offset=self.position_offset,
            layer_norm_eps=self.layer_norm_eps,
            initializer_range=self.initializer_range,
            dtype=dtype,
        )

    def layer(self, number: int, dtype: Any = jnp.float32) -> TransformerLayer:
        """The module of the path `layer_NN`; all are alike."""
        del number
        return TransformerLayer(**self.layer_fields(), dtype=dtype)

    def layer_fields(self) -> dict[str, Any]:
        """The fields of a `TransformerLayer`, without its dtype."""
        return {
            "hidden_size": self.width,
            "num_heads": self.heads,
            "intermediate_size": self.intermediate,
            "activation": self.activation,
            "layer_norm_eps": self.layer_norm_eps,
            "initializer_range": self.initializer_range,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> Self:
        """The architecture that a published config.json describes. `where` names it in errors (UserError)."""
        fields, names = ConfigFields(config, where), cls.config_names
        fields.require(cls.required)
        sizes = {
            field: fields.integer(names.get(field, field), default, cls._lowest(field))
            for field, default in cls.defaults.items()
        }
        heads = names.get("num_attention_heads", "num_attention_heads")
        width = names.get("hidden_size", "hidden_size")
        fields.multiple(width, sizes["hidden_size"], heads, sizes["num_attention_heads"])
        architecture = cls(
            model_type=config["model_type"],
            layers=sizes["num_hidden_layers"],
            width=sizes["hidden_size"],
            heads=sizes["num_attention_heads"],
            intermediate=sizes["intermediate_size"],
            activation=fields.activation(names.get("hidden_act", "hidden_act"), cls.default_activation),
            layer_norm_eps=fields.positive("layer_norm_eps", cls.default_eps),
            vocab_size=sizes["vocab_size"],
            max_positions=sizes["max_position_embeddings"],
            type_vocab=sizes.get("type_vocab_size", 0),
            pad_token=sizes["pad_token_id"],
            **cls.more_fields(fields),
        )
        if architecture.max_length < 1:
            raise UserError(
                f"{where}: max_position_embeddings {architecture.max_positions} leaves no position for a token, "
                f"since the first has index {architecture.position_offset}"
            )
        return architecture

    @classmethod
    def _lowest(cls, field: str) -> int:
        return 0 if field == "pad_token_id" or cls.defaults[field] == 0 else 1

    @classmethod
    def more_fields(cls, fields: ConfigFields) -> dict[str, Any]:
        """The dataclass's fields that BERT has not, from config.json."""
        del fields
        return {}

    def published_config(self) -> dict[str, Any]:
        """config.json: the inverse of `from_config`."""
        sizes = {
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "num_attention_heads": self.heads,
            "intermediate_size": self.intermediate,
            "hidden_act": self.activation,
            "layer_norm_eps": self.layer_norm_eps,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_positions,
            **({"type_vocab_size": self.type_vocab} if "type_vocab_size" in self.defaults else {}),
            "pad_token_id": self.pad_token,
        }
        return {
            "architectures": [self.published],
            "model_type": self.model_type,
            **{self.config_names.get(field, field): value for field, value in sizes.items()},
            "dtype": "float32",
        }

    def published_tensors(self) -> Iterator[PublishedTensor]:
        """Every tensor of an encoder, embeddings first."""
        table = self.table_width
        yield table_tensor("embeddings.word_embeddings", ("embed", "word"), self.vocab_size, table)
        if self.position_rows:
            yield table_tensor("embeddings.position_embeddings", ("embed", "position"), self.position_rows, table)
        if self.type_vocab:
            yield table_tensor("embeddings.token_type_embeddings", ("embed", "token_type"), self.type_vocab, table)
        yield from norm_tensors("embeddings.LayerNorm", ("embed", "layer_norm"), table)
        yield from self.encoder_tensors()
        for number in range(1 if self.tied_layers else self.layers):
            yield from self.layer_tensors(self.layer_name.format(number), layer_path(number))

    def published_heads(self) -> Mapping[str, PublishedHead]:
        """See `Architecture.published_heads`."""
        pooled, masked = HeadForm("first", self.width, "tanh"), "cls.predictions"
        text = {"sequence": "SequenceClassification", "choice": "MultipleChoice"}
        return {
            **{
                kind: pooled_head(f"BertFor{name}", "bert.", pooled, "bert.pooler.dense") for kind, name in text.items()
            },
            **linear_heads("Bert", "bert."),
            "masked": masked_head(
                "BertForMaskedLM",
                "bert.",
                self.masked_form(self.activation),
                (f"{masked}.transform.dense", f"{masked}.transform.LayerNorm", f"{masked}.decoder"),
                (f"{masked}.bias", f"{masked}.decoder.bias"),
            ),
        }

    def masked_form(self, activation: str) -> HeadForm:
        """The layers before the scores of hidden tokens, to the width of the word vectors."""
        return HeadForm("", self.table_width, activation, norm_eps=self.layer_norm_eps)

    def encoder_tensors(self) -> Iterator[PublishedTensor]:
        """Tensors between the tables and the layers, and those of the encoder as a whole."""
        return iter(())

    def layer_tensors(self, name: str, path: str) -> Iterator[PublishedTensor]:
        """The tensors of one layer, `name` in the published model."""
        width, wide = self.width, self.intermediate
        names = {part: f"{name}.{published}" for part, published in self.part_names.items()}
        for part in ("query", "key", "value"):
            yield from dense_tensors(names[part], (path, "attention", part), width, width)
        yield from dense_tensors(names["attention_output"], (path, "attention", "output"), width, width)
        yield from norm_tensors(names["attention_norm"], (path, "attention", "layer_norm"), width)
        yield from dense_tensors(names["intermediate"], (path, "intermediate"), width, wide)
        yield from dense_tensors(names["output"], (path, "output"), wide, width)
        yield from norm_tensors(names["norm"], (path, "layer_norm"), width)
