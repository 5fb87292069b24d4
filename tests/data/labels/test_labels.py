import os

import numpy as np
import pytest

from mtl_jax.data.labels.label_spec import LabelSpec, default_missing
from mtl_jax.data.labels.raw_labels import collect_labels, missing_labels
from mtl_jax.data.labels.vocabulary import LabelVocabulary, build_vocabulary, encode_labels
from mtl_jax.data.records import Record
from mtl_jax.errors import UserError


def records(*values, field="y"):
    return [Record({field: value}, "data.jsonl", n) for n, value in enumerate(values, 1)]


def gold(spec, train, dev=None, max_unseen_labels=0.05, **more):
    splits = {"train": collect_labels(records(*train), spec, **more)}
    if dev is not None:
        splits["dev"] = collect_labels(records(*dev), spec, **more)
    vocabulary, notes = build_vocabulary(spec, splits, max_unseen_labels)
    return vocabulary, {name: encode_labels(raw, spec, vocabulary) for name, raw in splits.items()}, notes


def test_classes_are_sorted_and_numbers_are_names():
    vocabulary, actual, _ = gold(LabelSpec("t", "d", "y"), [10, "2", 2.0, None, "", True])
    assert vocabulary.names == ("10", "2", "true")
    np.testing.assert_array_equal(actual["train"].value[[0, 1, 2, 5]], [0, 1, 1, 2])
    np.testing.assert_array_equal(actual["train"].known, [1, 1, 1, 0, 0, 1])
    assert gold(LabelSpec("t", "d", "y"), [10, "2", 1])[0].names == ("1", "2", "10")


def test_given_order_and_labels_outside_it():
    spec = LabelSpec("t", "d", "y", classes=("b", "a"))
    vocabulary, actual, _ = gold(spec, ["a", "b"])
    assert vocabulary.names == ("b", "a") and actual["train"].value.tolist() == [1, 0]
    with pytest.raises(UserError, match=r"data\.jsonl:2.*'aa'.*Did you mean 'a'"):
        gold(spec, ["a", "aa"])


def test_unseen_labels_are_counted_then_refused():
    spec = LabelSpec("t", "d", "y")
    vocabulary, actual, notes = gold(spec, ["a", "b"], ["a"] * 39 + ["new"])
    assert vocabulary == LabelVocabulary(("a", "b"), ("new",))
    assert actual["dev"].value[-1] == 2 and actual["dev"].known[-1]
    assert "1 labels of dev (2.50%)" in notes[0] and "new" in notes[0]
    with pytest.raises(UserError, match=r"10\.00%.*data\.jsonl:10.*max_unseen_labels"):
        gold(spec, ["a", "b"], ["a"] * 9 + ["new"])
    gold(spec, ["a", "b"], ["a"] * 9 + ["new"], max_unseen_labels=0.1)


def test_no_training_label_at_all():
    with pytest.raises(UserError, match="task t: every label"):
        gold(LabelSpec("t", "d", "y"), [None, ""])
    with pytest.raises(UserError, match=r"no field 'yy'.*Did you mean 'y'"):
        gold(LabelSpec("t", "d", "yy"), ["a"])


def test_tags_outside_first_and_missing_words():
    spec = LabelSpec("t", "d", "y", level="word")
    vocabulary, actual, _ = gold(spec, [["B-x", "O", None], ["A"], None], words=[3, 1, 2])
    assert vocabulary.names == ("O", "A", "B-x")
    value, known = actual["train"].at_record(0)
    assert value.tolist() == [2, 0, 0] and known.tolist() == [True, True, False]
    assert actual["train"].at_record(2)[1].tolist() == [False, False]
    np.testing.assert_array_equal(actual["train"].offsets, [0, 3, 4, 6])


def test_word_labels_of_other_length_name_the_line():
    spec = LabelSpec("ner", "d", "y", level="word")
    with pytest.raises(UserError, match=r"data\.jsonl:2: task ner: 3 words but 2 labels"):
        collect_labels(records(["a"], ["a", "b"]), spec, words=[1, 3])
    with pytest.raises(UserError, match="should be a list"):
        collect_labels(records("O O"), spec, words=[2])
    with pytest.raises(UserError, match=r"plain text; name the field.*`words`"):
        collect_labels(records(["a"]), spec)


def test_predicates():
    spec = LabelSpec("srl", "d", "y", level="predicate")
    raw = collect_labels(records([["O", "V"], ["A", "O"]], []), spec, words=[2, 3], predicates=[[1, 0], []])
    assert raw.values == ["O", "V", "A", "O"] and raw.offsets.tolist() == [0, 4, 4]
    with pytest.raises(UserError, match=r":1: task srl: 1 predicates want as many lists.*2 lists"):
        collect_labels(records([["O"], ["O"]]), spec, words=[1], predicates=[[0]])
    assert missing_labels(records(7), spec, [2], [[0]]).values == [None, None]


