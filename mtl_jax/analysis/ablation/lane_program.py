"""One program of an ablation: its experiment, and the hyperparameters of its settings."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from mtl_jax.analysis.ablation import traced_fields
from mtl_jax.analysis.ablation.plan import Program, Setting
from mtl_jax.config.plain import to_plain
from mtl_jax.config.sections import Config
from mtl_jax.data.corpus import Corpus
from mtl_jax.errors import UserError
from mtl_jax.experiment.assemble import Experiment, assemble
from mtl_jax.experiment.frozen_layers import cache_frozen_outputs, frozen_layers
from mtl_jax.experiment.inputs import encoder_notes, load_encoder
from mtl_jax.models.pretrained import Pretrained
from mtl_jax.runs import init_from
from mtl_jax.runs.build import load_data
from mtl_jax.training.gradients.meta_learning import MetaLearningGradient
from mtl_jax.training.hyperparameters import Hyperparameters, hyperparameters_from_config
from mtl_jax.training.state import StepSpec

T = TypeVar("T")


class Built(NamedTuple):
    """A program with its data and functions.

    experiment  of its config
    spec        the experiment's, with penalties whose `way` is "either" where settings differ in it
    settings    its settings; `fields` includes the proximal operator where it applies a setting's λ
    hypers      of each setting
    notes       sentences for people
    """

    experiment: Experiment
    spec: StepSpec
    settings: tuple[Setting, ...]
    hypers: tuple[Hyperparameters, ...]
    notes: tuple[str, ...]


class Sources:
    """Data and encoders, read once for consecutive programs that have them in common."""

    def __init__(self):
        self._last: dict[str, tuple[str, Any]] = {}  # kind -> (key, object)
        self._reported: set[str] = set()

    def load(self, config: Config) -> tuple[Corpus, Pretrained | None]:
        """The corpus and the encoder of a config."""
        plain = to_plain(config)
        model = plain["model"]
        encoder_key = [model["pretrained"], model["pretrained_wheel"]]
        encoder = self._cached("encoder", encoder_key, functools.partial(load_encoder, config))
        # soft labels depend on the teachers, and not on their weights
        teachers = {
            task: {name: value for name, value in entry.items() if name not in ("weight", "annealing")}
            for task, entry in plain["distillation"].items()
            if entry["weight"] > 0
        }
        data = [plain[name] for name in ("datasets", "tasks", "data", "tokenizer", "train_tasks", "init_from")]
        key = [data, teachers, *encoder_key]
        corpus = self._cached("corpus", key, functools.partial(load_data, config, encoder))
        frozen = frozen_layers(config, encoder and encoder.architecture, encoder and encoder.params)
        key += [model["num_layers"], model["dtype"], frozen]
        return self._cached("outputs", key, functools.partial(cache_frozen_outputs, config, corpus, encoder)), encoder

    def new_notes(self, corpus: Corpus) -> list[str]:
        """The notes of a corpus that were not returned before."""
        new = [note for note in corpus.notes if note not in self._reported]
        self._reported |= set(new)
        return new

    def _cached(self, kind: str, key: Sequence[object], make: Callable[[], T]) -> T:
        text = repr(key)
        if self._last.get(kind, ("", None))[0] != text:
            self._last[kind] = (text, make())
        return self._last[kind][1]


def build(program: Program, sources: Sources) -> Built:
    """Builds the experiment of a program.

    Raises:
      UserError: what is wrong with the config or the data; a swept λ that has no effect.
    """
    config = traced_fields.with_values(program.config, program.settings[0].fields)
    for rate in ("dropout", "attention_dropout"):  # whether there is dropout is static
        config.model[rate] = max(_config_of(program, setting).model[rate] for setting in program.settings)
    if "dropout" in config.sharing.adapter_options:
        rates = [_config_of(program, setting).sharing.adapter_options.dropout for setting in program.settings]
        config.sharing.adapter_options.dropout = max(rates)
    for task, entry in config.distillation.items():  # whether there are teachers is static too
        entry.weight = max(_config_of(program, setting).distillation[task].weight for setting in program.settings)
    config.sharing.tied = False
    corpus, encoder = sources.load(config)
    experiment = assemble(
        config, corpus, encoder.architecture if encoder else None, encoder.params if encoder else None
    )
    experiment = init_from.starting_from(config, experiment)
    for setting in program.settings:
        for field in setting.fields:
            if field.startswith("penalties.") and field.split(".")[1] not in experiment.spec.objective.penalties:
                raise UserError(
                    f"config.ablation.sweeps: {field} changes nothing, since no task has parameters of its own "
                    f"(config.sharing.trunk = {config.sharing.trunk!r}, mixer = {config.sharing.mixer!r}); set the "
                    "trunk to 'none' or to a lower layer, or take experts of which some are private"
                )
            if field.startswith("meta.") and not isinstance(experiment.spec.data_gradient, MetaLearningGradient):
                raise UserError(f"config.ablation.sweeps: {field} changes nothing, since config.meta.method is ''")
    built = _with_proximal(program, experiment)
    start = init_from.lines(experiment.beginning.describe()) if experiment.beginning else []
    return built._replace(notes=(*start, *encoder_notes(config, encoder), *built.notes))


def _config_of(program: Program, setting: Setting) -> ConfigDict:
    """The config that trains one setting alone."""
    return traced_fields.with_values(program.config, setting.fields)


def _with_proximal(program: Program, experiment: Experiment) -> Built:
    """The proximal operator applies large λ, because a plain gradient step diverges for lr·λ·curvature > 2."""
    names = tuple(experiment.tasks)
    hypers = [_hyper(program, setting, names, experiment.hyper.auxiliary) for setting in program.settings]
    settings, notes, penalties = list(program.settings), [], dict(experiment.spec.objective.penalties)
    for name, penalty in penalties.items():
        if penalty.mode != "gradient" or not penalty.curvature:
            continue
        is_proximal = [_step_strength(hyper, name) * penalty.curvature > 1.0 for hyper in hypers]
        if not any(is_proximal):
            continue
        least = min(float(h.strength[name]) for h, large in zip(hypers, is_proximal, strict=True) if large)
        subject = (
            f"λ ≥ {least:g} of penalty {name!r} (learning rate · λ · curvature > 1, half of where gradients diverge)"
        )
        if penalty.proximal is None:
            notes.append(f"{subject} has no proximal operator here and may diverge")
            continue
        notes.append(f"{subject} is applied by the proximal operator, smaller ones by gradients")
        penalties[name] = penalty._replace(mode="proximal" if all(is_proximal) else "either")
        for i, large in enumerate(is_proximal):
            if large:
                settings[i] = settings[i]._replace(fields={**settings[i].fields, f"penalties.{name}.proximal": True})
            if not all(is_proximal):
                hypers[i] = hypers[i]._replace(proximal={**hypers[i].proximal, name: jnp.asarray(large)})
    if any(hyper.tied is not None for hyper in hypers):
        hypers = [hyper._replace(tied=jnp.asarray(hyper.tied is not None)) for hyper in hypers]
    spec = experiment.spec._replace(objective=experiment.spec.objective._replace(penalties=penalties))
    return Built(experiment, spec, tuple(settings), tuple(hypers), tuple(notes))


def _hyper(
    program: Program, setting: Setting, tasks: Sequence[str], auxiliary: Mapping[str, jax.Array]
) -> Hyperparameters:
    def swept(method: str) -> dict[str, jax.Array]:
        prefix = f"{method}.options."
        options = {f.removeprefix(prefix): v for f, v in setting.fields.items() if f.startswith(prefix)}
        return {name: jnp.asarray(value, jnp.float32) for name, value in options.items()}

    hyper = hyperparameters_from_config(_config_of(program, setting), tasks, auxiliary)
    return hyper._replace(loss_weights=swept("loss_weights"), aggregation=swept("aggregation"))


def _step_strength(hyper: Hyperparameters, name: str) -> float:
    """lr · λ of a penalty, at the layer where it is largest."""
    factors = [1.0, *(float(factor) for factor in hyper.by_layer[name].values())]
    return float(jax.device_get(hyper.learning_rate * hyper.strength[name])) * max(factors)
