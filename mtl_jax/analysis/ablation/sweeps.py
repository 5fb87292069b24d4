"""The sweeps of an ablation: the fields that they set, and their values."""

from __future__ import annotations

import inspect
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtl_jax.analysis.ablation import traced_fields
from mtl_jax.balancing import GRADIENT_TRANSFORMS, LOSS_WEIGHTS, WEIGHTINGS
from mtl_jax.config import entries
from mtl_jax.config.sections import Config
from mtl_jax.data.splits.subsets import random_generator
from mtl_jax.errors import UserError

SWEEPS_FIELD = "config.ablation.sweeps"


class Sweep(NamedTuple):
    """The fields that a sweep sets, its values, and whether these are drawn at random."""

    fields: tuple[str, ...]
    values: tuple[float, ...]
    random: bool

    @classmethod
    def from_config(cls, config: Config, name: str) -> Sweep:
        """Raises UserError for a field that cannot be swept, or wrong values."""
        entry, where = config.ablation.sweeps[name], f"{SWEEPS_FIELD}.{name}"
        expanded = traced_fields.expand(config, entry.field, f"{where}.field")
        for field in expanded:
            if not traced_fields.is_traced(field):
                raise UserError(
                    f"{where}.field: {field!r} changes the compiled program, so it cannot differ between its lanes; "
                    f"make it a choice: default.add_choice(config, {name!r}, field={entry.field!r}, "
                    f"alternatives=(...)). Fields that can be swept: {', '.join(traced_fields.TRACED)}"
                )
            _require_option(config, field, where)
        return cls(expanded, _values(config, entry, where, name), entry.random)


def _require_option(config: Config, field: str, where: str) -> None:
    """Raises UserError unless an option of a method can be a traced number."""
    section, is_option, name = field.partition(".options.")
    methods = {"loss_weights": LOSS_WEIGHTS, "aggregation": {**WEIGHTINGS, **GRADIENT_TRANSFORMS}}.get(section)
    if not is_option or methods is None:
        return
    method, options = config[section].method, config[section].options.to_dict()
    if "sizes" in inspect.signature(methods[method]).parameters:
        options["sizes"] = (1.0,)  # known once the data are read
    try:
        jax.eval_shape(lambda value: (methods[method](**{**options, name: value}), value)[1], jnp.zeros(()))
    except (TypeError, ValueError, jax.errors.JAXTypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{where}.field: {field!r} of {method!r} cannot differ between the lanes of a program ({reason}); make it "
            f"a choice: default.add_choice(config, {name!r}, field={field!r}, alternatives=(...))"
        ) from None


def _values(config: Config, entry: entries.Sweep, where: str, name: str) -> tuple[float, ...]:
    """The points of an entry, spaced or drawn at random."""
    if bool(entry.points) == bool(entry.count):
        raise UserError(f"{where}: there are no points; give either points=(...) or low, high and count")
    if entry.points:
        values = tuple(float(value) for value in entry.points)
    else:
        low, high, count = float(entry.low), float(entry.high), int(entry.count)
        if not (math.isfinite(low) and math.isfinite(high) and low < high) or count < (1 if entry.random else 2):
            raise UserError(f"{where}: from low = {low:g} to high = {high:g} in {count} points is not a range")
        if entry.scale == "log" and low <= 0:
            raise UserError(f"{where}.low: {low:g} has no logarithm; begin above 0 or take scale='linear'")
        bounds = np.log([low, high]) if entry.scale == "log" else np.asarray([low, high])
        draw = random_generator(f"sweep {name}", config.seed).random
        steps = draw(count) if entry.random else np.linspace(0.0, 1.0, count)
        spaced = bounds[0] + steps * (bounds[1] - bounds[0])
        values = tuple(float(f"{x:.6g}") for x in (np.exp(spaced) if entry.scale == "log" else spaced))
    if any(not math.isfinite(value) for value in values):
        raise UserError(f"{where}: values have to be finite numbers, found {values}")
    if not entry.random and len(set(values)) < len(values):
        repeated = next(value for value in values if values.count(value) > 1)
        raise UserError(f"{where}: the point {repeated:g} is there twice")
    return values


def is_strength(sweep: Sweep) -> bool:
    """Whether a sweep sets strengths λ only."""
    return all(field.startswith("penalties.") and field.endswith(".strength") for field in sweep.fields)
