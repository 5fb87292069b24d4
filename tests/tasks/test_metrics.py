"""Metrics against scikit-learn, scipy and seqeval; chunks against the whole."""

import warnings

import numpy as np
import pytest
import scipy.stats
import seqeval.metrics
import sklearn.metrics

from mtl_jax.tasks.metrics import METRICS, evaluate

NAMES = tuple("abcd")
rng = np.random.default_rng(0)
GOLD, PREDICTED = rng.integers(0, 4, 60), rng.integers(0, 3, 60)
SETS = rng.random((2, 40, 4)) < 0.4
REAL = rng.normal(size=(2, 50)).round(1)
TAGS = ("O", *(f"{p}-{t}" for p in "BIES" for t in ("X", "Y-Z", "V")))


def sequences(seed, n=200, tags=13):
    """Random tags: nearly every sequence is ill-formed in some way."""
    r = np.random.default_rng(seed)
    # few tags, so that spans agree by chance
    return [r.choice(r.integers(0, tags, 3), k).tolist() for k in r.integers(1, 9, n)]


def quiet(f, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return f(*args, **kwargs)


def test_classification_metrics_equal_scikit_learns():
    m = sklearn.metrics
    expected = {
        "accuracy": m.accuracy_score(GOLD, PREDICTED),
        "micro_f1": m.f1_score(GOLD, PREDICTED, average="micro"),
        "macro_f1": m.f1_score(GOLD, PREDICTED, average="macro"),
        "matthews": m.matthews_corrcoef(GOLD, PREDICTED),
    }
    for name, value in expected.items():
        assert evaluate(name, GOLD, PREDICTED, NAMES) == pytest.approx(value, abs=1e-12)
        assert evaluate(name, np.eye(4)[GOLD], PREDICTED, NAMES) == pytest.approx(value, abs=1e-12)
        # names that occur nowhere change nothing
        assert evaluate(name, GOLD, PREDICTED, (*NAMES, "e", "f")) == pytest.approx(value, abs=1e-12)
    two = GOLD % 2, PREDICTED % 2
    assert evaluate("f1", *two, ("no", "yes")) == pytest.approx(m.f1_score(*two))
    assert evaluate("matthews", *two, ("no", "yes")) == pytest.approx(m.matthews_corrcoef(*two))


def test_no_prediction_is_wrong():
    predicted = np.where(np.arange(60) % 5 == 0, -1, GOLD)
    assert evaluate("accuracy", GOLD, predicted, NAMES) == pytest.approx(0.8)
    assert evaluate("micro_f1", GOLD, predicted, NAMES) == pytest.approx(2 * 48 / 108)
    as_class = np.where(predicted < 0, 9, predicted)
    expected = sklearn.metrics.matthews_corrcoef(GOLD, as_class)
    assert evaluate("matthews", GOLD, predicted, NAMES) == pytest.approx(expected)


def test_sets_equal_scikit_learns_and_unseen_labels_count():
    gold, predicted = SETS
    for average in ("micro", "macro"):
        expected = quiet(sklearn.metrics.f1_score, gold, predicted, average=average)
        assert evaluate(f"{average}_f1", gold, predicted, NAMES) == pytest.approx(expected)
        padded = np.pad(predicted[:, :3], ((0, 0), (0, 1)))
        expected = quiet(sklearn.metrics.f1_score, gold, padded, average=average)
        assert evaluate(f"{average}_f1", gold, predicted[:, :3].astype(int), NAMES) == pytest.approx(expected)
    expected = sklearn.metrics.accuracy_score(gold, predicted)
    assert evaluate("subset_accuracy", gold, predicted, NAMES) == pytest.approx(expected)


def test_regression_metrics_equal_scipys():
    gold, predicted = REAL
    assert evaluate("pearson", gold, predicted, ()) == pytest.approx(scipy.stats.pearsonr(gold, predicted)[0])
    assert evaluate("spearman", gold, predicted, ()) == pytest.approx(scipy.stats.spearmanr(gold, predicted)[0])
    assert evaluate("mse", gold, predicted, ()) == pytest.approx(sklearn.metrics.mean_squared_error(gold, predicted))
    far = gold + 1e6, predicted + 1e6  # sums of squares would lose the correlation
    assert evaluate("pearson", *far, ()) == pytest.approx(scipy.stats.pearsonr(gold, predicted)[0], abs=1e-8)


@pytest.mark.parametrize("tags", [5, 7, 13])
def test_entity_f1_equals_seqeval_on_ill_formed_sequences(tags):
    gold, predicted = sequences(1, tags=tags), sequences(2, tags=tags)
    predicted = [[gold[i][j] if j % 3 else p[j % len(p)] for j in range(len(gold[i]))] for i, p in enumerate(predicted)]
    named = [[[TAGS[t] for t in s] for s in x] for x in (gold, predicted)]
    expected = quiet(seqeval.metrics.f1_score, *named)
    assert 0.1 < expected < 0.95
    assert evaluate("entity_f1", gold, predicted, TAGS) == pytest.approx(expected, abs=1e-12)
    for share in ("precision", "recall"):
        expected = quiet(getattr(seqeval.metrics, f"{share}_score"), *named)
        assert evaluate(f"entity_{share}", gold, predicted, TAGS) == pytest.approx(expected, abs=1e-12)
    without_verb = [[[t if not t.endswith("-V") else "O" for t in s] for s in x] for x in named]
    # a verb set to O parts nothing that was joined: its type differs from its neighbours' anyway
    expected = quiet(seqeval.metrics.f1_score, *without_verb)
    assert evaluate("span_f1", gold, predicted, TAGS) == pytest.approx(expected, abs=1e-12)


def test_word_metrics_equal_scikit_learns():
    gold, predicted = sequences(1, tags=5), sequences(1, tags=6)
    flat = [np.concatenate(x) for x in (gold, predicted)]
    expected = quiet(sklearn.metrics.f1_score, *flat, average="macro")
    assert evaluate("word_macro_f1", gold, predicted, TAGS) == pytest.approx(expected)
    assert evaluate("accuracy", gold, predicted, TAGS) == pytest.approx(sklearn.metrics.accuracy_score(*flat))


def test_tag_corners():
    names = ("O", "B-X", "I-X", "B-new")
    gold = [[1, 2, 0], [3, 0], [-1, 1]]
    assert evaluate("entity_f1", gold, [[1, 2, -1], [-1, -1], [0, 1]], names) == pytest.approx(2 * 2 / (3 + 2))
    assert evaluate("accuracy", gold, [[1, 2, 0], [-1, 0], [1, 1]], names) == pytest.approx(5 / 6)
    assert evaluate("entity_f1", [[0], []], [[0], []], names) == 0
    with pytest.raises(ValueError, match="3 gold labels, 2 predictions"):
        evaluate("entity_f1", [[0, 0, 0]], [[0, 0]], names)


def test_constants_and_no_data_give_zero_not_nan():
    assert evaluate("matthews", GOLD, np.zeros(60, int), NAMES) == 0
    for name in ("pearson", "spearman"):
        assert evaluate(name, REAL[0], np.full(50, 0.1), ()) == 0
        assert evaluate(name, [1.0], [2.0], ()) == 0
    for name in METRICS:
        assert evaluate(name, [], [], NAMES) == 0


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if "texts" not in metric.predictions])
def test_chunks_merge_to_the_value_of_the_whole(name):
    metric = METRICS[name]
    data = {
        "ids": (GOLD % 2, PREDICTED % 2),
        "sets": SETS,
        "values": REAL,
        "tags": (sequences(3), sequences(3)),
        "answers": ([[NAMES[g]] for g in GOLD], [NAMES[p] for p in PREDICTED]),
        "hidden": (GOLD, np.stack([PREDICTED, -PREDICTED / 4.0], 1)),
    }
    for of in metric.predictions:
        gold, predicted = data[of]
        names = TAGS if of == "tags" else NAMES
        chunks = [metric.statistics(gold[a:b], predicted[a:b], names) for a, b in ((0, 13), (13, 14), (14, None))]
        merged = metric.merge(metric.merge(chunks[0], chunks[1]), chunks[2])
        assert metric.value(merged) == pytest.approx(evaluate(name, gold, predicted, names), abs=1e-12)
        assert metric.value(merged) != 0
