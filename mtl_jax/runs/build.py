"""From a config to an experiment: weights and data are read, teachers are asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mtl_jax.data.corpus import Corpus
from mtl_jax.experiment import frozen_layers
from mtl_jax.experiment.assemble import Experiment, assemble
from mtl_jax.experiment.inputs import encoder_notes, load_corpus, load_encoder, load_vit, metric_notes
from mtl_jax.runs import teachers


def build(config: Any, taught: bool = True, read: Callable[..., Any] | None = None) -> Experiment:
    """Reads weights and data, and builds the functions. `config` has passed `mtl_jax.checks.check`.

    `taught` = False leaves the teachers of `config.distillation` alone: for what reads no soft labels. `read` stands in
    the place of `datasets.read_dataset`.

    Raises:
      UserError: what is wrong with the config, the data or the weights.
    """
    encoder = load_encoder(config)
    data = frozen_layers.with_outputs(config, load_data(config, encoder, taught, read), encoder)
    patches = load_vit(config, data.pictures, encoder.architecture.width if encoder else config.model.width)
    if encoder is None:
        return assemble(config, data, None, {"embed": {"patches": patches}} if patches else None)
    if patches:
        encoder.params["embed"]["patches"] = patches
    data = data._replace(notes=(*data.notes, *encoder_notes(config, encoder)))
    return assemble(config, data, encoder.architecture, encoder.params)


def load_data(config: Any, encoder: Any, taught: bool = True, read: Callable[..., Any] | None = None) -> Corpus:
    """The data of a config, with the soft labels of its teachers."""
    data = load_corpus(config, encoder, read)
    data = data._replace(notes=(*data.notes, *metric_notes(config, data)))
    return teachers.with_soft_labels(config, data) if taught else data
