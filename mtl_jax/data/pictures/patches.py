"""Patches of pictures among the tokens of an example: they take up positions, so packing works as for text.

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
    max_images: int | None = None,
) -> tuple[ImageStore, dict[str, RecordInputs]]:
    """The image store of a data set, and its inputs by split with their pictures.

    Args:
      inputs: by split.
      entry: of the data set; `image` names the field, `image_size` the size that pictures are resized to.
      folder: the folder that relative paths start from; None: the working folder.
      cut: patches and channels; 16 pixels and RGB by default.
      size: (height, width) that all pictures must have; None: that of the first.
      max_images: the largest number of pictures of a record; None: any number.

    Raises:
      UserError: see `image_store.read_images`; too many pictures.
    """
    cut = dataclasses.replace(cut or PatchSpec(), size=tuple(entry.get("image_size") or ()))
    records = {split: split_inputs.records for split, split_inputs in inputs.items()}
    store, numbers = read_images(records, entry["image"], folder or local_path("."), cut, size)
    for split, split_numbers in numbers.items():
        for record, pictures in zip(records[split], split_numbers, strict=True):
            if max_images is not None and len(pictures) > max_images:
                raise UserError(
                    f"{where(record)}: {len(pictures)} pictures; in training a record had at most {max_images}"
                )
    return store, {s: i._replace(pictures=numbers[s], grid=store.grid) for s, i in inputs.items()}


def add_pixels(rows: Mapping[str, PackedRows], store: ImageStore | None) -> Mapping[str, PackedRows]:
    """Rows by split with the patches of the store; unchanged without a store."""
    return rows if store is None else {split: r._replace(pixels=store.pixels) for split, r in rows.items()}


def insert_patches(split: EncodedSplit, inputs: RecordInputs, before: int) -> EncodedSplit:
    """The examples with the patches of their records' pictures after their first `before` tokens.

    At a patch the token is 0, `place` its position in the grid (row · GRID_SIDE + column), the token type the number
    of the picture in its record. Positions of text ignore patches, as a pretrained encoder has learned them. Every
    example of a record has all pictures of the record.
    """
    rows, columns = inputs.grid
    each = rows * columns
    counts = np.asarray([len(numbers) for numbers in inputs.pictures], np.int64)
    added = (counts * each)[split.record]
    example, within = concatenated_ranges(np.zeros_like(added), split.lengths + added)
    is_after = within >= before + added[example]
    is_patch = (within >= before) & ~is_after
    picture, number = np.divmod(within[is_patch] - before, each)
    first = offsets_from_lengths(counts)[split.record[example[is_patch]]]
    image = np.asarray([n for numbers in inputs.pictures for n in numbers], np.int64)[first + picture]

    def spread(values: np.ndarray, at_patches: np.ndarray | int) -> np.ndarray:
        """Values of the former tokens and of the patches, in the order of the new tokens."""
        result = np.empty(len(within), np.int32)
        result[~is_patch], result[is_patch] = values, at_patches
        return result

    place = np.where(is_after, within - added[example], within)[~is_patch]
    word_example, _ = concatenated_ranges(np.zeros_like(added), np.diff(split.word_offsets))
    return split._replace(
        token_offsets=offsets_from_lengths(split.lengths + added),
        tokens=spread(split.tokens, 0),
        token_type=spread(split.token_type, picture),
        word_token=(split.word_token + added[word_example]).astype(np.int32),
        mark_token=np.where(split.mark_token < 0, -1, split.mark_token + added[:, None]).astype(np.int32),
        place=spread(place, number // columns * GRID_SIDE + number % columns),
        patch=spread(np.zeros(len(split.tokens)), 1 + image * each + number),
    )
