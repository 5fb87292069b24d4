"""Shards of an ablation, or of --mode=relate: their folders, and one grid of what they have trained."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mtl_jax.analysis.ablation import lane_parts, plan, results, runner
from mtl_jax.analysis.ablation.plan import Plan
from mtl_jax.analysis.ablation.program_training import ProgramResults, read_program
from mtl_jax.analysis.ablation.records import Grid
from mtl_jax.config.plain import differences, from_plain, to_plain
from mtl_jax.errors import UserError
from mtl_jax.runtime.shards import Shard, shards_in
from mtl_jax.storage import run_warnings
from mtl_jax.storage import workdir as folders
from mtl_jax.storage.data_identity import data_differences
from mtl_jax.storage.summary import RunWarning

SHARD_FILE = "shard.json"  # {"mode": what the shard is of}
Check = Callable[[ConfigDict], Mapping[str, str]]


class Shards(NamedTuple):
    """All shards of one experiment.

    mode     "ablate" | "relate"
    config   of all of them
    count    how many there should be
    folders  of those that have been started
    """

    mode: str
    config: ConfigDict
    count: int
    folders: Mapping[Shard, pathlib.Path]


def claim(workdir: pathlib.Path, shard: Shard, config: ConfigDict, mode: str) -> None:
    """Says in the folder of a shard what it is of.

    Raises:
      UserError: the workdir holds something else: an unsharded run, other shards, shards of another config.
    """
    if any((workdir / name).exists() for name in ("programs", "transfer", "checkpoints", "summary.json")):
        raise UserError(f"{workdir} holds a run without shards; take another --workdir for {shard}")
    for other, folder in shards_in(workdir).items():
        if other.count != shard.count:
            raise UserError(f"{workdir} holds {other}; take another --workdir for {shard}, or delete {folder.parent}")
        if other != shard and (folder / SHARD_FILE).exists():
            _require_same(folder, read_mode(folder), to_plain(config), mode, f"this one, {shard},")
    folder = shard.folder(workdir)
    folders.require_unclaimed(folder, config)
    folders.claim(folder, config)
    folders.write_json(folder / SHARD_FILE, {"mode": mode})


def read_mode(folder: pathlib.Path) -> str:
    """The mode that a shard is of. Raises UserError where its folder does not say so."""
    try:
        return json.loads((folder / SHARD_FILE).read_text(encoding="utf-8"))["mode"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder}: no {SHARD_FILE} that can be read; start this shard again") from None


def find_shards(workdirs: Sequence[pathlib.Path]) -> Shards:
    """The shards that workdirs hold together.

    Raises:
      UserError: they are not of one experiment: another number of shards, a shard twice, other modes or configs.
    """
    by_shard: dict[Shard, pathlib.Path] = {}
    for workdir in workdirs:
        for shard, folder in shards_in(workdir).items():
            if shard in by_shard:
                raise UserError(f"{shard} is in {by_shard[shard]} and in {folder}; leave out one of them")
            by_shard[shard] = folder
    counts = sorted({shard.count for shard in by_shard})
    if len(counts) > 1:
        raise UserError(
            f"{', '.join(map(str, workdirs))}: shards of {' and of '.join(map(str, counts))}; keep one kind"
        )
    (first, folder), *_ = by_shard.items()
    mode, plain = read_mode(folder), folders.read_config(folder)
    for other in [*by_shard.values()][1:]:
        _require_same(other, read_mode(other), plain, mode, str(first))
    return Shards(mode, from_plain(plain), first.count, dict(sorted(by_shard.items())))


def _require_same(folder: pathlib.Path, mode: str, plain: Mapping[str, Any], wanted: str, other: str) -> None:
    if mode != wanted:
        raise UserError(f"{folder} is a shard of --mode={mode}, and {other} of --mode={wanted}")
    if different := differences(folders.read_config(folder), plain):
        raise UserError(f"{folder} was trained with another config than {other}:\n  " + "\n  ".join(different))


def gather_ablation(shards: Shards, out: pathlib.Path, check: Check) -> Grid:
    """The grid of all shards, written to `out` as an ablation without shards writes it; a partial one says so.

    Raises:
      UserError: see `gather_programs`.
    """
    planned = plan.make_plan(shards.config, check)
    grid = gather_programs(shards, planned, runner.method_of(shards.config), {s: f for s, f in shards.folders.items()})
    folders.claim(out, shards.config)
    results.write_grid(out, grid)
    return grid


def gather_programs(
    shards: Shards, planned: Plan, method: Mapping[str, Any], folders_of: Mapping[Shard, pathlib.Path]
) -> Grid:
    """The grid of what all shards have trained, lanes in the order of the plan.

    Args:
      shards: of one experiment.
      planned: of all of them.
      method: of the grid.
      folders_of: shard -> folder with programs/.

    Raises:
      UserError: nothing is trained; shards had other data; a damaged file.
    """
    every = [Shard(i, shards.count) for i in range(shards.count)]
    selected = {shard: lane_parts.part(planned, shard) for shard in every}
    done: dict[str, ProgramResults] = {}
    missing = dict.fromkeys(every, 0)
    data: dict[str, tuple[Shard, dict[str, Any]]] = {}
    for program in planned.programs:
        trained = {}
        for shard in every:
            if program.name not in selected[shard]:
                continue
            folder = folders_of.get(shard)
            part = read_program(folder / "programs" / program.name) if folder else None
            if part is None:
                missing[shard] += len(selected[shard][program.name])
                continue
            trained[shard] = part
            _require_same_data(data, _data_key(program.config), shard, part["data"])
            for lane in part["lanes"]:
                lane["run"] = str(folder / lane["run"]) if lane["run"] else ""
        if trained:
            done[program.name] = _joined(trained, {shard: selected[shard][program.name] for shard in trained})
    if not done:
        raise UserError(f"no shard of {shards.count} has finished a program yet; start them, or wait")
    grid = runner.make_grid(planned, method, done)
    warnings = [*_missing_warnings(missing, len(grid.lanes)), *_device_warnings(done)]
    return grid._replace(warnings=run_warnings.by_severity([*warnings, *grid.warnings]))


def _data_key(config: ConfigDict) -> str:
    """Equal for programs that read the same data."""
    plain = to_plain(config)
    names = ("datasets", "tasks", "data", "tokenizer", "images", "train_tasks", "distillation")
    model = [plain["model"][name] for name in ("pretrained", "pretrained_wheel")]
    return json.dumps([[plain[name] for name in names], model], sort_keys=True, default=str)


def _require_same_data(
    known: dict[str, tuple[Shard, dict[str, Any]]], key: str, shard: Shard, data: dict[str, Any]
) -> None:
    """Remembers the data of a shard; raises UserError where another had others for the same config."""
    first, wanted = known.setdefault(key, (shard, data))
    if data["data"] != wanted["data"]:
        differing = data_differences(wanted, data, str(first), str(shard))
        raise UserError(f"{first} and {shard} were trained on different data: {differing}. Train one of them again")


def _joined(
    trained: Mapping[Shard, ProgramResults], order: Mapping[Shard, Sequence[tuple[int, int]]]
) -> ProgramResults:
    """One program's results; lanes by setting, then by seed."""
    lanes = {}
    for shard, part in trained.items():
        lanes |= {(i, seed): lane for (seed, i), lane in zip(order[shard], part["lanes"], strict=True)}
    first, *_ = trained.values()
    seconds = sorted(s for part in trained.values() if (s := part["cost"]["step_seconds"]) is not None)
    cost = first["cost"] | {"step_seconds": seconds[len(seconds) // 2] if seconds else None}
    return {
        **first,
        "lanes": [lanes[key] for key in sorted(lanes)],
        "warnings": [warning for part in trained.values() for warning in part["warnings"]],
        "cost": cost,
        "device": ", ".join(sorted({part["device"] for part in trained.values()})),
    }


def _missing_warnings(missing: Mapping[Shard, int], trained: int) -> list[RunWarning]:
    """About the lanes of each shard that are not there."""
    total = trained + sum(missing.values())
    return [
        run_warnings.warning(
            run_warnings.PARTIAL,
            f"partial: {count} of {total} lanes are missing, since {shard} has not finished them; start it again",
            count,
            total,
        )
        for shard, count in missing.items()
        if count
    ]


def _device_warnings(done: Mapping[str, ProgramResults]) -> list[RunWarning]:
    devices = sorted({name for part in done.values() for name in part["device"].split(", ")})
    if len(devices) < 2:
        return []
    text = f"lanes were trained on different devices ({', '.join(devices)}): they agree up to rounding only"
    return [run_warnings.warning(run_warnings.RUNS, text)]
