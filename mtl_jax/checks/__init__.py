"""Checks a config before anything is loaded; a problem is reported with the path of its field."""

from __future__ import annotations

from mtl_jax.checks.analyses import check_ablation, check_adapt, check_merging, check_relate, check_selection
from mtl_jax.checks.idle_options import MODES, idle_settings
from mtl_jax.checks.inputs import check_datasets, check_images, check_mixing, check_tasks
from mtl_jax.checks.learning import (
    check_budget,
    check_distillation,
    check_files,
    check_init_from,
    check_meta,
    check_model,
    check_optimizer,
    check_penalties,
    check_sharing,
    check_trackers,
)
from mtl_jax.checks.ranges import CHOICES, ENTRY_CHOICES, ENTRY_RANGES, RANGES, SPLITS
from mtl_jax.checks.value_rules import (
    Report,
    check_choice,
    check_entry,
    check_fields,
    check_names,
    check_range,
    get_field,
)
from mtl_jax.config import default
from mtl_jax.config.sections import Config
from mtl_jax.errors import UserError

MODE_CHECKS = {"ablate": check_ablation, "adapt": check_adapt, "relate": check_relate, "merge": check_merging}


def check(config: Config, mode: str = "train") -> dict[str, str]:
    """Checks all fields that can be checked without the data.

    The sections of a mode (`ablation`, `adaptation`, `relatedness`, `merging`) are checked for that mode only: a config
    may have them without being used for it.

    Args:
      config: from `default.get_config()`, or of the same fields.
      mode: what the config is for, as in `--mode`.

    Returns:
      the `idle_settings`. An ablation may set an option that acts in some of its alternatives only, so its plan decides
      once all of them are known; in any other mode an option without an effect is a problem.

    Raises:
      UserError: all problems, one per line, each with its field and what would be right.
    """
    problems: list[str] = []
    report = problems.append
    check_fields(config, default.get_config(), "config", report)
    if not problems:
        _check_entries(config, report)
    if problems:  # the checks below read the fields
        raise UserError("\n".join(problems))
    for field, choices in CHOICES.items():
        check_choice(f"config.{field}", get_field(config, field), choices, report)
    for field, (low, high) in RANGES.items():
        check_range(f"config.{field}", get_field(config, field), low, high, report)
    for place, choices_of_fields in ENTRY_CHOICES.items():
        for name, entry in get_field(config, place).items():
            for field, choices in choices_of_fields.items():
                check_choice(f"config.{place}.{name}.{field}", entry[field], choices, report)
    for place, ranges in ENTRY_RANGES.items():
        for name, entry in get_field(config, place).items():
            for field, (low, high) in ranges.items():
                check_range(f"config.{place}.{name}.{field}", entry[field], low, high, report)
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
        check_trackers,
        check_budget,
        check_selection,
        check_init_from,
        *([check_files] if mode in MODES else []),
        *([MODE_CHECKS[mode]] if mode in MODE_CHECKS else []),
    ):
        section(config, report)
    check_names("config.train_tasks", config.train_tasks, config.tasks, report)
    check_names("config.evaluation.splits", config.evaluation.splits, SPLITS, report)
    idle = idle_settings(config, mode)
    if mode != "ablate":
        problems += filter(None, idle.values())
    if problems:
        raise UserError("\n".join(problems))
    return idle


def check_merged_folders(config: Config) -> None:
    """Checks what `--mode=merge` of Hugging Face folders reads. Raises UserError as `check`."""
    problems: list[str] = []
    check_fields(config, default.get_config(), "config", problems.append)
    if not problems:
        check_merging(config, problems.append)
    if problems:
        raise UserError("\n".join(problems))


def _check_entries(config: Config, report: Report) -> None:
    """The fields of data sets, tasks and other entries that the user names."""
    for place, kind in default.ENTRIES.items():
        for name, entry in get_field(config, place).items():
            check_entry(f"config.{place}.{name}", entry, default.defaults(kind), report)