def test_distributions():
    spec = LabelSpec("t", "d", "y")
    vocabulary, actual, _ = gold(spec, [{"a": 0.25, "b": 0.75}, "b", None])
    assert vocabulary.soft
    np.testing.assert_array_equal(actual["train"].value, np.asarray([[0.25, 0.75], [0, 1], [0, 0]], np.float32))
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
    vocabulary, actual, notes = gold(spec, ["a| b", ["b"], "", None], ["c|a"] + ["a"] * 30)
    assert vocabulary == LabelVocabulary(("a", "b")) and "left out" in notes[0]
    np.testing.assert_array_equal(actual["train"].value, [[1, 1], [0, 1], [0, 0], [0, 0]])
    np.testing.assert_array_equal(actual["train"].known, [1, 1, 1, 0])
    assert actual["dev"].value[0].tolist() == [1, 0]


def test_real():
    spec = LabelSpec("t", "d", "y", kind="real")
    _, actual, _ = gold(spec, ["3.8", 1, "", None])
    np.testing.assert_array_equal(actual["train"].value, np.asarray([3.8, 1, 0, 0], np.float32))
    np.testing.assert_array_equal(actual["train"].known, [1, 1, 0, 0])
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
        encode_labels(collect_labels(records("a", "c"), spec), spec, LabelVocabulary(("a", "b")))


SET = {"kind": "set", "missing": (None,)}


def test_sets_are_cut_at_what_the_task_names():
    for delimiter, values in ((";", ["a;b", "b; c", ""]), ("|", ["a|b", "b|c", ""]), ("#", ["a#b", "b#c", ""])):
        vocabulary, actual, notes = gold(LabelSpec("t", "d", "y", delimiter=delimiter, **SET), values)
        assert vocabulary.names == ("a", "b", "c") and notes == []
        assert actual["train"].value.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert gold(LabelSpec("t", "d", "y", delimiter=" ", **SET), ["a  b", "b\tc "])[0].names == ("a", "b", "c")
    with pytest.raises(UserError, match=r"config\.tasks\.t\.options\.delimiter: '' should be"):
        LabelSpec("t", "d", "y", delimiter="", **SET)


@pytest.mark.parametrize(
    ("values", "messages"),
    [
        (
            ["a;b", "a;c"],
            r"2 classes such as 'a;b' look like several with ';' .*; options=\{'delimiter': ';'\} splits them",
        ),
        (["a#b", "b"], r"1 classes such as 'a#b' .*'#'"),
        (["a b", "b c", "c a"], r"3 classes such as 'a b' .*' ' between"),
        (["new york", "new jersey", "la"], None),
        (["rock/pop", "jazz"], None),
        (["he said; she said"], None),
    ],
)
def test_a_delimiter_that_nobody_declared(values, messages):
    _, _, notes = gold(LabelSpec("t", "d", "y", **SET), values)
    assert len(notes) == bool(messages)
    if messages:
        with pytest.raises(AssertionError, match=messages):
            raise AssertionError(notes[0])


def test_classes_that_are_several_of_the_others():
    _, _, notes = gold(LabelSpec("t", "d", "y"), ["flight", "fare", "flight#fare", "a#z"])
    assert len(notes) == 1 and "'flight#fare' look like several with '#'" in notes[0]
    assert "with kind='multilabel'" in notes[0]
    _, _, notes = gold(LabelSpec("t", "d", "y"), ["['a', 'b']", "x"])
    assert "are lists written as a string; kind 'multilabel'" in notes[0]


def test_lists_written_as_texts_are_sets():
    values = ["['a', 'b']", '["b", "c"]', "['a' 'c']", "[]", "{'a'}", "('b',)", "array(['c'], dtype=object)", "{a,b}"]
    vocabulary, actual, notes = gold(LabelSpec("t", "d", "y", **SET), values)
    assert vocabulary.names == ("a", "b", "c") and notes == []
    wanted = [[1, 1, 0], [0, 1, 1], [1, 0, 1], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0]]
    assert actual["train"].value.tolist() == wanted
    assert gold(LabelSpec("t", "d", "y", **SET), ["[0, 3]", "[3]"])[0].names == ("0", "3")
    _, _, notes = gold(LabelSpec("t", "d", "y", **SET), ["['a']"] * 9 + ["a"])
    assert notes == [
        "task t: 1 of 10 values of the field 'y' are not written as a list, as the others are; first at data.jsonl:10"
    ]
    for broken in ("['a', 'b", "['a' ... 'b']", "['it's']", "[['a'], ['b']]"):
        with pytest.raises(UserError, match=r"data\.jsonl:2: task t: field 'y' (looks|should)"):
            gold(LabelSpec("t", "d", "y", **SET), ["['a']", broken])


