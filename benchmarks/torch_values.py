"""Parameters of mtl_jax under the names that the models of `torch_models` give them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def named(name: str, values: Mapping[str, np.ndarray]) -> np.ndarray:
    """[O, ...] of one name of the peer from {path: leaf [O, ...]}; kernels [O, in, out] become weights [O, out, in]."""
    layer, *rest = name.split("/")
    if layer == "embed" and rest[0] in ("word", "position", "type"):
        return values[f"embed/{ {'type': 'token_type'}.get(rest[0], rest[0]) }/embedding"]
    if name.endswith(("norm/scale", "norm/bias")):
        return values[name.replace("/norm/", "/layer_norm/")]
    if rest[0] in ("forward", "backward"):
        where = f"{layer}/{rest[0]}/"
        path = {"weight": "input/kernel", "bias": "input/bias", "recurrent": "recurrent/kernel"}[rest[1]]
        return np.swapaxes(values[where + path], 1, 2) if "kernel" in path else values[where + path]
    if len(rest) == 1:  # a convolution; its kernel is [O, window, in, out]
        bias = rest[0] == "bias"
        kernel = values[f"{layer}/{'bias' if bias else 'kernel'}"]
        return kernel if bias else np.swapaxes(kernel.reshape(len(kernel), -1, kernel.shape[-1]), 1, 2)
    kind = "bias" if rest[1] == "bias" else "kernel"
    parts = {
        "qkv": ("attention/query", "attention/key", "attention/value"),
        "attention": ("attention/output",),
        "in": ("intermediate",),
        "out": ("output",),
    }[rest[0]]
    whole = np.concatenate([values[f"{layer}/{part}/{kind}"] for part in parts], axis=-1)
    return np.swapaxes(whole, 1, 2) if kind == "kernel" else whole
