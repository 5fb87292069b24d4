"""K gradients into one, as optax transformations: updates come with leaves `[K, ...]` and go on without the task axis.

    optimizer = optax.chain(aggregation.cagrad(0.4), optax.adamw(1e-4))

`optimizer.init(params)` takes the parameters as they are, without a task axis. `optimizer.update(..., present=bool[K])`
says which tasks have labels in the batch; by default all. λ·∇Ω is added after it, it is not balanced.

Methods that are functions of the Gram matrix are those of `weightings`, with their options and three more:
  seed       for the random orders that some methods draw; an int or a key
  tasks      K, for methods that keep a state for each task
  smoothing  α of CR-MOGM around the method (needs `tasks`), see `weightings.cr_mogm`; None for none
`modo` and `sdmgrad` take leaves `[2, K, ...]`: gradients of two independent halves of the batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping

import jax
import optax

from mtl_jax.balancing import weightings
from mtl_jax.balancing.elementwise import graddrop, trimmed_mean
from mtl_jax.balancing.gradient_combination import AggregationState, as_transform, combine, cross_gram, mean_of_halves
from mtl_jax.balancing.moving_averages import db_mtl, moco
from mtl_jax.balancing.options import Number
from mtl_jax.balancing.weightings import Weighting

Transform = optax.GradientTransformationExtraArgs


def _transform_of(method: Callable[..., Weighting]) -> Callable[..., Transform]:
    @functools.wraps(method)
    def make(
        *arguments, seed: int | jax.Array = 0, tasks: int | None = None, smoothing: Number | None = None, **options
    ) -> Transform:
        weighting = method(*arguments, **options)
        if smoothing is not None:
            weighting = weightings.cr_mogm(weighting, smoothing)
        return as_transform(weighting, seed=seed, tasks=tasks)

    return make


# methods that need the gradients themselves, not only their products
GRADIENT_TRANSFORMS: dict[str, Callable[..., Transform]] = {
    "graddrop": graddrop,
    "trimmed_mean": trimmed_mean,
    "moco": moco,
    "db_mtl": db_mtl,
}


class _Aggregation(Mapping[str, Callable[..., Transform]]):
    """Both registries as one: what is added to either is here."""

    def __getitem__(self, name: str) -> Callable[..., Transform]:
        return GRADIENT_TRANSFORMS[name] if name in GRADIENT_TRANSFORMS else _transform_of(weightings.WEIGHTINGS[name])

    def __iter__(self) -> Iterator[str]:
        yield from weightings.WEIGHTINGS
        yield from GRADIENT_TRANSFORMS

    def __len__(self) -> int:
        return len(weightings.WEIGHTINGS) + len(GRADIENT_TRANSFORMS)


AGGREGATION: Mapping[str, Callable[..., Transform]] = _Aggregation()


def __getattr__(name: str) -> Callable[..., Transform]:
    """`aggregation.cagrad` for AGGREGATION["cagrad"]."""
    if name in AGGREGATION:
        return AGGREGATION[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "AGGREGATION",
    "GRADIENT_TRANSFORMS",
    "AggregationState",
    "as_transform",
    "combine",
    "cross_gram",
    "mean_of_halves",
    *AGGREGATION,
]
