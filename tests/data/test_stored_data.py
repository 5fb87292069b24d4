"""Data sets on disk against the same data sets in memory."""

import json
import random

import numpy as np
import pytest

from mtl_jax.data import corpus, record_sequences
from mtl_jax.data.files import array_shards, workers
from mtl_jax.data.labels.label_spec import LabelSpec
from mtl_jax.data.records import Note, Record
from mtl_jax.data.tokenizers import WordVocabulary
from mtl_jax.errors import UserError

SPECS = [
    LabelSpec("class", "a", "label"),
    LabelSpec("number", "a", "score", kind="real"),
    LabelSpec("set", "a", "sets", kind="set"),
    LabelSpec("soft", "a", "soft", classes=("p", "q")),
    LabelSpec("few", "a", "label", labelled=40),
    LabelSpec("tags", "b", "tags", level="word"),
    LabelSpec("roles", "b", "roles", level="predicate"),
    LabelSpec("choice", "c", "answer", level="choice", kind="choice"),
    LabelSpec("hidden", "a", "", level="token", kind="hidden"),
]


def fields(rng: random.Random) -> dict:
    words = [rng.choice("abcdefgh") * rng.randint(1, 3) for _ in range(rng.randint(1, 9))]
    predicates = sorted(rng.sample(range(len(words)), rng.randint(0, min(3, len(words)))))
    share = rng.random()
    return {
        "text": " ".join(words) + rng.choice(["", " é", "!"]),
        "words": words,
        "label": rng.choice(["x", "y", None, ""]),
        "score": rng.choice([None, round(rng.random(), 3)]),
        "sets": rng.choice([["u"], ["u", "v"], [], None]),
        "soft": rng.choice([[share, 1 - share], [1.0, 0.0], None]),
        "tags": [rng.choice(["O", "B-X", "I-X", "B-Y"]) for _ in words],
        "predicates": predicates,
        "roles": [[rng.choice(["O", "B-A0", "I-A0"]) for _ in words] for _ in predicates],
        "choices": [rng.choice("abc") for _ in range(rng.randint(2, 4))],
        "answer": rng.choice([0, 1]),
        "group": rng.randint(0, 60),
    }


