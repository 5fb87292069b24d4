"""What a layer declares, so that a config can choose it by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from flax import linen as nn


class Layer(nn.Module):
    """A layer of one column, over one block of packed rows.

    `__call__(x [R, T, D], segment int32[R, T], noise=None) -> dtype [R, T, D']`, and nothing in it crosses a segment.
    Fields are frozen hyperparameters, `dtype` (float32 or bfloat16) is that of the computation; parameters are float32.
    Fields with the name of a field of `config.model`, such as hidden_size, num_heads or activation, get their value
    from there. The others are options, `config.model.layer_options`.
    Salts of dropout repeat from layer to layer: the caller gives each layer keys of its own.

    positions      whether it needs embeddings with positions; else those of words alone are below it
    attends        whether it drops attention weights (`config.model.attention_dropout`)
    family         the model family whose layer it is, a name of `mtl_jax.models.families`; "" for none
    tensor_parallel  {path of a parameter in the layer: for each of its axes whether the mesh axis `model` splits it};
                   other parameters are not split. {}: the layer has no such form, and its largest parameters are split
                   along their longest axis, wherever that is
    dense          paths of the `Dense` modules in it, whose kernels LoRA changes without forming the sum
    projections    paths of further ones, of whose kernels LoRA forms the sum unless it reads their inputs
    divisors       fields that have to be multiples of the size of `model`
    """

    positions: ClassVar[bool] = False
    attends: ClassVar[bool] = False
    family: ClassVar[str] = ""
    tensor_parallel: ClassVar[Mapping[str, tuple[bool, ...]]] = {}
    divisors: ClassVar[tuple[str, ...]] = ()
    dense: ClassVar[tuple[str, ...]] = ()
    projections: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """The hyperparameters that a config sets."""
        return tuple(f.name for f in dataclasses.fields(cls) if f.name not in ("dtype", "parent", "name"))


def arguments(layer: type[Layer], model: Any) -> dict[str, Any]:
    """The arguments of a layer, dtype aside, from `config.model`: its fields by name, and `layer_options`.

    Raises:
      ValueError: an option that the layer does not have.
    """
    options = [name for name in layer.field_names() if name not in model]
    for name in model.layer_options:
        if name not in options:
            raise ValueError(f"{model.layer_type!r} has no option {name!r}; it has {', '.join(options) or 'none'}")
    return {name: model[name] for name in layer.field_names() if name in model} | model.layer_options.to_dict()
