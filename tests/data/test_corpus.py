import json

import numpy as np
import pytest

from mtl_jax.data import datasets
from mtl_jax.data.corpus import corpus_for_prediction, load
from mtl_jax.data.files import array_cache
from mtl_jax.data.labels.label_spec import LabelSpec
from mtl_jax.data.packing import fill_ratio
from mtl_jax.data.packing.unpacking import gather_words
from mtl_jax.data.records import Record
from mtl_jax.data.sampler import BatchSampler, Mixing
from mtl_jax.data.tokenizers import WordVocabulary
from mtl_jax.errors import UserError


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def small(name, entry, seed):
    """Two data sets made by hand."""
    if name == "talk":
        train = [
            {"w": ["book", "a", "flight"], "intent": "book", "slots": ["O", "O", "B-x"]},
            {"w": ["hello"], "intent": "greet", "slots": None},
            {"w": ["a", "b", "c", "d", "e", "f", "g", "h", "i", "k"], "intent": "greet", "slots": list("OOOOOOOOOO")},
        ]
        dev = [{"w": ["book"], "intent": "greet", "slots": ["O"]}] * 30 + [
            {"w": ["x"], "intent": "new", "slots": ["O"]}
        ]
        splits = {"train": train, "dev": dev}
    else:
        splits = {
            "train": [{"a": "one two three", "b": "four", "score": "1.5"}, {"a": "x " * 50, "b": "y", "score": 2}]
        }
    records = {s: [Record(f, f"{name}.{s}", n) for n, f in enumerate(actual, 1)] for s, actual in splits.items()}
    available = {split: len(part) for split, part in records.items()}
    return datasets.ReadData(records, available, ["train: read"], f"{name}-fingerprint")


ENTRIES = {"talk": {"words": "w"}, "pairs": {"text": ("a", "b")}}
SPECS = [
    LabelSpec("intent", "talk", "intent"),
    LabelSpec("slots", "talk", "slots", "word"),
    LabelSpec("score", "pairs", "score", kind="real"),
]


def make(specs=SPECS, tokenizer=None, **kwargs):
    tokenizer = tokenizer or WordVocabulary()
    return load(ENTRIES, specs, tokenizer, row_length=8, read=small, **kwargs)


def test_small_corpus():
    corpus = make()
    assert corpus.layout.datasets == ("talk", "pairs") and corpus.layout.tasks == ("intent", "slots", "score")
    assert corpus.layout.dataset_of == (0, 0, 1) and corpus.layout.candidates == ((0,), (1,))
    assert corpus.vocabularies["intent"].all_names == ("book", "greet", "new")
    talk = corpus.splits["talk"]["train"].encoded
    assert sorted(talk.record.tolist()) == [0, 1, 2, 2]  # ten words split over rows of eight
    assert talk.labels["slots"].at_record(2)[0].tolist() == [0] * 10 and talk.labels["slots"].at_record(1)[
        1
    ].tolist() == [False]
    assert corpus.splits["pairs"]["train"].encoded.lengths[[0, 1]].tolist() in ([5, 8], [8, 5])  # one [SEP], truncated
    statistics = corpus.statistics
    assert statistics["tasks"]["intent"]["dev"] == {
        "known": 31,
        "missing": 0,
        "counts": {"book": 0, "greet": 30, "new": 1},
    }
    assert statistics["tasks"]["score"]["train"]["mean"] == 1.75
    assert statistics["datasets"]["talk"]["train"]["examples"] == 4
    json.dumps(statistics)
    notes = "\n".join(corpus.notes)
    for part in (
        "talk: train: read",
        "1 labels of dev (3.23%)",
        "talk/train: 1 of 3",
        "split, 1 more",
        "1 of 2",
        "real tokens",
    ):
        assert part in notes
    batch = BatchSampler({n: r["train"] for n, r in corpus.rows.items()}, corpus.layout, 0, 2).batch(0)
    assert batch.tokens.shape == (2, 2, 8) and batch.labels["score"]["value"].dtype == np.float32


def test_leaving_a_task_out_changes_nothing_for_the_others():
    whole = make()
    for tasks in (["intent"], ["intent", "slots"]):
        part = make(tasks=tasks)
        assert part.layout.datasets == ("talk",) and part.layout.tasks == tuple(tasks)
        assert part.tokenizer.vocabulary == whole.tokenizer.vocabulary
        for split, rows in part.rows["talk"].items():
            for name in set(rows._fields) - {"labels", "hidden"}:
                np.testing.assert_array_equal(getattr(rows, name), getattr(whole.rows["talk"][split], name))
            for task, named in rows.labels.items():
                for name, array in named.items():
                    np.testing.assert_array_equal(array, whole.rows["talk"][split].labels[task][name])
        assert part.fingerprint != whole.fingerprint


