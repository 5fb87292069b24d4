"""Generated tasks: their relatedness, their labels, and that they are a function of their options alone."""

import numpy as np
import pytest

from mtl_jax.data import datasets
from mtl_jax.data.readers.synthetic import polarities, weights
from mtl_jax.errors import UserError

ENTRY = {"reader": "synthetic", "words": "words"}


def read(**options):
    splits = {split: split for split in options.get("examples", ())}  # none at all: train, dev and test
    return datasets.read_dataset("d", {**ENTRY, "splits": splits, "options": options}, 0).splits


def counts(records, features):
    """[n, V] counts over lengths, from the words as they stand."""
    return np.array([[r.fields["words"].count(f"w{v:02}") for v in range(features)] for r in records]) / 7


@pytest.mark.parametrize("rho", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("rank", [0, 500])
def test_weights_of_two_tasks_correlate_by_rho(rho, rank):
    features = 20_000 if not rank else 2_000
    w = np.stack([weights(k, rho, features, rank, seed=3) for k in range(3)])
    # a correlation of n independent pairs is off by 1/√n: of V words, or of the r dimensions that they depend on
    most = 4 / np.sqrt(rank or features)
    np.testing.assert_allclose(np.corrcoef(w), np.where(np.eye(3), 1, rho), atol=most)
    np.testing.assert_allclose(w.std(axis=1), 1, atol=most)


@pytest.mark.parametrize("rho", [0.0, 0.4, 1.0])
def test_polarities_of_two_tasks_correlate_by_rho(rho):
    p = np.stack([polarities(k, rho, 20_000) for k in range(3)])
    assert set(p.ravel()) == {-1, 1}
    np.testing.assert_allclose(p @ p.T / 20_000, np.where(np.eye(3), 1, rho), atol=4 / np.sqrt(20_000))


def test_low_rank_tasks():
    w = np.stack([weights(k, 0.3, 24, rank=2) for k in range(8)])
    assert np.linalg.matrix_rank(w) == 2
    assert np.linalg.matrix_rank(np.stack([weights(k, 0.3, 24) for k in range(8)])) == 8


def test_linear_labels_are_the_weighted_counts_and_noise():
    options = {"task": 2, "rho": 0.3, "features": 12, "tokens": 7, "seed": 5}
    records = read(**options, examples={"train": 4000})["train"]
    signal = counts(records, 12) @ weights(2, 0.3, 12, seed=5) * np.sqrt(7)
    labels = np.array([r.fields["label"] for r in records])
    np.testing.assert_allclose(labels, signal, atol=1e-12)
    assert records[0].fields["text"].split() == records[0].fields["words"]
    noisy = read(**options, noise=0.5, examples={"train": 4000})
    noise = np.array([r.fields["label"] for r in noisy["train"]]) - signal
    assert abs(noise.std() - 0.5) < 4 * 0.5 / np.sqrt(8000) and abs(noise @ signal) / 4000 < 0.03


def test_text_labels_are_the_sign_of_the_polarities():
    options = {"kind": "text", "task": 1, "features": 30, "tokens": 6, "examples": {"train": 2000}}
    clean, noisy = (read(**options, noise=noise)["train"] for noise in (0.0, 0.2))
    polarity = dict(zip([f"w{v:02}" for v in range(30)], polarities(1, 0.5, 30), strict=True))
    for record in clean:
        signs = [polarity[word] for word in record.fields["words"]]
        right = sum(signs) or signs[0]
        assert record.fields["label"] == ("positive" if right > 0 else "negative")
    turned = np.mean([a.fields["label"] != b.fields["label"] for a, b in zip(clean, noisy, strict=True)])
    assert abs(turned - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 2000)


def test_it_is_a_function_of_its_options():
    first = datasets.read_dataset("d", {**ENTRY, "options": {"task": 1}}, 0)
    assert {split: len(records) for split, records in first.splits.items()} == {"train": 100, "dev": 100, "test": 500}
    assert first == datasets.read_dataset(
        "d", {**ENTRY, "options": {"task": 1}}, 7
    )  # the seed of the data carves nothing
    longer = read(task=1, examples={"train": 130, "dev": 100, "test": 500})
    assert longer["train"][:100] == first.splits["train"] and longer["test"] == first.splits["test"]
    words = [[r.fields["words"] for r in s["train"]] for s in (longer, read(task=1, rho=0.9, examples={"train": 130}))]
    assert words[0] == words[1]  # relatedness changes the weights alone
    assert read(task=1)["train"] != read(task=2)["train"] != read(task=2, seed=1)["train"]
    named = datasets.read_dataset("d", {**ENTRY, "options": {"task": 1}, "splits": {"train": "test"}}, 0)
    assert named.splits["train"][0].fields == first.splits["test"][0].fields
    assert datasets.read_dataset("d", {**ENTRY, "options": {"task": 1, "rho": 0.9}}, 0).fingerprint != first.fingerprint
    assert read(task=0)["train"][0].fields["words"] == ["w21", "w18", "w07", "w09", "w07"]  # of this version, for ever


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": {"kind": "texts"}}, "options.kind: .* Did you mean 'text'"),
        ({"options": {"rho": 1.5}}, "options.rho: a relatedness is 0 to 1"),
        ({"options": {"rho": "high"}}, "options.rho should be a number"),
        ({"options": {"rho": float("nan")}}, "options.rho should be a number"),
        ({"options": {"examples": {"train": "all"}}}, "options.examples should be a mapping of a string to an integer"),
        ({"options": {"examples": {"train": 0}}}, "options.examples.train: at least 1"),
        ({"splits": {"train": "trian"}}, "options.examples: has no split 'trian'; there are: train, dev, test"),
        ({"options": {"rank": 30}}, "options.rank: 30 dimensions, but there are 24 words"),
        ({"options": {"rank": 2, "kind": "text"}}, "options.rank: polarities have none"),
        ({"options": {"noise": 0.7, "kind": "text"}}, "options.noise: 0 to 0.5"),
        ({"options": {"task": -1}}, "options.task should be an integer from 0"),
        ({"path": "somewhere"}, "the reader 'synthetic' reads no files; leave out path"),
        ({"text": ("txt",), "words": ""}, "there is no field 'txt'"),
    ],
)
def test_wrong_options(change, message):
    with pytest.raises(UserError, match=f"data set 'd': .*{message}"):
        datasets.read_dataset("d", {**ENTRY, **change}, 0)
