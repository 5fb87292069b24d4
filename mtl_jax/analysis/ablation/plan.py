"""What an ablation will train, known before anything is loaded: programs, their settings, seeds."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mtl_jax import unicode
from mtl_jax.analysis.ablation import fields
from mtl_jax.balancing import LOSS_WEIGHTS, OF_GRADIENTS, WEIGHTINGS
from mtl_jax.config.plain import to_plain
from mtl_jax.data.splits.subsets import random_generator
from mtl_jax.errors import UserError

SWEEP_FIELDS = "config.ablation.sweeps"
LONGEST_FOLDER = 180  # bytes of a program's name


class Setting(NamedTuple):
    """One lane of a program, for each seed.

    line    "sharing" (a point of the sweeps) | "single" | "tied" | "hard"
    values  {sweep: value}; for the ends the learning rate besides, and no λ
    fields  {field of the config: value}: the program's config with these is the lane's config when trained alone
    """

    line: str
    values: Mapping[str, float]
    fields: Mapping[str, Any]


class Program(NamedTuple):
    """One compiled program: a config, and the settings that are its lanes, for each of the plan's seeds.

    name     of its folder
    config   the whole config, without what `settings` change
    choices  {choice: alternative}; ends lack the choices that do not matter to them
    moves    {sweep: fields that it moves}
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
        """Steps of all lanes together."""
        return sum(len(p.settings) * len(self.seeds) * p.config.training.steps for p in self.programs)

    def describe(self) -> str:
        """What will be trained, for people."""
        lanes = sum(len(p.settings) for p in self.programs) * len(self.seeds)
        head = f"{len(self.programs)} programs, {lanes} lanes ({len(self.seeds)} seeds)"
        lines = [f"{head}, {self.lane_steps:,} lane-steps in all"]
        for p in self.programs:
            lines.append(
                f"  {p.name}: {len(p.settings)} settings × {len(self.seeds)} seeds × {p.config.training.steps} steps"
            )
        return "\n".join(lines)


def make(config: ConfigDict, check: Callable[[ConfigDict], Mapping[str, str]]) -> Plan:
    """The plan of a config.

    Args:
      config: has passed `mtl_jax.checks.check`.
      check: raises UserError for a config that is wrong; called for every lane's. Returns {option that is set: "" where
        it acts, else why not}.

    Raises:
      UserError: a swept field that the step does not take as an argument; no points, or the same twice; an option that
        is set and acts in no lane; ...
    """
    ablation = config.ablation
    if not ablation.sweeps and not ablation.choices:
        raise UserError(
            f"{SWEEP_FIELDS}: nothing to compare; add a sweep with default.add_sweep(config, 'strength', "
            "field='penalties.l2.strength', low=1e-3, high=1.0, count=8)"
        )
    seeds = tuple(range(config.seed, config.seed + ablation.seeds))
    alternatives = {name: _alternatives(config, name, entry) for name, entry in ablation.choices.items()}
    programs: list[Program] = []
    ends: dict[str, Program] = {}
    values: dict[str, list[float]] = {name: [] for name in ablation.sweeps}
    for combination in itertools.product(*(a.items() for a in alternatives.values())):
        chosen = dict(zip(alternatives, (name for name, _ in combination), strict=True))
        own = config
        for choice, (_, changes) in zip(alternatives, combination, strict=True):
            own = fields.merged(own, changes, f"config.ablation.choices.{choice}")
        check(own)
        sweeps = {name: _Sweep.of(own, name) for name in own.ablation.sweeps}
        for name, found in sweeps.items():
            values.setdefault(name, []).extend(found.values)
        settings = _settings(sweeps)
        if any(_is_strength(s) for s in sweeps.values()) and ablation.ends:
            for program in _ends(own, chosen, sweeps):
                same = ends.get(key := _identity(program), program)
                ends[key] = same._replace(choices={n: c for n, c in same.choices.items() if chosen[n] == c})
        programs.append(
            Program(_name("sharing", chosen), own, chosen, settings, {n: s.fields for n, s in sweeps.items()})
        )
    everything = (*programs, *(p._replace(name=_name(p.settings[0].line, p.choices)) for p in ends.values()))
    effects: list[Mapping[str, str]] = []
    for program in everything:
        for setting in program.settings:
            try:
                found = check(fields.with_values(program.config, setting.fields))
            except UserError as error:
                raise UserError(f"{SWEEP_FIELDS}, at {_show(setting.values)}: {error}") from None
            if setting.line == "sharing":  # the ends leave out what others are about
                effects.append(found or {})
    _require_effects(effects)
    everything = _with_own_folders(everything)
    described = {
        name: {"field": entry.field, "scale": entry.scale, "values": sorted(dict.fromkeys(values[name]))}
        for name, entry in ablation.sweeps.items()
    }
    baselines = _baselines(ablation.baselines, alternatives)
    return Plan(everything, described, {n: list(a) for n, a in alternatives.items()}, baselines, seeds)


