"""Whether what is read is what was written: Orbax has no checksums, so that a flipped bit on a disk goes unnoticed."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.errors import UserError

CHECKSUMS, HASH = "sums", "sha256"  # fields of sealed metadata


class DamagedError(UserError):
    """What was read is not what was written."""


def array_checksums(parts: Mapping[str, Any]) -> dict[str, int]:
    """Σ u_i · (2i + 1) mod 2³² of every leaf, u_i the bits of element i; {path: sum}.

    An odd factor has an inverse mod 2³², so that a change of any one element of up to 32 bits changes the sum; of
    64-bit elements both halves are summed. Leaves may be sharded: what crosses devices is one number a leaf.

    Args:
      parts: named pytrees of arrays.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(dict(parts))
    names = ["/".join(map(path_entry_name, path)) for path, _ in leaves]
    on_host = [isinstance(leaf, np.ndarray) for _, leaf in leaves]  # such as many small heads: nothing to compile
    values = iter(jax.device_get(_sums([leaf for (_, leaf), host in zip(leaves, on_host, strict=True) if not host])))
    sums = [_sum_on_host(leaf) if host else next(values) for (_, leaf), host in zip(leaves, on_host, strict=True)]
    return dict(zip(names, map(int, sums), strict=True))


def with_checksums(metadata: Mapping[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata with the sums of the arrays that it describes, and a hash of everything."""
    with_sums = {**metadata, CHECKSUMS: array_checksums(parts)}
    return {**with_sums, HASH: _hash(with_sums)}


def verified(sealed: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata that `with_checksums` got, with `CHECKSUMS`.

    Raises:
      Damaged: its hash is wrong.
      UserError: it has no hash.
    """
    if sealed and not {CHECKSUMS, HASH} & sealed.keys():
        raise UserError("a checkpoint without checksums, by an older version; train anew in another folder")
    metadata = {name: value for name, value in sealed.items() if name != HASH}
    if sealed.get(HASH) != _hash(metadata):
        raise DamagedError("its description does not have the hash that was written with it")
    return metadata


def require_checksums(metadata: Mapping[str, Any], parts: Mapping[str, Any]) -> None:
    """Raises Damaged where arrays do not have the sums in the `verified` metadata."""
    wrong = [name for name, value in array_checksums(parts).items() if metadata[CHECKSUMS].get(name) != value]
    if wrong:
        raise DamagedError(f"{len(wrong)} arrays are not what was written, the first: {', '.join(wrong[:3])}")


def path_entry_name(entry: Any) -> str:
    """The name of an entry in the path of a leaf; Orbax restores tuples as lists, and named tuples as dicts."""
    return str(next(getattr(entry, kind) for kind in ("key", "name", "idx") if hasattr(entry, kind)))


@jax.jit
def _sums(leaves: list[jax.Array]) -> list[jax.Array]:
    return [_sum(leaf) for leaf in leaves]


def _sum(leaf: jax.Array) -> jax.Array:
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    bits = 8 * leaf.dtype.itemsize
    if bits > 32:
        leaf = jax.lax.bitcast_convert_type(leaf, jnp.uint32)  # adds an axis of the two halves
        bits = 32
    unsigned = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{bits}")).astype(jnp.uint32)
    # the index is computed axis by axis: a reshape would gather sharded arrays
    strides = functools.reduce(lambda tail, size: [tail[0] * size, *tail], reversed(unsigned.shape), [1])[1:]
    index = jnp.zeros(unsigned.shape, jnp.uint32)
    for axis, stride in enumerate(strides):
        index += jax.lax.broadcasted_iota(jnp.uint32, unsigned.shape, axis) * jnp.uint32(stride % 2**32)
    return (unsigned * (jnp.uint32(2) * index + jnp.uint32(1))).sum(dtype=jnp.uint32)


def _sum_on_host(leaf: np.ndarray) -> np.uint32:
    """As `_sum`."""
    bits = 8 * leaf.dtype.itemsize
    unsigned = np.ascontiguousarray(leaf).reshape(-1).view(f"uint{min(bits, 32)}").astype(np.uint32)
    index = np.arange(len(unsigned), dtype=np.uint32)
    return (unsigned * (np.uint32(2) * index + np.uint32(1))).sum(dtype=np.uint32)


def _hash(metadata: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()
