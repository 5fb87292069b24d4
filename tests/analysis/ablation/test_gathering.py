"""Shards of a grid: which lanes each has, the table of all of them against that of one run, and what is refused."""

import json
import re
import signal

import pytest
from test_ablation_runs import check, grid, launch

from mtl_jax import checks, modes
from mtl_jax.analysis import report
from mtl_jax.analysis.ablation import gathering, lane_parts, lane_turns, plan, results, runner
from mtl_jax.analysis.relatedness import relate
from mtl_jax.config import default
from mtl_jax.errors import UserError
from mtl_jax.runtime.shards import Shard
from mtl_jax.storage import workdir as folders

pytestmark = pytest.mark.usefixtures("standard_promotion")


def three_settings(tiny, **changes):
    """Three settings for two seeds: 6 lanes."""
    quick = {"training__steps": 4, "training__eval_every": 2, "training__checkpoint_every": 2}
    config = grid(tiny, **{"train_tasks": ("color", "long"), **quick, **changes})
    config.model.num_layers = 0
    config.ablation.sweeps.strength.points = (0.1, 1.0, 10.0)
    return config


def options(config, workdir, shard=None):
    """The flags of --mode=ablate."""
    values = dict.fromkeys(modes.Options._fields) | {"config": config, "workdir": str(workdir), "shard": shard}
    return modes.Options(**values | {"mode": "ablate"})


def train_shard(config, workdir, shard, run=runner.ablate, mode="ablate"):
    folder = folders.prepare(shard.folder(workdir))
    gathering.claim(workdir, shard, config, mode)
    return run(config, folder, lambda c: checks.check(c, mode), shard)


def plain_results(folder):
    """ablation.csv, and ablation.json without what depends on the speed of the machine."""
    text = (folder / "ablation.json").read_text()
    return (folder / "ablation.csv").read_text(), re.sub(r'"step_seconds": [^,}\n]*', "", text)


@pytest.mark.parametrize("method", ["grid", "halving"])
def test_every_lane_is_in_one_shard(tiny, method):
    config = three_settings(tiny)
    config.ablation.method, config.ablation.num_seeds = method, 3
    default.add_choice(config, "rows", field="data.rows_per_block", alternatives=(4, 8))
    planned = plan.make_plan(config, check)
    every = [(p.name, seed, i) for p in planned.programs for i in range(3) for seed in planned.seeds]
    for count in range(1, 3 if method == "halving" else 19):
        lanes = []
        for i in range(count):
            part = lane_parts.part(planned, Shard(i, count))
            lanes += [(name, *lane) for name, of_program in part.items() for lane in of_program]
            if method == "halving" or count <= 6:  # settings are whole
                rectangles = [r for of_program in part.values() for r in lane_turns.rectangles(of_program)]
                assert all(seeds == planned.seeds for seeds, _ in rectangles)
        assert sorted(lanes) == sorted(every) and len(set(lanes)) == len(lanes)
    too_many = 3 if method == "halving" else 19
    with pytest.raises(UserError, match=f"only {too_many - 1} (lanes|programs, and successive)"):
        lane_parts.part(planned, Shard(0, too_many))


@pytest.mark.parametrize(("layout", "counts"), [("map", (2, 4)), ("vmap", (2,))])
def test_shards_yield_the_table_of_one_run(tiny, tmp_path, layout, counts):
    """Bitwise; under vmap with batches of a given number of lanes."""
    config = three_settings(tiny)
    config.ablation.lane_execution = layout
    config.ablation.max_lanes = 4 if layout == "vmap" else 0
    runner.ablate(config, folders.prepare(tmp_path / "whole"), check)
    for count in counts:
        workdir = folders.prepare(tmp_path / str(count))
        for i in reversed(range(count)):
            train_shard(config, workdir, Shard(i, count))
        modes._gathered([workdir], "")
        assert plain_results(workdir) == plain_results(tmp_path / "whole"), count
    assert report.report_page([workdir], workdir).exists()


