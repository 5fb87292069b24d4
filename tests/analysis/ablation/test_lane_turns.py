"""Turns of lanes: what fits together, what earlier starts have left, other devices."""

import json

import pytest

from mtl_jax.analysis.ablation import lane_turns
from mtl_jax.errors import UserError

LANES = [(seed, setting) for setting in range(4) for seed in (0, 1)]


def plan(folder, size, lanes=LANES):
    return lane_turns.plan_turns(folder, lanes, size)


def finish(turn):
    lanes = [(seed, setting, {"score": seed + setting}) for setting in turn.settings for seed in turn.seeds]
    lane_turns.write_results(turn, {"lanes": lanes, "step_seconds": [], "data": {}})


def checkpoint(turn, step=7):
    (turn.folder / "checkpoints" / str(step)).mkdir(parents=True)


def covered(plan):
    """Every lane of the open turns, once each."""
    lanes = [lane for turn in plan.open for lane in sorted(turn.lanes())]
    assert len(set(lanes)) == len(lanes)
    return set(lanes)


def test_lanes_are_cut_to_what_fits(tmp_path):
    parts = [(turn.seeds, turn.settings, turn.folder.name) for turn in plan(tmp_path, (2, 3)).open]
    assert parts == [((0, 1), (0, 1, 2), "turn_00"), ((0, 1), (3,), "turn_01")]
    assert plan(tmp_path, (2, 3)).open == plan(tmp_path, (2, 3)).open  # another start plans the same


def test_what_is_done_is_not_trained_again(tmp_path):
    first, second = plan(tmp_path, (2, 2)).open
    finish(first)
    again = plan(tmp_path, (2, 2))
    assert again.open == [second]
    assert [lane[:2] for lane in again.done[0]["lanes"]] == [[0, 0], [1, 0], [0, 1], [1, 1]]
    finish(second)
    assert plan(tmp_path, (1, 1)).open == []


def test_less_memory_divides_a_turn_that_has_begun(tmp_path):
    first, second = plan(tmp_path, (2, 2)).open
    checkpoint(first)
    less = plan(tmp_path, (2, 1))
    assert covered(less) == set(LANES)
    assert {turn.parent for turn in less.open if turn.lanes() < first.lanes()} == {first.folder}
    assert {turn.parent for turn in less.open if turn.lanes() < second.lanes()} == {None}  # nothing was trained
    finish(less.open[0])
    checkpoint(less.open[1])
    least = plan(tmp_path, (1, 1))
    assert covered(least) == set(LANES) - less.open[0].lanes()
    parents = {lane: turn.parent for turn in least.open for lane in turn.lanes()}
    assert {parents[lane] for lane in less.open[1].lanes()} == {less.open[1].folder}  # the nearest checkpoint
    more = plan(tmp_path, (2, 4))  # with more memory what has begun goes on as it is
    assert covered(more) == covered(least)


def test_lanes_that_are_no_rectangle(tmp_path):
    parts = list(lane_turns.rectangles([(0, 0), (1, 0), (0, 1), (1, 1), (1, 2), (0, 3), (1, 3)]))
    assert parts == [((0, 1), (0, 1)), ((1,), (2,)), ((0, 1), (3,))]


def test_a_damaged_file_is_named(tmp_path):
    (turn, *_) = plan(tmp_path, (2, 2)).open
    (turn.folder / lane_turns.LANES).write_text(json.dumps({"seeds": [0]})[:5])
    with pytest.raises(UserError, match=r"turn_00/turn.json: damaged; delete the folder"):
        plan(tmp_path, (2, 2))