def _require_effects(by_lane: Sequence[Mapping[str, str]]) -> None:
    """An option may be for some of the alternatives; it is a mistake where it acts in none."""
    acting = {field for effects in by_lane for field, reason in effects.items() if not reason}
    idle = {f: reason for effects in by_lane for f, reason in effects.items() if reason and f not in acting}
    if idle:
        raise UserError("\n".join(idle.values()))


def _baselines(named, alternatives) -> dict[str, list[str]]:
    for choice, names in named.items():
        where = f"config.ablation.baselines.{choice}"
        if choice not in alternatives:
            raise UserError(f"{where}: no such choice; there are {', '.join(alternatives) or 'none'}")
        if isinstance(names, str) or not names:
            raise UserError(f"{where}: {names!r} should be a tuple of alternatives, e.g. ('sum',)")
        for name in names:
            if name not in alternatives[choice]:
                raise UserError(f"{where}: {name!r} is none of the alternatives {', '.join(alternatives[choice])}")
        if len(set(names)) == len(alternatives[choice]):
            raise UserError(f"{where}: all alternatives are baselines, none is left to compare with them")
    return {choice: list(dict.fromkeys(names)) for choice, names in named.items()}


class _Sweep(NamedTuple):
    fields: tuple[str, ...]
    values: tuple[float, ...]
    random: bool

    @staticmethod
    def of(config, name) -> _Sweep:
        entry, where = config.ablation.sweeps[name], f"{SWEEP_FIELDS}.{name}"
        expanded = fields.expand(config, entry.field, f"{where}.field")
        for field in expanded:
            if not fields.is_traced(field):
                raise UserError(
                    f"{where}.field: {field!r} changes the compiled program, so it cannot differ between its lanes; "
                    f"make it a choice: default.add_choice(config, {name!r}, field={entry.field!r}, "
                    f"alternatives=(...)). Swept can be {', '.join(fields.TRACED)}"
                )
            _require_option(config, field, where)
        return _Sweep(expanded, _values(config, entry, where, name), entry.random)


def _require_option(config, field, where):
    """Makes sure that an option of a method takes any number inside a compiled program."""
    section, is_option, name = field.partition(".options.")
    methods = {"loss_weights": LOSS_WEIGHTS, "aggregation": {**WEIGHTINGS, **OF_GRADIENTS}}.get(section)
    if not is_option or methods is None:
        return
    method, options = config[section].method, config[section].options.to_dict()
    if method == "by_size":
        options["sizes"] = (1.0,)  # known when the data are
    try:
        jax.eval_shape(lambda value: (methods[method](**{**options, name: value}), value)[1], jnp.zeros(()))
    except (TypeError, ValueError, jax.errors.JAXTypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{where}.field: {field!r} of {method!r} cannot differ between the lanes of a program ({reason}); make it "
            f"a choice: default.add_choice(config, {name!r}, field={field!r}, alternatives=(...))"
        ) from None


def _values(config, entry, where, name) -> tuple[float, ...]:
    if bool(entry.points) == bool(entry.count):
        raise UserError(f"{where}: a grid of no points; give either points=(...) or low, high and count")
    if entry.points:
        found = tuple(float(value) for value in entry.points)
    else:
        low, high, count = float(entry.low), float(entry.high), int(entry.count)
        if not (math.isfinite(low) and math.isfinite(high) and low < high) or count < (1 if entry.random else 2):
            raise UserError(f"{where}: from low = {low:g} to high = {high:g} in {count} points is no range")
        if entry.scale == "log" and low <= 0:
            raise UserError(f"{where}.low: {low:g} has no logarithm; begin above 0 or take scale='linear'")
        ends = np.log([low, high]) if entry.scale == "log" else np.asarray([low, high])
        draw = random_generator(f"sweep {name}", config.seed).random
        steps = draw(count) if entry.random else np.linspace(0.0, 1.0, count)
        spaced = ends[0] + steps * (ends[1] - ends[0])
        found = tuple(float(f"{x:.6g}") for x in (np.exp(spaced) if entry.scale == "log" else spaced))
    if any(not math.isfinite(value) for value in found):
        raise UserError(f"{where}: values have to be finite numbers, found {found}")
    if not entry.random and len(set(found)) < len(found):
        twice = next(value for value in found if found.count(value) > 1)
        raise UserError(f"{where}: the point {twice:g} is there twice")
    return found


