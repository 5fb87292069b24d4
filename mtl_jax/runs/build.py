"""From a config to an experiment: reads weights and data, and asks teachers."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from mtl_jax.config.sections import Config
from mtl_jax.data.corpus import Corpus
from mtl_jax.data.datasets import ReadData
from mtl_jax.experiment import frozen_layers
from mtl_jax.experiment.assemble import Experiment, assemble
from mtl_jax.experiment.budget import with_steps
from mtl_jax.experiment.inputs import encoder_notes, load_corpus, load_encoder, load_vit, metric_notes
from mtl_jax.models.pretrained import Pretrained
from mtl_jax.runs import teachers
from mtl_jax.runs.init_from import saved_data, starting_from
from mtl_jax.storage.data_identity import require_same_on_all_hosts

ReadDataset = Callable[[str, Mapping[str, Any], int], ReadData]  # of a name, its entry in the config, and a seed


def build(
    config: Config,
    soft_labels: bool = True,
    read: ReadDataset | None = None,
    finished: pathlib.Path | None = None,
) -> Experiment:
    """Reads weights and data, and builds the functions.

    Args:
      config: has passed `mtl_jax.checks.check`.
      soft_labels: False does not ask the teachers of `config.distillation`: enough for what is not trained.
      read: in place of `datasets.read_dataset`.
      finished: the folder of the run of this config, where there is one.

    Raises:
      UserError: what is wrong with the config, the data or the weights.
    """
    encoder = load_encoder(config)
    data = load_data(config, encoder, soft_labels, read, finished)
    config = with_steps(config, data)
    data = frozen_layers.cache_frozen_outputs(config, data, encoder)
    width = encoder.architecture.table_width if encoder else config.model.hidden_size
    patches = load_vit(config, data.pictures, width)
    if encoder is None:
        return starting_from(config, assemble(config, data, None, {"embed": {"patches": patches}} if patches else None))
    if patches:
        encoder.params["embed"]["patches"] = patches
    data = data._replace(notes=(*data.notes, *encoder_notes(config, encoder)))
    return starting_from(config, assemble(config, data, encoder.architecture, encoder.params))


def load_data(
    config: Config,
    encoder: Pretrained | None,
    soft_labels: bool = True,
    read: ReadDataset | None = None,
    finished: pathlib.Path | None = None,
) -> Corpus:
    """The data of a config, with the soft labels of its teachers; arguments as for `build`.

    Raises:
      UserError: what is wrong with the data; processes that have read different data.
    """
    data = load_corpus(config, encoder, read, *saved_data(config, finished))
    require_same_on_all_hosts(data)
    data = data._replace(notes=(*data.notes, *metric_notes(config, data)))
    return teachers.with_soft_labels(config, data) if soft_labels else data
