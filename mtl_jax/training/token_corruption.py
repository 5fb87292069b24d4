"""Tasks that change their inputs: the step draws tokens in the rows of the task's data set and hides them.

The draw is keyed by (seed, step, data set, row): a resumed run hides the same tokens, and so do lanes of the same seed.
Evaluation has a separate key that never changes.
"""

from __future__ import annotations

import jax
import numpy as np

from mtl_jax.data.batch import Batch
from mtl_jax.training.objective import Objective, row_keys

EVALUATION_SEED = 20181011  # seed of the tokens hidden in evaluation, the same for all runs


def corrupt_batch(objective: Objective, batch: Batch, key: jax.Array) -> Batch:
    """The batch as the network reads it, with the labels of what was hidden; leaves [B, R, ...].

    Args:
      objective: whose tasks may have `corrupt`.
      batch: as the data gives it; a task whose hidden tokens are given already is left alone.
      key: of the step, or of evaluation.
    """
    tokens, labels = batch.tokens, dict(batch.labels)
    for name, task in objective.tasks.items():
        if "maskable" not in labels.get(name, ()):
            continue
        blocks = np.asarray(objective.layout.reads(name))
        keys = row_keys(key, name, batch, objective.layout).reshape(len(blocks), -1)
        hidden, labels[name] = jax.vmap(task.corrupt)(
            tokens[blocks], batch.segment[blocks], labels[name]["maskable"], keys
        )
        tokens = tokens.at[blocks].set(hidden)
    return batch._replace(tokens=tokens, labels=labels)


def corrupt_for_evaluation(objective: Objective, batch: Batch) -> Batch:
    """`corrupt_batch` with the key of evaluation."""
    return corrupt_batch(objective, batch, jax.random.key(EVALUATION_SEED))
