"""The measures of each seed of --mode=relate: from the runs that they need to matrices, stored seed by seed."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence, Set
from typing import Any, TypedDict

import jax
import numpy as np
from ml_collections import ConfigDict

from mtl_jax.analysis.ablation import traced_fields
from mtl_jax.analysis.ablation.engine import padded
from mtl_jax.analysis.ablation.lane_program import Sources
from mtl_jax.analysis.relatedness.grad_tag import Linearisation
from mtl_jax.analysis.relatedness.measure_inputs import (
    Evidence,
    JointRun,
    Lookahead,
    SeparateColumns,
    common_owners,
)
from mtl_jax.analysis.relatedness.registry import MEASURES
from mtl_jax.config import default
from mtl_jax.config.sections import Config
from mtl_jax.data.corpus import Corpus
from mtl_jax.errors import UserError
from mtl_jax.evaluation import inference
from mtl_jax.experiment.assemble import Experiment, assemble
from mtl_jax.models.pretrained import Pretrained
from mtl_jax.runtime import distributed
from mtl_jax.runtime.progress import progress_bar
from mtl_jax.runtime.stop_signals import StopSignals
from mtl_jax.storage import workdir as folders


class SeedMeasures(TypedDict):
    """The measures of one seed: {measure: [K, K]}; "looks" {"steps", "cosines"} of the joint run, if there is one."""

    matrices: dict[str, list[list[float | None]]]
    looks: dict[str, Any] | None


def measure_seeds(config: ConfigDict, folder: pathlib.Path, seeds: Sequence[int]) -> list[SeedMeasures] | None:
    """The measures of each seed, written to `folder`; None where a signal stopped it. Processes divide the seeds."""
    folder.mkdir(parents=True, exist_ok=True)
    names = tuple(config.relatedness.measures) or tuple(MEASURES)
    files = {seed: folder / f"seed_{seed}.json" for seed in seeds}
    by_seed = distributed.from_first(
        lambda: {s: json.loads(file.read_text(encoding="utf-8")) for s, file in files.items() if file.exists()}
    )
    missing = [seed for seed in seeds if seed not in by_seed]
    if missing:
        corpus, joint, columns = _runs(config, {MEASURES[name].needs for name in names})
        available = _available(config, joint, names)
        weights = tuple(float(config.tasks[task].weight) for task in corpus.layout.tasks)
        processes = jax.process_count() if inference.fits_a_process(config) else 1  # otherwise all measure together
        total = -(-len(missing) // processes) * config.training.steps * ((joint is not None) + (columns is not None))
        with StopSignals() as stop, progress_bar("measures", "step", total) as bar:

            def tick() -> bool:
                bar.update(1)
                return stop.should_stop()

            for first in range(0, len(missing), processes):
                together = missing[first : first + processes]
                # without a seed of its own a process repeats the last one: a stop is agreed on step by step
                seed = padded(together, processes)[jax.process_index() % processes]
                evidence = Evidence(joint and joint(seed, tick), columns and columns(seed, tick), corpus, weights)
                if stop.asked:
                    return None
                matrices = {n: np.asarray(MEASURES[n].compute(evidence), np.float64).tolist() for n in available}
                run = evidence.joint
                looks = {"steps": run.steps, "cosines": run.cosines.tolist()} if run and run.steps else None
                measured = distributed.gather(SeedMeasures(matrices=matrices, looks=looks))
                by_seed |= dict(zip(together, measured, strict=False))
                for seed in together if distributed.is_first() else ():
                    folders.write_json(files[seed], by_seed[seed])
        jax.clear_caches()
    return [folders.finite_json(by_seed[seed]) for seed in seeds]


def _runs(config: ConfigDict, needs: Set[str]) -> tuple[Corpus, JointRun | None, SeparateColumns | None]:
    """The corpus, and the runs that the measures need: of the config itself, and of a column for each task."""
    corpus, encoder = Sources().load(config)
    relatedness = config.relatedness
    joint = columns = None
    if needs & {"gradients", "linearised"}:
        all_tasks = experiment_of(config, corpus, encoder)
        every = relatedness.measure_every if "gradients" in needs and common_owners(all_tasks) else 0
        linearisation = None
        if "linearised" in needs:
            linearisation = Linearisation(all_tasks, relatedness.linearised_dimensions, relatedness.linearised_examples)
        lookahead = Lookahead(relatedness.lookahead, relatedness.lookahead_steps)
        joint = JointRun(all_tasks, every, lookahead, linearisation)
    if "columns" in needs:
        separate, trunk = (experiment_of(_columns(config, name), corpus, encoder) for name in ("none", "all"))
        columns = SeparateColumns(separate, trunk, relatedness.num_inputs)
    return corpus, joint, columns


def _columns(config: ConfigDict, trunk: str) -> ConfigDict:
    """The config with plain columns (or a plain trunk), trained separately: nothing connects the tasks."""
    plain = traced_fields.ordered_copy(config)
    defaults = default.get_config()
    plain.penalties = ConfigDict(sort_keys=False)
    for section in ("sharing", "aggregation", "loss_weights", "meta"):
        plain[section] = traced_fields.ordered_copy(defaults[section])
    plain.sharing.trunk = trunk
    return plain


def _available(config: Config, joint: JointRun | None, names: Sequence[str]) -> tuple[str, ...]:
    """The measures that the config allows; raises UserError for one that it names and does not."""
    if joint is None or joint.measures_gradients:
        return tuple(names)
    if config.relatedness.measures and any(MEASURES[name].needs == "gradients" for name in names):
        raise UserError(
            "config.relatedness.measures: no shared parameter is trained (config.sharing.trunk, "
            "config.optimizer.freeze), so there are no common gradients"
        )
    return tuple(name for name in names if MEASURES[name].needs != "gradients")


def experiment_of(config: ConfigDict, corpus: Corpus, encoder: Pretrained | None) -> Experiment:
    return assemble(config, corpus, encoder and encoder.architecture, encoder and encoder.params)