def _settings(sweeps: Mapping[str, _Sweep]) -> tuple[Setting, ...]:
    """The product of the sweeps; those drawn at random are drawn together, as one axis."""
    drawn = {name: sweep for name, sweep in sweeps.items() if sweep.random}
    if len({len(sweep.values) for sweep in drawn.values()}) > 1:
        counts = ", ".join(f"{name} {len(sweep.values)}" for name, sweep in drawn.items())
        raise UserError(f"{SWEEP_FIELDS}: random sweeps are drawn together and need equally many points: {counts}")
    axes = [[{name: value} for value in sweep.values] for name, sweep in sweeps.items() if not sweep.random]
    if drawn:
        rows = zip(*(sweep.values for sweep in drawn.values()), strict=True)
        axes.append([dict(zip(drawn, row, strict=True)) for row in rows])
    points = [{name: value for part in parts for name, value in part.items()} for parts in itertools.product(*axes)]
    return tuple(Setting("sharing", values, _fields(sweeps, values)) for values in points)


def _fields(sweeps, values):
    return {field: value for name, value in values.items() for field in sweeps[name].fields}


def _is_strength(sweep: _Sweep) -> bool:
    return all(field.startswith("penalties.") and field.endswith(".strength") for field in sweep.fields)


def _ends(config, chosen, sweeps) -> list[Program]:
    """Single-task and tied columns as lanes of one program, hard sharing as another; over learning rates."""
    others = {name: s for name, s in sweeps.items() if not any(f.startswith("penalties.") for f in s.fields)}
    swept_rate = any("optimizer.learning_rate" in s.fields for s in others.values())
    rates = [None] if swept_rate else [config.optimizer.learning_rate * factor for factor in config.ablation.rates]
    if not rates:
        raise UserError(
            "config.ablation.rates: the ends are trained at these learning rates; name one at least, or "
            "set config.ablation.ends=False"
        )

    def settings(line, extra):
        found = []
        for setting, rate in itertools.product(_settings(others) if others else (Setting(line, {}, {}),), rates):
            values, changes = dict(setting.values), {**setting.fields, **extra}
            if rate is not None:
                values["learning_rate"] = changes["optimizer.learning_rate"] = rate
            found.append(Setting(line, values, changes))
        return tuple(found)

    alone = fields.ordered_copy(config)
    alone.penalties = ConfigDict(sort_keys=False)
    alone.sharing.mixer, alone.sharing.mixer_options, alone.sharing.mixed = "", ConfigDict(), ()
    hard = fields.ordered_copy(alone)
    hard.sharing.trunk, hard.sharing.groups, hard.sharing.tied = "all", ConfigDict(), False
    hard.sharing.adapter, hard.sharing.adapter_options, hard.sharing.adapted = "", ConfigDict(), ()
    columns = settings("single", {})
    if config.model.column_init == "same":
        columns += settings("tied", {"sharing.tied": True})
    return [Program("ends", alone, chosen, columns, {}), Program("hard", hard, chosen, settings("hard", {}), {})]


def _identity(program: Program) -> str:
    """The same for programs that train the same."""
    whole = {key: value for key, value in to_plain(program.config).items() if key != "ablation"}
    return json.dumps([whole, [[s.line, dict(s.fields)] for s in program.settings]], sort_keys=True, default=str)


def _alternatives(config, name, entry) -> dict[str, dict[str, Any]]:
    """{alternative: nested changes of the config}, in order."""
    where = f"config.ablation.choices.{name}"
    if bool(entry.field) == bool(entry.settings):
        raise UserError(f"{where}: give either field and alternatives, or settings = {{name: changes}}")
    if entry.settings:
        return {label: plain_tree(changes) for label, changes in entry.settings.items()}
    if not entry.alternatives:
        raise UserError(f"{where}.alternatives: none")
    expanded = fields.expand(config, entry.field, f"{where}.field")
    found = {}
    for value in entry.alternatives:
        label = f"{value:g}" if isinstance(value, float) else str(value)
        if label in found:
            raise UserError(f"{where}: the alternative {label} is there twice")
        found[label] = {}
        for field in expanded:
            node = found[label]
            *parents, last = field.split(".")
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
    return found


def plain_tree(node: Any) -> Any:
    """Nested dicts for nested config entries; other values stay as they are."""
    return {key: plain_tree(value) for key, value in node.items()} if hasattr(node, "items") else node


def _name(line, choices) -> str:
    line = "ends" if line in ("single", "tied") else line
    return ",".join([line, *(f"{name}={unicode.file_name(value, allowed='._-+')}" for name, value in choices.items())])


def _with_own_folders(programs: Sequence[Program]) -> tuple[Program, ...]:
    """The programs, with a name each that no other's has, on any file system, and that a folder can have."""
    folded = [program.name.casefold() for program in programs]

    def own(program):
        if folded.count(program.name.casefold()) == 1 and len(program.name.encode()) <= LONGEST_FOLDER:
            return program
        whole = json.dumps([_identity(program), dict(program.choices)], sort_keys=True)
        short = program.name.encode()[:LONGEST_FOLDER].decode(errors="ignore")
        return program._replace(name=f"{short}~{hashlib.sha256(whole.encode()).hexdigest()[:8]}")

    return tuple(own(program) for program in programs)


def _show(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} = {value:g}" for name, value in values.items()) or "its only setting"
