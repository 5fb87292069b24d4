"""Which lanes of an ablation a shard trains. A lane's result is the same in any part, see `ProgramTraining`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from mtl_jax.analysis.ablation.lane_turns import LaneId
from mtl_jax.analysis.ablation.plan import Plan
from mtl_jax.errors import UserError
from mtl_jax.runtime.shards import Shard

Parts = Mapping[str, Sequence[LaneId]]  # program -> its lanes, by setting; programs without lanes are absent


def whole(planned: Plan) -> Parts:
    """All lanes."""
    return {p.name: [(seed, i) for i in range(len(p.settings)) for seed in planned.seeds] for p in planned.programs}


def part(planned: Plan, shard: Shard) -> Parts:
    """The lanes of a shard: consecutive ones, so that few programs are compiled twice.

    A setting stays with all of its seeds where there are as many settings as shards; successive halving compares
    all settings of a program, which stays as it is.

    Raises:
      UserError: there are fewer lanes than shards.
    """
    by_program = [[(name, lane) for lane in lanes] for name, lanes in whole(planned).items()]
    lanes, each = list(itertools.chain(*by_program)), len(planned.seeds)
    by_lane = [[lane] for lane in lanes]
    by_setting = [lanes[first : first + each] for first in range(0, len(lanes), each)]
    halving = any(p.config.ablation.method == "halving" for p in planned.programs)
    units = by_program if halving else by_setting if len(by_setting) >= shard.count else by_lane
    if len(units) < shard.count:
        what = "programs, and successive halving compares all lanes of one" if halving else "lanes"
        raise UserError(f"--shard={shard.index}/{shard.count}: there are only {len(units)} {what}; take fewer shards")
    selected: dict[str, list[LaneId]] = {}
    for name, lane in (entry for unit in shard.part(units) for entry in unit):
        selected.setdefault(name, []).append(lane)
    return selected
