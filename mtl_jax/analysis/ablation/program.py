"""One program of an ablation: its experiment, the hyperparameters of its settings, and the compiled steps."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mtl_jax.analysis.ablation import fields
from mtl_jax.analysis.ablation.plan import Program, Setting
from mtl_jax.config.plain import to_plain
from mtl_jax.errors import UserError
from mtl_jax.experiment.assemble import Experiment, assemble
from mtl_jax.experiment.frozen_layers import frozen_layers, with_outputs
from mtl_jax.experiment.inputs import encoder_notes, load_encoder
from mtl_jax.runs.build import load_data
from mtl_jax.training.gradients.meta_learning import MetaLearning
from mtl_jax.training.hyperparameters import Hyperparameters, hyperparameters_from_config
from mtl_jax.training.state import StepSpec


class Built(NamedTuple):
    """A program made real.

    experiment  of its config
    spec        the experiment's, with penalties that may act either way where settings differ in it
    settings    its settings; those whose λ goes through the proximal operator say so in `fields`
    hypers      of each setting
    notes       sentences for people
    """

    experiment: Experiment
    spec: StepSpec
    settings: tuple[Setting, ...]
    hypers: tuple[Hyperparameters, ...]
    notes: tuple[str, ...]


class Sources:
    """Data and encoder of the programs at hand: read once where several programs have them in common."""

    def __init__(self):
        self._held: dict[str, Any] = {}
        self._told: set[str] = set()

    def of(self, config: ConfigDict) -> tuple[Any, Any]:
        """(corpus, encoder or None) of a config."""
        model = to_plain(config.model)
        encoder = self._keep(
            "encoder", [model["pretrained"], model["pretrained_wheel"]], functools.partial(load_encoder, config)
        )
        whole = to_plain(config)
        data = [whole[name] for name in ("datasets", "tasks", "data", "tokenizer", "train_on")]
        # how much the teachers weigh changes nothing in what they say
        taught = {
            task: {name: value for name, value in entry.items() if name not in ("weight", "annealing")}
            for task, entry in whole["distillation"].items()
            if entry["weight"] > 0
        }
        key = [data, taught, model["pretrained"], model["pretrained_wheel"]]
        corpus = self._keep("corpus", key, functools.partial(load_data, config, encoder))
        key += [model["layers"], model["dtype"], frozen_layers(config, encoder and encoder.params)]
        return self._keep("outputs", key, functools.partial(with_outputs, config, corpus, encoder)), encoder

    def new_notes(self, corpus: Any) -> list[str]:
        """The notes of a corpus that were not asked for before."""
        found = [note for note in corpus.notes if note not in self._told]
        self._told |= set(found)
        return found

    def _keep(self, what, key, make: Callable[[], Any]):
        key = repr(key)
        if self._held.get(what, ("", None))[0] != key:
            self._held[what] = (key, make())
        return self._held[what][1]


def build(program: Program, sources: Sources) -> Built:
    """Raises UserError for what is wrong with the config or the data, and for a swept λ that nothing depends on."""
    config = fields.with_values(program.config, program.settings[0].fields)
    for rate in ("dropout", "attention_dropout"):  # whether there is any is static
        config.model[rate] = max(_config_of(program, setting).model[rate] for setting in program.settings)
    for task, entry in config.distillation.items():  # and so is whether there are teachers
        entry.weight = max(_config_of(program, setting).distillation[task].weight for setting in program.settings)
    config.sharing.tied = False
    corpus, encoder = sources.of(config)
    experiment = assemble(
        config, corpus, encoder.architecture if encoder else None, encoder.params if encoder else None
    )
    for setting in program.settings:
        for field in setting.fields:
            if field.startswith("penalties.") and field.split(".")[1] not in experiment.spec.objective.penalties:
                raise UserError(
                    f"config.ablation.sweeps: {field} changes nothing, since no task has parameters of its own "
                    f"(config.sharing.trunk = {config.sharing.trunk!r}, mixer = {config.sharing.mixer!r}); set the "
                    "trunk to 'none' or to a lower layer, or take experts of which some are private"
                )
            if field.startswith("meta.") and not isinstance(experiment.spec.data_gradient, MetaLearning):
                raise UserError(f"config.ablation.sweeps: {field} changes nothing, since config.meta.method is ''")
    built = _with_ways(program, experiment)
    return built._replace(notes=(*encoder_notes(config, encoder), *built.notes))


def _config_of(program: Program, setting: Setting) -> ConfigDict:
    """The config that trains one setting alone."""
    return fields.with_values(program.config, setting.fields)


def _with_ways(program, experiment) -> Built:
    """Large λ goes through the proximal operator: a plain gradient step diverges for lr·λ·curvature > 2."""
    names = tuple(experiment.tasks)
    hypers = [_hyper(program, setting, names, experiment.hyper.auxiliary) for setting in program.settings]
    settings, notes, penalties = list(program.settings), [], dict(experiment.spec.objective.penalties)
    for name, penalty in penalties.items():
        if penalty.way != "gradient" or not penalty.curvature:
            continue
        acts = [_pull(hyper, name) * penalty.curvature > 1.0 for hyper in hypers]
        if not any(acts):
            continue
        least = min(float(h.strength[name]) for h, act in zip(hypers, acts, strict=True) if act)
        why = f"λ ≥ {least:g} of penalty {name!r} (learning rate · λ · curvature > 1, half of where gradients diverge)"
        if penalty.proximal is None:
            notes.append(f"{why} has no proximal operator here and may diverge")
            continue
        notes.append(f"{why} goes through the proximal operator, smaller ones are gradients")
        penalties[name] = penalty._replace(way="proximal" if all(acts) else "either")
        for i, act in enumerate(acts):
            if act:
                settings[i] = settings[i]._replace(fields={**settings[i].fields, f"penalties.{name}.proximal": True})
            if not all(acts):
                hypers[i] = hypers[i]._replace(proximal={**hypers[i].proximal, name: jnp.asarray(act)})
    if any(hyper.tied is not None for hyper in hypers):
        hypers = [hyper._replace(tied=jnp.asarray(hyper.tied is not None)) for hyper in hypers]
    spec = experiment.spec._replace(objective=experiment.spec.objective._replace(penalties=penalties))
    return Built(experiment, spec, tuple(settings), tuple(hypers), tuple(notes))


def _hyper(program, setting, tasks, auxiliary) -> Hyperparameters:
    def swept(method):
        prefix = f"{method}.options."
        found = {f.removeprefix(prefix): v for f, v in setting.fields.items() if f.startswith(prefix)}
        return {name: jnp.asarray(value, jnp.float32) for name, value in found.items()}

    hyper = hyperparameters_from_config(_config_of(program, setting), tasks, auxiliary)
    return hyper._replace(loss_weights=swept("loss_weights"), aggregation=swept("aggregation"))


def _pull(hyper: Hyperparameters, name: str) -> float:
    """lr · λ, at the layer where it is largest."""
    factors = [1.0, *(float(factor) for factor in hyper.by_layer[name].values())]
    return float(jax.device_get(hyper.learning_rate * hyper.strength[name])) * max(factors)
