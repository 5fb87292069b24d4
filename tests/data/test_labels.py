import numpy as np
import pytest

from mtl_jax.data.labels import LabelSpec, collect, unlabelled
from mtl_jax.data.records import Record
from mtl_jax.data.vocabulary import LabelVocabulary, build_vocabulary, encode_labels
from mtl_jax.errors import UserError


def records(*values, field="y"):
    return [Record({field: value}, "data.jsonl", n) for n, value in enumerate(values, 1)]


def gold(spec, train, dev=None, max_unseen=0.05, **more):
    splits = {"train": collect(records(*train), spec, **more)}
    if dev is not None:
        splits["dev"] = collect(records(*dev), spec, **more)
    vocabulary, notes = build_vocabulary(spec, splits, max_unseen)
    return vocabulary, {name: encode_labels(raw, spec, vocabulary) for name, raw in splits.items()}, notes


def test_classes_are_sorted_and_numbers_are_names():
    vocabulary, found, _ = gold(LabelSpec("t", "d", "y"), [10, "2", 2.0, None, "", True])
    assert vocabulary.names == ("10", "2", "true")
    np.testing.assert_array_equal(found["train"].value[[0, 1, 2, 5]], [0, 1, 1, 2])
    np.testing.assert_array_equal(found["train"].known, [1, 1, 1, 0, 0, 1])
    assert gold(LabelSpec("t", "d", "y"), [10, "2", 1])[0].names == ("1", "2", "10")


def test_given_order_and_labels_outside_it():
    spec = LabelSpec("t", "d", "y", classes=("b", "a"))
    vocabulary, found, _ = gold(spec, ["a", "b"])
    assert vocabulary.names == ("b", "a") and found["train"].value.tolist() == [1, 0]
    with pytest.raises(UserError, match=r"data\.jsonl:2.*'aa'.*Did you mean 'a'"):
        gold(spec, ["a", "aa"])


def test_unseen_labels_are_counted_then_refused():
    spec = LabelSpec("t", "d", "y")
    vocabulary, found, notes = gold(spec, ["a", "b"], ["a"] * 39 + ["new"])
    assert vocabulary == LabelVocabulary(("a", "b"), ("new",))
    assert found["dev"].value[-1] == 2 and found["dev"].known[-1]
    assert "1 labels of dev (2.50%)" in notes[0] and "new" in notes[0]
    with pytest.raises(UserError, match=r"10\.00%.*data\.jsonl:10.*max_unseen"):
        gold(spec, ["a", "b"], ["a"] * 9 + ["new"])
    gold(spec, ["a", "b"], ["a"] * 9 + ["new"], max_unseen=0.1)


def test_no_training_label_at_all():
    with pytest.raises(UserError, match="task t: every label"):
        gold(LabelSpec("t", "d", "y"), [None, ""])
    with pytest.raises(UserError, match=r"no field 'yy'.*Did you mean 'y'"):
        gold(LabelSpec("t", "d", "yy"), ["a"])


def test_tags_outside_first_and_missing_words():
    spec = LabelSpec("t", "d", "y", level="word")
    vocabulary, found, _ = gold(spec, [["B-x", "O", None], ["A"], None], words=[3, 1, 2])
    assert vocabulary.names == ("O", "A", "B-x")
    value, known = found["train"].of(0)
    assert value.tolist() == [2, 0, 0] and known.tolist() == [True, True, False]
    assert found["train"].of(2)[1].tolist() == [False, False]
    np.testing.assert_array_equal(found["train"].offsets, [0, 3, 4, 6])


def test_word_labels_of_other_length_name_the_line():
    spec = LabelSpec("ner", "d", "y", level="word")
    with pytest.raises(UserError, match=r"data\.jsonl:2: task ner: 3 words but 2 labels"):
        collect(records(["a"], ["a", "b"]), spec, words=[1, 3])
    with pytest.raises(UserError, match="should be a list"):
        collect(records("O O"), spec, words=[2])
    with pytest.raises(UserError, match=r"plain text; name the field.*`words`"):
        collect(records(["a"]), spec)


