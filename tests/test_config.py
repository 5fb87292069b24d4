"""Configs are checked before anything is loaded; every problem is named by its field."""

import re

import pytest

from configs import default, ewt, glue, newsgroups_conll, quickstart, sentiment_ner, sharing, snips_joint
from mtl_jax import config as checks
from mtl_jax.errors import UserError
from mtl_jax.training import workdir


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer__learning_rate": float("nan")}, "config.optimizer.learning_rate: nan should be a finite number"),
        ({"optimizer__learning_rate": -1.0}, "config.optimizer.learning_rate: -1.0 should be at least 0.0"),
        ({"optimizer__learning_rate": 300.0}, "config.optimizer.weight_decay: times learning_rate it is 3; above 2"),
        ({"model__layer": "lsmt"}, "config.model.layer: 'lsmt' is none of 'transformer', 'lstm'"),
        ({"model__widht": 3}, "config.model.widht: no such field; did you mean config.model.width?"),
        ({"train_on": ("colour",)}, "config.train_on: 'colour' is none of 'color'"),
        ({"evaluation__splits": ("tset",)}, "config.evaluation.splits: 'tset' is none of"),
        ({"tasks__color__dataset": "text"}, "config.tasks.color.dataset: 'text' is none of 'texts', 'sentences'"),
        ({"tasks__tags__kind": "tagger"}, "config.tasks.tags.kind: 'tagger' is none of"),
        ({"tasks__color__level": "word"}, "config.tasks.color.level: 'word' is none of 'text'"),
        ({"tasks__color__weight": -1.0}, "config.tasks.color.weight: -1.0 should be at least 0.0"),
        ({"datasets__texts__reader": "jsonnl"}, "config.datasets.texts.reader: 'jsonnl' is none of"),
        ({"datasets__texts__words": "words"}, "config.datasets.texts: give either text"),
        ({"optimizer__freeze": ("(",)}, "config.optimizer.freeze: '(' is not a regular expression"),
        ({"optimizer__groups": {"a": {"leaf": "x"}}}, "config.optimizer.groups.a: has the fields 'leaves'"),
        ({"model__vectors": "nowhere.vec"}, "config.model.vectors: there is no file 'nowhere.vec'"),
        ({"loss_weights__method": "eqal"}, "config.loss_weights.method: 'eqal' is none of 'equal'"),
    ],
)
def test_problems_are_named(tiny, changes, said):
    with pytest.raises(UserError, match=re.escape(said)):
        checks.check(tiny(**changes), default)


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
def test_strengths_are_finite_and_not_negative(tiny, strength):
    config = tiny()
    default.add_penalty(config, "l2", kind="l2_to_mean", strength=strength)
    with pytest.raises(UserError, match=r"config\.penalties\.l2\.strength"):
        checks.check(config, default)


def test_types(tiny):
    plain = workdir.plain(tiny())
    plain["training"]["steps"], plain["data"]["pack"], plain["seed"] = 1.5, 1, None
    with pytest.raises(UserError) as error:
        checks.check(checks.from_plain(plain), default)
    for said in ("training.steps: 1.5 should be a whole number", "data.pack: 1 should be True or False", "seed: None"):
        assert f"config.{said}" in str(error.value)


def test_all_problems_at_once(tiny):
    with pytest.raises(UserError) as error:
        checks.check(tiny(model__layer="x", training__steps=0, model__dropout=2.0), default)
    assert len(str(error.value).splitlines()) == 3


def test_a_config_that_went_through_json_is_the_same(tiny):
    config = tiny(sharing__groups={"layer_00": (("color",), ("tags", "long"))})
    again = checks.from_plain(workdir.plain(config))
    checks.check(again, default)
    assert workdir.differences(workdir.plain(config), workdir.plain(again)) == []
    assert list(again.tasks) == ["color", "tags", "long"]
    assert again.sharing.groups.layer_00 == (("color",), ("tags", "long"))


@pytest.mark.parametrize("module", [ewt, glue, newsgroups_conll, quickstart, sentiment_ner, snips_joint])
def test_the_configs_of_the_repository_are_right(module):
    checks.check(module.get_config(), default)


def test_every_way_of_sharing_is_a_config_of_its_own_and_in_the_tables():
    ways = set()
    for table in ("snips", "ewt", "ewt_full"):
        config = sharing.get_config(table)
        checks.check(config, default)
        ways |= set(config.ablation.choices.sharing.settings)
    assert len(ways) == 20
    for way in ways:
        checks.check(sharing.get_config(way), default)
