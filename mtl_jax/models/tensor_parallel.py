"""Which axis of a parameter the mesh axis `model` splits, by its path."""

from __future__ import annotations

from mtl_jax.models.layers import LAYERS


def split_axes(path: str) -> tuple[bool, ...] | None:
    """For each axis of a parameter, that of its owners aside, whether it is split; None where no layer says so.

    Factors of a kernel's LoRA, `adapter_03/.../kernel/a` [in, r] and b [r, out], are split as the kernel is.
    """
    parent, _, name = path.partition("/")
    if parent.startswith("layer_"):
        return _of_layers(name)
    kernel, _, factor = name.rpartition("/")
    if parent.startswith("adapter_") and factor in ("a", "b"):
        axes = _of_layers(kernel)
        return axes and ((axes[0], False) if factor == "a" else (False, axes[1]))
    return None


def _of_layers(name: str) -> tuple[bool, ...] | None:
    return next((layer.tensor_parallel[name] for layer in LAYERS.values() if name in layer.tensor_parallel), None)