def rows(*values):
    return [Record(value, "data.csv", n) for n, value in enumerate(values, 1)]


def test_a_column_of_0_and_1_for_each_class():
    spec = LabelSpec("t", "d", "toxic+insult+threat", kind="set", missing=("", None))
    names = ("toxic", "insult", "threat")
    values = [
        ("1", "0", "0"),
        ("0", "0", "0"),
        ("1.0", "True", "0"),
        ("-1", "-1", "-1"),
        (1, None, 0),
        ("", "", ""),
        ("yes", "no", "No"),
    ]
    records_ = rows(*({"text": "x", **dict(zip(names, v, strict=True))} for v in values))
    raw = collect_labels(records_, spec)
    assert raw.values == [("toxic",), (), ("toxic", "insult"), None, None, None, ("toxic",)]
    vocabulary, notes = build_vocabulary(spec, {"train": raw})
    assert vocabulary.names == names  # in the order of the config, whether train has them or not
    assert [n for n in notes if "1 records have a value in some of the fields" in n]
    with pytest.raises(UserError, match=r"data\.csv:1: .*'toxic' should be 0 or 1 \(-1: not labelled\), found '2'"):
        collect_labels(rows({"toxic": "2", "insult": "0", "threat": "0"}), spec)
    with pytest.raises(UserError, match=r"no field 'insult' in its train split; known fields: insultt, threat, toxic"):
        build_vocabulary(spec, {"train": collect_labels(rows({"toxic": "1", "insultt": "0", "threat": "0"}), spec)})
    with pytest.raises(UserError, match=r"no field 'a\+b' in its train split; known fields: a, b"):
        real = LabelSpec("t", "d", "a+b", kind="real")
        build_vocabulary(real, {"train": collect_labels(rows({"a": 1, "b": 2}), real)})
    assert collect_labels(rows({"toxic+insult+threat": "a,b"}), spec).values == [
        ("a", "b")
    ]  # a field that is called so


def test_objects_and_vectors_of_0_and_1():
    spec = LabelSpec("t", "d", "y", kind="set", classes=("a", "b", "c"), missing=(None,))
    assert collect_labels(records({"a": 1, "b": 0, "c": True}, [0, 1, 0], [1.0, 1.0, 0.0], ["b"]), spec).values == [
        ("a", "c"),
        ("b",),
        ("a", "b"),
        ("b",),
    ]
    _, _, notes = gold(LabelSpec("t", "d", "y", **SET), [[0, 1, 0], [1, 1, 0]])
    assert [note for note in notes if "vectors of 0 and 1; name their classes" in note]


def test_two_fields_joined_as_one_label():
    spec = LabelSpec("t", "d", "coarse+fine")
    pairs = [("ENTY", "other"), ("LOC", "other"), ("LOC", "")]
    records_ = rows(*({"coarse": coarse, "fine": fine} for coarse, fine in pairs))
    assert collect_labels(records_, spec).values == ["ENTY:other", "LOC:other", None]
    words = LabelSpec("t", "d", "a+b", level="word")
    assert collect_labels(rows({"a": ["x", "y"], "b": ["1", "2"]}), words, words=[2]).values == ["x:1", "y:2"]


def test_words_for_missing_labels():
    missing = (*default_missing("text"), None)
    values = ["pos", "neg", "NaN", "nan", "null", "", None, float("nan"), "NA", "None", "-", "pos"]
    vocabulary, actual, notes = gold(LabelSpec("t", "d", "y", missing=missing), values)
    assert vocabulary.names == ("-", "NA", "None", "neg", "pos")
    assert actual["train"].known.tolist() == [True, True, *[False] * 6, True, True, True, True]
    assert notes[0].startswith("task t: train: 'nan' (2), 'NaN' (1), 'null' (1) in place of a label")
    assert "the classes '-' (1 of train), 'NA' (1 of train), 'None' (1 of train) may mean" in notes[1]
    assert notes[1].endswith("'Null', '-', 'NA', 'None')") and "config.tasks.t.missing=('', 'NaN'" in notes[1]
    classes = ("NA", "None", "-", "pos", "neg")
    assert len(gold(LabelSpec("t", "d", "y", missing=missing, classes=classes), values)[2]) == 1
    assert default_missing("word") == ("",)  # "null" or "-" may be tags
    with pytest.raises(UserError, match=r"At most 5% may .*; if '-1' means .*config\.tasks\.t\.missing=\('', '-1'"):
        gold(LabelSpec("t", "d", "y"), ["0", "1"], ["-1"])


