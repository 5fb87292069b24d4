"""Configs are checked before anything is loaded; every problem is named by its field."""

import re

import pytest

from configs import ewt, glue, newsgroups_conll, quickstart, sentiment_ner, sharing, snips_joint
from mtl_jax import checks
from mtl_jax.analysis.ablation import records, results
from mtl_jax.checks.ranges import ENTRY_RANGES, RANGES, RESERVED
from mtl_jax.config import default
from mtl_jax.config.plain import differences, from_plain, to_plain
from mtl_jax.errors import UserError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer__learning_rate": float("nan")}, "config.optimizer.learning_rate: nan should be a finite number"),
        ({"optimizer__learning_rate": -1.0}, "config.optimizer.learning_rate: -1.0 should be at least 0.0"),
        ({"optimizer__learning_rate": 300.0}, "config.optimizer.weight_decay: times learning_rate it is 3; above 2"),
        ({"model__layer_type": "lsmt"}, "config.model.layer_type: 'lsmt' is none of 'transformer', 'lstm'"),
        ({"train_tasks": ("colour",)}, "config.train_tasks: 'colour' is none of 'color'"),
        ({"evaluation__splits": ("tset",)}, "config.evaluation.splits: 'tset' is none of"),
        ({"tasks__color__dataset": "text"}, "config.tasks.color.dataset: 'text' is none of 'texts', 'sentences'"),
        ({"tasks__tags__kind": "tagger"}, "config.tasks.tags.kind: 'tagger' is none of"),
        ({"tasks__color__level": "word"}, "config.tasks.color.level: 'word' is none of 'text'"),
        ({"tasks__color__weight": -1.0}, "config.tasks.color.weight: -1.0 should be at least 0.0"),
        ({"datasets__texts__reader": "jsonnl"}, "config.datasets.texts.reader: 'jsonnl' is none of"),
        (
            {"datasets__sentences__options": {"schemes": {"tag": "iob2"}}},
            "schemes: names 'tag', which no tagging task on 'sentences' reads; they read 'tags'. Did you mean 'tags'?",
        ),
        ({"datasets__texts__options": {"scheme": "iob2"}}, "converts the tags of tagging tasks on 'texts'"),
        ({"datasets__sentences__options": {"scheme": "bioes"}}, "tasks.tags.options.scheme: 'iob2', but config."),
        ({"datasets__texts__words": "words"}, "config.datasets.texts: give either text"),
        ({"optimizer__freeze": ("(",)}, "config.optimizer.freeze: '(' is not a regular expression"),
        ({"optimizer__param_groups": {"a": {"leaf": "x"}}}, "config.optimizer.param_groups.a: has the fields 'params'"),
        ({"model__word_vectors": "nowhere.vec"}, "config.model.word_vectors: there is no file 'nowhere.vec'"),
        ({"loss_weights__method": "eqal"}, "config.loss_weights.method: 'eqal' is none of 'equal'"),
    ],
)
def test_problems_are_named(tiny, changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        checks.check(tiny(**changes))


def test_a_field_that_is_misspelt(tiny):
    config = tiny()
    config.model.hiden_size = 3
    problem = "config.model.hiden_size: no such field; did you mean config.model.hidden_size?"
    with pytest.raises(UserError, match=re.escape(problem)):
        checks.check(config)


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
def test_strengths_are_finite_and_not_negative(tiny, strength):
    config = tiny()
    default.add_penalty(config, "l2", kind="l2_to_mean", strength=strength)
    with pytest.raises(UserError, match=r"config\.penalties\.l2\.strength"):
        checks.check(config)


def test_types(tiny):
    fields = to_plain(tiny())
    fields["training"]["steps"], fields["data"]["packing"], fields["seed"] = 1.5, 1, None
    with pytest.raises(UserError) as error:
        checks.check(from_plain(fields))
    for message in (
        "training.steps: 1.5 should be a whole number",
        "data.packing: 1 should be True or False",
        "seed: None",
    ):
        assert f"config.{message}" in str(error.value)


def test_all_problems_at_once(tiny):
    with pytest.raises(UserError) as error:
        checks.check(tiny(model__layer_type="x", training__steps=0, model__dropout=2.0))
    assert len(str(error.value).splitlines()) == 3


def test_a_config_that_went_through_json_is_the_same(tiny):
    config = tiny(sharing__task_groups={"layer_00": (("color",), ("tags", "long"))})
    again = from_plain(to_plain(config))
    checks.check(again)
    assert differences(to_plain(config), to_plain(again)) == []
    assert list(again.tasks) == ["color", "tags", "long"]
    assert again.sharing.task_groups.layer_00 == (("color",), ("tags", "long"))


@pytest.mark.parametrize("module", [ewt, glue, newsgroups_conll, quickstart, sentiment_ner, snips_joint])
def test_the_configs_of_the_repository_are_right(module):
    checks.check(module.get_config())


def test_every_way_of_sharing_is_a_config_of_its_own_and_in_the_tables():
    ways = set()
    for table in ("snips", "ewt", "ewt_full"):
        config = sharing.get_config(table)
        checks.check(config)
        ways |= set(config.ablation.choices.sharing.settings)
    assert len(ways) == 20
    for way in ways:
        checks.check(sharing.get_config(way))


def numbers(entry, prefix=""):
    """Dotted names of all numbers in a config."""
    for name, value in entry.items():
        if hasattr(value, "items"):
            yield from numbers(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield prefix + name


def test_every_number_has_a_range():
    assert set(numbers(default.get_config())) == set(RANGES)
    entries = {
        "datasets": default.dataset(),
        "tasks": default.task(),
        "penalties": default.penalty(),
        "distillation": default.distillation(),
        "ablation.sweeps": default.sweep(),
        "ablation.choices": default.choice(),
    }
    for place, entry in entries.items():
        assert set(numbers(entry)) == set(ENTRY_RANGES.get(place, ())), place


@pytest.mark.parametrize("field", ["seed", "data__seed"])
def test_seeds_that_jax_would_fold_into_others_are_refused(tiny, field):
    config = tiny(**{field: 2**32 - 1})
    config.datasets.texts.max_examples = {"train": 50}  # something to draw
    checks.check(config)
    for seed in (-1, 2**32, 2**40):
        with pytest.raises(UserError, match=rf"config\.{field.replace('__', '.')}: {seed} should be"):
            checks.check(tiny(**{field: seed}))


@pytest.mark.parametrize(
    ("mode", "field"),
    [("ablate", "ablation__num_seeds"), ("relate", "relatedness__num_seeds"), ("adapt", "adaptation__num_supports")],
)
def test_the_last_of_several_seeds_is_one_too(tiny, mode, field):
    config = tiny(**{field: 10, "seed": 2**32 - 10})
    config.adaptation.num_tuning_supports = 1
    checks.check(config, mode)
    config.seed += 1
    with pytest.raises(UserError, match=rf"config\.{field.replace('__', '.')}: the last of 10 seeds"):
        checks.check(config, mode)
    checks.check(config)  # of a mode that draws them


NAMES = [
    "line",
    "shared",
    "",
    "a b",
    "a/b",
    "a\\b",
    "a\x07",
    "a\u2028b",
    "-x",
    "~",
    "'x'",
    "a:b",
    "a,b",
    "a=b",
    "a+b",
    "nul",
    "COM1",
    "x" * 101,
]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_would_be_keys_or_paths_of_something_else(tiny, name):
    config = tiny()
    default.add_task(config, name, kind="classification", dataset="texts", label="color")
    with pytest.raises(UserError, match=re.escape(f"config.tasks.{name}: ")):
        checks.check(config)


def test_names_in_any_script_are_fine(tiny):
    config = tiny()
    for name in ("प्रधानमंत्री", "κλάση", "naïve-2", "x" * 100):
        default.add_task(config, name, kind="classification", dataset="texts", label="color")
    checks.check(config)


@pytest.mark.parametrize("other", ["Color", "COLOR"])
def test_names_that_are_one_file_on_some_systems(tiny, other):
    config = tiny()
    default.add_task(config, other, kind="classification", dataset="texts", label="color")
    with pytest.raises(UserError, match=f"'color' and '{other}' differ only in case"):
        checks.check(config)


def test_all_columns_of_the_table_are_reserved():
    empty = {field: {} for field in records.Grid._fields} | {"lanes": []}
    header, _ = results.tidy_table(records.Grid(**empty))
    assert set(header) == {*RESERVED["sweeps"], "learning_rate"}


@pytest.mark.parametrize("name", ["seed", "line", "value", "learning_rate"])
def test_sweeps_and_choices_are_no_columns_of_the_table(tiny, name):
    config = tiny()
    default.add_sweep(config, name, field="optimizer.weight_decay", points=(0.1, 0.2))
    with pytest.raises(UserError, match=rf"config\.ablation\.sweeps\.{name}: '{name}' is"):
        checks.check(config, "ablate")
    config = tiny()
    default.add_choice(config, name, field="model.hidden_size", alternatives=(8, 16))
    with pytest.raises(UserError, match=rf"config\.ablation\.choices\.{name}: '{name}' is"):
        checks.check(config, "ablate")


def of_another_mode(config):
    """What is wrong in each of the modes that most runs are never made for."""
    config.evaluation.splits = ("test",)  # relatedness.transfer_split is dev
    config.adaptation.tuning_tasks = tuple(config.tasks)
    config.merging.methods = ("mean_of_means",)
    default.add_sweep(config, "rate", field="optimizer.learning_rate", points=(0.1, 0.2))
    config.ablation.num_seeds = 1
    return config


@pytest.mark.parametrize("mode", ["train", "evaluate", "predict", "inspect"])
def test_what_another_mode_refuses_is_not_refused(tiny, mode):
    checks.check(of_another_mode(tiny()), mode)


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("relate", "config.relatedness.transfer_split: 'dev' is none of 'test'"),
        ("adapt", "config.adaptation.tuning_tasks: names all"),
        ("merge", "config.merging.methods: 'mean_of_means' is none"),
        ("ablate", "config.ablation.num_seeds: intervals"),
    ],
)
def test_a_check_belongs_to_its_mode(tiny, mode, message):
    with pytest.raises(UserError) as error:
        checks.check(of_another_mode(tiny()), mode)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