def test_predicates():
    spec = LabelSpec("srl", "d", "y", level="predicate")
    raw = collect(records([["O", "V"], ["A", "O"]], []), spec, words=[2, 3], predicates=[[1, 0], []])
    assert raw.values == ["O", "V", "A", "O"] and raw.offsets.tolist() == [0, 4, 4]
    with pytest.raises(UserError, match=r":1: task srl: 1 predicates want as many lists.*2 lists"):
        collect(records([["O"], ["O"]]), spec, words=[1], predicates=[[0]])
    assert unlabelled(records(7), spec, [2], [[0]]).values == [None, None]


def test_distributions():
    spec = LabelSpec("t", "d", "y")
    vocabulary, found, _ = gold(spec, [{"a": 0.25, "b": 0.75}, "b", None])
    assert vocabulary.soft
    np.testing.assert_array_equal(found["train"].value, np.asarray([[0.25, 0.75], [0, 1], [0, 0]], np.float32))
    spec = LabelSpec("t", "d", "y", classes=("b", "a"))
    np.testing.assert_array_equal(gold(spec, [[0.5, 0.5], "a"])[1]["train"].value, [[0.5, 0.5], [0, 1]])
    words = LabelSpec("t", "d", "y", level="word")
    assert gold(words, [[{"O": 1.0}, {"O": 0.5, "B": 0.5}]], words=[2])[1]["train"].value.tolist() == [
        [1, 0],
        [0.5, 0.5],
    ]


@pytest.mark.parametrize(
    "value, message",
    [({"a": 0.5}, "sum to 1"), ({"a": 1.5, "b": -0.5}, ">= 0"), ({"a": float("nan")}, ">= 0"), ({"a": "x"}, ">= 0")],
)
def test_bad_distributions_name_the_line(value, message):
    with pytest.raises(UserError, match=rf"data\.jsonl:2.*{message}"):
        gold(LabelSpec("t", "d", "y"), ["a", value])


def test_lists_of_probabilities():
    with pytest.raises(UserError, match="need `classes`"):
        gold(LabelSpec("t", "d", "y"), [[0.5, 0.5]])
    with pytest.raises(UserError, match=r":1.*3 probabilities for 2 classes"):
        gold(LabelSpec("t", "d", "y", classes=("a", "b")), [[0.5, 0.25, 0.25]])
    with pytest.raises(UserError, match=r":1.*Labels as distributions need all names"):
        gold(LabelSpec("t", "d", "y"), [{"a": 1.0}], ["zz"])


def test_sets():
    spec = LabelSpec("t", "d", "y", kind="set", delimiter="|", missing=(None,))
    vocabulary, found, notes = gold(spec, ["a| b", ["b"], "", None], ["c|a"] + ["a"] * 30)
    assert vocabulary == LabelVocabulary(("a", "b")) and "left out" in notes[0]
    np.testing.assert_array_equal(found["train"].value, [[1, 1], [0, 1], [0, 0], [0, 0]])
    np.testing.assert_array_equal(found["train"].known, [1, 1, 1, 0])
    assert found["dev"].value[0].tolist() == [1, 0]


def test_real():
    spec = LabelSpec("t", "d", "y", kind="real")
    _, found, _ = gold(spec, ["3.8", 1, "", None])
    np.testing.assert_array_equal(found["train"].value, np.asarray([3.8, 1, 0, 0], np.float32))
    np.testing.assert_array_equal(found["train"].known, [1, 1, 0, 0])
    for bad in ("x", "nan", float("inf"), [1]):
        with pytest.raises(UserError, match=r"data\.jsonl:2: task t: .*should be a number"):
            gold(spec, [1, bad])


def test_bad_specs():
    for more in ({"level": "char"}, {"kind": "classes"}, {"kind": "real", "level": "word"}, {"classes": ("a", "a")}):
        with pytest.raises(UserError, match="task t"):
            LabelSpec("t", "d", "y", **more)


def test_labels_of_another_vocabulary_are_refused_by_line():
    spec = LabelSpec("t", "d", "y")
    with pytest.raises(UserError, match=r"data\.jsonl:2: task t: no such class: 'c'"):
        encode_labels(collect(records("a", "c"), spec), spec, LabelVocabulary(("a", "b")))