def test_fingerprint_follows_what_is_trained_on():
    corpus = make()
    assert make().fingerprint == corpus.fingerprint
    others = [make(pack=False), make(max_length=7), make(tokenizer=WordVocabulary(max_size=3))]
    assert len({corpus.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_cache_hit_equals_miss_and_damage_is_mended(cache_folder, caplog):
    first = make()
    files = sorted(cache_folder.rglob("*.npz"))
    assert len(files) == 3 and not list(cache_folder.rglob("*.tmp"))
    before = {file: (file.stat().st_ino, file.read_bytes()) for file in files}
    assert make().fingerprint == first.fingerprint
    assert {file: file.stat().st_ino for file in files} == {file: number for file, (number, _) in before.items()}
    for damage in (b"", b"no archive", "flip", "cut"):
        for file, (_, content) in before.items():
            middle = len(content) // 2
            inside = content.index(b"NUMPY") + 20  # of an array: some bytes of an archive's own headers mean nothing
            flipped = content[:inside] + bytes([content[inside] ^ 1]) + content[inside + 1 :]
            file.write_bytes({"flip": flipped, "cut": content[:middle]}.get(damage, damage))
        assert make().fingerprint == first.fingerprint
        assert "damaged cache file" in caplog.text
        assert {file: file.read_bytes() for file in files} == {file: content for file, (_, content) in before.items()}
        caplog.clear()


def test_wrong_contents_of_a_sound_archive_are_noticed(cache_folder):
    made = []

    def numbers():
        made.append(1)
        return {"a": np.arange(3)}

    array_cache.load_or_make({"x": 1}, numbers)
    (file,) = cache_folder.rglob("*.npz")
    np.savez(file, a=np.arange(4), __sha256__=np.asarray(array_cache.checksum({"a": np.arange(3)})))
    np.testing.assert_array_equal(array_cache.load_or_make({"x": 1}, numbers)["a"], np.arange(3))
    array_cache.load_or_make({"x": 2}, numbers)
    assert len(made) == 3


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "file"))
    make()
    assert "cannot write to the cache" in caplog.text


