"""Tasks that change their inputs: the step draws tokens in the rows of the task's data set and hides them.

The draw is keyed by (seed, step, data set, row): a resumed run hides the same tokens, and so do lanes of the same seed.
Evaluation has a separate key that never changes.
"""

from __future__ import annotations

import jax

from mtl_jax.data.batch import Batch
from mtl_jax.training.objective import Objective, group_batches

EVALUATION_SEED = 20181011  # seed of the tokens hidden in evaluation, the same for all runs


def corrupt_batch(objective: Objective, batch: Batch, key: jax.Array) -> Batch:
    """The batch as the network reads it, with the labels of what was hidden; leaves [B, R, ...].

    Args:
      objective: whose tasks may have `corrupt`.
      batch: as the data gives it; a task whose hidden tokens are given already is left alone.
      key: of the step, or of evaluation.
    """
    tokens, labels = batch.tokens, dict(batch.labels)
    for part in group_batches(objective, batch):
        name, blocks = part.group.name, part.entries.blocks
        if "maskable" not in labels[name]:
            continue
        keys = part.split(part.row_keys(key))
        corrupt = part.group.form.corrupt  # such a task is a group by itself
        hidden, labels[name] = jax.vmap(corrupt)(tokens[blocks], batch.segment[blocks], labels[name]["maskable"], keys)
        tokens = tokens.at[blocks].set(hidden)
    return batch._replace(tokens=tokens, labels=labels)


def corrupt_for_evaluation(objective: Objective, batch: Batch) -> Batch:
    """`corrupt_batch` with the key of evaluation."""
    return corrupt_batch(objective, batch, jax.random.key(EVALUATION_SEED))
