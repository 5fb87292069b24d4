"""Patches of pictures among the tokens of an example: they take up positions, so packing and lengths hold as for text.

[CLS] patches text [SEP]          [CLS] patches, where there is no text
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mtl_jax.data.batch import GRID_SIDE, PackedRows
from mtl_jax.data.encoding.encode import EncodedSplit, concatenated_ranges, offsets_from_lengths
from mtl_jax.data.encoding.record_inputs import RecordInputs
from mtl_jax.data.files.location import Location, local_path
from mtl_jax.data.pictures.image_store import ImageStore, PatchSpec, read_images
from mtl_jax.data.records import where
from mtl_jax.errors import UserError


def add_pictures(
    inputs: Mapping[str, RecordInputs],
    entry: Mapping[str, Any],
    folder: Location | None,
    cut: PatchSpec | None,
    size: tuple[int, int] | None = None,
    most: int | None = None,
) -> tuple[ImageStore, dict[str, RecordInputs]]:
    """The album of a data set, and its inputs by split with their pictures.

    Args:
      inputs: by split.
      entry: of the data set; `image` names the field, `image_size` the size that pictures are resized to.
      folder: what relative paths start from; None: the working folder.
      cut: patches and channels; 16 pixels and RGB by default.
      size: (height, width) that all pictures should have; None: that of the first.
      most: pictures of an example at most; None: any number.

    Raises:
      UserError: see `pictures.read_images`; too many pictures.
    """
    cut = dataclasses.replace(cut or PatchSpec(), size=tuple(entry.get("image_size") or ()))
    records = {split: own.records for split, own in inputs.items()}
    album, numbers = read_images(records, entry["image"], folder or local_path("."), cut, size)
    for split, shown in numbers.items():
        for record, own in zip(records[split], shown, strict=True):
            if most is not None and len(own) > most:
                raise UserError(f"{where(record)}: {len(own)} pictures; in training an example had at most {most}")
    return album, {split: own._replace(pictures=numbers[split], grid=album.grid) for split, own in inputs.items()}


def add_pixels(rows: Mapping[str, PackedRows], album: ImageStore | None) -> dict[str, PackedRows]:
    """Rows by split with the album's patches; as they are without an album."""
    return {split: own if album is None else own._replace(pixels=album.pixels) for split, own in rows.items()}


def insert_patches(split: EncodedSplit, inputs: RecordInputs, before: int) -> EncodedSplit:
    """The examples with the patches of their records' pictures behind their first `before` tokens.

    At a patch the token is 0, `place` its place in the grid (row · GRID_SIDE + column), the token type the number of
    the
    picture in its record. Places of text go on as if there were no patches, as a pretrained encoder has learned them.
    Every example of a record that was split has all its pictures.
    """
    rows, columns = inputs.grid
    each = rows * columns
    counts = np.asarray([len(own) for own in inputs.pictures], np.int64)
    own = (counts * each)[split.record]
    example, within = concatenated_ranges(np.zeros_like(own), split.lengths + own)
    behind = within >= before + own[example]
    is_patch = (within >= before) & ~behind
    picture, number = np.divmod(within[is_patch] - before, each)
    first = offsets_from_lengths(counts)[split.record[example[is_patch]]]
    shown = np.asarray([n for own in inputs.pictures for n in own], np.int64)[first + picture]

    def spread(values: np.ndarray, at_patches: np.ndarray | int) -> np.ndarray:
        result = np.empty(len(within), np.int32)
        result[~is_patch], result[is_patch] = values, at_patches
        return result

    place = np.where(behind, within - own[example], within)[~is_patch]
    word_example, _ = concatenated_ranges(np.zeros_like(own), np.diff(split.word_offsets))
    return split._replace(
        token_offsets=offsets_from_lengths(split.lengths + own),
        tokens=spread(split.tokens, 0),
        token_type=spread(split.token_type, picture),
        word_token=(split.word_token + own[word_example]).astype(np.int32),
        mark_token=np.where(split.mark_token < 0, -1, split.mark_token + own[:, None]).astype(np.int32),
        place=spread(place, number // columns * GRID_SIDE + number % columns),
        patch=spread(np.zeros(len(split.tokens)), 1 + shown * each + number),
    )
