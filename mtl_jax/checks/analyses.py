"""Checks of the sections of a mode: ablation, adaptation, relatedness, merging."""

from __future__ import annotations

from mtl_jax.analysis.ablation.exact_optima import REFERENCES
from mtl_jax.analysis.relatedness.registry import MEASURES
from mtl_jax.checks.ranges import RESERVED, SEEDS
from mtl_jax.checks.value_rules import (
    Report,
    check_choice,
    check_distinct,
    check_name,
    check_names,
    check_range,
    check_regex,
)
from mtl_jax.config.sections import Config
from mtl_jax.evaluation.selection import AGGREGATES
from mtl_jax.sharing.merging import MERGING
from mtl_jax.training.optimizer import OPTIMIZERS


def check_ablation(config: Config, report: Report) -> None:
    """Checks `ablation`: names of sweeps and choices, seeds, learning rates of the limits."""
    ablation = config.ablation
    for name, entry in ablation.sweeps.items():
        where = f"config.ablation.sweeps.{name}"
        check_name(where, name, report, RESERVED["sweeps"])
        if not entry.field:
            report(f"{where}.field: name a field, e.g. 'penalties.l2.strength'")
        elif name == "learning_rate" and entry.field != "optimizer.learning_rate":
            report(
                f"{where}: 'learning_rate' is a column of the results, the rate of the limits; give the sweep of "
                f"{entry.field!r} another name"
            )
    for name in ablation.choices:
        check_name(f"config.ablation.choices.{name}", name, report, (*RESERVED["sweeps"], "learning_rate"))
    for name in set(ablation.sweeps) & set(ablation.choices):
        report(f"config.ablation: {name!r} is the name of both a sweep and a choice")
    check_distinct(
        "config.ablation", [n for n in ablation.sweeps if n not in ablation.choices] + [*ablation.choices], report
    )
    _check_seeds(config, "ablation.num_seeds", ablation.num_seeds, report)
    for factor in ablation.lr_factors:
        check_range("config.ablation.lr_factors", factor, 1e-9, None, report)
    if ablation.exact_optimum:
        check_choice("config.ablation.exact_optimum", ablation.exact_optimum, REFERENCES, report)
    if ablation.sweeps and ablation.intervals and ablation.num_seeds < 2:
        report("config.ablation.num_seeds: intervals need two seeds or more; or set config.ablation.intervals=False")


def check_selection(config: Config, report: Report) -> None:
    """Checks `evaluation.selection` and what it reads."""
    evaluation, trained = config.evaluation, tuple(config.train_tasks) or tuple(config.tasks)
    check_choice("config.evaluation.selection", evaluation.selection, (*AGGREGATES, *trained), report)
    for field in ("selection_weights", "single_task_scores"):
        check_names(f"config.evaluation.{field}", tuple(evaluation[field]), config.tasks, report)
    for task, weight in evaluation.selection_weights.items():
        check_range(f"config.evaluation.selection_weights.{task}", weight, 0.0, None, report)
    if evaluation.selection == "delta_m" and not evaluation.single_task_scores:
        report(
            "config.evaluation.single_task_scores: 'delta_m' compares with them; give the dev score of each task "
            "trained alone, e.g. {'topic': 0.81}"
        )


def check_adapt(config: Config, report: Report) -> None:
    """Checks `adaptation`: numbers of examples and steps, learning rates, tuning tasks."""
    adaptation = config.adaptation
    for field, low in (("shots", 1), ("steps", 0), ("learning_rates", 1e-9)):
        if not adaptation[field]:
            report(f"config.adaptation.{field}: name at least one")
        for value in adaptation[field]:
            check_range(f"config.adaptation.{field}", value, low, None, report)
            if field != "learning_rates" and not isinstance(value, int):
                report(f"config.adaptation.{field}: {value!r} should be a whole number")
    check_choice("config.adaptation.optimizer", adaptation.optimizer, OPTIMIZERS, report)
    check_regex("config.adaptation.params", adaptation.params, report)
    check_names("config.adaptation.tuning_tasks", adaptation.tuning_tasks, config.tasks, report)
    for field in ("num_supports", "num_tuning_supports"):
        _check_seeds(config, f"adaptation.{field}", adaptation[field], report)
    if config.tasks and set(adaptation.tuning_tasks) == set(config.tasks):
        report("config.adaptation.tuning_tasks: names all tasks, so that none is left to report")


def check_relate(config: Config, report: Report) -> None:
    """Checks `relatedness`: measures, split, seeds, pairs."""
    for name in config.relatedness.measures:
        check_choice("config.relatedness.measures", name, MEASURES, report)
    check_choice(
        "config.relatedness.transfer_split", config.relatedness.transfer_split, config.evaluation.splits, report
    )
    _check_seeds(config, "relatedness.num_seeds", config.relatedness.num_seeds, report)
    predictor, names = config.relatedness.predictor, config.relatedness.measures
    if predictor:
        check_choice("config.relatedness.predictor", predictor, MEASURES, report)
        if names and predictor not in names:
            report(f"config.relatedness.predictor: {predictor!r} is not one of config.relatedness.measures")
    elif config.relatedness.num_pairs == 0:
        report(
            "config.relatedness.num_pairs: with no pair trained no gain is measured; name a measure to group by, e.g. "
            "config.relatedness.predictor='grad_tag'"
        )


def check_merging(config: Config, report: Report) -> None:
    """Checks `merging`: methods, and how many of folders."""
    merging = config.merging
    check_names("config.merging.methods", merging.methods, MERGING, report)
    if not merging.folders:
        for field in ("base", "options"):
            if merging[field]:
                report(f"config.merging.{field}: is of config.merging.folders, and there are none")
        return
    if len(merging.folders) < 2:
        report("config.merging.folders: one folder is no more than itself; name two or more")
    if len(merging.methods) != 1:
        report("config.merging.methods: folders have no dev split on which one is chosen; name one method")


def _check_seeds(config: Config, field: str, count: int, report: Report) -> None:
    """Whether config.seed, config.seed + 1, ... are all in the range of seeds."""
    if config.seed + count - 1 > SEEDS[1]:
        report(
            f"config.{field}: the last of {count} seeds from config.seed = {config.seed} on is above {SEEDS[1]}; start "
            "from a smaller one"
        )
