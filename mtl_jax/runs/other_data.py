"""A finished run scored on data that its config does not name: another dev or test of some of its data sets.

Training data, classes and vocabulary stay those of the run. What is scored is told by its files and their fingerprint.
"""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from mtl_jax.config.plain import to_plain
from mtl_jax.data import datasets
from mtl_jax.data.corpus import Corpus
from mtl_jax.data.datasets import ReadData
from mtl_jax.data.files import location
from mtl_jax.data.records import Record
from mtl_jax.errors import UserError
from mtl_jax.evaluation.input_records import OF_FILES
from mtl_jax.evaluation.scores import abstract_params, ceilings, make_evaluator, placement_of, score_splits
from mtl_jax.runs.build import build
from mtl_jax.storage import artifacts, run_warnings
from mtl_jax.storage.checkpoint import load_params
from mtl_jax.training.placement import require_platform

_SCORED = ("dev", "test")


def changed(config: ConfigDict, run: ConfigDict) -> dict[str, tuple[str, ...]]:
    """{data set: splits that are others than in the run}; of `config.evaluation.splits`.

    Where only `splits` of a data set differ, those that differ; else all that it names.

    Raises:
      UserError: other training data; a data set that is read in another manner; no split that is scored.
    """
    if to_plain(config.datasets) == to_plain(run.datasets):
        return {}
    if (names := [*config.datasets]) != [*run.datasets]:
        raise UserError(f"config.datasets: {', '.join(names)}; the run was trained on {', '.join(run.datasets)}")
    found = {}
    for name in names:
        old, new = to_plain(run.datasets[name]), to_plain(config.datasets[name])
        fields = [field for field in new if new[field] != old.get(field)]
        if not fields:
            continue
        if unlike := [field for field in fields if field not in OF_FILES]:
            raise UserError(
                f"config.datasets.{name}.{unlike[0]}: {new[unlike[0]]!r}, in the run {old.get(unlike[0])!r}; other "
                "data have to be read as those of the run"
            )
        if fields == ["splits"] and new["splits"].get("train") != old["splits"].get("train"):
            raise UserError(f"config.datasets.{name}.splits.train: the run was trained on other data; leave it out")
        given = {split: value for split, value in new["splits"].items() if value and split in _SCORED}
        if fields == ["splits"]:
            given = {split: value for split, value in given.items() if value != old["splits"].get(split)}
        found[name] = tuple(split for split in config.evaluation.splits if split in given)
        if not found[name]:
            raise UserError(
                f"config.datasets.{name}: {', '.join(fields)} differ from the run, but there is no other split to "
                f"score; name one by --config.datasets.{name}.splits.test=FILE (config.evaluation.splits = "
                f"{tuple(config.evaluation.splits)})"
            )
    return found


def evaluate(
    config: ConfigDict, run: ConfigDict, splits: Mapping[str, Sequence[str]], workdir: pathlib.Path, which: str
) -> dict[str, Any]:
    """As `runs.evaluate.evaluate`, of `splits` (see `changed`) alone; "other_data" says what they are:

    {data set: {split: {"files": names, "records": number, "fingerprint": sha256}}}

    Raises:
      UserError: see `runs.evaluate.evaluate`; training data that are no longer those of the run.
    """
    require_platform(config.training.platform)
    facts: dict[str, dict[str, Any]] = {}

    def read(name: str, entry: Any, seed: int) -> ReadData:
        found = datasets.read_dataset(name, run.datasets[name], run.data.seed)
        if name not in splits:
            return found
        facts[name], notes = {}, []
        for split in splits[name]:
            new = datasets.read_dataset(name, _alone(entry, split), seed)
            records = [_at(record, entry.image, new.folder) for record in new.splits[split]]
            notes += new.notes
            found = found._replace(splits=found.splits | {split: records}, available=found.available | new.available)
            names = list(dict.fromkeys(record.file for record in records))
            facts[name][split] = {"files": names, "records": len(records), "fingerprint": new.fingerprint}
        return found._replace(notes=[*notes, *datasets.duplicate_notices(found.splits, run.datasets[name])])

    config = copy.deepcopy(config)
    with config.unlocked():
        config.data.max_unseen_labels = 1.0  # labels that the run lacks are told and counted as wrong
        config.evaluation.splits = tuple(dict.fromkeys(split for own in splits.values() for split in own))
    experiment = build(config, taught=False, read=read)
    _require_same_model(experiment.corpus, artifacts.load(workdir), workdir)
    placement = placement_of(experiment)
    saved = load_params(workdir, which, abstract_params(experiment, placement))
    _require_as_many(saved.metadata, experiment.corpus, workdir)
    scores, sizes, remarks = score_splits(make_evaluator(experiment, placement), experiment, saved.params)
    scores, sizes, remarks = (_of(found, config, splits) for found in (scores, sizes, remarks))
    warnings = [*run_warnings.of_training(workdir), *run_warnings.of_predictions(remarks)]
    return {
        "tasks": scores,
        "examples": sizes,
        "ceilings": ceilings(experiment, scores),
        "step": saved.step,
        "other_data": facts,
        "warnings": run_warnings.ordered([*warnings, *run_warnings.of_data(experiment.corpus)]),
    }


