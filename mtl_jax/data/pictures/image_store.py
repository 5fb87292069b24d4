"""The pictures of a data set: each decoded once, resized to one size, cut into patches.

A picture is given as the path of a PNG or JPEG file, or as an array. A path may end with a region of the picture, as
in W3C Media Fragments: "boxes.png#xywh=150,0,100,100" (x, y, width, height in pixels). A record may have several.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtl_jax.data.batch import GRID_SIDE
from mtl_jax.data.encoding.record_inputs import RecordInputs
from mtl_jax.data.files.location import Location
from mtl_jax.data.records import Record, field, where
from mtl_jax.errors import UserError

BLANK_LEVEL = 128  # of every pixel of a blanked picture: grey, 0.004 on the scale −1 … 1 of `models.patch_embeddings`
_REGION = re.compile(r"#xywh=(\d+),(\d+),(\d+),(\d+)$")
_MODES = {1: "L", 3: "RGB"}


@dataclasses.dataclass(frozen=True)
class PatchSpec:
    """How pictures become patches.

    patch     side of a patch in pixels
    channels  3 = RGB (Pillow's conversion; transparency is dropped) | 1 = grey
    size      (height, width) that every picture is resized to, bilinear and antialiased; () leaves them as they are
    blank     True to set every pixel to `BLANK_LEVEL`: a control without visual information
    """

    patch: int = 16
    channels: int = 3
    size: tuple[int, ...] = ()
    blank: bool = False


class ImageStore(NamedTuple):
    """The pictures of a data set, n different ones of P = rows · columns patches each.

    pixels         uint8[1 + n·P, F], F = patch · patch · channels in the order (y, x, channel); row 0 means no patch;
                   patch p of picture i is row 1 + i·P + p, patches are in row-major order of the grid
    grid           (rows, columns) of patches
    size           (height, width) in pixels
    """

    pixels: np.ndarray
    grid: tuple[int, int]
    size: tuple[int, int]


class ImageSpec(NamedTuple):
    """What a model has to know about the pictures of all its data sets.

    features       F, values of a patch
    rows, columns  of the largest grid
    max_images     the largest number of pictures of an example
    sizes          {data set: (height, width)}
    """

    features: int
    rows: int
    columns: int
    max_images: int
    sizes: Mapping[str, tuple[int, int]]


def read_images(
    splits: Mapping[str, Sequence[Record]],
    name: str,
    folder: Location,
    cut: PatchSpec,
    size: tuple[int, int] | None = None,
) -> tuple[ImageStore, dict[str, list[tuple[int, ...]]]]:
    """Decodes the pictures of all records.

    Args:
      splits: records by split.
      name: of the field with a path, a uint8 array [height, width] or [height, width, 1 or 3], or a list of such.
      folder: what relative paths start from.
      cut: how they are cut.
      size: (height, width) that they must have after `cut.size`; None: that of the first.

    Returns:
      the image store, and for each split [M] tuples of the numbers of each record's pictures in it.

    Raises:
      UserError: by file and line of the record, and the picture's file: no picture, one that cannot be decoded, sizes
        that differ or are no multiple of a patch.
    """
    reader = _Reader(folder, cut, size)
    numbers = {
        split: [tuple(reader.number(record, picture) for picture in _pictures_of(record, name)) for record in records]
        for split, records in splits.items()
    }
    return reader.store(), numbers


def image_spec(stores: Mapping[str, ImageStore], inputs: Mapping[str, Mapping[str, RecordInputs]]) -> ImageSpec | None:
    """The properties of the pictures of all data sets; None without pictures. `inputs` by data set and split."""
    if not stores:
        return None
    return ImageSpec(
        features=next(iter(stores.values())).pixels.shape[1],
        rows=max(store.grid[0] for store in stores.values()),
        columns=max(store.grid[1] for store in stores.values()),
        max_images=max(len(numbers) for splits in inputs.values() for i in splits.values() for numbers in i.pictures),
        sizes={name: store.size for name, store in stores.items()},
    )


def patches(pixels: np.ndarray, side: int) -> np.ndarray:
    """A picture [height, width, channels] as its patches [P, side · side · channels], row by row."""
    height, width, channels = pixels.shape
    cut = pixels.reshape(height // side, side, width // side, side, channels)
    return cut.swapaxes(1, 2).reshape(-1, side * side * channels)


def picture_key(value: Any) -> str:
    """A key that two values share which name the same pictures."""
    parts = value if isinstance(value, list | tuple) else [value]
    return "\n".join(
        hashlib.sha256(part.tobytes()).hexdigest() if isinstance(part, np.ndarray) else str(part) for part in parts
    )


def _pictures_of(record: Record, name: str) -> Sequence[Any]:
    value = field(record, name)
    pictures = value if isinstance(value, list | tuple) else [value]
    for picture in pictures:
        if not (isinstance(picture, np.ndarray) or (isinstance(picture, str) and picture.strip())):
            raise UserError(
                f"{where(record)}: field {name!r} should name a picture (path of a PNG or JPEG file), found "
                f"{picture!r:.60}"
            )
    if not pictures:
        raise UserError(f"{where(record)}: field {name!r} names no picture")
    return pictures


class _Reader:
    """Decodes pictures and numbers them in the order of their first occurrence."""

    def __init__(self, folder: Location, cut: PatchSpec, size: tuple[int, int] | None):
        self.folder, self.cut, self.size = folder, cut, size
        self.first = "" if size is None else "those of training"
        self.numbers: dict[str, int] = {}
        self.patches: list[np.ndarray] = []
        self.opened: tuple[str, Any] = ("", None)  # regions of one file are consecutive

    def number(self, record: Record, source: str | np.ndarray) -> int:
        """The number of a picture, which is decoded at its first occurrence."""
        key = picture_key(source)
        if key not in self.numbers:
            self.patches.append(self._patches(record, source))
            self.numbers[key] = len(self.numbers)
        return self.numbers[key]

    def store(self) -> ImageStore:
        """The store of all pictures so far."""
        grid = (self.size[0] // self.cut.patch, self.size[1] // self.cut.patch)
        none = np.zeros((1, self.patches[0].shape[1]), np.uint8)
        return ImageStore(np.concatenate([none, *self.patches]), grid, self.size)

    def _patches(self, record: Record, source: str | np.ndarray) -> np.ndarray:
        name = "the picture" if isinstance(source, np.ndarray) else f"picture {source}"
        image = self._image(record, source, name)
        if self.cut.size:
            from PIL import Image

            image = image.resize((self.cut.size[1], self.cut.size[0]), Image.Resampling.BILINEAR)
        size = (image.height, image.width)
        if self.size is None:
            self.size, self.first = size, f"that of {where(record)}"
            self._check_grid(record, name, size)
        if size != self.size:
            raise UserError(
                f"{where(record)}: {name} is {_size_text(size)}, {self.first} {_size_text(self.size)}; all pictures "
                "of a data set have one size: set its image_size = (height, width), and they are resized"
            )
        pixels = np.asarray(image.convert(_MODES[self.cut.channels])).reshape(*size, self.cut.channels)
        return patches(np.full_like(pixels, BLANK_LEVEL) if self.cut.blank else pixels, self.cut.patch)

    def _check_grid(self, record: Record, name: str, size: tuple[int, int]) -> None:
        side = self.cut.patch
        if size[0] % side or size[1] % side or not all(size):
            near = tuple(max(side, round(length / side) * side) for length in size)
            raise UserError(
                f"{where(record)}: {name} is {_size_text(size)}, which patches of {side} pixels do not fill; set "
                f"the data set's image_size, e.g. {near}, or another config.images.patch_size"
            )
        if max(size) // side > GRID_SIDE:
            raise UserError(
                f"{where(record)}: {name} is {_size_text(size)}, more than {GRID_SIDE} patches of {side} pixels wide"
            )

    def _image(self, record: Record, source: str | np.ndarray, name: str):
        from PIL import Image  # late: text needs none of it

        if isinstance(source, np.ndarray):
            if source.dtype != np.uint8 or not (source.ndim == 2 or (source.ndim == 3 and source.shape[2] in (1, 3))):
                raise UserError(
                    f"{where(record)}: a picture should be uint8 [height, width] or [height, width, 1 or 3], found "
                    f"{source.dtype} {list(source.shape)}"
                )
            return Image.fromarray(source[:, :, 0] if source.ndim == 3 and source.shape[2] == 1 else source)
        part = _REGION.search(source)
        path = source[: part.start()] if part else source
        if self.opened[0] != path:
            self.opened = (path, self._open(record, path))
        image = self.opened[1]
        if not part:
            return image
        x, y, width, height = map(int, part.groups())
        if not (width and height) or x + width > image.width or y + height > image.height:
            raise UserError(
                f"{where(record)}: {name}: this region is not inside the picture, which is "
                f"{_size_text((image.height, image.width))}"
            )
        return image.crop((x, y, x + width, y + height))

    def _open(self, record: Record, path: str):
        from PIL import Image, ImageOps

        try:
            file = self.folder.child(path)
            with file.open() as stream:
                image = ImageOps.exif_transpose(Image.open(stream))
                image.load()
                return image.convert(_MODES[self.cut.channels])
        except UserError as error:
            raise UserError(f"{where(record)}: picture {path}: {error}") from error
        # Pillow's decoders raise many types of errors for damaged files.
        except Exception as error:
            raise UserError(
                f"{where(record)}: picture {file.name} cannot be decoded ({type(error).__name__}: {error}); a complete "
                "PNG or JPEG file is needed"
            ) from error


def _size_text(size: Sequence[int]) -> str:
    return f"{size[0]} × {size[1]} pixels (height × width)"
