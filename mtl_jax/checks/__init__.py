"""Checks a config before anything is loaded, and says by field what is wrong with it."""

from __future__ import annotations

from mtl_jax.checks.analyses import check_ablation, check_adapt, check_merging, check_relate
from mtl_jax.checks.idle_options import MODES, idle_settings
from mtl_jax.checks.inputs import check_datasets, check_images, check_mixing, check_tasks
from mtl_jax.checks.learning import (
    check_distillation,
    check_files,
    check_meta,
    check_model,
    check_optimizer,
    check_penalties,
    check_sharing,
)
from mtl_jax.checks.ranges import CHOICES, ENTRY_RANGES, RANGES, SPLITS
from mtl_jax.checks.value_rules import check_choice, check_entry, check_fields, check_names, check_range, get_field
from mtl_jax.config import default
from mtl_jax.config.sections import Config
from mtl_jax.errors import UserError

MODE_CHECKS = {"ablate": check_ablation, "adapt": check_adapt, "relate": check_relate, "merge": check_merging}


def check(config: Config, mode: str = "train") -> dict[str, str]:
    """Checks all fields that can be checked without the data.

    What fits together in the sections of a mode (`ablation`, `adapt`, `relate`, `merging`) is checked for that mode
    alone: a config may hold them for another day.

    Args:
      config: an ml_collections ConfigDict.
      mode: what the config is for, as in `--mode`.

    Returns:
      the `idle_settings` of the options that are set. For an ablation, which may set an option for some of its
      alternatives alone, it is for the plan to judge them all; for other modes one without an effect is a problem.

    Raises:
      UserError: every problem found, a line each, with its field and what would be right.
    """
    problems: list[str] = []
    say = problems.append
    check_fields(config, default.get_config(), "config", say)
    if not problems:
        _check_entries(config, say)
    if problems:  # the rest relies on the fields
        raise UserError("\n".join(problems))
    for field, choices in CHOICES.items():
        check_choice(f"config.{field}", get_field(config, field), choices, say)
    for field, (low, high) in RANGES.items():
        check_range(f"config.{field}", get_field(config, field), low, high, say)
    for place, ranges in ENTRY_RANGES.items():
        for name, entry in get_field(config, place).items():
            for field, (low, high) in ranges.items():
                check_range(f"config.{place}.{name}.{field}", entry[field], low, high, say)
    for section in (
        check_datasets,
        check_tasks,
        check_images,
        check_mixing,
        check_model,
        check_optimizer,
        check_sharing,
        check_penalties,
        check_distillation,
        check_meta,
        *([check_files] if mode in MODES else []),
        *([MODE_CHECKS[mode]] if mode in MODE_CHECKS else []),
    ):
        section(config, say)
    check_names("config.train_tasks", config.train_tasks, config.tasks, say)
    check_names("config.evaluation.splits", config.evaluation.splits, SPLITS, say)
    found = idle_settings(config, mode)
    if mode != "ablate":
        problems += filter(None, found.values())
    if problems:
        raise UserError("\n".join(problems))
    return found


def _check_entries(config, say):
    """The fields of all that has a name of the user's own."""
    for place, kind in default.ENTRIES.items():
        for name, entry in get_field(config, place).items():
            check_entry(f"config.{place}.{name}", entry, default.defaults(kind), say)
