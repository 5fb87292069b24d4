"""Successive halving of the lanes (Jamieson & Talwalkar 2016): at each rung only the better settings continue.

config.ablation.method = "halving", with the options

    eta        at each rung 1/eta of the settings continues (3)
    min_steps  the first rung; further ones at min_steps · eta, min_steps · eta², ... below the steps of the run
               (0: such that about one setting reaches the end)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mtl_jax.analysis.ablation.plan import Setting
from mtl_jax.config.sections import Config
from mtl_jax.errors import UserError

DEFAULTS = {"eta": 3, "min_steps": 0}


def options(config: Config) -> dict[str, Any]:
    """The options of a config, with defaults.

    Raises:
      UserError: one that is unknown or out of range.
    """
    given = config.ablation.options.to_dict()
    if unknown := sorted(set(given) - set(DEFAULTS)):
        raise UserError(
            f"config.ablation.options: 'halving' has no option {unknown[0]!r}; it has {', '.join(DEFAULTS)}"
        )
    result = DEFAULTS | given
    if result["eta"] <= 1 or result["min_steps"] < 0:
        raise UserError("config.ablation.options: eta should be above 1 and min_steps at least 0")
    return result


def rungs(config: Config, settings: int) -> tuple[int, ...]:
    """The steps at which settings are dropped, for a number of settings."""
    values, steps = options(config), config.training.steps
    eta = values["eta"]
    rung = values["min_steps"] or math.ceil(steps / eta ** max(1, round(math.log(settings, eta))))
    result = []
    while rung < steps:
        result.append(round(rung))
        rung *= eta
    return tuple(result)


def survivors(
    ranks: Sequence[tuple[float, float]], settings: Sequence[int], all_settings: Sequence[Setting], eta: float
) -> list[int]:
    """The settings that continue: the limits, and the best 1/eta of the others by mean score over seeds.

    Args:
      ranks: of `settings`, `ranking.rank` of the mean over seeds.
      settings: indices in `all_settings` of those still running.
      all_settings: of the program.
      eta: see above.
    """
    points = [i for i in settings if all_settings[i].line == "sharing"]
    by_setting = dict(zip(settings, ranks, strict=True))
    ranked = sorted(points, key=lambda i: by_setting[i], reverse=True)
    best = set(ranked[: max(1, math.ceil(len(points) / eta))])
    return [i for i in settings if i in best or all_settings[i].line != "sharing"]
