"""The interface of trackers: programs that show the numbers of runs."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Cell = str | int | float | bool | None


class TrackedRun(NamedTuple):
    """What a tracker learns about a run before its first number.

    folder    of the run; a tracker may have files of its own there
    name      for people
    config    plain
    step      steps that are done; what a tracker has of later ones is given to it again, with the same numbers
    identity  `Tracker.identity` at an earlier start of this run; "" at the first
    group     runs of one group are shown together; "": a run of its own
    parent    identity of the run that this one is a part of; ""
    job       mode that made it
    """

    folder: pathlib.Path
    name: str
    config: Mapping[str, Any]
    step: int = 0
    identity: str = ""
    group: str = ""
    parent: str = ""
    job: str = "train"


class Tracker:
    """One run in one tracker; what a kind of tracker cannot show it leaves out. Any method may raise.

    A subclass takes a `TrackedRun` and, by keyword, the options that config.training.tracker_options may set. It
    has the attributes

    identity  what its program calls the run, so that a later start continues it
    location  how a person looks at it
    """

    identity: str = ""
    location: str = ""
    shows_lanes = True  # whether lanes of an ablation are runs of their own

    def __init__(self, run: TrackedRun, **options: Any):
        """Opens the run, or the run of the same identity again."""
        raise NotImplementedError(f"{type(self).__name__} takes {run} and {sorted(options)}")

    @staticmethod
    def problem() -> str:
        """Why nothing can be tracked on this machine, and what to do about it; "" where it can."""
        return ""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers after `step` steps; names are "a/b/c"."""

    def summary(self, step: int, values: Mapping[str, float]) -> None:
        """Final numbers, such as scores of the parameters of `step`."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """A table of final results."""

    def figure(self, name: str, file: pathlib.Path) -> None:
        """A picture in a PNG file."""

    def artifact(self, path: pathlib.Path) -> None:
        """A file, or a folder, that belongs to the run."""

    def close(self, completed: bool) -> None:
        """The run ends here; `completed` is False where it was interrupted and may go on."""
