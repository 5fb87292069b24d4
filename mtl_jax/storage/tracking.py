"""The trackers of a run together: one that fails is left out of the rest of the run, with one warning."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from mtl_jax.config.plain import to_plain
from mtl_jax.config.sections import Config
from mtl_jax.errors import UserError
from mtl_jax.runtime import distributed
from mtl_jax.storage.trackers import TRACKERS, TrackedRun, Tracker
from mtl_jax.storage.trackers.base import Cell
from mtl_jax.storage.workdir import write_json

FILE = "trackers.json"  # in the folder of a run: {key of the run: {tracker: {"identity", "location"}}}


class Trackers:
    """Passes everything on to each tracker; of several processes only the first has any."""

    interrupted = False  # set by a run that a signal stops before its end

    def __init__(self, trackers: dict[str, Tracker] | None = None):
        self._trackers = {} if trackers is None else trackers

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """As `Tracker.scalars`."""
        self._each("scalars", step, values)

    def result(self, step: int, prefix: str, scores: Mapping[str, Any]) -> None:
        """Numbers in nested dicts {task: {split: {metric: value}}} as a summary `prefix/task/split/metric`, and as a
        table.
        """
        values = dict(flat_numbers(scores, prefix))
        self._each("summary", step, values)
        rows = [[*name.removeprefix(f"{prefix}/").rsplit("/", 2), value] for name, value in values.items()]
        self.table(f"{prefix}_scores", ("task", "split", "metric", "value"), [row for row in rows if len(row) == 4])

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """As `Tracker.table`."""
        self._each("table", name, columns, rows)

    def files(self, folder: pathlib.Path, *names: str) -> None:
        """The files of a folder that are there: PNG files as figures, others as artifacts."""
        for file in (file for name in names for file in sorted(folder.glob(name))):
            if file.suffix == ".png":
                self._each("figure", file.stem, file)
            else:
                self._each("artifact", file)

    def close(self, completed: bool) -> None:
        """As `Tracker.close`."""
        self._each("close", completed)

    def _each(self, method: str, *arguments: Any) -> None:
        for name, tracker in list(self._trackers.items()):
            if not _try(name, lambda tracker=tracker: getattr(tracker, method)(*arguments)):
                del self._trackers[name]


def require_ready(config: Config) -> None:
    """Raises UserError where a tracker cannot work on this machine: it is not installed, or has no login."""
    if not distributed.is_first():
        return
    for name in config.training.trackers:
        if problem := TRACKERS[name].problem():
            raise UserError(f"config.training.trackers: {name!r}: {problem}; or leave {name!r} out")


def options_of(name: str) -> tuple[str, ...]:
    """The options that a tracker takes."""
    parameters = inspect.signature(TRACKERS[name]).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


@contextlib.contextmanager
def tracked(config: Config, run: TrackedRun, key: str = "") -> Iterator[Trackers]:
    """The trackers of config.training.trackers, which continue what an earlier start of the run has tracked.

    Args:
      config: of the run.
      run: its folder, name and steps; the identity is read from the folder.
      key: of a run among several in the folder, such as a lane; "" for the run of the folder itself.
    """
    if not distributed.is_first():
        yield Trackers()
        return
    known = identities(run.folder)
    opened: dict[str, Tracker] = {}
    for name in config.training.trackers:
        if key and not TRACKERS[name].shows_lanes:
            continue
        options = to_plain(config.training.tracker_options.get(name, {}))
        before, parent = (known.get(k, {}).get(name, {}).get("identity", "") for k in (key, ""))
        start = run._replace(identity=before, parent=parent if key else "")
        _try(
            name,
            lambda name=name, start=start, options=options: opened.update({name: TRACKERS[name](start, **options)}),
        )
    entries = {name: {"identity": t.identity, "location": t.location} for name, t in opened.items()}
    write_json(run.folder / FILE, known | {key: known.get(key, {}) | entries})
    trackers = Trackers(opened)
    try:
        yield trackers
    except BaseException:
        trackers.close(completed=False)
        raise
    trackers.close(completed=not trackers.interrupted)


def track_result(config: Config, folder: pathlib.Path, result: Mapping[str, Any], file: pathlib.Path) -> None:
    """Adds what a later mode has found to the run of a folder: the scores "tasks" of a result, and its file."""
    step = int(result.get("step", 0))
    run = TrackedRun(folder, folder.absolute().name, to_plain(config), step)
    with tracked(config, run) as trackers:
        trackers.result(step, file.stem, result["tasks"])
        trackers.files(folder, file.name)


def track_files(config: Config, run: TrackedRun, *names: str) -> None:
    """Adds figures (PNG) and other files of the folder of a run, by name or pattern."""
    with tracked(config, run) as trackers:
        trackers.files(run.folder, *names)


def identities(folder: pathlib.Path) -> dict[str, dict[str, dict[str, str]]]:
    """What `tracked` has written; {} where nothing is tracked yet, or the file is damaged."""
    try:
        return json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def locations(folder: pathlib.Path) -> dict[str, str]:
    """{tracker: how a person looks at the run of a folder}"""
    return {name: entry["location"] for name, entry in identities(folder).get("", {}).items()}


def flat_numbers(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    """("prefix/key/key", number) of the finite numbers in nested dicts; without a prefix "key/key"."""
    for key, value in values.items():
        name = f"{prefix}/{key}" if prefix else key
        if isinstance(value, Mapping):
            yield from flat_numbers(value, name)
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield name, value


def _try(name: str, call: Callable[[], None]) -> bool:
    """Whether the call of a tracker succeeded; otherwise a warning is shown."""
    try:
        call()
    except Exception as error:
        reason = (str(error).strip() or "no message").splitlines()[0][:300]
        tqdm.write(
            f"warning: tracker {name!r} failed and is left out from here on ({type(error).__name__}: {reason}); "
            "metrics.jsonl and the other files of the run are complete",
            file=sys.stderr,
        )
        return False
    return True
