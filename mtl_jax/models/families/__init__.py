"""The model families by the `model_type` of config.json.

A new one is a file with a subclass of `Architecture`, and a line in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtl_jax.errors import UserError
from mtl_jax.models.families.base import Architecture
from mtl_jax.models.families.bert import Bert
from mtl_jax.models.families.roberta import Camembert, Roberta, XLMRoberta

FAMILIES: dict[str, type[Architecture]] = {
    "bert": Bert,
    "roberta": Roberta,
    "xlm-roberta": XLMRoberta,
    "camembert": Camembert,
}
# Families of pictures, of which patches and positions alone are copied, see `vit`: number of special tokens before the
# patches; the class token, and DeiT's distillation token.
PICTURE_FAMILIES = {"vit": 1, "deit": 2}


def architecture_from_config(config: Mapping[str, Any], where: str) -> Architecture:
    """The architecture that a published config.json describes. `where` names it in errors (UserError)."""
    model_type = config.get("model_type")
    if model_type in PICTURE_FAMILIES:
        raise UserError(
            f"{where}: model_type {model_type!r}, whose layers normalise before attention, those here do after it. Its "
            "patch projection and positions can be copied by config.images.pretrained"
        )
    if model_type not in FAMILIES:
        raise UserError(f"{where}: model_type is {model_type!r}; supported are {', '.join(FAMILIES)}")
    return FAMILIES[model_type].from_config(config, where)