def lines(result: Mapping[str, Any]) -> list[str]:
    """What was scored, for the terminal."""
    told = ["scored on other data than those of the run:"]
    for name, by_split in result["other_data"].items():
        for split, fact in by_split.items():
            there = ", ".join(fact["files"][:3]) + (", …" if len(fact["files"]) > 3 else "")
            told.append(f"  {name}, {split}: {fact['records']} records of {there} (sha256 {fact['fingerprint'][:12]})")
    return told


def file_name(result: Mapping[str, Any], which: str) -> str:
    """The file for a result: one for each checkpoint and the data that were scored."""
    prints = [fact["fingerprint"] for by_split in result["other_data"].values() for fact in by_split.values()]
    return f"evaluation_{which}_on_{'_'.join(one[:8] for one in prints[:4])}.json"


def _alone(entry: Any, split: str) -> dict[str, Any]:
    """The entry of a data set of this split alone."""
    found = to_plain(entry)
    limit = {name: count for name, count in found["limit"].items() if name == split}
    return found | {
        "splits": {split: found["splits"][split]},
        "limit": limit,
        "dev_fraction": 0.0,
        "test_fraction": 0.0,
        "drop_duplicates": "",
    }


def _at(record: Record, image: str, folder: location.Location | None) -> Record:
    """The record with its pictures named from where they lie, since those of the run may lie elsewhere."""
    value = record.fields.get(image) if image else None
    if value is None or folder is None:
        return record
    value = [_whole(one, folder) for one in value] if isinstance(value, list) else _whole(value, folder)
    return record._replace(fields=record.fields | {image: value})


def _whole(path: Any, folder: location.Location) -> Any:
    return str(pathlib.Path(folder.name).absolute() / path) if isinstance(path, str) else path


def _of(found: Mapping[str, Mapping[str, Any]], config: ConfigDict, splits: Mapping[str, Sequence[str]]):
    """{task: {split: ...}} of the splits that were scored."""
    kept = {
        task: {split: value for split, value in own.items() if split in splits.get(config.tasks[task].dataset, ())}
        for task, own in found.items()
    }
    return {task: own for task, own in kept.items() if own}


def _require_same_model(corpus: Corpus, kept: artifacts.Artifacts, workdir: pathlib.Path) -> None:
    for task, vocabulary in corpus.vocabularies.items():
        if task not in kept.vocabularies or vocabulary.names != kept.vocabularies[task].names:
            raise UserError(
                f"task {task}: its classes are no longer those of {workdir}: the training data of the run have "
                "changed. Put them back"
            )
    if corpus.tokenizer.fingerprint != kept.tokenizer.fingerprint:
        raise UserError(f"the vocabulary is no longer that of {workdir}: its training data have changed. Put them back")


def _require_as_many(metadata: Mapping[str, Any], corpus: Corpus, workdir: pathlib.Path) -> None:
    """Whether train has as many examples as the run had."""
    for name, by_split in corpus.splits.items():
        there = metadata.get("numbers", {}).get("data set", {}).get(f"{name}, train", "").partition(", ")[2]
        here = f"{len(by_split['train'].records)} examples"
        if there not in ("", here):
            raise UserError(f"data set {name}: train has {here}, {workdir} was trained on {there}. Put the data back")
