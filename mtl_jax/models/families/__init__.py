"""The model families by the `model_type` of config.json.

A new one is a file with a subclass of `Architecture`, and a line in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtl_jax.errors import UserError
from mtl_jax.models.families.albert import Albert
from mtl_jax.models.families.base import Architecture
from mtl_jax.models.families.bert import Bert
from mtl_jax.models.families.deberta import Deberta
from mtl_jax.models.families.distilbert import DistilBert
from mtl_jax.models.families.electra import Electra
from mtl_jax.models.families.eurobert import EuroBert
from mtl_jax.models.families.gemma import Gemma, Gemma2, Gemma3
from mtl_jax.models.families.gpt2 import GPT2
from mtl_jax.models.families.llama import Llama, Mistral, Qwen2, Qwen3
from mtl_jax.models.families.modernbert import ModernBert
from mtl_jax.models.families.mpnet import MPNet
from mtl_jax.models.families.roberta import Camembert, Roberta, XLMRoberta
from mtl_jax.models.families.t5 import T5

FAMILIES: dict[str, type[Architecture]] = {
    "bert": Bert,
    "roberta": Roberta,
    "xlm-roberta": XLMRoberta,
    "camembert": Camembert,
    "distilbert": DistilBert,
    "electra": Electra,
    "modernbert": ModernBert,
    "eurobert": EuroBert,
    "albert": Albert,
    "mpnet": MPNet,
    "t5": T5,
    "deberta-v2": Deberta,
    "gpt2": GPT2,
    "llama": Llama,
    "mistral": Mistral,
    "qwen2": Qwen2,
    "qwen3": Qwen3,
    "gemma": Gemma,
    "gemma2": Gemma2,
    "gemma3_text": Gemma3,
}
# Families of pictures, of which patches and positions alone are copied, see `vit`: number of special tokens before the
# patches; the class token, and DeiT's distillation token.
PICTURE_FAMILIES = {"vit": 1, "deit": 2}


def architecture_from_config(config: Mapping[str, Any], where: str) -> Architecture:
    """The architecture that a published config.json describes. `where` names it in errors (UserError)."""
    model_type = config.get("model_type")
    if model_type in PICTURE_FAMILIES:
        raise UserError(
            f"{where}: model_type {model_type!r} is an encoder of pictures, and layers of text encoders are read here. "
            "Its patch projection and positions can be copied by config.images.pretrained"
        )
    if model_type not in FAMILIES:
        raise UserError(
            f"{where}: model_type is {model_type!r}; supported are {', '.join(FAMILIES)}. A new family is one short "
            "file, see docs/families.md"
        )
    return FAMILIES[model_type].from_config(config, where)
