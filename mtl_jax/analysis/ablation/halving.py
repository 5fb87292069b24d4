"""Successive halving of the lanes (Jamieson & Talwalkar 2016): at each rung the better part goes on.

config.ablation.method = "halving", with the options

    eta        at each rung 1/eta of the settings goes on (3)
    min_steps  the first rung; further ones at min_steps · eta, min_steps · eta², ... below the steps of the run
               (0: such that about one setting reaches the end)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mtl_jax.analysis.ablation.plan import Setting
from mtl_jax.errors import UserError

DEFAULTS = {"eta": 3, "min_steps": 0}


def options(config: Any) -> dict[str, Any]:
    """The options of a config, with defaults.

    Raises:
      UserError: one that is unknown or out of range.
    """
    given = config.ablation.options.to_dict()
    if unknown := sorted(set(given) - set(DEFAULTS)):
        raise UserError(
            f"config.ablation.options: 'halving' has no option {unknown[0]!r}; it has {', '.join(DEFAULTS)}"
        )
    found = DEFAULTS | given
    if found["eta"] <= 1 or found["min_steps"] < 0:
        raise UserError("config.ablation.options: eta should be above 1 and min_steps at least 0")
    return found


def rungs(config: Any, settings: int) -> tuple[int, ...]:
    """The steps at which settings are dropped, for so many settings."""
    chosen, steps = options(config), config.training.steps
    first = chosen["min_steps"] or math.ceil(steps / chosen["eta"] ** max(1, round(math.log(settings, chosen["eta"]))))
    found = []
    while first < steps:
        found.append(round(first))
        first *= chosen["eta"]
    return tuple(found)


def survivors(
    ranks: Sequence[tuple[float, float]], settings: Sequence[int], all_settings: Sequence[Setting], eta: float
):
    """The settings that go on: the ends, and the best 1/eta of the others by mean score over seeds.

    Args:
      ranks: of `settings`, `ranking.rank` of the mean over seeds.
      settings: numbers in `all_settings` of those still running.
      all_settings: of the program.
      eta: see above.
    """
    points = [i for i in settings if all_settings[i].line == "sharing"]
    by_setting = dict(zip(settings, ranks, strict=True))
    ranked = sorted(points, key=lambda i: by_setting[i], reverse=True)
    kept = set(ranked[: max(1, math.ceil(len(points) / eta))])
    return [i for i in settings if i in kept or all_settings[i].line != "sharing"]
