"""--mode=predict: labels of new records."""

from __future__ import annotations

import contextlib
import functools
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence

from mtl_jax.config.sections import Config
from mtl_jax.data.records import Note, Record, summarize_notes
from mtl_jax.errors import UserError
from mtl_jax.evaluation.inference import Predictor, location_fields
from mtl_jax.evaluation.input_files import InputRequest, open_input
from mtl_jax.runtime.progress import progress_bar
from mtl_jax.storage.prediction_file import PredictionFile
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
) -> None:
    """Reads records and writes a JSON line for each: {"line": its number, task: labels, tags, answers, probabilities}.

    Records are read by the readers of training, see `input_files`; the file's name is next to the line number where an
    input has several files. A record is read by the tasks of every data set whose fields it has: text or words and
    pictures (`predicates` for roles, choices, marked spans). Masked language modelling predicts each [MASK]. A plain
    line is the text, the words separated by blanks, or the path of the picture of every data set that reads one field.
    Paths of pictures are relative to the folder of the file.

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

    Raises:
      UserError: no such file or checkpoint; a record that no task can read, with its place.
    """
    require_platform(config.training.platform)
    if target and source != "-" and pathlib.Path(source).resolve() == pathlib.Path(target).resolve():
        raise UserError(f"--output={target} is the input; name another file")
    predictor = Predictor(config, workdir, which, tasks)
    notes: list[Note] = []
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(
            open_input(InputRequest(source, dataset, reader, split), predictor.reading.datasets)
        )
        output = stack.enter_context(PredictionFile(target))
        bar = stack.enter_context(progress_bar("predicting", "record"))
        count = 0
        for records in _chunks(opened.items, notes, CHUNK):
            lines = functools.cache(lambda records=tuple(records): predictor.predict(records, opened))
            if not output.contains(
                [location_fields(record, opened) for record in records], predictor.reading.tasks, lines
            ):
                output.write(lines())
            count += len(records)
            bar.update(len(records))
        output.truncate()
    if not count:
        raise UserError(f"--input={source}: no records in it")
    for note in summarize_notes("input", [*notes, *predictor.reading.notes]):
        print(note, file=sys.stderr)
    if target:
        print(f"{count} predictions in {target}")


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
