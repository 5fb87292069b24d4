"""What an ablation will train, computed before anything is loaded: programs, their settings, seeds."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mtl_jax import unicode
from mtl_jax.analysis.ablation import traced_fields
from mtl_jax.analysis.ablation.preferences import preference_sweeps
from mtl_jax.analysis.ablation.sweeps import SWEEPS_FIELD, Sweep, is_strength
from mtl_jax.config.entries import Choice
from mtl_jax.config.plain import to_plain
from mtl_jax.config.sections import Config
from mtl_jax.errors import UserError

MAX_NAME_BYTES = 180  # of a program's name, which is that of a folder


class Setting(NamedTuple):
    """One lane of a program, for each seed.

    line    "sharing" (a point of the sweeps) | "single" | "tied" | "hard"
    values  {sweep: value}; the limits have no λ, and the learning rate in addition
    fields  {field of the config: value}: with these, the program's config is that of the lane when trained alone
    """

    line: str
    values: Mapping[str, float]
    fields: Mapping[str, Any]


class Program(NamedTuple):
    """One compiled program: a config, and the settings that are its lanes for each of the plan's seeds.

    name     of its folder
    config   before the changes of `settings`
    choices  {choice: alternative}; limits lack the choices that do not affect them
    moves    {sweep: fields that it sets}
    """

    name: str
    config: ConfigDict
    choices: Mapping[str, str]
    settings: tuple[Setting, ...]
    moves: Mapping[str, tuple[str, ...]]


class Plan(NamedTuple):
    """All programs of an ablation.

    sweeps     {name: {"field", "scale", "values"}}, the values of all programs together
    choices    {name: alternatives}
    baselines  {choice: alternatives that the others are compared with}
    seeds      S seeds
    """

    programs: tuple[Program, ...]
    sweeps: Mapping[str, Mapping[str, Any]]
    choices: Mapping[str, Sequence[str]]
    baselines: Mapping[str, Sequence[str]]
    seeds: tuple[int, ...]

    @property
    def lane_steps(self) -> int:
        """Steps of all lanes in total."""
        return sum(len(p.settings) * len(self.seeds) * p.config.training.steps for p in self.programs)

    def describe(self) -> str:
        """What will be trained, as lines of text."""
        lanes = sum(len(p.settings) for p in self.programs) * len(self.seeds)
        head = f"{len(self.programs)} programs, {lanes} lanes ({len(self.seeds)} seeds)"
        lines = [f"{head}, {self.lane_steps:,} lane-steps in total"]
        for p in self.programs:
            lines.append(
                f"  {p.name}: {len(p.settings)} settings × {len(self.seeds)} seeds × {p.config.training.steps} steps"
            )
        return "\n".join(lines)


def make_plan(config: ConfigDict, check: Callable[[ConfigDict], Mapping[str, str]]) -> Plan:
    """The plan of a config.

    Args:
      config: has passed `mtl_jax.checks.check`.
      check: raises UserError for a wrong config; called for that of every lane. Returns {option that is set: "" where
        it has an effect, else why not}.

    Raises:
      UserError: a swept field that the step does not take as an argument; no points, or equal ones; an option that is
        set and has no effect in any lane; ...
    """
    ablation = config.ablation
    if not ablation.sweeps and not ablation.choices and not ablation.preferences:
        raise UserError(
            f"{SWEEPS_FIELD}: nothing to compare; add a sweep with default.add_sweep(config, 'strength', "
            "field='penalties.l2.strength', low=1e-3, high=1.0, count=8)"
        )
    seeds = tuple(range(config.seed, config.seed + ablation.num_seeds))
    alternatives = {name: _alternatives(config, name, entry) for name, entry in ablation.choices.items()}
    programs, limits = [], {}
    values: dict[str, list[float]] = {name: [] for name in ablation.sweeps}
    for combination in itertools.product(*(a.items() for a in alternatives.values())):
        choices = dict(zip(alternatives, (name for name, _ in combination), strict=True))
        program_config = config
        for choice, (_, changes) in zip(alternatives, combination, strict=True):
            program_config = traced_fields.merged(program_config, changes, f"config.ablation.choices.{choice}")
        check(program_config)
        sweeps = {name: Sweep.from_config(program_config, name) for name in program_config.ablation.sweeps}
        sweeps |= preference_sweeps(program_config)
        for name, sweep in sweeps.items():
            values.setdefault(name, []).extend(sweep.values)
        if any(is_strength(sweep) for sweep in sweeps.values()) and ablation.limits:
            for program in _limits(program_config, choices, sweeps):
                _add_limit(limits, program)
        moves = {name: sweep.fields for name, sweep in sweeps.items()}
        programs.append(Program(_name("sharing", choices), program_config, choices, _settings(sweeps), moves))
    named_limits = (p._replace(name=_name(p.settings[0].line, p.choices)) for p in limits.values())
    all_programs = (*programs, *named_limits)
    _check_lanes(all_programs, check)
    described = {
        name: {"field": entry.field, "scale": entry.scale, "values": sorted(dict.fromkeys(values[name]))}
        for name, entry in ablation.sweeps.items()
    }
    described |= {
        name: {"field": sweep.fields[0], "scale": "linear", "values": sorted(dict.fromkeys(values[name]))}
        for name, sweep in preference_sweeps(config).items()
        if name in values
    }
    baselines = _baselines(ablation.baselines, alternatives)
    return Plan(
        _with_unique_names(all_programs), described, {n: list(a) for n, a in alternatives.items()}, baselines, seeds
    )


def _add_limit(limits: dict[str, Program], program: Program) -> None:
    """Adds a program, or removes the choices that differ from an equal one: they do not affect it."""
    same = limits.setdefault(_identity(program), program)
    common = {name: choice for name, choice in same.choices.items() if program.choices[name] == choice}
    limits[_identity(program)] = same._replace(choices=common)


def _check_lanes(programs: Sequence[Program], check: Callable[[ConfigDict], Mapping[str, str]]) -> None:
    """Checks the config of every lane; see `make_plan` for what is raised."""
    effects: list[Mapping[str, str]] = []
    for program in programs:
        for setting in program.settings:
            try:
                lane_effects = check(traced_fields.with_values(program.config, setting.fields))
            except UserError as error:
                raise UserError(f"{SWEEPS_FIELD}, at {_describe(setting.values)}: {error}") from None
            if setting.line == "sharing":  # the limits lack what many options are for
                effects.append(lane_effects or {})
    _require_effects(effects)


def _require_effects(by_lane: Sequence[Mapping[str, str]]) -> None:
    """Raises UserError for options without effect in every lane; they may be meant for some of the alternatives."""
    effective = {field for effects in by_lane for field, reason in effects.items() if not reason}
    idle = {f: reason for effects in by_lane for f, reason in effects.items() if reason and f not in effective}
    if idle:
        raise UserError("\n".join(idle.values()))


def _baselines(
    named: Mapping[str, Sequence[str]], alternatives: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[str]]:
    for choice, names in named.items():
        where = f"config.ablation.baselines.{choice}"
        if choice not in alternatives:
            raise UserError(f"{where}: no such choice; there are {', '.join(alternatives) or 'none'}")
        if isinstance(names, str) or not names:
            raise UserError(f"{where}: {names!r} should be a tuple of alternatives, e.g. ('sum',)")
        for name in names:
            if name not in alternatives[choice]:
                raise UserError(f"{where}: {name!r} is not one of the alternatives {', '.join(alternatives[choice])}")
        if len(set(names)) == len(alternatives[choice]):
            raise UserError(f"{where}: all alternatives are baselines, so that none is compared with them")
    return {choice: list(dict.fromkeys(names)) for choice, names in named.items()}


def _settings(sweeps: Mapping[str, Sweep]) -> tuple[Setting, ...]:
    """The product of the sweeps; random sweeps are one axis, drawn jointly."""
    drawn = {name: sweep for name, sweep in sweeps.items() if sweep.random}
    if len({len(sweep.values) for sweep in drawn.values()}) > 1:
        counts = ", ".join(f"{name} {len(sweep.values)}" for name, sweep in drawn.items())
        raise UserError(f"{SWEEPS_FIELD}: random sweeps are drawn jointly and need the same number of points: {counts}")
    axes = [[{name: value} for value in sweep.values] for name, sweep in sweeps.items() if not sweep.random]
    if drawn:
        rows = zip(*(sweep.values for sweep in drawn.values()), strict=True)
        axes.append([dict(zip(drawn, row, strict=True)) for row in rows])
    points = [{name: value for part in parts for name, value in part.items()} for parts in itertools.product(*axes)]
    return tuple(Setting("sharing", values, _fields(sweeps, values)) for values in points)


def _fields(sweeps: Mapping[str, Sweep], values: Mapping[str, float]) -> dict[str, float]:
    return {field: value for name, value in values.items() for field in sweeps[name].fields}


def _limits(config: ConfigDict, choices: Mapping[str, str], sweeps: Mapping[str, Sweep]) -> list[Program]:
    """Single-task and tied columns as lanes of one program, hard sharing as another; over learning rates."""
    others = {name: s for name, s in sweeps.items() if not any(f.startswith("penalties.") for f in s.fields)}
    swept_rate = any("optimizer.learning_rate" in s.fields for s in others.values())
    rates = [None] if swept_rate else [config.optimizer.learning_rate * factor for factor in config.ablation.lr_factors]
    if not rates:
        raise UserError(
            "config.ablation.lr_factors: the ends are trained at these learning rates; name one at least, or set "
            "config.ablation.limits=False"
        )

    def settings(line: str, extra: Mapping[str, Any]) -> tuple[Setting, ...]:
        result = []
        for setting, rate in itertools.product(_settings(others) if others else (Setting(line, {}, {}),), rates):
            values, changes = dict(setting.values), {**setting.fields, **extra}
            if rate is not None:
                values["learning_rate"] = changes["optimizer.learning_rate"] = rate
            result.append(Setting(line, values, changes))
        return tuple(result)

    separate = traced_fields.ordered_copy(config)
    separate.penalties = ConfigDict(sort_keys=False)
    separate.sharing.mixer, separate.sharing.mixer_options, separate.sharing.mixer_layers = "", ConfigDict(), ()
    hard = traced_fields.ordered_copy(separate)
    hard.sharing.trunk, hard.sharing.task_groups, hard.sharing.tied = "all", ConfigDict(), False
    hard.sharing.adapter, hard.sharing.adapter_options, hard.sharing.adapter_layers = "", ConfigDict(), ()
    hard.sharing.adapter_owner, hard.sharing.adapter_groups = "none", ConfigDict()
    columns = settings("single", {})
    if config.model.column_init == "same":
        columns += settings("tied", {"sharing.tied": True})
    return [Program("ends", separate, choices, columns, {}), Program("hard", hard, choices, settings("hard", {}), {})]


def _identity(program: Program) -> str:
    """Equal for programs that train the same."""
    plain = {key: value for key, value in to_plain(program.config).items() if key != "ablation"}
    return json.dumps([plain, [[s.line, dict(s.fields)] for s in program.settings]], sort_keys=True, default=str)


def _alternatives(config: Config, name: str, entry: Choice) -> dict[str, dict[str, Any]]:
    """{alternative: nested changes of the config}, in order."""
    where = f"config.ablation.choices.{name}"
    if bool(entry.field) == bool(entry.settings):
        raise UserError(f"{where}: give either field and alternatives, or settings = {{name: changes}}")
    if entry.settings:
        return {label: plain_tree(changes) for label, changes in entry.settings.items()}
    if not entry.alternatives:
        raise UserError(f"{where}.alternatives: none")
    expanded = traced_fields.expand(config, entry.field, f"{where}.field")
    result: dict[str, dict[str, Any]] = {}
    for value in entry.alternatives:
        label = f"{value:g}" if isinstance(value, float) else str(value)
        if label in result:
            raise UserError(f"{where}: the alternative {label} is there twice")
        result[label] = {}
        for field in expanded:
            node = result[label]
            *parents, last = field.split(".")
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
    return result


def plain_tree(node: Any) -> Any:
    """Nested dicts for nested config entries; other values stay as they are."""
    return {key: plain_tree(value) for key, value in node.items()} if hasattr(node, "items") else node


def _name(line: str, choices: Mapping[str, str]) -> str:
    line = "ends" if line in ("single", "tied") else line
    return ",".join([line, *(f"{name}={unicode.file_name(value, allowed='._-+')}" for name, value in choices.items())])


def _with_unique_names(programs: Sequence[Program]) -> tuple[Program, ...]:
    """The programs with names that are valid and distinct folders on any file system."""
    folded = [program.name.casefold() for program in programs]

    def renamed(program: Program) -> Program:
        if folded.count(program.name.casefold()) == 1 and len(program.name.encode()) <= MAX_NAME_BYTES:
            return program
        content = json.dumps([_identity(program), dict(program.choices)], sort_keys=True)
        short = program.name.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
        return program._replace(name=f"{short}~{hashlib.sha256(content.encode()).hexdigest()[:8]}")

    return tuple(renamed(program) for program in programs)


def _describe(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} = {value:g}" for name, value in values.items()) or "its only setting"
