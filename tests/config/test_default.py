"""Each field has a type, a default of that type and a comment, and the reference of the config lists it."""

import importlib.util
import json
import pathlib
import types
import typing
from collections.abc import Mapping

import pytest
from ml_collections import ConfigDict

from mtl_jax.analysis.ablation.lanes import LAYOUTS
from mtl_jax.config import default
from mtl_jax.config.entries import Penalty
from mtl_jax.config.plain import to_plain
from mtl_jax.config.sections import Config
from mtl_jax.data.sampler import MIXINGS
from mtl_jax.errors import UserError
from mtl_jax.models.apply_owned import COLUMN_EXECUTIONS
from mtl_jax.sharing import SCOPES
from mtl_jax.storage import workdir

HOOKS = pathlib.Path(__file__).parents[2] / "docs" / "hooks.py"


@pytest.fixture(scope="module")
def hooks() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", HOOKS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def is_of(value, kind) -> bool:
    """Whether a value has a type of the schema."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return value in arguments
    if origin is tuple:
        return type(value) is tuple and all(is_of(item, arguments[0]) for item in value)
    if origin is Mapping:
        return isinstance(value, ConfigDict) and not value
    return kind is typing.Any or type(value) is kind


def sections(config, section):
    """(ConfigDict of defaults, class) of every section and kind of entry."""
    yield config, section
    for field, kind in typing.get_type_hints(section).items():
        if isinstance(kind, type) and not hasattr(section, field):
            yield from sections(config[field], kind)


def test_every_default_has_the_type_of_its_field():
    entries = [(default.defaults(kind), kind) for kind in default.ENTRIES.values()]
    for config, section in [*sections(default.get_config(), Config), *entries]:
        hints = typing.get_type_hints(section)
        assert list(config) == sorted(hints)
        for field, kind in hints.items():
            if hasattr(section, field) or not isinstance(kind, type):
                assert is_of(config[field], kind), f"{section.__name__}.{field}: {config[field]!r} is no {kind}"


def test_every_field_is_in_the_reference_with_a_comment(hooks):
    entries = [(default.defaults(kind), kind) for kind in default.ENTRIES.values()]
    reference = hooks.config_reference()
    for config, section in [*sections(default.get_config(), Config), *entries]:
        rows = {field: comment for field, _, _, comment in hooks.fields(section)}
        assert set(rows) == set(config)
        for field, comment in rows.items():
            is_section = isinstance(config[field], ConfigDict) and len(config[field])
            assert is_section or comment, f"{section.__name__}.{field} has no comment"
            assert is_section or f"| `{field}` |" in reference, f"{section.__name__}.{field}"


@pytest.mark.parametrize(
    ("field", "choices"),
    [
        ("data.mixing", MIXINGS),
        ("model.column_execution", ("auto", *COLUMN_EXECUTIONS)),
        ("ablation.lane_execution", ("auto", *LAYOUTS)),
        ("penalty.scope", SCOPES),
    ],
)
def test_choices_of_the_schema_are_those_of_the_code(field, choices):
    section, name = field.split(".")
    kind = Penalty if section == "penalty" else typing.get_type_hints(Config)[section]
    assert set(typing.get_args(typing.get_type_hints(kind)[name])) == set(choices)


@pytest.mark.parametrize(
    ("place", "field"),
    [("model", "layer"), ("training.mesh", "pipe"), ("penalties.l2", "leaves"), ("ablation.sweeps.s", "values")],
)
def test_the_run_of_another_version_is_refused_in_one_sentence(tmp_path, place, field):
    config = default.get_config()
    default.add_penalty(config, "l2", options={"center": "mean"})
    default.add_sweep(config, "s", field="penalties.l2.strength")
    plain = to_plain(config)
    workdir.write_json(tmp_path / "config.json", plain)
    assert workdir.read_config(tmp_path) == json.loads(json.dumps(plain))
    node = plain
    for key in place.split("."):
        node = node[key]
    node[field] = "lstm"
    workdir.write_json(tmp_path / "config.json", plain)
    with pytest.raises(UserError, match=rf"another version .* config\.{place}\.{field} is no field .*; train it again"):
        workdir.read_config(tmp_path)
