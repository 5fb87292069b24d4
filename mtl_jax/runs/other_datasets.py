"""A finished run scored on data that its config does not name: another dev or test of some of its data sets.

Training data, classes and vocabulary stay those of the run. What was scored is reported by its files and their
fingerprint.
"""

from __future__ import annotations

import copy
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from mtl_jax.config.plain import to_plain
from mtl_jax.config.sections import Config
from mtl_jax.data import datasets
from mtl_jax.data.corpus import Corpus
from mtl_jax.data.datasets import ReadData
from mtl_jax.data.files.location import Location
from mtl_jax.data.records import Record
from mtl_jax.errors import UserError
from mtl_jax.evaluation.input_records import FILE_FIELDS
from mtl_jax.evaluation.scores import (
    make_evaluator,
    metric_ceilings,
    placement_from_config,
    restore_params,
    score_splits,
)
from mtl_jax.runs.build import ReadDataset, build
from mtl_jax.storage import artifacts, run_warnings
from mtl_jax.storage.summary import Evaluation
from mtl_jax.training.placement import require_platform

_SCORED = ("dev", "test")
T = TypeVar("T")


def changed_splits(config: Config, run_config: Config) -> dict[str, tuple[str, ...]]:
    """{data set: its splits in `config.evaluation.splits` that are not those of the run}.

    Where only `splits` of a data set differ, the splits that differ; else all that it names.

    Raises:
      UserError: other training data; a data set that is read in another way; no split that is scored.
    """
    if to_plain(config.datasets) == to_plain(run_config.datasets):
        return {}
    if (names := [*config.datasets]) != [*run_config.datasets]:
        raise UserError(f"config.datasets: {', '.join(names)}; the run was trained on {', '.join(run_config.datasets)}")
    result = {}
    for name in names:
        old, new = to_plain(run_config.datasets[name]), to_plain(config.datasets[name])
        fields = [field for field in new if new[field] != old.get(field)]
        if not fields:
            continue
        if other := [field for field in fields if field not in FILE_FIELDS]:
            raise UserError(
                f"config.datasets.{name}.{other[0]}: {new[other[0]]!r}, but {old.get(other[0])!r} in the run; other "
                "data have to be read in the same way as those of the run"
            )
        if fields == ["splits"] and new["splits"].get("train") != old["splits"].get("train"):
            raise UserError(f"config.datasets.{name}.splits.train: the run was trained on other data; leave it out")
        splits = {split: value for split, value in new["splits"].items() if value and split in _SCORED}
        if fields == ["splits"]:
            splits = {split: value for split, value in splits.items() if value != old["splits"].get(split)}
        result[name] = tuple(split for split in config.evaluation.splits if split in splits)
        if not result[name]:
            raise UserError(
                f"config.datasets.{name}: {', '.join(fields)} differ from the run, but there is no other split to "
                f"score; name one by --config.datasets.{name}.splits.test=FILE (config.evaluation.splits = "
                f"{tuple(config.evaluation.splits)})"
            )
    return result


def evaluate(
    config: Config, run_config: Config, splits: Mapping[str, Sequence[str]], workdir: pathlib.Path, which: str
) -> Evaluation:
    """As `runs.evaluate.evaluate`, of `splits` (see `changed_splits`) alone; "other_data" describes them.

    Raises:
      UserError: see `runs.evaluate.evaluate`; training data that are no longer those of the run.
    """
    require_platform(config.training.platform)
    facts: dict[str, dict[str, Any]] = {}
    read = _reader(config, run_config, splits, facts)
    config = copy.deepcopy(config)
    with config.unlocked():
        config.data.max_unseen_labels = 1.0  # labels that the run lacks are reported, and counted as wrong
        config.evaluation.splits = tuple(dict.fromkeys(split for names in splits.values() for split in names))
    experiment = build(config, soft_labels=False, read=read, finished=workdir)
    _require_same_model(experiment.corpus, artifacts.load(workdir), workdir)
    placement = placement_from_config(experiment)
    saved = restore_params(experiment, placement, workdir, which)
    _require_same_training_size(saved.metadata, experiment.corpus, workdir)
    scored = score_splits(make_evaluator(experiment, placement), experiment, saved.params)
    scores = _only(scored.scores, config, splits)
    return {
        "tasks": scores,
        "examples": _only(scored.sizes, config, splits),
        "ceilings": metric_ceilings(experiment, scores),
        "step": saved.step,
        "other_data": facts,
        "warnings": run_warnings.by_severity(
            [
                *run_warnings.training_warnings(workdir),
                *run_warnings.prediction_warnings(_only(scored.remarks, config, splits)),
                *run_warnings.data_warnings(experiment.corpus),
            ]
        ),
    }