def test_labels_of_dev_in_another_form_than_in_train():
    with pytest.raises(UserError, match=r"they differ .* in case, blanks or form alone: '0' and '0\.0', '1'"):
        gold(LabelSpec("t", "d", "y"), ["0.0", "1.0"], ["0", "1"])


def test_empty_texts_of_sets_and_lists_of_one_class():
    _, actual, notes = gold(LabelSpec("t", "d", "y", kind="set", missing=("", "nan", None)), ["a", "", "b"])
    assert actual["train"].known.tolist() == [True, False, True]
    assert notes[0].startswith("task t: train: 1 empty strings count as not labelled; if they are empty sets")
    assert notes[0].endswith("config.tasks.t.missing=('nan',)")
    with pytest.raises(UserError, match=r"data\.jsonl:1: .*one name, found the list \['a'\]; kind 'multilabel'"):
        gold(LabelSpec("t", "d", "y"), [["a"]])


def test_words_for_missing_numbers():
    spec = LabelSpec("t", "d", "y", kind="real", missing=(*default_missing("text"), None))
    assert collect_labels(records("1.5", "nan", float("nan"), ""), spec).values == [1.5, None, None, None]
    with pytest.raises(UserError, match=r"jsonl:2: .*should be a number, found 'NA'; if that means .*missing=.*'NA'\)"):
        collect_labels(records("1", "NA"), spec)
    with pytest.raises(UserError, match=r"should be a number, found '3,5'$"):
        collect_labels(records("3,5"), spec)


def test_one_class_in_two_spellings_of_unicode():
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    vocabulary, actual, notes = gold(LabelSpec("t", "d", "y"), [composed, decomposed, "x"])
    assert vocabulary.names == (composed, "x") and actual["train"].value.tolist() == [0, 0, 1] and notes == []
    spec = LabelSpec("t", "d", "y", classes=(decomposed, "x"))
    assert gold(spec, [composed, "x"])[1]["train"].value.tolist() == [0, 1]
    assert collect_labels(records([composed, decomposed]), LabelSpec("t", "d", "y", **SET)).values == [(composed,)]
    for twice in (["Pos", "pos"], ["new york", "New  York"], ["a", "a\u200b"], ["1", "1.0"], ["true", "True"]):
        _, _, notes = gold(LabelSpec("t", "d", "y"), [*twice, "z"])
        assert len(notes) == 1 and "differ only in case, blanks" in notes[0], twice
        assert repr(twice[0]) in notes[0] and repr(twice[1]) in notes[0]


def test_labels_are_total_over_texts():
    """Any text is a label, missing, or refused by file and line; as many labels come out as records go in."""
    rng = np.random.default_rng(0)
    signs = [*"[](){}'\",;|#:+-.01 \t\\ab", "é", "e\u0301", "\u200b", "\x00", "\ud800", "nan", "None", "array("]
    for _ in range(int(os.environ.get("FUZZ", 100))):
        values = ["".join(rng.choice(signs, rng.integers(0, 8))) for _ in range(4)]
        for kind in ("class", "set", "real"):
            spec = LabelSpec("t", "d", "y", kind=kind, delimiter=str(rng.choice([",", ";", " "])))
            try:
                raw = collect_labels(records("1", *values), spec)
                vocabulary, notes = build_vocabulary(spec, {"train": raw, "dev": raw})
                encode_labels(raw, spec, vocabulary)
            except UserError as error:
                assert "data.jsonl:" in str(error) or "every label" in str(error), error
            else:
                assert len(raw.values) == 5 and all(isinstance(note, str) for note in notes)


def test_fields_of_a_config_reach_the_labels():
    from mtl_jax.checks import check
    from mtl_jax.config import default
    from mtl_jax.experiment.inputs import label_specs

    config = default.get_config()
    default.add_dataset(config, "d", reader="csv", path="x.csv", text=("text",))
    default.add_task(config, "a", kind="multilabel", dataset="d", label="labels", options={"delimiter": ";"})
    default.add_task(config, "b", kind="multilabel", dataset="d", label=("toxic", "insult"))
    default.add_task(config, "c", kind="classification", dataset="d", label="coarse+fine", missing=("", "-"))
    a, b, c = label_specs(config)
    assert (a.delimiter, b.field, b.delimiter, c.field) == (";", "toxic+insult", ",", "coarse+fine")
    assert c.missing == ("", "-", None) and a.missing == (*default_missing("text"), None)
    config.model.pretrained = "x"
    check(config)
