"""What a single field may hold: one of some names, a number in a range, strings."""

from __future__ import annotations

import typing
from collections.abc import Iterable

from mtl_jax.config import default
from mtl_jax.config.sections import Config
from mtl_jax.data.datasets.split_locations import SPLITS
from mtl_jax.data.tokenizers import TOKENIZERS
from mtl_jax.models.layers import LAYERS
from mtl_jax.training.schedules import PENALTY_SCHEDULES

__all__ = ["CHOICES", "ENTRY_CHOICES", "ENTRY_RANGES", "RANGES", "SPLITS"]


def literals(section: type, place: str = "") -> dict[str, tuple[str, ...]]:
    """The choices of each field of a section, and of those below it, that has a `Literal` for its type."""
    choices = {}
    for field, kind in default.types_of(section).items():
        if typing.get_origin(kind) is typing.Literal:
            choices[f"{place}{field}"] = typing.get_args(kind)
        elif isinstance(kind, type):
            choices |= literals(kind, f"{place}{field}.")
    return choices


def string_tuples(section: type) -> set[str]:
    """The names of the fields of a section, and of those below it, that are tuples of strings."""
    names = set()
    for field, kind in default.types_of(section).items():
        if kind == tuple[str, ...]:
            names.add(field)
        elif isinstance(kind, type):
            names |= string_tuples(kind)
    return names


# A field that names an entry of a registry has the registry itself, so that what is registered later is a choice too.
CHOICES: dict[str, Iterable[str]] = {**literals(Config), "tokenizer.kind": TOKENIZERS, "model.layer_type": LAYERS}
ENTRY_CHOICES: dict[str, dict[str, Iterable[str]]] = {
    place: dict(literals(kind)) for place, kind in default.ENTRIES.items()
}
ENTRY_CHOICES["penalties"]["schedule"] = PENALTY_SCHEDULES

# No name that the user gives has these: they have a meaning in paths, patterns, lists and tables.
SIGNS = "/\\.|<>:;\"'`?*=,+"
LONGEST_NAME = 100  # bytes; names of folders join several
# Some systems reserve these names for devices; no file can have them.
DEVICES = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
# Keys and columns of results that are not names of the user's.
RESERVED = {
    # of predictions.jsonl; of norms, skipped steps and the folder of an exported column
    "tasks": ("line", "file", "shared"),
    "sweeps": (
        "lane",
        "line",
        "seed",
        "status",
        "step",
        "steps",
        "left_out",
        "distance",
        "effective_rank",
        "task",
        "split",
        "metric",
        "value",
    ),
}
SEEDS = (0, 2**32 - 1)  # outside of this range two seeds give the same key

# The names of all fields that are tuples of strings.
STRING_FIELDS = frozenset().union(*map(string_tuples, (Config, *default.ENTRIES.values())))

# field: (lowest, highest) allowed value; None: no limit
RANGES = {
    "seed": SEEDS,
    "data.seed": SEEDS,
    "data.mixing_temperature": (1e-6, None),
    "data.row_length": (4, 1_000_000),
    "data.window_stride": (0, None),
    "data.rows_per_block": (1, None),
    "data.blocks_per_batch": (1, None),
    "data.max_unseen_labels": (0.0, 1.0),
    "tokenizer.min_count": (1, None),
    "tokenizer.max_vocab_size": (0, None),
    "images.patch_size": (1, None),
    "images.num_channels": (1, 3),
    "model.num_layers": (-1, 10_000),
    "model.hidden_size": (1, 1_000_000),
    "model.num_heads": (1, None),
    "model.intermediate_size": (1, None),
    "model.initializer_range": (1e-6, 1.0),
    "model.kernel_size": (1, None),
    "model.dropout": (0.0, 0.999),
    "model.attention_dropout": (0.0, 0.999),
    "aggregation.smoothing": (0.0, 1.0),
    "aggregation.pullbacks_at_once": (1, None),
    "optimizer.learning_rate": (0.0, None),
    "optimizer.weight_decay": (0.0, None),
    "optimizer.warmup_ratio": (0.0, 1.0),
    "optimizer.clip_norm": (0.0, None),
    "training.steps": (1, 2**31 - 1),  # steps are counted in int32
    "training.epochs": (0.0, None),
    "training.tokens": (0.0, None),
    "training.minutes": (0.0, None),
    "training.grad_accum_steps": (1, None),
    "training.eval_every": (0, None),
    "training.checkpoint_every": (0, None),
    "training.max_to_keep": (1, None),
    "training.log_every": (1, None),
    "training.early_stopping_patience": (0, None),
    "training.max_nonfinite_steps": (1, None),
    "training.mesh.data": (-1, None),
    "training.mesh.fsdp": (-1, None),
    "training.mesh.task": (-1, None),
    "training.mesh.sequence": (-1, None),
    "training.mesh.model": (-1, None),
    "evaluation.rows_per_batch": (1, None),
    "ablation.preferences": (0, None),
    "meta.inner_steps": (0, None),
    "meta.inner_learning_rate": (0.0, None),
    "meta.support_fraction": (0.0, 0.99),
    "meta.tasks_per_step": (0, None),
    "adaptation.num_supports": (1, None),
    "adaptation.num_tuning_supports": (1, None),
    "ablation.num_seeds": (1, None),
    "ablation.max_lanes": (0, None),
    "ablation.memory_fraction": (0.01, 1.0),
    "relatedness.num_seeds": (1, None),
    "relatedness.measure_every": (1, None),
    "relatedness.lookahead": (1e-9, None),
    "relatedness.lookahead_steps": (1, None),
    "relatedness.linearised_dimensions": (1, None),
    "relatedness.linearised_examples": (1, None),
    "relatedness.num_pairs": (-1, None),
    "relatedness.num_inputs": (3, None),
    "relatedness.max_groups": (1, None),
    "relatedness.max_auxiliary_tasks": (1, None),
}

# The same for fields of entries, by where the entries are in the config.
ENTRY_RANGES = {
    "datasets": {"dev_fraction": (0.0, 0.9), "test_fraction": (0.0, 0.9)},
    "tasks": {"weight": (0.0, None), "max_labels": (0, None)},
    "penalties": {"strength": (0.0, None)},
    "distillation": {"temperature": (1e-3, None), "weight": (0.0, 1.0)},
    "ablation.sweeps": {"low": (None, None), "high": (None, None), "count": (0, 1_000_000)},
}
