"""What an ablation will train: lanes, ends, programs; and what is refused before anything is loaded."""

import math

import numpy as np
import pytest
from ml_collections import ConfigDict

from mtl_jax import checks
from mtl_jax.analysis.ablation import halving, plan, traced_fields
from mtl_jax.analysis.ablation.memory import fit_lanes
from mtl_jax.config import default
from mtl_jax.errors import UserError
from mtl_jax.evaluation.ranking import rank


def check(config):
    return checks.check(config, "ablate")


def planned(config):
    check(config)
    return plan.make_plan(config, check)


@pytest.fixture
def swept(tiny):
    config = tiny(sharing__trunk="none")
    default.add_penalty(config, "l2", kind="l2_to_mean", strength=0.1)
    default.add_penalty(config, "trace", kind="trace_norm", strength=0.1)
    default.add_sweep(config, "strength", field="penalties.l2.strength", low=1e-3, high=10.0, count=5)
    return config


def test_ends_stand_beside_the_sweep(swept):
    made = planned(swept)
    assert [p.name for p in made.programs] == ["sharing", "ends", "hard"]
    sharing, ends, hard = made.programs
    np.testing.assert_allclose(
        [s.values["strength"] for s in sharing.settings], [1e-3, 1e-2, 0.1, 1.0, 10.0], rtol=1e-5
    )
    rates = [0.01 * factor for factor in swept.ablation.lr_factors]
    assert [(s.line, s.values["learning_rate"]) for s in ends.settings] == [
        (line, rate) for line in ("single", "tied") for rate in rates
    ]
    assert [s.values["learning_rate"] for s in hard.settings] == rates and hard.config.sharing.trunk == "all"
    assert not ends.config.penalties and not hard.config.penalties
    assert made.seeds == (0, 1, 2)
    assert made.lane_steps == (5 + 10 + 5) * 3 * swept.training.steps


def test_programs_are_the_product_of_the_choices_and_share_their_ends(swept):
    default.add_choice(swept, "sentences", field="datasets.*.max_examples.train", alternatives=(20, 40))
    default.add_choice(
        swept,
        "penalty",
        settings={
            "l2": {"penalties": {"l2": {"kind": "l2_to_mean"}}},
            "pairs": {
                "penalties": {"l2": {"kind": "l2_pairwise"}},
                "ablation": {"sweeps": {"strength": {"high": 1.0, "count": 3}}},
            },
        },
    )
    made = planned(swept)
    names = [p.name for p in made.programs]
    assert len(names) == 4 + 2 + 2 and len(set(names)) == 8
    assert names[:4] == [f"sharing,sentences={n},penalty={p}" for n in (20, 40) for p in ("l2", "pairs")]
    ends = made.programs[4]
    assert dict(ends.choices) == {"sentences": "20"}  # the penalty does not matter to the ends
    assert all(d.max_examples.train == 20 for d in ends.config.datasets.values())
    assert len(made.programs[0].settings) == 5 and len(made.programs[1].settings) == 3
    assert made.programs[1].config.penalties.l2.kind == "l2_pairwise"
    assert swept.penalties.l2.kind == "l2_to_mean"  # the config given is not touched
    assert made.choices == {"sentences": ["20", "40"], "penalty": ["l2", "pairs"]}


def test_two_strengths_are_a_surface(swept):
    default.add_sweep(swept, "rank", field="penalties.trace.strength", points=(0.0, 0.1, 1.0))
    sharing, ends, _ = planned(swept).programs
    assert len(sharing.settings) == 15
    assert sharing.settings[1].fields == {"penalties.l2.strength": 0.001, "penalties.trace.strength": 0.1}
    assert len(ends.settings) == 10  # the ends know nothing of either


def test_a_swept_learning_rate_is_that_of_the_ends(swept):
    default.add_sweep(swept, "rate", field="optimizer.learning_rate", points=(0.001, 0.01))
    sharing, ends, hard = planned(swept).programs
    assert len(sharing.settings) == 10
    assert [s.values for s in hard.settings] == [{"rate": 0.001}, {"rate": 0.01}] and len(ends.settings) == 4


def test_one_sweep_moves_several_fields(swept):
    default.add_sweep(swept, "alpha", field="tasks.*.weight", points=(0.5, 2.0))
    setting = planned(swept).programs[0].settings[1]
    lane = traced_fields.with_values(swept, setting.fields)
    assert [task.weight for task in lane.tasks.values()] == [2.0] * 3
    assert list(lane.tasks) == list(swept.tasks)  # their order is the K axis


def test_random_sweeps_are_drawn_together(swept):
    swept.ablation.sweeps = ConfigDict(sort_keys=False)
    default.add_sweep(swept, "strength", field="penalties.l2.strength", low=1e-4, high=1.0, count=80, random=True)
    default.add_sweep(swept, "dropout", field="model.dropout", low=0.0, high=0.5, count=80, scale="linear", random=True)
    settings = planned(swept).programs[0].settings
    values = np.asarray([list(s.values.values()) for s in settings])
    assert len(settings) == 80 and len(np.unique(values[:, 0])) == 80
    logs = np.log10(values[:, 0])
    assert abs(logs.mean() + 2.0) < 0.25 and (logs > -4).all() and (logs < 0).all()
    assert abs(np.corrcoef(logs, values[:, 1])[0, 1]) < 0.2
    assert settings == planned(swept).programs[0].settings


def baseline(*names):
    """A change of a config: a choice of the width, compared with some of its alternatives."""

    def change(config):
        default.add_choice(config, "width", field="model.hidden_size", alternatives=(8, 16))
        config.ablation.baselines.width = names

    return change


