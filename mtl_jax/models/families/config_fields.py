"""The fields of a published config.json: read, with an error for each that would compute something else than here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtl_jax.errors import UserError
from mtl_jax.models.layers.transformer import ACTIVATIONS

# Fields of any family that change what the model computes, and the only value that the layers here compute.
ENCODER_ONLY: Mapping[str, Any] = {
    "is_decoder": False,
    "add_cross_attention": False,
    "quantization_config": None,
}


class ConfigFields:
    """The fields of a config.json. `where` names it in errors, which are UserErrors.

    `optional` are numbers that may be left out, with the values that transformers takes then.
    """

    def __init__(self, config: Mapping[str, Any], where: str):
        self.config, self.where = config, where

    def require(self, values: Mapping[str, Any]) -> None:
        """Each field has the only value that is computed here, or is left out."""
        for field, wanted in values.items():
            if self.config.get(field, wanted) not in (wanted, None):
                raise UserError(f"{self.where}: {field} = {self.config[field]!r} is not supported, only {wanted!r}")

    def value(self, field: str, default: Any) -> Any:
        """The field, or `default` where it is left out or null."""
        value = self.config.get(field)
        return default if value is None else value

    def integer(self, field: str, default: int, lowest: int = 1) -> int:
        """An integer of at least `lowest`."""
        value = self.value(field, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
            raise UserError(f"{self.where}: {field} = {value!r}; it has to be an integer of at least {lowest}")
        return value

    def positive(self, field: str, default: float) -> float:
        """A number above 0."""
        value = self.value(field, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise UserError(f"{self.where}: {field} = {value!r}; it has to be a number above 0")
        return float(value)

    def flag(self, field: str, default: bool) -> bool:
        """True or false."""
        value = self.value(field, default)
        if not isinstance(value, bool):
            raise UserError(f"{self.where}: {field} = {value!r}; it has to be true or false")
        return value

    def activation(self, field: str, default: str) -> str:
        """A name in `ACTIVATIONS`."""
        value = self.value(field, default)
        if value not in ACTIVATIONS:
            raise UserError(f"{self.where}: {field} = {value!r}; supported are {', '.join(ACTIVATIONS)}")
        return value

    def multiple(self, field: str, value: int, of: str, divisor: int) -> None:
        """`value` of `field` is a multiple of `divisor`, the value of the field `of`."""
        if value % divisor:
            raise UserError(f"{self.where}: {field} {value} is not a multiple of {of} {divisor}")

    def rope_theta(self, older: float, layer_type: str = "") -> float:
        """The base of rotary positions: of `rope_parameters`, with `layer_type` of its entry of this name; else
        `older`, which files written before transformers 5 have. Only unscaled frequencies are computed here.
        """
        self.require({"rope_scaling": None})
        entry = self.value("rope_parameters", {})
        entry = (entry.get(layer_type) or {}) if layer_type else entry
        if entry.get("rope_type", "default") != "default" or entry.get("partial_rotary_factor", 1.0) != 1.0:
            raise UserError(
                f"{self.where}: rope_parameters = {self.config['rope_parameters']!r} is not supported, only rope_type "
                "'default' over all features"
            )
        return ConfigFields(entry, f"{self.where}: rope_parameters").positive("rope_theta", older)
