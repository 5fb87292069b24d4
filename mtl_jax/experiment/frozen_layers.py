"""Frozen lower layers of a pretrained encoder, computed once for every packed row instead of at every step."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np

from mtl_jax.config.sections import Config
from mtl_jax.data.batch import PackedRows
from mtl_jax.data.corpus import Corpus
from mtl_jax.data.notices import INFORMATION, Notice
from mtl_jax.errors import UserError
from mtl_jax.experiment.model import layer_count, make_model
from mtl_jax.models.encoder_parts import encoder_parts, layer_params
from mtl_jax.models.families.base import Architecture
from mtl_jax.models.ownership import layer_paths
from mtl_jax.models.pretrained import Pretrained
from mtl_jax.runtime.progress import progress_bar
from mtl_jax.training.objective import Params
from mtl_jax.training.parameter_paths import flatten, matching

OUTPUT_ROWS = 32  # of a batch


def frozen_layers(
    config: Config, architecture: Architecture | None, pretrained_params: Params | None
) -> tuple[str, ...]:
    """The layers of a pretrained encoder, "embed" first, below the first one with a trained parameter or an
    adapter. () without caching.

    Raises:
      UserError: `config.optimizer.cache_frozen` without a frozen layer.
    """
    if architecture is None or pretrained_params is None or not config.optimizer.cache_frozen:
        return ()
    architecture = dataclasses.replace(architecture, layers=layer_count(config, architecture.layers))
    modules = [architecture.embeddings(), *map(architecture.layer, range(architecture.layers))]
    sharing, frozen = config.sharing, []
    for path, module in zip(layer_paths(architecture.layers), modules, strict=True):
        paths = (path, *encoder_parts(module))
        leaves = flatten({name: pretrained_params[name] for name in paths})
        adapted = sharing.adapter and path != "embed" and path in (sharing.adapter_layers or (path,))
        if adapted or len(matching(leaves, config.optimizer.freeze)) < len(leaves):
            break
        frozen.append(path)
    if not frozen:
        raise UserError(
            "config.optimizer.cache_frozen: 'embed' is trained; name it in config.optimizer.freeze, e.g. "
            "('^embed/', '^layer_0[0-3]/')"
        )
    return tuple(frozen)


def cache_frozen_outputs(config: Config, data: Corpus, encoder: Pretrained | None) -> Corpus:
    """The corpus with the outputs of the frozen layers, without dropout, in its rows; unchanged without caching."""
    layers = frozen_layers(config, encoder and encoder.architecture, encoder and encoder.params)
    if not layers:
        return data
    model = make_model(config, encoder.architecture, encoder.params, data)
    modules = dict(zip(layer_paths(len(model.layers)), [model.embed, *model.layers], strict=True))

    @jax.jit
    def outputs(params, tokens, position, token_type, segment):
        inputs = (tokens, position, token_type, segment)
        for path in layers:
            x = modules[path].apply({"params": layer_params(modules[path], params, path)}, *inputs, None)
            inputs = (x, segment)
        return x

    used = [*layers, *(name for path in layers for name in encoder_parts(modules[path]))]
    params = jax.device_put({path: encoder.params[path] for path in used})
    total = sum(len(rows.tokens) for by_split in data.rows.values() for rows in by_split.values())
    with progress_bar("frozen layers", "row", total) as bar:

        def with_outputs(rows: PackedRows) -> PackedRows:
            parts = []
            for begin in range(0, len(rows.tokens), OUTPUT_ROWS):
                arrays = (rows.tokens, rows.position, rows.token_type, rows.segment)
                batch = [array[begin : begin + OUTPUT_ROWS] for array in arrays]
                count = len(batch[0])
                batch = [np.pad(array, ((0, OUTPUT_ROWS - count), (0, 0))) for array in batch]
                parts.append(np.asarray(outputs(params, *batch))[:count])
                bar.update(count)
            shape = (0, rows.tokens.shape[1], model.architecture.width)
            return rows._replace(hidden=np.concatenate(parts) if parts else np.zeros(shape, config.model.dtype))

        rows = {
            name: {split: with_outputs(part) for split, part in by_split.items()}
            for name, by_split in data.rows.items()
        }
    size = sum(part.hidden.nbytes for by_split in rows.values() for part in by_split.values())
    note = f"outputs of the frozen layers up to {layers[-1]} are cached: {size / 2**20:,.0f} MiB"
    return data._replace(rows=rows, notes=(*data.notes, Notice(note, INFORMATION)))
