"""What a run stores in addition to its parameters, so that a model can be used without its data.

workdir/model/labels.json         names of the labels of every task, and the statistics that heads use
workdir/model/architecture.json   of a transformer
workdir/model/pictures.json       specification of the pictures, null without any
workdir/model/tokenizer files     see `mtl_jax.data.tokenizers`
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

from mtl_jax.data import tokenizers
from mtl_jax.data.corpus import Corpus
from mtl_jax.data.labels.vocabulary import LabelVocabulary
from mtl_jax.data.pictures.image_store import ImageSpec
from mtl_jax.data.tokenizers import Tokenizer
from mtl_jax.errors import UserError
from mtl_jax.models.families import FAMILIES
from mtl_jax.models.families.base import Architecture
from mtl_jax.storage.workdir import write_json


class Artifacts(NamedTuple):
    """Everything about the data that shapes a model.

    tokenizer, architecture   as trained
    vocabularies  {task: LabelVocabulary}, in the order of the K axis
    statistics    {task: {"train": label statistics}}
    pictures      specification of the pictures, None without any
    """

    tokenizer: Tokenizer
    architecture: Architecture | None
    vocabularies: dict[str, LabelVocabulary]
    statistics: dict[str, dict[str, Any]]
    pictures: ImageSpec | None


def save(workdir: pathlib.Path, data: Corpus, architecture: Architecture | None) -> None:
    """Writes the folder `model` of a run."""
    folder = workdir / "model"
    folder.mkdir(exist_ok=True)
    labels = {
        task: {
            "names": vocabulary.names,
            "extra": vocabulary.extra,
            "soft": vocabulary.soft,
            "spans": vocabulary.spans,
            "train": data.statistics["tasks"][task]["train"],
        }
        for task, vocabulary in data.vocabularies.items()
    }
    write_json(folder / "labels.json", labels)
    write_json(folder / "architecture.json", dataclasses.asdict(architecture) if architecture else None)
    write_json(folder / "pictures.json", data.pictures._asdict() if data.pictures else None)
    data.tokenizer.save(folder)


def load(workdir: pathlib.Path) -> Artifacts:
    """Reads the folder `model` of a run.

    Raises:
      UserError: there is none.
    """
    folder = workdir / "model"
    if not (folder / "labels.json").is_file():
        raise UserError(f"{workdir}: no folder 'model' with labels.json; training writes it at its start")
    labels = json.loads((folder / "labels.json").read_text(encoding="utf-8"))
    architecture = json.loads((folder / "architecture.json").read_text(encoding="utf-8"))
    pictures_file = folder / "pictures.json"
    pictures = json.loads(pictures_file.read_text(encoding="utf-8")) if pictures_file.is_file() else None
    if pictures:
        pictures = ImageSpec(**pictures | {"sizes": {name: tuple(size) for name, size in pictures["sizes"].items()}})
    return Artifacts(
        tokenizers.load(folder),
        FAMILIES[architecture["model_type"]](**architecture) if architecture else None,
        {
            task: LabelVocabulary(tuple(entry["names"]), tuple(entry["extra"]), entry["soft"], entry.get("spans"))
            for task, entry in labels.items()
        },
        {task: {"train": entry["train"]} for task, entry in labels.items()},
        pictures,
    )
