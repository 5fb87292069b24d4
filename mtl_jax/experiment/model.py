"""The modules of one column of the network, and the values that all parameters start from."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from mtl_jax.config.sections import Config
from mtl_jax.data.corpus import Corpus
from mtl_jax.errors import UserError
from mtl_jax.models.embeddings import BertEmbeddings, WordEmbeddings
from mtl_jax.models.families import FAMILIES
from mtl_jax.models.families.base import Architecture
from mtl_jax.models.layers import LAYERS
from mtl_jax.models.layers.base import arguments
from mtl_jax.models.patch_embeddings import PatchEmbeddings
from mtl_jax.training.objective import Params

RANDOM_LAYERS = 2  # of a network with random initial values, where the config gives no number


class Model(NamedTuple):
    """The modules of one column: embeddings and layers; the architecture of a model family; pretrained values by layer,
    None where all are random.
    """

    embed: nn.Module
    layers: list[nn.Module]
    architecture: Architecture | None
    pretrained: Params | None


def layer_count(config: Config, published: int | None) -> int:
    """Layers above the embeddings in a config. `published`: those of the pretrained encoder, None without one.

    Raises:
      UserError: more layers than the pretrained encoder has.
    """
    asked = config.model.num_layers
    if published is None:
        return RANDOM_LAYERS if asked < 0 else asked
    if asked > published:
        raise UserError(f"config.model.num_layers: {asked}, but {config.model.pretrained} has {published}")
    return asked if asked > 0 else published


def make_architecture(config: Config, vocab_size: int) -> Architecture | None:
    """The architecture of random layers of a model family; None for layers that belong to none."""
    model, family = config.model, LAYERS[config.model.layer_type].family
    if not family:
        return None
    return FAMILIES[family](
        model_type=family,
        layers=layer_count(config, None),
        width=model.hidden_size,
        heads=model.num_heads,
        intermediate=model.intermediate_size,
        activation=model.activation,
        layer_norm_eps=1e-12,
        vocab_size=vocab_size,
        max_positions=config.data.row_length,
        type_vocab=2,
        pad_token=0,
        initializer_range=float(model.initializer_range),
    )


def make_model(
    config: Config, architecture: Architecture | None, pretrained_params: Params | None, data: Corpus
) -> Model:
    """The modules of a config, for the tokens of `data`.

    Raises:
      UserError: a pretrained encoder that is too small for the config or the tokenizer.
    """
    model, dtype = config.model, jnp.dtype(config.model.dtype)
    architecture = architecture or make_architecture(config, data.tokenizer.size)
    if architecture is not None:
        if data.tokenizer.size > architecture.vocab_size:
            raise UserError(
                f"config.tokenizer: {data.tokenizer.size} tokens, but {model.pretrained} has embeddings for "
                f"{architecture.vocab_size}; use the tokenizer of the model"
            )
        architecture = dataclasses.replace(architecture, layers=layer_count(config, architecture.layers))
        patches = _patches(data, architecture.table_width, architecture.initializer_range, dtype)
        return Model(
            architecture.embeddings(dtype).clone(patches=patches),
            [architecture.layer(number, dtype) for number in range(architecture.layers)],
            architecture,
            pretrained_params,
        )
    layer = LAYERS[model.layer_type]
    table = {"vocab_size": data.tokenizer.size, "width": model.hidden_size, "dtype": dtype}
    scale = float(model.initializer_range) if layer.positions else WordEmbeddings.initializer_range
    patches = _patches(data, model.hidden_size, scale, dtype)
    if layer.positions:
        positions = config.data.row_length
        embed = BertEmbeddings(**table, max_positions=positions, initializer_range=scale, patches=patches)
    else:
        embed = WordEmbeddings(**table, patches=patches)
    layers = [layer(**arguments(layer, model), dtype=dtype)] * layer_count(config, None)
    return Model(embed, layers, None, None)


def _patches(data: Corpus, width: int, scale: float, dtype: jnp.dtype) -> PatchEmbeddings | None:
    """The embedding of picture patches, with initial values as large as those of words; None without pictures."""
    form = data.pictures
    if form is None:
        return None
    return PatchEmbeddings(form.features, form.rows, form.columns, form.max_images, width, scale, dtype)
