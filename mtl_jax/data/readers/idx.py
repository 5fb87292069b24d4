"""IDX files of pictures and their labels: the layout of MNIST and Fashion-MNIST (LeCun et al. 1998)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from mtl_jax.data.files.location import Location
from mtl_jax.data.records import Note, Record
from mtl_jax.errors import UserError

_UNSIGNED_BYTE = 8


def read_idx(location: Location, encoding: str, *, labels: str, names: Sequence[str] = ()) -> Iterator[Record | Note]:
    """One record a picture: image (uint8 array [height, width]), label (its number, or its name), number from 1.

    Args:
      labels: name of the file with the labels, in the same folder; `{}` is replaced by the name of the pictures' file
      up
        to its first "-images", e.g. "{}-labels-idx1-ubyte.gz".
      names: of the classes, by number; () = the numbers.

    Raises UserError where a file is no IDX file of unsigned bytes, or cut off, or the two differ in number.
    """
    del encoding
    images = _array(location, 3)
    other = location.parent().child(labels.replace("{}", location.place.name.partition("-images")[0]))
    classes = _array(other, 1)
    if len(images) != len(classes):
        raise UserError(f"{location.name}: {len(images)} pictures, but {other.name} has {len(classes)} labels")
    for number, (image, label) in enumerate(zip(images, classes, strict=True), start=1):
        if names and label >= len(names):
            raise UserError(f"{other.name}: label {label} of picture {number}, but options.names has {len(names)}")
        yield Record({"image": image, "label": names[label] if names else str(label)}, location.name, number)


def _array(location: Location, dimensions: int) -> np.ndarray:
    content = location.content()
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UNSIGNED_BYTE or content[3] != dimensions:
        raise UserError(f"{location.name}: not an IDX file of unsigned bytes with {dimensions} dimensions")
    header = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:header], ">u4").tolist()
    if len(shape) != dimensions or len(content) != header + math.prod(shape):
        raise UserError(f"{location.name}: {len(content)} bytes, its header promises {header + math.prod(shape)}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
