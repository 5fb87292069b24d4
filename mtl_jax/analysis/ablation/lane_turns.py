"""Which lanes of a program are trained together: in turns that fit into memory, those of earlier starts first.

    programs/<name>/turn_03/turn.json      the lanes of a turn
    programs/<name>/turn_03/checkpoints/   of its training
    programs/<name>/turn_03/results.json   once it is done

Another start may have other devices: a turn that no longer fits is divided into turns that begin from its checkpoint.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypedDict

from mtl_jax.analysis.ablation.lane_log import LaneResult
from mtl_jax.errors import UserError
from mtl_jax.runtime import distributed
from mtl_jax.storage.workdir import write_json

LaneId = tuple[int, int]  # seed, index of the setting
LANES, RESULTS = "turn.json", "results.json"


class Turn(NamedTuple):
    """Seeds × settings (indices) that are trained together.

    folder  of their checkpoints
    parent  folder of the turn from whose checkpoint they begin; None where they begin anew
    """

    seeds: tuple[int, ...]
    settings: tuple[int, ...]
    folder: pathlib.Path
    parent: pathlib.Path | None = None

    def lanes(self) -> set[LaneId]:
        """(seed, setting) of each lane."""
        return {(seed, setting) for seed in self.seeds for setting in self.settings}


class TurnResults(TypedDict):
    """results.json.

    lanes         [[seed, setting, result]]
    step_seconds  see `LaneBatch.step_seconds`
    data          see `data_metadata`
    """

    lanes: list[tuple[int, int, LaneResult]]
    step_seconds: list[float]
    data: dict[str, Any]


class Turns(NamedTuple):
    """The turns that are to be trained, and the results of those that are done."""

    open: list[Turn]
    done: list[TurnResults]


def plan_turns(folder: pathlib.Path, lanes: Iterable[LaneId], size: tuple[int, int]) -> Turns:
    """Plans the training of lanes, by the first process; all have to call this.

    Args:
      folder: of the program.
      lanes: all that are wanted, by setting.
      size: seeds and settings that fit into memory together.

    Raises:
      UserError: a damaged file.
    """
    return distributed.from_first(lambda: _plan(folder, dict.fromkeys(lanes), size))


def write_results(turn: Turn, results: TurnResults) -> None:
    """Writes results.json of a turn; the first process does."""
    if distributed.is_first():
        write_json(turn.folder / RESULTS, results)


def _plan(folder: pathlib.Path, wanted: dict[LaneId, None], size: tuple[int, int]) -> Turns:
    saved = sorted((_read_turn(file.parent) for file in folder.glob(f"turn_*/{LANES}")), key=_number)
    done = [_read_json(turn.folder / RESULTS) for turn in saved if (turn.folder / RESULTS).exists()]
    for seed, setting, _ in (lane for results in done for lane in results["lanes"]):
        wanted.pop((seed, setting), None)
    by_turn: dict[pathlib.Path, set[LaneId]] = {}
    for turn in reversed(saved):  # a turn comes after the one that it was divided from
        by_turn[turn.folder] = turn.lanes() & wanted.keys()
        for lane in by_turn[turn.folder]:
            del wanted[lane]
    turns: list[Turn] = []
    number = 1 + max(map(_number, saved), default=-1)
    for turn in saved:
        lanes = by_turn[turn.folder]
        if lanes == turn.lanes() and len(turn.seeds) <= size[0] and len(turn.settings) <= size[1]:
            turns.append(turn)
            continue
        parent = turn.folder if _has_checkpoint(turn.folder) else turn.parent
        turns += _new_turns(folder, number + len(turns), sorted(lanes, key=lambda lane: lane[::-1]), size, parent)
    turns += _new_turns(folder, number + len(turns), list(wanted), size, None)
    for turn in turns:
        turn.folder.mkdir(parents=True, exist_ok=True)
        parent = turn.parent and turn.parent.name
        write_json(turn.folder / LANES, {"seeds": turn.seeds, "settings": turn.settings, "parent": parent})
    return Turns(turns, done)


def _new_turns(
    folder: pathlib.Path, number: int, lanes: Sequence[LaneId], size: tuple[int, int], parent: pathlib.Path | None
) -> list[Turn]:
    """Lanes, by setting, in turns of that size, in folders from that number on."""
    parts = [
        (seeds[s : s + size[0]], settings[i : i + size[1]])
        for seeds, settings in rectangles(lanes)
        for s in range(0, len(seeds), size[0])
        for i in range(0, len(settings), size[1])
    ]
    return [Turn(*part, folder / f"turn_{number + n:02}", parent) for n, part in enumerate(parts)]


def rectangles(lanes: Iterable[LaneId]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(seeds, settings) of consecutive settings with the same seeds; `lanes` by setting."""
    seeds_of: dict[int, tuple[int, ...]] = {}
    for seed, setting in lanes:
        seeds_of[setting] = (*seeds_of.get(setting, ()), seed)
    settings: list[int] = []
    for setting, seeds in seeds_of.items():
        if settings and seeds_of[settings[0]] != seeds:
            yield seeds_of[settings[0]], tuple(settings)
            settings = []
        settings.append(setting)
    if settings:
        yield seeds_of[settings[0]], tuple(settings)


def _number(turn: Turn) -> int:
    return int(turn.folder.name.removeprefix("turn_"))


def _has_checkpoint(folder: pathlib.Path) -> bool:
    return any(step.name.isdigit() for step in (folder / "checkpoints").glob("*"))


def _read_turn(folder: pathlib.Path) -> Turn:
    content = _read_json(folder / LANES)
    parent = content["parent"] and folder.with_name(content["parent"])
    return Turn(tuple(content["seeds"]), tuple(content["settings"]), folder, parent)


def _read_json(file: pathlib.Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{file}: damaged; delete the folder {file.parent} to train its lanes again") from None
