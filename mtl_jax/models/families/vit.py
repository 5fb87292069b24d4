"""What of a published Vision Transformer is taken over: its patch projection and its positions.

The layers of the trunk are those of a text encoder: weights of the layers of a ViT mean nothing in them.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from mtl_jax.errors import UserError
from mtl_jax.models.families import PICTURE_FAMILIES
from mtl_jax.models.pretrained import SafetensorsFiles, read_json, tensor_files

PROJECTION = "embeddings.patch_embeddings.projection"
POSITIONS = "embeddings.position_embeddings"
_CUBIC = -0.75  # the free parameter of Keys (1981) that torch takes


def load_patches(
    folder: str | pathlib.Path, width: int, patch: int, channels: int, grid: tuple[int, int]
) -> dict[str, Any]:
    """Patch projection and positions of a ViT, for `PatchEmbeddings`.

    Args:
      folder: with config.json (`model_type` "vit" or "deit"), model.safetensors and, where the pictures were scaled
        by other means than 0.5 and deviations than 0.5, preprocessor_config.json, which is then made part of the
        projection.
      width: D of the model.
      patch, channels: side of a patch and channels of the pictures.
      grid: (rows, columns) of their patches. Positions learned on another grid are interpolated, bicubic, as
        `transformers` does (`interpolate_pos_encoding`).

    Returns:
      {"projection": {"kernel" [F, D], "bias" [D]}, "position": {"embedding" [rows · columns, D]}}, float32; the vector
      of the class token is left out.

    Raises:
      UserError: missing or broken files, another kind of model, other sizes.
    """
    folder = pathlib.Path(folder)
    config = read_json(folder / "config.json")
    if config.get("model_type") not in PICTURE_FAMILIES:
        raise UserError(
            f"{folder / 'config.json'}: model_type is {config.get('model_type')!r}; config.images.pretrained takes "
            f"patches and positions of one of {', '.join(PICTURE_FAMILIES)}"
        )
    side, size = config.get("patch_size", 16), config.get("image_size", 224)
    for field, value, (meaning, wanted) in (
        ("hidden_size", config.get("hidden_size", 768), ("the width of the model", width)),
        ("patch_size", side, ("config.images.patch_size", patch)),
        ("num_channels", config.get("num_channels", 3), ("config.images.num_channels", channels)),
    ):
        if value != wanted:
            raise UserError(f"{folder / 'config.json'}: {field} = {value}, but {meaning} is {wanted}")
    height, breadth = (size, size) if isinstance(size, int) else size
    learned = (height // side, breadth // side)
    special = PICTURE_FAMILIES[config["model_type"]]
    shapes = {
        f"{PROJECTION}.weight": (width, channels, side, side),
        f"{PROJECTION}.bias": (width,),
        POSITIONS: (1, special + learned[0] * learned[1], width),
    }
    files = tensor_files(folder)
    prefix = next((name.removesuffix(POSITIONS) for name in files if name.endswith(POSITIONS)), "")
    tensors = {}
    with SafetensorsFiles(folder) as opened:
        for name, shape in shapes.items():
            if prefix + name not in files:
                raise UserError(f"{folder}: no tensor {prefix}{name} {list(shape)}")
            tensors[name] = opened.read(files[prefix + name], prefix + name, shape)
    kernel = tensors[f"{PROJECTION}.weight"].transpose(2, 3, 1, 0)  # [y, x, channel, D]
    kernel, bias = _rescale_projection(kernel, tensors[f"{PROJECTION}.bias"], *_scaling(folder, channels))
    position = tensors[POSITIONS][0, special:].reshape(*learned, width)
    return {
        "projection": {"kernel": kernel.reshape(-1, width), "bias": bias},
        "position": {"embedding": interpolate_positions(position, grid).reshape(-1, width)},
    }


def interpolate_positions(position: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """float32 [rows, columns, D]: positions of another grid, bicubic; edges are continued by their last value."""
    for axis, size in enumerate(grid):
        if position.shape[axis] != size:
            position = np.moveaxis(np.tensordot(_cubic(position.shape[axis], size), position, (1, axis)), 0, axis)
    return position.astype(np.float32)


def _cubic(old: int, new: int) -> np.ndarray:
    """float64 [new, old]: the weights of cubic convolution (Keys 1981) at the middles of `new` cells over `old`."""
    at = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(at).astype(int)
    matrix = np.zeros((new, old))
    for offset in (-1, 0, 1, 2):
        d = np.abs(at - first - offset)
        near = (_CUBIC + 2) * d**3 - (_CUBIC + 3) * d**2 + 1
        far = _CUBIC * (d**3 - 5 * d**2 + 8 * d - 4)
        np.add.at(matrix, (np.arange(new), np.clip(first + offset, 0, old - 1)), np.where(d <= 1, near, far))
    return matrix


def _scaling(folder: pathlib.Path, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of each channel by which the pictures of the ViT were scaled, of values 0 … 1."""
    file = folder / "preprocessor_config.json"
    settings = read_json(file) if file.is_file() else {}
    if settings.get("do_normalize", True) is False:
        settings = {"image_mean": [0.0] * channels, "image_std": [1.0] * channels}
    mean, deviation = (np.asarray(settings.get(name, [0.5] * channels), float) for name in ("image_mean", "image_std"))
    if mean.shape != (channels,) or deviation.shape != (channels,) or not (deviation > 0).all():
        raise UserError(f"{file}: image_mean and image_std should each have {channels} numbers, the latter above 0")
    return mean, deviation


def _rescale_projection(kernel, bias, mean, deviation):
    """The projection of values that are scaled as v/255 = 0.5·x + 0.5, from that of (v/255 − mean) / deviation."""
    bias = bias + np.einsum("yxcd,c->d", kernel, (0.5 - mean) / deviation)
    return (kernel * (0.5 / deviation)[:, None]).astype(np.float32), bias.astype(np.float32)
