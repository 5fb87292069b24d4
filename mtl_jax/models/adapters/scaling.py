"""An adapter that scales features: (IA)³."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp

from mtl_jax.models.adapters.base import Adapter, KernelAdapter, KernelOptions, Leaves, adapter_of_kernels
from mtl_jax.models.adapters.low_rank import add_bias


class Scaled(KernelAdapter, kw_only=True):
    """(x W + b) ⊙ outputs, or (x ⊙ inputs) W + b; the other is None."""

    outputs: jax.Array | None = None
    inputs: jax.Array | None = None

    def __call__(self, inputs, dropped, kernel, bias):
        del dropped
        if self.inputs is not None:
            inputs = inputs * jnp.broadcast_to(self.inputs.astype(inputs.dtype), inputs.shape)
        y = add_bias(inputs @ kernel.astype(inputs.dtype), bias)
        return y if self.outputs is None else y * jnp.broadcast_to(self.outputs.astype(y.dtype), y.shape)

    def merge(self, kernel, bias):
        if self.inputs is not None:
            return self.inputs[:, None] * kernel, bias
        return kernel * self.outputs[None], None if bias is None else bias * self.outputs


def ia3(params: str = "attention/(key|value)/kernel$|^output/kernel$", inputs: str = "^output/kernel$") -> Adapter:
    """l ⊙ (x W + b) for keys and values, (l ⊙ x) W + b for the second map of the feed-forward, whose input are the
    activations of the first ((IA)³: Liu et al. 2022, section 3.3).

    Args:
      params: regex found in the paths of kernels inside the layer; the default is the published choice.
      inputs: regex of those of them whose inputs are scaled instead of their outputs.

    Params: <path of kernel>/{output_scale [outputs]} or {input_scale [inputs]}, ones at the start.

    Raises:
      ValueError: at `init`, where no kernel matches; for a bad regex.
    """
    try:
        scales_inputs = re.compile(inputs)
    except re.error as error:
        raise ValueError(f"inputs: {inputs!r} is not a regular expression: {error}") from None

    def init_owned(key, path, shape):
        del key
        if scales_inputs.search(path):
            return {"input_scale": jnp.ones(shape[:1], jnp.float32)}
        return {"output_scale": jnp.ones(shape[1:], jnp.float32)}

    def make(leaves: Leaves) -> Scaled:
        return Scaled(outputs=leaves.get("output_scale"), inputs=leaves.get("input_scale"))

    return adapter_of_kernels(KernelOptions(params, low_rank=False), init_owned, make)