@pytest.fixture
def entries(tmp_path, monkeypatch):
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    rng = random.Random(0)
    for split, count in (("train", 300), ("dev", 90), ("test", 30)):
        lines = [json.dumps(fields(rng)) + "\n" for _ in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("".join(lines + lines[:3]))
    common = {"reader": "jsonl", "path": str(tmp_path)}
    files = {split: f"{split}.jsonl" for split in ("train", "dev", "test")}
    yield {
        "a": common
        | {"splits": files, "text": ("text",), "drop_duplicates": "train", "filter": {"label": ("x", "y", "")}},
        "b": common
        | {"splits": {"train": ["dev.jsonl", "train.jsonl[:200]"]}, "words": "words", "dev_fraction": 0.1}
        | {"group_by": "group", "max_examples": {"train": 150}},
        "c": common | {"splits": files, "text": ("text",), "choices": ("choices",)},
    }
    workers.close()


def load(entries, **options):
    return corpus.load(entries, SPECS, WordVocabulary(extra=("[MASK]",)), row_length=48, seed=1, **options)


def test_the_corpus_is_the_same(entries, monkeypatch):
    """Also when it is read again; with one shard the examples are packed in the same way."""
    in_memory = load(entries)
    monkeypatch.setattr(array_shards, "IN_MEMORY", 20)
    for _ in range(2):
        stored = load(entries)
        assert isinstance(stored.splits["a"]["train"].records, record_sequences.StoredRecords)
        assert stored.fingerprint == in_memory.fingerprint
        assert stored.statistics == in_memory.statistics and stored.vocabularies == in_memory.vocabularies
        assert list(stored.notes) == list(in_memory.notes)
        for name, splits in in_memory.splits.items():
            for split, expected in splits.items():
                actual = stored.splits[name][split]
                assert list(actual.records) == list(expected.records)
                for field in ("texts", "words", "choices", "predicates"):
                    values = getattr(expected.inputs, field)
                    assert values is None or list(getattr(actual.inputs, field)) == values


@pytest.mark.parametrize("count", ["1", "2"])
def test_shards_and_workers_change_neither_examples_nor_labels(entries, monkeypatch, count):
    in_memory = load(entries)
    monkeypatch.setattr(array_shards, "IN_MEMORY", 20)
    monkeypatch.setattr(array_shards, "CHUNK", 32)
    monkeypatch.setenv(workers.VARIABLE, count)
    stored = load(entries)
    assert [n for n in stored.notes if "hold real" not in n] == [n for n in in_memory.notes if "hold real" not in n]
    for name, splits in in_memory.splits.items():
        for split, expected in splits.items():
            actual = stored.splits[name][split].encoded
            for task, gold in expected.encoded.labels.items():
                for array in ("value", "known", "offsets"):
                    np.testing.assert_array_equal(getattr(actual.labels[task], array), getattr(gold, array))
            assert contents(stored, name, split) == contents(in_memory, name, split)


def contents(data, name, split):
    """The tokens and the labels of every example, by record, whatever row it is in."""
    rows, encoded = data.rows[name][split], data.splits[name][split].encoded
    result = []
    for row, slot in zip(*np.nonzero(rows.example >= 0), strict=True):
        example = rows.example[row, slot]
        tokens = rows.tokens[row][rows.segment[row] == slot + 1]
        begin, end = encoded.token_offsets[example : example + 2]
        np.testing.assert_array_equal(tokens, encoded.tokens[begin:end])
        labels = []
        for spec in SPECS:
            if spec.dataset == name:
                arrays = rows.labels[spec.task]
                if "maskable" in arrays:
                    labels.append(arrays["maskable"][row][rows.segment[row] == slot + 1].tolist())
                elif spec.level == "text":
                    labels.append((arrays["value"][row, slot].tolist(), bool(arrays["mask"][row, slot])))
                else:
                    here = (arrays["slot"][row] == slot) & (arrays["segment"][row] > 0) if "slot" in arrays else [slot]
                    labels.append([arrays[n][row][here].tolist() for n in ("value", "mask")])
        result.append((int(encoded.record[example]), int(encoded.choice[example]), tokens.tolist(), labels))
    return sorted(result, key=repr)


def test_records_come_back_as_they_were(tmp_path, monkeypatch):
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(array_shards, "IN_MEMORY", 3)
    monkeypatch.setattr(array_shards, "CHUNK", 4)
    records = [
        Record(
            {"a": [1, None, {"b": "\ud800"}], "t": (1.5, True)},
            f"f{n % 3}",
            10 * n,
            range(n, n + 2) if n % 2 else (n, n + 5),
        )
        for n in range(11)
    ]
    items = [Note("first", "f", 1), *records[:5], Note("odd", "f", 9, 2, lost=1), *records[5:]]
    for _ in range(2):
        actual = record_sequences.collect(iter(items), "key")
        assert list(actual.records) == records and actual.records[-1] == records[-1]
        assert actual.notes == [(0, items[0]), (5, items[6])]
    part = actual.records[2:9]
    other = record_sequences.selected(actual.records, np.asarray([10, 0]))
    both = record_sequences.joined([part, records[:1], other], "both")
    assert list(both) == [*records[2:9], records[0], records[10], records[0]]
    names, file, line = record_sequences.places(both)
    assert [(names[f], n) for f, n in zip(file, line, strict=True)] == [(r.file, r.line) for r in both]
    with pytest.raises(UserError, match="do not go to disk"):
        record_sequences.collect([Record({"picture": np.zeros(3)}, "f", n) for n in range(5)], "pictures")


def test_errors_name_the_same_place(entries, tmp_path, monkeypatch):
    monkeypatch.setattr(array_shards, "IN_MEMORY", 20)
    monkeypatch.setattr(array_shards, "CHUNK", 32)
    lines = (tmp_path / "train.jsonl").read_text().splitlines(keepends=True)
    lines[200] = json.dumps({"text": " ", "words": ["a"]}) + "\n"
    (tmp_path / "train.jsonl").write_text("".join(lines))
    with pytest.raises(UserError, match=r"train.jsonl:201: the text 'text' is empty"):
        load({**entries, "a": {**entries["a"], "filter": {}}})
