"""K matrices of low rank that are never formed: leaves of a tree in place of arrays [K, m, n]."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_HIGHEST = jax.lax.Precision.HIGHEST


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRankStack:
    """The products A_k B_k: left [K, m, r], right [K, r, n]. Inner products cost K² r² (m + n)."""

    left: jax.Array
    right: jax.Array

    @property
    def shape(self) -> tuple[int, int, int]:
        """[K, m, n]."""
        return (self.left.shape[0], self.left.shape[1], self.right.shape[2])

    def astype(self, dtype: jax.typing.DTypeLike) -> LowRankStack:
        """The factors in a dtype."""
        return LowRankStack(jnp.asarray(self.left, dtype), jnp.asarray(self.right, dtype))

    def minus(self, other: LowRankStack) -> LowRankStack:
        """A_k B_k − A'_k B'_k = (A_k − A'_k) B_k + A'_k (B_k − B'_k), of twice the rank: differences come before any
        product. `other` may have one matrix for all.
        """
        left, right = (jnp.broadcast_to(x, y.shape) for x, y in ((other.left, self.left), (other.right, self.right)))
        return LowRankStack(
            jnp.concatenate([self.left - left, left], axis=2),
            jnp.concatenate([self.right, self.right - right], axis=1),
        )

    def differences(self) -> LowRankStack:
        """Each minus the first, through which nothing flows."""
        return self.minus(jax.lax.stop_gradient(LowRankStack(self.left[:1], self.right[:1])))

    def first_and_differences(self) -> LowRankStack:
        """The first, then each other one minus the first."""
        keep = jnp.asarray(np.arange(self.shape[0]) > 0, self.left.dtype)[:, None, None]
        return self.minus(LowRankStack(keep * self.left[:1], keep * self.right[:1]))

    def inner_products(self) -> jax.Array:
        """float[K, K] of ⟨A_i B_i, A_j B_j⟩ = tr((A_iᵀ A_j)(B_j B_iᵀ))."""
        return (_pairs(self.left, "imr,jms->ijrs") * _pairs(self.right, "irn,jsn->ijrs")).sum(axis=(2, 3))

    def squared_norms(self) -> jax.Array:
        """float[K] of ‖A_k B_k‖²."""
        return (_pairs(self.left, "kmr,kms->krs") * _pairs(self.right, "krn,ksn->krs")).sum(axis=(1, 2))

    def squared_overlaps(self) -> jax.Array:
        """float[K, K] of ‖(A_i B_i)ᵀ A_j B_j‖² = ⟨M_ijᵀ S_i M_ij, S_j⟩, M_ij = A_iᵀ A_j, S_i = B_i B_iᵀ."""
        between, of_right = _pairs(self.left, "imr,jms->ijrs"), _pairs(self.right, "krn,ksn->krs")
        moved = jnp.einsum("ijrs,irt,ijtu->ijsu", between, of_right, between, precision=_HIGHEST)
        return jnp.einsum("ijsu,jsu->ij", moved, of_right, precision=_HIGHEST)


def _pairs(factors: jax.Array, products: str) -> jax.Array:
    return jnp.einsum(products, factors, factors, precision=_HIGHEST)


def is_stack(leaf: Any) -> bool:
    """Whether a node of a tree is a `LowRankStack`."""
    return isinstance(leaf, LowRankStack)


def leaves_of(tree: Any) -> list[Any]:
    """The leaves of a tree: arrays and `LowRankStack`s."""
    return jax.tree.leaves(tree, is_leaf=is_stack)


def require_arrays(name: str, tree: Any) -> None:
    """Raises ValueError where a tree has products, which `name` would have to form."""
    if any(map(is_stack, leaves_of(tree))):
        raise ValueError(
            f"{name} reads the entries of matrices, and products of factors are not formed; take the factors"
        )
