"""--mode=predict: labels of new texts."""

from __future__ import annotations

import contextlib
import functools
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mtl_jax.data.records import Note, Record, summarize_notes
from mtl_jax.errors import UserError
from mtl_jax.evaluation.inference import Predictor, place_of
from mtl_jax.evaluation.input_files import Asked, opened
from mtl_jax.runtime.progress import progress_bar
from mtl_jax.storage.prediction_file import Output
from mtl_jax.training.placement import require_platform

CHUNK = 256  # records read, predicted and written at a time


def predict(
    config: Any,
    workdir: pathlib.Path,
    which: Sequence[str],
    source: str,
    target: str,
    tasks: Sequence[str] = (),
    dataset: str = "",
    reader: str = "",
    split: str = "",
) -> None:
    """Reads records and writes a JSON line for each: {"line": its place, task: labels, tags, answers, probabilities}.

    Records come by a reader of training, see `inputs`; a file's name stands beside the line where an input has several.
    A record is read by the tasks of every data set whose fields it has: texts or words and pictures (`predicates` for
    roles, choices, marked spans). Masked language modelling tells each [MASK] in it. A line of text is the text, its
    words at blanks, or the path of the picture of every data set that reads one field. Paths of pictures start from the
    folder of the file.

    What is predicted is written at once, `CHUNK` records at a time. A target that holds the first predictions already,
    as a command leaves it that was stopped, is gone on with; anything else in it is replaced.

    Args:
      config: of the run.
      workdir: of the run.
      which: checkpoints; parameters of several are averaged.
      source: a file, a folder, or "-" for the standard input.
      target: file, "" for the standard output.
      tasks: of the run; () for all.
      dataset, reader, split: how the source is read, see `inputs.Asked`.

    Raises:
      UserError: no such file or checkpoint; a record that no task can read, with its place.
    """
    require_platform(config.training.platform)
    asked = Asked(source, dataset, reader, split)
    if target and source != "-" and pathlib.Path(source).resolve() == pathlib.Path(target).resolve():
        raise UserError(f"--output={target} is the input; name another file")
    model = Predictor(config, workdir, which, tasks)
    notes: list[Note] = []
    with contextlib.ExitStack() as stack:
        given = stack.enter_context(opened(asked, model.reading.datasets))
        output = stack.enter_context(Output(target))
        bar = stack.enter_context(progress_bar("predicting", "text"))
        count = 0
        for records in _chunks(given.items, notes, CHUNK):
            lines = functools.cache(lambda of=tuple(records): model.lines(of, given))
            if not output.has([place_of(record, given) for record in records], model.reading.tasks, lines):
                output.write(lines())
            count += len(records)
            bar.update(len(records))
        output.end()
    if not count:
        raise UserError(f"--input={source}: no text in it")
    for note in summarize_notes("input", [*notes, *model.reading.notes]):
        print(note, file=sys.stderr)
    if target:
        print(f"{count} predictions in {target}")


def _chunks(items: Iterable[Record | Note], notes: list[Note], size: int) -> Iterator[list[Record]]:
    """Lists of `size` records; notes are put aside."""
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