def sweep(**changes):
    return lambda c: c.ablation.sweeps.strength.update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (sweep(field="model.hidden_size"), "changes the compiled program.*add_choice"),
        (sweep(field="penalties.l3.strength"), "'penalties.l3.strength' is no field"),
        (sweep(field="penalties.l2.strenth"), "no field"),
        (sweep(count=0), "there are no points"),
        (sweep(count=1), "is not a range"),
        (sweep(low=0.0), "has no logarithm"),
        (sweep(low=2.0, high=1.0), "is not a range"),
        (sweep(points=(0.1,), count=2), "either points"),
        (sweep(points=(0.1, 0.3, 0.1), count=0), "the point 0.1 is there twice"),
        (sweep(points=(0.1, -1.0), count=0), "strength = -1: config.penalties.l2.strength: -1.0 should be at least 0"),
        (sweep(points=(0.1, float("nan")), count=0), "finite"),
        (sweep(scale="logarithmic"), "did you mean|none of 'log'"),
        (lambda c: c.ablation.update(num_seeds=1), "num_seeds: intervals need two seeds"),
        (lambda c: c.ablation.update(lr_factors=()), "lr_factors"),
        (lambda c: c.ablation.update(method="gird"), "did you mean 'grid'"),
        (lambda c: default.add_choice(c, "x", field="model.hidden_size"), "alternatives"),
        (lambda c: default.add_choice(c, "x", field="model.witdh", alternatives=(1, 2)), "no field"),
        (lambda c: default.add_choice(c, "x", settings={"a": {"model": {"hiden_size": 3}}}), "no field 'hiden_size'"),
        (lambda c: default.add_choice(c, "x", field="model.hidden_size", alternatives=(8, 8)), "twice"),
        (lambda c: default.add_choice(c, "strength", field="model.hidden_size", alternatives=(8,)), "both a sweep"),
        (lambda c: c.ablation.baselines.update({"method": ("sum",)}), "baselines.method: no such choice"),
        (baseline("wide"), "'wide' is not one of the alternatives 8, 16"),
        (baseline("8", "16"), "none is compared"),
    ],
)
def test_bad_ablations_are_refused_by_field(swept, change, message):
    change(swept)
    with pytest.raises(UserError, match=message):
        planned(swept)


@pytest.mark.parametrize(
    ("method", "option", "message"),
    [
        ("krum", "byzantine", "whole number"),
        ("aligned_mtl", "scale", "cannot differ between the lanes"),
        ("cagrad", "cc", "unexpected keyword argument 'cc'"),
        ("pcgrad", "c", "unexpected keyword"),
    ],
)
def test_options_that_are_no_numbers_are_choices(tiny, method, option, message):
    config = tiny(aggregation__method=method)
    default.add_sweep(config, "x", field=f"aggregation.options.{option}", points=(1.0, 2.0))
    with pytest.raises(UserError, match=message):
        planned(config)


def test_nothing_to_compare(tiny):
    with pytest.raises(UserError, match="nothing to compare"):
        planned(tiny())


def test_rungs_and_survivors():
    config = default.get_config()
    config.ablation.options = ConfigDict({"eta": 3, "min_steps": 10})
    config.training.steps = 200
    assert halving.rungs(config, 9) == (10, 30, 90)
    config.ablation.options = ConfigDict()
    assert halving.rungs(config, 9) == (23, 69)  # 9 -> 3 -> 1
    lanes = [plan.Setting("sharing", {}, {})] * 4 + [plan.Setting("single", {}, {})]
    assert halving.survivors([rank(s, 1.0) for s in (0.1, 0.4, None, 0.3, 0.0)], range(5), lanes, 2) == [1, 3, 4]
    # of equal scores the lower loss, and never what is not finite
    tied = [rank(0.0, 2.0), rank(math.nan, 0.0), rank(0.0, 1.0), rank(0.0, math.nan), rank(None, None)]
    assert halving.survivors(tied, range(5), lanes, 4) == [2, 4]  # the last is an end
    config.ablation.options = ConfigDict({"etta": 2})
    with pytest.raises(UserError, match="no option 'etta'"):
        halving.rungs(config, 9)


def test_lanes_at_once_from_memory():
    def needed(seeds, lanes):
        return 100 + 10 * seeds * lanes

    assert fit_lanes(needed, 4, 8, 420, "p") == (4, 8)
    assert fit_lanes(needed, 4, 8, 300, "p") == (4, 5)  # 100 + 200 = 300
    assert fit_lanes(needed, 4, 8, 125, "p") == (2, 1)
    with pytest.raises(UserError, match="one lane needs"):
        fit_lanes(needed, 4, 8, 105, "p")


def test_programs_have_folders_of_their_own(tiny):
    """Alternatives that differ in signs, or in case alone, or are long: lanes of one are never read as another's."""
    config = tiny()
    names = ("a b", "a_b", "A b", "x" * 300, "x" * 301)
    default.add_choice(
        config, "way", settings={name: {"model": {"hidden_size": 8 + i}} for i, name in enumerate(names)}
    )
    folders = [program.name for program in planned(config).programs]
    assert len({name.casefold() for name in folders}) == len(names) and max(map(len, folders)) < 200
    assert folders == [program.name for program in planned(config).programs]
    del config.ablation.choices.way.settings["A b"], config.ablation.choices.way.settings["a b"]
    assert planned(config).programs[0].name == "sharing,way=a_b"