def test_missing_and_strange_shards_are_named(tiny, tmp_path, capsys):
    config, workdir = three_settings(tiny), folders.prepare(tmp_path / "run")
    with pytest.raises(UserError, match="no shard of 3 has finished a program yet"):
        folders.prepare(Shard(1, 3).folder(workdir))
        gathering.claim(workdir, Shard(1, 3), config, "ablate")
        gathering.gather_ablation(gathering.find_shards([workdir]), workdir, check)
    train_shard(config, workdir, Shard(0, 3))
    modes._gathered([workdir], "")
    text = "partial: 2 of 6 lanes are missing, since shard {} of 3 has not finished them"
    printed = capsys.readouterr().out
    assert "gathered from 2 of 3 shards" in printed and text.format(1) in printed and text.format(2) in printed
    written = results.read_grid(workdir)
    assert len(written.lanes) == 2 and text.format(2) in written.warnings[1]["text"]
    assert "partial: 2 of 6" in report.report_page([workdir], workdir).read_text()

    other = three_settings(tiny, optimizer__learning_rate=0.02)
    with pytest.raises(UserError, match=r"another config than this one, shard 2 of 3(?s:.*)learning_rate"):
        train_shard(other, workdir, Shard(2, 3))
    with pytest.raises(UserError, match=r"holds shard 0 of 3; take another --workdir for shard 1 of 2"):
        train_shard(config, workdir, Shard(1, 2))
    elsewhere = folders.prepare(tmp_path / "elsewhere")
    folders.prepare(Shard(2, 3).folder(elsewhere))
    gathering.claim(elsewhere, Shard(2, 3), other, "ablate")
    with pytest.raises(UserError, match=r"2_of_3 was trained with another config than shard 0 of(?s:.*)learning_rate"):
        gathering.find_shards([workdir, elsewhere])
    with pytest.raises(UserError, match=r"shard 0 of 3 is in .*run.* and in .*again"):
        folders.prepare(Shard(0, 3).folder(tmp_path / "again"))
        gathering.claim(tmp_path / "again", Shard(0, 3), config, "ablate")
        gathering.find_shards([workdir, tmp_path / "again"])


def test_own_workdirs_and_other_data(tiny, tmp_path):
    config, lines = three_settings(tiny), (tmp_path / "texts.dev.jsonl").read_text().splitlines()
    same, other = [folders.prepare(tmp_path / name) for name in "ab"], folders.prepare(tmp_path / "c")
    for i, folder in enumerate(same):
        train_shard(config, folder, Shard(i, 2))
    out = tmp_path / "out"
    assert modes._gathered(same, str(out)) == [out]
    assert len(results.read_grid(out).lanes) == 6
    (file,) = same[1].glob("shards/1_of_2/programs/*/lanes.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"device": "another"}))
    modes._gathered(same, str(out))
    assert any("different devices (another, cpu)" in w["text"] for w in results.read_grid(out).warnings)

    (tmp_path / "texts.dev.jsonl").write_text("\n".join(lines[:30]) + "\n")
    train_shard(config, other, Shard(1, 2))
    with pytest.raises(UserError, match=r"shard 0 of 2 and shard 1 of 2 were trained on different data(?s:.*)30 exam"):
        gathering.gather_ablation(gathering.find_shards([same[0], other]), out, check)


def test_a_killed_shard_resumes_and_its_folder_is_locked(tiny, tmp_path, launch_environment):
    config = three_settings(tiny, training__steps=60)
    config.training.eval_every, config.training.checkpoint_every = 20, 7
    whole = runner.ablate(config, folders.prepare(tmp_path / "whole"), check)
    file, workdir = tmp_path / "config.py", folders.prepare(tmp_path / "run")
    status, _ = launch(launch_environment, config, file, workdir, 14, shard=Shard(1, 2))
    assert status == -signal.SIGKILL
    status, output = launch(launch_environment, config, file, workdir, shard=Shard(1, 2))
    assert status == 0 and "shard 1 of 2: 4 lanes" in output, output
    with (
        folders.locked(Shard(0, 2).folder(workdir)),
        pytest.raises(UserError, match=r"0_of_2: another run writes here \(process"),
    ):
        modes.ablate(options(config, workdir, Shard(0, 2)))
    modes.ablate(options(config, workdir, Shard(0, 2)))
    modes._gathered([workdir], "")
    assert results.read_grid(workdir).lanes == whole.lanes
    with pytest.raises(UserError, match="holds shards, which --mode=report gathers"):
        modes.ablate(options(config, workdir))
    with pytest.raises(UserError, match="whole holds a run without shards"):
        modes.ablate(options(config, tmp_path / "whole", Shard(0, 2)))


def test_shards_of_relate(tiny, tmp_path):
    config = tiny(
        model__num_layers=0,
        training__steps=3,
        relatedness__num_seeds=2,
        relatedness__measure_every=2,
        relatedness__num_inputs=20,
        data__rows_per_block=4,
    )
    relate.relate(config, folders.prepare(tmp_path / "whole"), lambda c: checks.check(c, "relate"))
    workdir = folders.prepare(tmp_path / "run")
    train_shard(config, workdir, Shard(0, 2), relate.relate, "relate")
    modes._gathered([workdir], "")
    texts = [w["text"] for w in relate.read(workdir)["warnings"]]
    assert any("6 of 12 lanes are missing" in t for t in texts) and any("of 1 of 2 seeds" in t for t in texts)
    train_shard(config, workdir, Shard(1, 2), relate.relate, "relate")
    modes._gathered([workdir], "")
    for name in ("relatedness.json", "relatedness.csv"):
        assert (workdir / name).read_text() == (tmp_path / "whole" / name).read_text(), name
    with pytest.raises(UserError, match=r"0_of_2 is a shard of --mode=relate, and this one, shard 1 of 2, of"):
        gathering.claim(workdir, Shard(1, 2), config, "ablate")
