"""--mode=predict: labels of new records."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax

from mtl_jax.config.sections import Config
from mtl_jax.data.records import Note, Record, summarize_notes
from mtl_jax.errors import UserError
from mtl_jax.evaluation.inference import Predictor, location_fields
from mtl_jax.evaluation.input_files import InputRequest, OpenInput, open_input
from mtl_jax.runtime import distributed
from mtl_jax.runtime.progress import progress_bar
from mtl_jax.runtime.shards import Shard
from mtl_jax.storage import workdir as folders
from mtl_jax.storage.prediction_file import PredictionFile
from mtl_jax.storage.prediction_parts import PartIdentity, PredictionPart
from mtl_jax.training.parameter_paths import flatten
from mtl_jax.training.placement import require_platform

CHUNK = 256  # records read, predicted and written at a time


def predict(
    config: Config,
    workdir: pathlib.Path,
    which: Sequence[str],
    source: str,
    target: str,
    tasks: Sequence[str] = (),
    *,
    dataset: str = "",
    reader: str = "",
    split: str = "",
    shard: Shard | None = None,
) -> None:
    """Reads records and writes a JSON line for each: {"line": its number, task: labels, tags, answers, probabilities}.

    Records are read by the readers of training, see `input_files`; the file's name is next to the line number where an
    input has several files. A record is read by the tasks of every data set whose fields it has: text or words and
    pictures (`predicates` for roles, choices, marked spans). Masked language modelling predicts each [MASK]. A plain
    line is the text, the words separated by blanks, or the path of the picture of every data set that reads one field.
    Paths of pictures are relative to the folder of the file.

    Of several processes each predicts every so many-th `CHUNK` records, and the first writes all.

    Predictions are written at once, `CHUNK` records at a time. If the target has the first predictions already, because
    the same command was stopped, the rest is appended; any other content is replaced.

    Args:
      config: of the run.
      workdir: of the run.
      which: checkpoints; the parameters of several are averaged.
      source: a file, a folder, or "-" for the standard input.
      target: file, "" for the standard output.
      tasks: of the run; () for all.
      dataset, reader, split: how the source is read, see `input_files.InputRequest`.
      shard: predicts its part of the records only, see `prediction_parts`; the last one to end joins them.

    Raises:
      UserError: no such file or checkpoint; a record that no task can read, with its place.
    """
    require_platform(config.training.platform)
    if target and source != "-" and pathlib.Path(source).resolve() == pathlib.Path(target).resolve():
        raise UserError(f"--output={target} is the input; name another file")
    if source == "-" and jax.process_count() > 1:
        raise UserError("--input=-: several processes have no common standard input; name a file")
    if shard is not None and (source == "-" or not target):
        raise UserError("--shard: a shard reads a part of a file and writes a file; name both by --input and --output")
    predictor = Predictor(config, workdir, which, tasks)
    request = InputRequest(source, dataset, reader, split)
    if shard is not None:
        _predict_part(predictor, request, PredictionPart(pathlib.Path(target).expanduser(), shard))
        return
    count = _predict_chunks(predictor, request, target)
    if target:
        print(f"{count} predictions in {target}")


def _predict_chunks(predictor: Predictor, request: InputRequest, target: str, selected: range | None = None) -> int:
    """Writes the predictions of the chunks `selected` (None: all); returns their number.

    Raises:
      UserError: there are no records.
    """
    notes: list[Note] = []
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(open_input(request, predictor.reading.datasets))
        output = stack.enter_context(PredictionFile(target)) if distributed.is_first() else None
        bar = stack.enter_context(progress_bar("predicting", "record"))
        count = 0
        chunks = _chunks(opened.items, notes, CHUNK)
        if selected is not None:
            chunks = itertools.islice(chunks, selected.start, selected.stop)
        while together := list(itertools.islice(chunks, jax.process_count() if predictor.alone else 1)):
            for lines in _predict(predictor, opened, together, output, verify=not count):
                output.write(lines)
            count += sum(map(len, together))
            bar.update(sum(map(len, together)))
            distributed.require_no_signal()
        if output is not None:
            output.truncate()
    if not count and selected is None:
        raise UserError(f"--input={request.source}: no records in it")
    notes += [note for of_process in distributed.gather(predictor.reading.notes) for note in of_process]
    for note in summarize_notes("input", notes) if distributed.is_first() else ():
        print(note, file=sys.stderr)
    return count


def _predict_part(predictor: Predictor, request: InputRequest, part: PredictionPart) -> None:
    """Writes the part of a shard, and joins all parts if it is the last."""
    with folders.locked(part.folder):
        distributed.from_first(part.begin)
        identity = _identity(predictor, request)
        selected = part.shard.part(range(-(-identity["records"] // CHUNK)))
        count = _predict_chunks(predictor, request, str(part.file), selected)
        missing = distributed.from_first(lambda: part.finish(identity))
    print(f"{part.shard}: {count} of {identity['records']} predictions in {part.file}")
    if missing:
        print(f"{part.target} is not complete yet: {', '.join(map(str, missing))} missing")
    else:
        print(f"all {part.shard.count} shards are done: {identity['records']} predictions in {part.target}")


def _identity(predictor: Predictor, request: InputRequest) -> PartIdentity:
    """What the parts have in common; the first records determine the shapes of all batches, as without shards."""
    digest, count = hashlib.sha256(), 0
    with open_input(request, predictor.reading.datasets) as opened:
        for records in _chunks(opened.items, [], CHUNK):
            if not count:
                predictor.set_rows(predictor.reading.read(records, opened.folder))
                predictor.reading.notes.clear()
            count += len(records)
            digest.update(repr([(record.line, record.fields) for record in records]).encode())
    if not count:
        raise UserError(f"--input={request.source}: no records in it")
    model = hashlib.sha256(repr(sorted(predictor.reading.tasks)).encode())
    for path, leaf in sorted(flatten(distributed.to_host(predictor.params)).items()):
        model.update(path.encode() + leaf.tobytes())
    return {"input": digest.hexdigest(), "records": count, "model": model.hexdigest()}


def _predict(
    predictor: Predictor,
    opened: OpenInput,
    chunks: Sequence[Sequence[Record]],
    output: PredictionFile | None,
    verify: bool,
) -> list[list[dict[str, Any]]]:
    """The lines to write of some chunks, in the first process; each process predicts one of them.

    Args:
      predictor: of the run.
      opened: the input.
      chunks: no more than there are processes.
      output: in the first process: what it has already is not predicted, except where `verify` is set.
      verify: whether these are the first records.
    """
    _require_same(chunks)
    number = jax.process_index() if predictor.alone else 0
    own = list(chunks[number]) if number < len(chunks) else []
    predict = functools.cache(lambda: predictor.predict(own, opened) if own else [])
    if verify:
        if number:  # the first records determine the shapes of all batches, as in one process
            predictor.set_rows(predictor.reading.read(chunks[0], opened.folder))
            predictor.reading.notes.clear()
        predict()

    def complete(chunk: Sequence[Record]) -> bool:
        places = [location_fields(record, opened) for record in chunk]
        return output.contains(places, predictor.reading.tasks, predict)

    done = distributed.from_first(lambda: sum(1 for _ in itertools.takewhile(complete, chunks)))
    lines = distributed.gather(predict() if number >= done else [])
    return lines[done : len(chunks)] if distributed.is_first() else []


def _require_same(chunks: Sequence[Sequence[Record]]) -> None:
    """Raises UserError where the processes read different records."""
    if jax.process_count() == 1:
        return
    digests = [hashlib.sha256(repr([record.fields for record in chunk]).encode()).hexdigest() for chunk in chunks]
    by_process = distributed.gather(digests)
    number = next((i for i, other in enumerate(by_process) if other != by_process[0]), None)
    if number is not None:
        first = chunks[0][0]
        raise UserError(
            f"{first.file}: processes 0 and {number} read different records, from line {first.line} on. The same file "
            "has to be on every host"
        )


def _chunks(items: Iterable[Record | Note], notes: list[Note], size: int) -> Iterator[list[Record]]:
    """Lists of `size` records; notes are collected in `notes`."""
    records: list[Record] = []
    for item in items:
        if isinstance(item, Note):
            notes.append(item)
            continue
        records.append(item)
        if len(records) == size:
            yield records
            records = []
    if records:
        yield records
