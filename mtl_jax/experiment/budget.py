"""How long a run is: config.training.epochs and tokens as a number of steps."""

from __future__ import annotations

import math

from ml_collections import ConfigDict

from mtl_jax.config.sections import Config
from mtl_jax.data.corpus import Corpus
from mtl_jax.data.packing import fill_ratio
from mtl_jax.data.sampler import IndexSampler
from mtl_jax.errors import UserError
from mtl_jax.experiment.inputs import make_mixing

MAX_STEPS = 2**31 - 1  # steps are counted in int32


def with_steps(config: Config, corpus: Corpus) -> Config:
    """The config with `training.steps` as its epochs or tokens make it over these data; itself without either.

    Raises:
      UserError: no training data; more steps than can be counted.
    """
    training = config.training
    if not training.epochs and not training.tokens:
        return config
    epoch = steps_per_epoch(config, corpus)
    if training.epochs:
        steps = training.epochs * max(epoch.values())
    else:
        steps = training.tokens / tokens_per_step(config, corpus)
    if steps > MAX_STEPS:
        raise UserError(f"config.training: {steps:.3g} steps are more than {MAX_STEPS:,}; take fewer epochs or tokens")
    resolved = ConfigDict(config)
    resolved.training.steps = max(1, math.ceil(steps - 1e-6))
    return resolved


def steps_per_epoch(config: Config, corpus: Corpus) -> dict[str, float]:
    """{data set: mean number of steps in which each row of its train split is drawn once}, of those that batches hold.

    Raises UserError: none has any.
    """
    layout = corpus.layout
    learned = {layout.datasets[dataset] for candidates in layout.candidates for dataset in candidates}
    splits = {name: rows for name, rows in corpus.rows.items() if name in learned}
    counts = {name: len(rows["train"].tokens) for name, rows in splits.items() if "train" in rows}
    if not counts:
        raise UserError("no data set has a train split")
    sampler = IndexSampler(counts, config.data.rows_per_block, config.seed, make_mixing(config))
    return {name: sampler.steps_per_epoch(name) / config.training.grad_accum_steps for name in counts}


def tokens_per_step(config: Config, corpus: Corpus) -> float:
    """The mean number of tokens in a step, padding left out."""
    return sum(
        fill_ratio(corpus.rows[name]["train"]) * corpus.rows[name]["train"].segment.size / steps
        for name, steps in steps_per_epoch(config, corpus).items()
    )