def _reader(
    config: Config,
    run_config: Config,
    splits: Mapping[str, Sequence[str]],
    facts: dict[str, dict[str, Any]],
) -> ReadDataset:
    """Reads the data of the run, with `splits` replaced by the other data; `facts` describes these."""

    def read(name: str, entry: Mapping[str, Any], seed: int) -> ReadData:
        data = datasets.read_dataset(name, run_config.datasets[name], run_config.data.seed)
        if name not in splits:
            return data
        facts[name], notes = {}, []
        for split in splits[name]:
            new = datasets.read_dataset(name, _single_split(entry, split), seed)
            records = [_with_absolute_pictures(record, entry["image"], new.folder) for record in new.splits[split]]
            notes += new.notes
            data = data._replace(splits=data.splits | {split: records}, available=data.available | new.available)
            files = list(dict.fromkeys(record.file for record in records))
            facts[name][split] = {"files": files, "records": len(records), "fingerprint": new.fingerprint}
        return data._replace(notes=[*notes, *datasets.duplicate_notices(data.splits, run_config.datasets[name])])

    return read


def format_lines(result: Evaluation) -> list[str]:
    """What was scored, for the terminal."""
    result_lines = ["scored on other data than those of the run:"]
    for name, by_split in result["other_data"].items():
        for split, fact in by_split.items():
            files = ", ".join(fact["files"][:3]) + (", …" if len(fact["files"]) > 3 else "")
            result_lines.append(
                f"  {name}, {split}: {fact['records']} records of {files} (sha256 {fact['fingerprint'][:12]})"
            )
    return result_lines


def file_name(result: Evaluation, which: str) -> str:
    """The file for a result: one for each checkpoint and the data that were scored."""
    fingerprints = [fact["fingerprint"] for by_split in result["other_data"].values() for fact in by_split.values()]
    return f"evaluation_{which}_on_{'_'.join(fingerprint[:8] for fingerprint in fingerprints[:4])}.json"


def _single_split(entry: Mapping[str, Any], split: str) -> dict[str, Any]:
    """The entry of a data set with this split alone."""
    plain = to_plain(entry)
    return plain | {
        "splits": {split: plain["splits"][split]},
        "max_examples": {name: count for name, count in plain["max_examples"].items() if name == split},
        "dev_fraction": 0.0,
        "test_fraction": 0.0,
        "drop_duplicates": "",
    }


def _with_absolute_pictures(record: Record, field: str, folder: Location | None) -> Record:
    """The record with absolute paths of its pictures, since those of the run may be in another folder."""
    value = record.fields.get(field) if field else None
    if value is None or folder is None:
        return record

    def absolute(path: Any) -> Any:
        return str(pathlib.Path(folder.name).absolute() / path) if isinstance(path, str) else path

    value = [absolute(path) for path in value] if isinstance(value, list) else absolute(value)
    return record._replace(fields=record.fields | {field: value})


def _only(
    by_task: Mapping[str, Mapping[str, T]], config: Config, splits: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, T]]:
    """{task: {split: ...}} of the splits that were scored."""
    selected = {
        task: {split: value for split, value in by_split.items() if split in splits.get(config.tasks[task].dataset, ())}
        for task, by_split in by_task.items()
    }
    return {task: by_split for task, by_split in selected.items() if by_split}


def _require_same_model(corpus: Corpus, saved: artifacts.Artifacts, workdir: pathlib.Path) -> None:
    for task, vocabulary in corpus.vocabularies.items():
        if task not in saved.vocabularies or vocabulary.names != saved.vocabularies[task].names:
            raise UserError(
                f"task {task}: its classes are no longer those of {workdir}: the training data of the run have "
                "changed. Restore them"
            )
    if corpus.tokenizer.fingerprint != saved.tokenizer.fingerprint:
        raise UserError(f"the vocabulary is no longer that of {workdir}: its training data have changed. Restore them")


def _require_same_training_size(metadata: Mapping[str, Any], corpus: Corpus, workdir: pathlib.Path) -> None:
    """Raises UserError where train has not as many examples as the run had."""
    for name, by_split in corpus.splits.items():
        trained = metadata.get("numbers", {}).get("data set", {}).get(f"{name}, train", "").partition(", ")[2]
        current = f"{len(by_split['train'].records)} examples"
        if trained not in ("", current):
            raise UserError(
                f"data set {name}: train has {current}, {workdir} was trained on {trained}. Restore the training data"
            )
