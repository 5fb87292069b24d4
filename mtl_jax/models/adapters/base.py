"""What an adapter is, and how one changes chosen kernels of a layer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from mtl_jax.models.dense import ADAPTER
from mtl_jax.models.dropout import Noise, inverted_dropout

Params = Mapping[str, Any]
HIGHEST = jax.lax.Precision.HIGHEST


class LayerPlace(NamedTuple):
    """Where an adapter stands.

    params  of the layer, of one owner
    width   features of its output
    module  the layer
    """

    params: Params
    width: int
    module: nn.Module


class Adapter(NamedTuple):
    """Pure functions; one of `bind` and `after`, the other is None.

    init   (key, place) -> params of one owner, float32
    bind   (params, params of the layer, the layer or None, noise) -> params that the layer is applied with. Without the
           layer its parameters as they would be without an adapter; ValueError where there are none such
    after  (params, output [R, T, D]) -> [R, T, D], in its dtype
    factors  (params) -> {path of kernel: (A [inputs, r], B [r, outputs])}, the matrices of low rank that are added to
           kernels; None: there are none such
    init_shared  (key, place) -> params that all owners have in common, float32, at a path of their own; `bind` and
           `after` get both as one tree. None: there are none
    """

    init: Callable[[jax.Array, LayerPlace], Params]
    bind: Callable[..., Params] | None = None
    after: Callable[[Params, jax.Array], jax.Array] | None = None
    init_shared: Callable[[jax.Array, LayerPlace], Params] | None = None
    factors: Callable[[Params], dict[str, tuple[jax.Array, jax.Array]]] | None = None


def joined(own: Params, shared: Params) -> Params:
    """The parameters of an owner and those of all as one tree; their paths differ."""
    return unflatten_dict({**flatten_dict(shared), **flatten_dict(own)})


class KernelAdapter(flax.struct.PyTreeNode):
    """What a `dense.Dense` module applies in place of x W + b. It exists within a pass only.

    noise  the dropout of its inputs; None without
    salt   differs from kernel to kernel of a layer
    """

    noise: Noise | None = None
    salt: int = flax.struct.field(pytree_node=False, default=0)

    def drop(self, x: jax.Array, row_axis: int) -> jax.Array:
        """The inputs of what is added, with dropout: x [R, T, D], rows along `row_axis`; other x have no rows."""
        if self.noise is None or self.noise.adapter_rate is None or x.ndim != 3:
            return x
        rows = jnp.moveaxis(x, row_axis, 0)
        keys = self.noise.keys
        return jnp.moveaxis(inverted_dropout(keys, self.noise.adapter_rate, 64 + self.salt, rows), 0, row_axis)

    def __call__(self, inputs: jax.Array, dropped: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
        """[..., F] in the dtype of `inputs` [..., D]; kernel float32 [D, F], bias float32 [F]."""
        raise NotImplementedError

    def merge(self, kernel: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, jax.Array | None]:
        """Kernel and bias that do the same without an adapter. ValueError where there are none."""
        raise NotImplementedError


Leaves = Mapping[str, jax.Array]
Draw = Callable[[jax.Array, str, tuple[int, int]], Leaves]  # (key, path of a kernel, its shape) -> leaves


class KernelOptions(NamedTuple):
    """The kernels that an adapter changes: regex `params` found in their paths; the rate of `dropout` of inputs.

    fixed  whether the change is that of a fixed kernel, so that a layer can be given the sum
    low_rank  whether what `make` returns has factors `a` and `b`, whose product is added to the kernel
    """

    params: str
    dropout: float = 0.0
    fixed: bool = True
    low_rank: bool = True


def adapter_of_kernels(
    options: KernelOptions, own: Draw, make: Callable[[Leaves], Any], shared: Draw | None = None
) -> Adapter:
    """An adapter of chosen kernels of a layer. Params: <path of kernel>/<leaf>.

    For kernels of the layer's `dense` modules no changed kernel is formed, and no gradient has the size of one.

    Args:
      options: which kernels.
      own: the leaves of one owner for a kernel.
      make: (own and shared leaves) -> what the module applies.
      shared: the leaves that all owners have in common.

    Raises:
      ValueError: at `init`, where no kernel matches, or one cannot be changed so; here for a bad regex or rate.
    """
    chosen = _regex("params", options.params)
    if not 0 <= options.dropout < 1:
        raise ValueError(f"dropout must be at least 0 and below 1, not {options.dropout!r}")
    sums = options.fixed and not options.dropout

    def init(draw: Draw) -> Callable[[jax.Array, LayerPlace], Params]:
        def drawn(key: jax.Array, place: LayerPlace) -> Params:
            leaves = {}
            for number, (path, leaf) in enumerate(_kernels(chosen, options.params, place, sums).items()):
                new = draw(jax.random.fold_in(key, number), path, leaf.shape)
                leaves |= {f"{path}/{name}": value for name, value in new.items()}
            return unflatten_dict(leaves, sep="/")

        return drawn

    def bind(params: Params, layer: Params, module: nn.Module | None = None, noise: Noise | None = None) -> Params:
        flat = dict(flatten_dict(layer, sep="/"))
        for salt, (kernel, leaves) in enumerate(sorted(_by_kernel(params).items())):
            adapter = make(leaves).replace(noise=noise if options.dropout else None, salt=salt)
            owner = kernel.rpartition("kernel")[0]  # "" or with a slash at its end
            if module is not None and owner.removesuffix("/") in _dense(module, sums):
                flat[owner + ADAPTER] = adapter
                continue
            flat[kernel], bias = adapter.merge(flat[kernel], flat.get(f"{owner}bias"))
            if bias is not None:
                flat[f"{owner}bias"] = bias
        return unflatten_dict(flat, sep="/")

    def factors(params: Params) -> dict[str, tuple[jax.Array, jax.Array]]:
        made = {kernel: make(leaves) for kernel, leaves in _by_kernel(params).items()}
        return {kernel: (adapter.a, adapter.b) for kernel, adapter in made.items()}

    common = None if shared is None else init(shared)
    low_rank = options.fixed and options.low_rank
    return Adapter(init(own), bind, None, common, factors if low_rank else None)


def _by_kernel(params: Params) -> dict[str, dict[str, jax.Array]]:
    """{path of a kernel: its leaves}."""
    kernels: dict[str, dict[str, jax.Array]] = {}
    for path, leaf in flatten_dict(params, sep="/").items():
        kernel, _, name = path.rpartition("/")
        kernels.setdefault(kernel, {})[name] = leaf
    return kernels


def _regex(field: str, regex: str) -> re.Pattern[str]:
    try:
        return re.compile(regex)
    except re.error as error:
        raise ValueError(f"{field}: {regex!r} is not a regular expression: {error}") from None


def _dense(module: nn.Module, sums: bool) -> tuple[str, ...]:
    """Paths of the modules that can apply a `KernelAdapter`; other kernels of a layer are given the sum."""
    return (*getattr(module, "dense", ()), *(() if sums else getattr(module, "projections", ())))


def _kernels(chosen: re.Pattern[str], params: str, place: LayerPlace, sums: bool) -> dict[str, Any]:
    """{path: kernel}, those of a layer that are changed."""
    flat = flatten_dict(place.params, sep="/")
    kernels = {path: leaf for path, leaf in flat.items() if chosen.search(path) and leaf.ndim == 2}
    if not kernels:
        raise ValueError(f"params: {params!r} finds no kernel of a layer; there are {', '.join(flat)}")
    dense = [f"{path}/kernel" for path in _dense(place.module, sums)]
    if not sums and (others := [path for path in kernels if path not in dense]):
        raise ValueError(
            f"params: {params!r} finds {others[0]}, whose inputs an adapter with gates or dropout cannot read; it can "
            f"those of {', '.join(dense) or 'no kernel of this layer'}"
        )
    return kernels
