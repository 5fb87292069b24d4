"""--mode=export: a folder for each task, as others load it.

OUTPUT/<task>/          a Hugging Face model with the head of the task, or its encoder alone; README.md
OUTPUT/<task>/jax/      the predictions of the task as a program, see `export_program`
OUTPUT/<task>/peft/     LoRA as a PEFT adapter on OUTPUT/<task>/base
OUTPUT/shared/          the encoder that several tasks share
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from mtl_jax.config.plain import from_plain, to_plain
from mtl_jax.config.sections import Config
from mtl_jax.errors import UserError
from mtl_jax.evaluation.inference import encoder_refusal, load_model
from mtl_jax.evaluation.input_records import build_corpus
from mtl_jax.experiment.assemble import Experiment, assemble
from mtl_jax.experiment.columns import encoder_params, low_rank_factors
from mtl_jax.models.export import save_folder, save_tokenizer_config
from mtl_jax.models.export_heads import ExportedHead, NotPublished, exported_head
from mtl_jax.models.peft import save_adapter
from mtl_jax.runs.export_card import write_card
from mtl_jax.runs.export_program import Program, save_program
from mtl_jax.storage import artifacts
from mtl_jax.storage.artifacts import Artifacts
from mtl_jax.tasks.groups import join_heads
from mtl_jax.training.objective import Params
from mtl_jax.training.placement import require_platform


class _Run(NamedTuple):
    """A finished run: its model and where its folder is. `params` has heads by the names of their tasks."""

    config: Config
    workdir: pathlib.Path
    saved: Artifacts
    experiment: Experiment
    params: Params


def export(
    config: Config, workdir: pathlib.Path, which: Sequence[str], target: pathlib.Path, tasks: Sequence[str] = ()
) -> list[str]:
    """Writes the folders of tasks (() for all), and that of an encoder that several tasks share.

    Returns:
      a line for each thing that was written, or that could not be and why.

    Raises:
      UserError: no such task; a file that cannot be written.
    """
    require_platform(config.training.platform)
    saved = artifacts.load(workdir)
    experiment, params = load_model(config, workdir, which)
    run = _Run(config, workdir, saved, experiment, experiment.by_name(params))
    if unknown := [task for task in tasks if task not in experiment.tasks]:
        raise UserError(f"--tasks: the run has no task {unknown[0]!r}; it has: {', '.join(experiment.tasks)}")
    lines = []
    for task in tasks or experiment.tasks:
        lines += _export_task(run, task, target / task)
    if not encoder_refusal(config):
        lines += _export_shared(run, target)
    return lines


def _export_task(run: _Run, name: str, folder: pathlib.Path) -> list[str]:
    task, head, reason = run.experiment.tasks[name], None, encoder_refusal(run.config)
    written, layers = [], None
    if not reason:
        try:
            layers = encoder_params(run.experiment, run.params, name)
        except ValueError as error:
            reason = f"no Hugging Face model: {error}"
    if layers is not None:
        try:
            head = exported_head(task, run.params["heads"][name], run.saved.architecture)
        except NotPublished as answer:
            reason = f"the head of {name} is no head of transformers: {answer}; the encoder is without it"
        tensors = save_folder(folder, run.saved.architecture, layers, run.workdir / "model", head)
        model = head.published.architecture if head else run.saved.architecture.published
        written.append(f"{model}, {len(tensors)} tensors")
        written += _save_tokenizer(run, folder)
        written += head.notes if head else ()
        written += _export_lora(run, name, folder, head)
    if reason:
        written.append(reason)
    folder.mkdir(parents=True, exist_ok=True)
    if task.continues:
        written.append("no program: its texts are written by --mode=predict, or by `generate` of transformers")
    else:
        written.append(save_program(folder / "jax", _program(run, name)))
    write_card(folder, run.config, run.workdir, task, head.published.architecture if head else "", written)
    return [f"{folder}: {line}" for line in written]


def _export_lora(run: _Run, name: str, folder: pathlib.Path, head: ExportedHead | None) -> list[str]:
    """LoRA as a PEFT adapter, next to the model that it is merged into, and the model without it."""
    if run.config.sharing.adapter != "lora":
        return []
    base, architecture = folder / "base", run.saved.architecture
    factors, scaling = low_rank_factors(run.experiment, run.params, name)
    kind = run.experiment.tasks[name].head_kind
    try:
        count = save_adapter(folder / "peft", architecture, factors, scaling, str(base), (kind, head) if head else None)
    except NotPublished as answer:
        return [f"no PEFT adapter: {answer}"]
    layers = encoder_params(run.experiment, run.params, name, merged=False)
    save_folder(base, architecture, layers, run.workdir / "model", head)
    _save_tokenizer(run, base)
    return [f"LoRA is merged here, and a PEFT adapter of {count} modules in peft/, on the model in base/"]


def _export_shared(run: _Run, target: pathlib.Path) -> list[str]:
    """An encoder that several tasks have in common, once."""
    owners = {path: owner for path, owner in run.experiment.owners.items() if not path.startswith("adapter_")}
    tasks_of_column: dict[tuple[int, ...], list[str]] = {}
    for k, task in enumerate(run.experiment.tasks):
        tasks_of_column.setdefault(tuple(int(owner[k]) for owner in owners.values()), []).append(task)
    lines = []
    for tasks in tasks_of_column.values():
        if len(tasks) > 1:
            folder = target / ("shared" if len(tasks_of_column) == 1 else "+".join(tasks))
            layers = encoder_params(run.experiment, run.params, tasks[0], merged=False)
            tensors = save_folder(folder, run.saved.architecture, layers, run.workdir / "model")
            lines.append(f"{folder}: the encoder of {', '.join(tasks)}, {len(tensors)} tensors")
            _save_tokenizer(run, folder)
    return lines


def _save_tokenizer(run: _Run, folder: pathlib.Path) -> list[str]:
    """The configuration of the tokenizer, or a sentence where `transformers` has none such."""
    length = run.config.data.row_length
    if save_tokenizer_config(folder, run.saved.tokenizer, run.saved.architecture, length):
        return []
    return [f"config.tokenizer.kind = {run.config.tokenizer.kind!r} is no tokenizer of transformers"]


def _program(run: _Run, name: str) -> Program:
    """The task alone where its model depends on no other task; else the whole run."""
    sharing = run.config.sharing
    if sharing.mixer or sharing.adapter or sharing.cascades:
        heads = join_heads(run.experiment.spec.objective.groups, run.params["heads"])
        return Program(run.experiment, {**run.params, "heads": heads}, name)
    config = from_plain(to_plain(run.config))
    config.train_tasks, config.penalties, config.distillation = (name,), type(config)(), type(config)()
    saved = run.saved._replace(
        vocabularies={name: run.saved.vocabularies[name]}, statistics={name: run.saved.statistics[name]}
    )
    experiment = assemble(config, build_corpus(config, saved, {}), saved.architecture, None)
    layers = jax.tree.map(lambda leaf: np.asarray(leaf)[None], encoder_params(run.experiment, run.params, name))
    heads = join_heads(experiment.spec.objective.groups, {name: run.params["heads"][name]})
    return Program(experiment, {**layers, "heads": heads}, name)
