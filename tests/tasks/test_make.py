"""Wrong options are told by field; right ones build a task."""

import ml_collections
import pytest

from mtl_jax.errors import UserError
from mtl_jax.tasks import make_task

BIO = ("O", "B-X", "I-X")
ONE, TAGS = "classification", "tagging"
WRONG = [
    ({}, "text", "ab", r"kind: is missing"),
    ({"kind": "clasification"}, "text", "ab", r"kind: .*Did you mean 'classification'"),
    ({"kind": ONE, "poool": "max"}, "text", "ab", r"options\.poool: .*Did you mean 'pool'"),
    ({"kind": ONE, "crf": True}, "text", "ab", r"options\.crf: this kind of task has no such option"),
    ({"kind": ONE}, "word", "ab", r"kind: needs one label a text.*'word'"),
    ({"kind": ONE}, "text", "a", r"label: train has fewer than two classes"),
    ({"kind": ONE, "pool": "avg"}, "text", "ab", r"options\.pool: 'avg' is not one of 'first', 'last', 'max'"),
    ({"kind": ONE, "pooler": 1}, "text", "ab", r"options\.pooler: 1 should be True or False"),
    ({"kind": ONE, "hidden": -1}, "text", "ab", r"options\.hidden: -1 should be a whole number >= 0"),
    ({"kind": ONE, "label_smoothing": 1.0}, "text", "ab", r"options\.label_smoothing: .*>= 0 and < 1"),
    ({"kind": ONE, "focal_gamma": float("nan")}, "text", "ab", r"options\.focal_gamma: nan should be"),
    ({"kind": ONE, "class_weights": (1.0,)}, "text", "ab", r"options\.class_weights: 1 weights for 2 classes"),
    ({"kind": ONE, "class_weights": "balanced"}, "text", "ab", r"options\.class_weights: .*label counts"),
    ({"kind": ONE, "class_weights": {"x": 1.0}}, "text", "ab", r"options\.class_weights: 'x' is not one of"),
    ({"kind": ONE, "class_weights": 2.0}, "text", "ab", r"options\.class_weights: 2.0 should be 'balanced'"),
    ({"kind": ONE, "class_weights": (1.0, "2")}, "text", "ab", r"options\.class_weights: '2' should be a"),
    ({"kind": ONE, "metrics": "acuracy"}, "text", "ab", r"metrics: .*Did you mean 'accuracy'"),
    ({"kind": ONE, "metrics": ("entity_f1",)}, "text", "ab", r"metrics: 'entity_f1' is not one of"),
    ({"kind": ONE, "metrics": ("f1",)}, "text", "abc", r"metrics: 'f1' is that of .* train has 3"),
    ({"kind": "multilabel", "threshold": 1.5}, "text", "ab", r"options\.threshold: 1.5 should be"),
    ({"kind": "regression", "metrics": ("mse",)}, "text", "", r"metrics: the first metric is the task's score"),
    ({"kind": "regression", "low": 0.0}, "text", "", r"options\.low: given are low; give low and high"),
    ({"kind": "regression", "low": 2.0, "high": 1.0}, "text", "", r"options\.high: 1.0 should be above low"),
    ({"kind": "regression", "mean": 2.0, "scale": 0.0}, "text", "", r"options\.scale: 0.0 should be above 0"),
    ({"kind": TAGS}, "text", BIO, r"kind: needs a label for each word"),
    ({"kind": TAGS, "scheme": "iob"}, "word", BIO, r"options\.scheme: 'iob' is not one of .*Did you mean 'iob2'"),
    ({"kind": TAGS, "scheme": "iob2"}, "word", ("O", "S-X"), r"options\.scheme: 'iob2' does not fit the tags 'S-X'"),
    ({"kind": TAGS, "scheme": "bioes"}, "word", ("B-X", "E-X"), r"options\.scheme: 'bioes' leaves no tag that may"),
    ({"kind": TAGS, "metrics": ("entity_f1",)}, "word", ("NN", "VB"), r"metrics: 'entity_f1' reads spans"),
    ({"kind": TAGS, "scheme": "iob2"}, "word", ("NN", "B-X"), r"options\.scheme: 'iob2' is one of spans, but .*'NN'"),
    ({"kind": TAGS, "distance": 3}, "word", BIO, r"options\.distance: is for labels of level 'predicate'"),
    ({"kind": TAGS, "crf": True, "focal_gamma": 1.0}, "word", BIO, r"options\.focal_gamma: weighs single words"),
]


@pytest.mark.parametrize(("options", "level", "names", "message"), WRONG)
def test_wrong_options_name_the_field(options, level, names, message):
    with pytest.raises(UserError, match=r"config\.tasks\.t\." + message):
        make_task("t", options, level, names)


def test_whether_tags_mark_spans_is_what_the_data_tell():
    for names, spans in ((BIO, False), (("O", "S"), True)):
        task = make_task("t", {"kind": "tagging"}, "word", names, given={"spans": spans})
        assert ("entity_f1" in task.metrics) == ("spans" in task.decode([0], [1.0])) == spans
    with pytest.raises(UserError, match=r"'entity_f1' reads spans, but .* or options\.schemes of the data"):
        make_task("t", {"kind": "tagging", "metrics": ("entity_f1",)}, "word", BIO, given={"spans": False})


def test_defaults_fit_kind_level_and_tags():
    config = ml_collections.ConfigDict({"kind": "tagging", "crf": True, "metrics": (), "class_weights": None})
    assert make_task("t", config, "word", BIO).metrics == ("entity_f1", "accuracy")
    assert make_task("t", {"kind": "tagging"}, "word", ("NN", "VB")).metrics == ("accuracy",)
    for bare in (("O", "B", "I"), ("B", "I")):
        one_type = make_task("t", {"kind": "tagging", "crf": True, "scheme": "iob2"}, "word", bare)
        assert one_type.metrics == ("entity_f1", "accuracy")
        assert one_type.decode([0, 1], [1.0, 1.0])["spans"][-1]["type"] == "_"
    srl = make_task("t", {"kind": "tagging"}, "predicate", BIO)
    assert (srl.metrics[0], srl.hidden, srl.distance) == ("span_f1", 256, 8)
    assert make_task("t", {"kind": "tagging", "hidden": 0, "distance": 0}, "predicate", BIO).hidden == 0
    weights = make_task("t", {"kind": "classification", "class_weights": {"b": 3.0}}, "text", "ab").class_weights
    assert weights == (1.0, 3.0)
    hash(make_task("t", ml_collections.ConfigDict({"kind": "classification", "metrics": ["f1"]}), "text", "ab"))
