"""Checks of what is done with models: ablations, adaptation, relatedness, merging."""

from __future__ import annotations

from mtl_jax.analysis.ablation.exact_optima import REFERENCES
from mtl_jax.analysis.relatedness.registry import MEASURES
from mtl_jax.checks.ranges import RESERVED, SEEDS
from mtl_jax.checks.value_rules import check_choice, check_distinct, check_name, check_names, check_range, check_regex
from mtl_jax.sharing.merging import MERGING
from mtl_jax.training.optimizer import OPTIMIZERS


def check_ablation(config, say):
    ablation = config.ablation
    for name, entry in ablation.sweeps.items():
        where = f"config.ablation.sweeps.{name}"
        check_name(where, name, say, RESERVED["sweeps"])
        check_choice(f"{where}.scale", entry.scale, ("log", "linear"), say)
        if not entry.field:
            say(f"{where}.field: name a field, e.g. 'penalties.l2.strength'")
        elif name == "learning_rate" and entry.field != "optimizer.learning_rate":
            say(
                f"{where}: 'learning_rate' is that of the ends in what is written; name the sweep of {entry.field!r} "
                "otherwise"
            )
    for name in ablation.choices:
        check_name(f"config.ablation.choices.{name}", name, say, (*RESERVED["sweeps"], "learning_rate"))
    for name in set(ablation.sweeps) & set(ablation.choices):
        say(f"config.ablation: {name!r} is the name of a sweep and of a choice")
    check_distinct(
        "config.ablation", [n for n in ablation.sweeps if n not in ablation.choices] + [*ablation.choices], say
    )
    _check_seeds(config, "ablation.num_seeds", ablation.num_seeds, say)
    for factor in ablation.lr_factors:
        check_range("config.ablation.lr_factors", factor, 1e-9, None, say)
    if ablation.exact_optimum:
        check_choice("config.ablation.exact_optimum", ablation.exact_optimum, REFERENCES, say)
    if ablation.sweeps and ablation.intervals and ablation.num_seeds < 2:
        say("config.ablation.num_seeds: intervals need two seeds at least; or set config.ablation.intervals=False")


def check_adapt(config, say):
    adaptation = config.adaptation
    for field, low in (("shots", 1), ("steps", 0), ("learning_rates", 1e-9)):
        if not adaptation[field]:
            say(f"config.adaptation.{field}: name one at least")
        for value in adaptation[field]:
            check_range(f"config.adaptation.{field}", value, low, None, say)
            if field != "learning_rates" and not isinstance(value, int):
                say(f"config.adaptation.{field}: {value!r} should be a whole number")
    check_choice("config.adaptation.optimizer", adaptation.optimizer, OPTIMIZERS, say)
    check_regex("config.adaptation.params", adaptation.params, say)
    check_names("config.adaptation.tuning_tasks", adaptation.tuning_tasks, config.tasks, say)
    for field in ("num_supports", "num_tuning_supports"):
        _check_seeds(config, f"adaptation.{field}", adaptation[field], say)
    if config.tasks and set(adaptation.tuning_tasks) == set(config.tasks):
        say("config.adaptation.tuning_tasks: names all tasks, none is left to be reported")


def check_relate(config, say):
    for name in config.relatedness.measures:
        check_choice("config.relatedness.measures", name, MEASURES, say)
    check_choice("config.relatedness.transfer_split", config.relatedness.transfer_split, config.evaluation.splits, say)
    _check_seeds(config, "relatedness.num_seeds", config.relatedness.num_seeds, say)


def check_merging(config, say):
    check_names("config.merging.methods", config.merging.methods, MERGING, say)


def _check_seeds(config, field, count, say):
    """Whether config.seed, config.seed + 1, ... are all seeds."""
    if config.seed + count - 1 > SEEDS[1]:
        say(
            f"config.{field}: the last of {count} seeds from config.seed = {config.seed} on is above {SEEDS[1]}; begin "
            "with a smaller one"
        )
