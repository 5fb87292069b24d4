"""Multi-task learning (MTL) for NLP in JAX: from hard to soft parameter sharing.

    min over Θ    Σ_k α_k · L_k( head_k( f(x_k ; Θ_s, Θ_k) ), y_k )   +   λ · Ω(Θ_1 … Θ_K)

Each symbol has a folder of its name: `data` (x, y), `models` (f), `tasks` (heads, L), `balancing` (α),
`sharing` (Ω), `training` (the minimisation).

Axis glossary. One letter, one meaning, in every shape of every docstring:

    K  tasks. Leaves `[K, ...]` hold one slice per task.
    O  owners of a layer: O = 1 shared by all, O = K one column per task, between = groups of tasks.
    B  blocks of a batch; all rows of a block come from one data set.
    P  blocks that one task reads in a batch (a subset of the B).
    R  rows of a block. Several examples are packed into one row.
    N  rows of a whole split, or examples where no rows are meant; said where used.
    M  streams that are told apart in a backward pass: one for each block and task on it.
    T  token positions of a row.
    E  example slots of a row.
    Q  label positions of a row: words, (predicate, word) pairs, or tokens of target sequences.
    C  classes of a task (tags of a tagging task).
    D  features (width of a hidden state).
    F  values of a patch of a picture: pixels × channels.
    H  attention heads.
    S, L  leading axes of ablations only: seeds and lanes (values of a hyperparameter).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtl_jax.library import Run, ablate, evaluate, load, merge, relate, train

__version__ = "0.1.0"
__all__ = ["Run", "ablate", "evaluate", "load", "merge", "relate", "train"]


def __getattr__(name: str) -> Any:
    """What is in `library`, imported with the first use: `import mtl_jax` alone takes milliseconds."""
    if name not in __all__:
        raise AttributeError(f"module 'mtl_jax' has no attribute {name!r}")
    return getattr(importlib.import_module("mtl_jax.library"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