def test_cache_folder(monkeypatch, tmp_path):
    assert array_cache.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("MTL_JAX_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert array_cache.cache_folder() == tmp_path / "mtl_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert array_cache.cache_folder().parts[-2:] == (".cache", "mtl_jax")


@pytest.mark.parametrize(
    "specs, kwargs, message",
    [
        ([SPECS[0], SPECS[0]], {}, "two tasks are named 'intent'"),
        ([LabelSpec("t", "tolk", "y")], {}, "task t: there is no data set 'tolk'.*Did you mean 'talk'"),
        (SPECS, {"tasks": ["intnt"]}, "there is no task 'intnt'.*Did you mean 'intent'"),
        (SPECS, {"tasks": []}, "no task to train"),
        (SPECS, {"overflow": "cut"}, "overflow: 'cut'"),
        (SPECS, {"overflow": "error"}, "talk.train:3: 10 tokens"),
        (SPECS, {"max_length": 9}, "max_length 9"),
        ([LabelSpec("t", "pairs", "score", "word")], {}, "plain text; name the field"),
        ([LabelSpec("t", "talk", "intend")], {}, "no field 'intend'.*Did you mean 'intent'"),
        (SPECS, {"max_unseen_labels": 0.03}, "max_unseen_labels"),
    ],
)
def test_bad_input(specs, kwargs, message):
    with pytest.raises(UserError, match=message):
        make(specs, **kwargs)


def test_some_records_keep_their_labels():
    def many(name, entry, seed):
        records = [
            {"w": ["a"] * (1 + n % 3), "c": f"c{n % 4}" if n % 10 else "", "t": ["O"] * (1 + n % 3)} for n in range(200)
        ]
        splits = {s: [Record(f, s, n) for n, f in enumerate(records)] for s in ("train", "dev")}
        return datasets.ReadData(splits, {s: 200 for s in splits}, [], "fingerprint")

    def known(labelled, seed=0, level="text", field="c"):
        specs = [LabelSpec("few", "d", field, level, labelled=labelled), LabelSpec("all", "d", "c")]
        corpus = load({"d": {"words": "w"}}, specs, WordVocabulary(), row_length=8, read=many, seed=seed)
        gold = {split: actual.encoded.labels for split, actual in corpus.splits["d"].items()}
        assert len(corpus.vocabularies["all"].names) == 4
        assert gold["dev"]["all"].known.sum() == gold["train"]["all"].known.sum() == 180
        assert corpus.rows["d"]["train"].labels["few"]["mask"].sum() == gold["train"]["few"].known.sum()
        assert not gold["train"]["few"].value[~gold["train"]["few"].known].any()
        return {m for m in range(200) if gold["train"]["few"].at_record(m)[1].any()}, corpus

    few, corpus = known(20)
    assert len(few) == 20 and not any(m % 10 == 0 for m in few) and corpus.vocabularies["few"].names[3] == "c3"
    assert corpus.statistics["tasks"]["few"]["dev"]["known"] == 180
    assert few < known(50)[0] and few != known(20, seed=1)[0]  # nested, and drawn by seed
    assert len(known(1000)[0]) == len(known(0)[0]) == 180
    words, corpus = known(7, level="word", field="t")
    assert len(words) == 7 and corpus.statistics["tasks"]["few"]["train"]["known"] == sum(1 + m % 3 for m in words)


def test_new_records_are_packed_without_their_labels():
    corpus = make()
    records = [
        Record({"w": ["book", "the", "flight"], "intent": "never seen"}, "input", 1),
        Record({"w": ["a"]}, "input", 2),
    ]
    rows, split = corpus_for_prediction(
        records, ENTRIES["talk"], SPECS[:2], corpus.vocabularies, corpus.tokenizer, row_length=8
    )
    assert rows.length.sum() == 4 and split.records is records
    slots = rows.labels["slots"]
    assert (slots["segment"] > 0).sum() == 4 and not slots["mask"].any() and not rows.labels["intent"]["mask"].any()
    actual = gather_words(split.encoded, rows.example, slots, slots["token"])
    assert [len(words) for words in actual] == [3, 1]


def test_snips(data_dir):
    entry = {
        "reader": "parallel",
        "path": str(data_dir / "snips"),
        "words": "words",
        "splits": {"train": "train", "dev": "valid", "test": "test"},
    }
    specs = [LabelSpec("intent", "snips", "intent"), LabelSpec("slots", "snips", "slots", "word")]
    corpus = load({"snips": entry}, specs, WordVocabulary(), row_length=128, mixing=Mixing("size"))
    assert len(corpus.vocabularies["intent"].names) == 7 and len(corpus.vocabularies["slots"].names) == 72
    assert corpus.vocabularies["slots"].names[0] == "O"
    assert {s: len(split.records) for s, split in corpus.splits["snips"].items()} == {
        "train": 13084,
        "dev": 700,
        "test": 700,
    }
    for rows in corpus.rows["snips"].values():
        assert fill_ratio(rows) >= 0.9
    rows, (records, encoded, _) = corpus.rows["snips"]["dev"], corpus.splits["snips"]["dev"]
    names = np.asarray(corpus.vocabularies["slots"].all_names)
    actual = gather_words(encoded, rows.example, rows.labels["slots"], rows.labels["slots"]["value"])
    assert [names[tags].tolist() for tags in actual] == [record.fields["slots"] for record in records]


def test_semantic_roles(data_dir):
    entry = {
        "reader": "srl",
        "path": str(data_dir / "ewt_srl"),
        "words": "words",
        "splits": {"train": "train.conll", "dev": "dev.conll", "test": "test.conll"},
    }
    specs = [LabelSpec("pos", "ewt", "upos", "word"), LabelSpec("srl", "ewt", "roles", "predicate")]
    corpus = load({"ewt": entry}, specs, WordVocabulary(), row_length=128)
    vocabulary = corpus.vocabularies["srl"]
    assert vocabulary.names[0] == "O" and "I-ARGM-MOD" in vocabulary.extra
    names = np.asarray(vocabulary.all_names)
    for split in ("dev", "test"):
        rows, (records, encoded, _) = corpus.rows["ewt"][split], corpus.splits["ewt"][split]
        assert fill_ratio(rows) >= 0.9
        labels = rows.labels["srl"]
        actual = gather_words(encoded, rows.example, labels, labels["value"])
        assert [names[roles].tolist() for roles in actual] == [record.fields["roles"] for record in records]
        unseen = labels["value"] >= len(vocabulary.names)
        assert unseen.sum() == {"dev": 1, "test": 2}[split] and not labels["mask"][unseen].any()
    train = corpus.splits["ewt"]["train"]
    assert any("copies of sentences" in note for note in corpus.notes)
    mask = corpus.rows["ewt"]["train"].labels["srl"]["mask"]
    total = sum(len(r.fields["words"]) * len(r.fields["predicates"]) for r in train.records)
    # Two sentences are longer than a row: only their labels in another example than the predicate are left out.
    assert total * 0.995 < mask.sum() < total
