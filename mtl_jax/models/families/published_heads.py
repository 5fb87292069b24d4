"""The heads that `transformers` puts on the encoder of a family: their layers, and the names of their tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from mtl_jax.tasks.heads import HeadForm


class PublishedHead(NamedTuple):
    """A model with a head, as `transformers` has it.

    architecture  name of its class
    prefix        of the names of the encoder's tensors in it
    form          its layers as they are by default
    tensors       published names of "transform", "layer_norm" and "output"
    output_bias   published names of the bias of the scores, where it has others than `output`.bias
    tied_output   whether the scores of "output" may be products with the word vectors (`tie_word_embeddings`)
    settings      fields of config.json that it needs, whatever the encoder
    pool_field    field of config.json that chooses the pooling, "" for none
    pools         {pooling: its value there}
    activation_field  field of config.json that chooses the activation, "" for none
    """

    architecture: str
    prefix: str
    form: HeadForm
    tensors: Mapping[str, str]
    output_bias: tuple[str, ...] = ()
    tied_output: bool = False
    settings: Mapping[str, Any] = {}
    pool_field: str = ""
    pools: Mapping[str, str] = {}
    activation_field: str = ""


def linear_heads(name: str, prefix: str, kinds: tuple[str, ...] = ("token", "span")) -> dict[str, PublishedHead]:
    """Scores of tokens without a layer before them: a tag each, and the ends of an answer. `name`: "Bert"."""
    heads = {
        "token": PublishedHead(f"{name}ForTokenClassification", prefix, HeadForm(""), {"output": "classifier"}),
        "span": PublishedHead(f"{name}ForQuestionAnswering", prefix, HeadForm(""), {"output": "qa_outputs"}),
    }
    return {kind: heads[kind] for kind in kinds}


def pooled_head(
    architecture: str, prefix: str, form: HeadForm, transform: str, output: str = "classifier", **fields: Any
) -> PublishedHead:
    """Scores of a text, with one layer before them."""
    return PublishedHead(architecture, prefix, form, {"transform": transform, "output": output}, **fields)


def masked_head(
    architecture: str, prefix: str, form: HeadForm, tensors: tuple[str, str, str], output_bias: tuple[str, ...]
) -> PublishedHead:
    """Scores of hidden tokens. `tensors`: names of the affine map, the LayerNorm and the scores."""
    names = dict(zip(("transform", "layer_norm", "output"), tensors, strict=True))
    return PublishedHead(architecture, prefix, form, names, output_bias, tied_output=True)


def language_head(name: str, prefix: str, form: HeadForm) -> PublishedHead:
    """Scores of hidden tokens as RoBERTa has them. `name`: "Roberta"."""
    names = ("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder")
    return masked_head(f"{name}ForMaskedLM", prefix, form, names, ("lm_head.bias", "lm_head.decoder.bias"))


def causal_heads(name: str, prefix: str, token: str = "score") -> dict[str, PublishedHead]:
    """The heads of causal models: the last token of a text, which `pad_token_id` tells from the padding, has read it
    all. `token`: name of the scores of tags, "" where there are none.
    """
    last = HeadForm("last", output_bias=False)
    heads = {"sequence": PublishedHead(f"{name}ForSequenceClassification", prefix, last, {"output": "score"})}
    if token:
        tags = PublishedHead(f"{name}ForTokenClassification", prefix, HeadForm(""), {"output": token})
        heads["token"] = tags
    return heads
