"""Splits: slices, templates, groups that stay together, records that stand in two of them."""

import csv
import json
import os

import numpy as np
import pytest

from mtl_jax.data import datasets
from mtl_jax.data.datasets import overlaps
from mtl_jax.data.record_sequences import ReadItems
from mtl_jax.data.records import Note, Record
from mtl_jax.data.splits import duplicates, groups, slices, subsets
from mtl_jax.errors import UserError

FUZZ = int(os.environ.get("FUZZ", 100))


def write(folder, name, count, label="text"):
    with open(folder / name, "w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *((f"{label} {i}", i % 2) for i in range(count))])


def read(folder, seed=0, **entry):
    return datasets.read_dataset("d", {"reader": "csv", "path": str(folder), "text": ("text",), **entry}, seed)


def texts(data, split, name="text"):
    return [record.fields[name] for record in data.splits[split]]


@pytest.mark.parametrize(
    ("part", "wanted"),
    [
        ("a.csv[:-3]", range(7)),
        ("a.csv[-3:]", range(7, 10)),
        ("a.csv[2:4]", range(2, 4)),
        ("a.csv[:80%]", range(8)),
        ("a.csv[80%:]", range(8, 10)),
        ("a.csv[-20%:]", range(8, 10)),
        ("a.csv[20%:-20%]", range(2, 8)),
        ("a.csv[:]", range(10)),
        ("[ab].csv[:12]", [*range(10), 0, 1]),
        (["b.csv[:1]", "a.csv[-1:]"], [0, 9]),
    ],
)
def test_slices(tmp_path, part, wanted):
    write(tmp_path, "a.csv", 10)
    write(tmp_path, "b.csv", 5)
    assert texts(read(tmp_path, splits={"train": part}), "train") == [f"text {i}" for i in wanted]


def test_the_last_200_as_dev_and_slices_of_the_path_itself(tmp_path):
    write(tmp_path, "train.csv", 1000)
    data = read(tmp_path, splits={"train": "train.csv[:-200]", "dev": "train.csv[-200:]"})
    assert texts(data, "train") == [f"text {i}" for i in range(800)]
    assert texts(data, "dev") == [f"text {i}" for i in range(800, 1000)] and data.notes == []
    assert read(tmp_path / "train.csv", splits={"train": "[:80%]", "dev": "[80%:]"}).splits == data.splits
    other = read(tmp_path, splits={"train": "train.csv[:-100]", "dev": "train.csv[-100:]"})
    assert other.fingerprint != data.fingerprint


def test_slices_of_keys(tmp_path):
    items = {"train": [[f"t{i}", "a"] for i in range(5)], "train[1:2]": [["literal", "a"]]}
    (tmp_path / "all.json").write_text(json.dumps(items))
    entry = {"reader": "json_splits", "path": str(tmp_path / "all.json"), "text": ("text",)}
    splits = {"train": "train[:-1]", "dev": "train[-1:]", "test": "train[1:2]"}
    data = datasets.read_dataset("d", {**entry, "splits": splits}, 0)
    assert [texts(data, split) for split in data.splits] == [["t0", "t1", "t2", "t3"], ["t4"], ["literal"]]
    with pytest.raises(UserError, match=r"no split 'trian'.*Did you mean 'train'"):
        datasets.read_dataset("d", {**entry, "splits": {"train": "trian[:-1]"}}, 0)


def test_the_records_of_a_value_in_a_field(tmp_path):
    """Official splits in a column of one file."""
    rows = [(f"text {i}", i % 2, ("train", "dev", "test")[i % 3]) for i in range(12)]
    with open(tmp_path / "all.csv", "w", newline="") as file:
        csv.writer(file).writerows([("text", "label", "fold"), *rows])
    data = read(tmp_path, splits={split: f"all.csv[fold={split}]" for split in ("train", "dev", "test")})
    assert [texts(data, split) for split in data.splits] == [[f"text {i}" for i in range(n, 12, 3)] for n in range(3)]
    assert data.notes == []
    own = read(tmp_path / "all.csv", splits={"train": "[fold=train][:-1]", "dev": "[fold=train][-1:]"})
    assert texts(own, "train") == ["text 0", "text 3", "text 6"] and texts(own, "dev") == ["text 9"]
    again = read(tmp_path / "{split}.csv", splits={"train": "all[fold=train][:1]", "dev": "all[fold=dev]"})
    assert texts(again, "train") == ["text 0"] and len(again.splits["dev"]) == 4
    with pytest.raises(UserError, match=r"no record has 'val'; there are: 'train' \(4\), 'dev' \(4\), 'test' \(4\)"):
        read(tmp_path, splits={"train": "all.csv[fold=val]"})
    with pytest.raises(UserError, match=r"no record has a field 'flod'; .* Did you mean 'fold'"):
        read(tmp_path, splits={"train": "all.csv[flod=train]"})


def test_a_file_of_that_name_is_no_slice(tmp_path):
    write(tmp_path, "a.csv", 10)
    write(tmp_path, "a.csv[:3]", 1, "literal")
    assert texts(read(tmp_path, splits={"train": "a.csv[:3]"}), "train") == ["literal 0"]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("a.csv[:11]", r"'a\.csv\[:11\]': there are 10 records, fewer than 11"),
        ("a.csv[-11:]", "there are 10 records, fewer than 11"),
        ("a.csv[5:5]", "the slice is empty, there are 10 records"),
        ("a.csv[:x]", r"a slice is \[from:to\] in whole numbers or percent"),
        ("a.csv[:101%]", "whole numbers or percent"),
        ("b.csv[:5]", "no such file or folder"),
    ],
)
def test_wrong_slices(tmp_path, part, message):
    write(tmp_path, "a.csv", 10)
    with pytest.raises(UserError, match=message):
        read(tmp_path, splits={"train": part})


def test_complementary_slices_lose_nothing():
    rng = np.random.default_rng(0)
    for _ in range(FUZZ):
        count = int(rng.integers(1, 60))
        records = [Record({}, "f", i) for i in range(count)]
        notes = [(at, Note("odd", "f", at)) for at in sorted(rng.integers(0, count + 1, 3).tolist())]
        number, percent = int(rng.integers(1, count + 1)), int(rng.integers(0, 101))
        for bound in (str(number), f"-{number}", f"{percent}%", f"-{percent}%"):
            found_records, found_notes = [], []
            for part in (f"a[:{bound}]", f"a[{bound}:]"):
                try:
                    taken = slices.take_part(ReadItems(records, notes), slices.parse_part(part)[1], part)
                    found_notes += [(len(found_records) + at, note) for at, note in taken.notes]
                    found_records += taken.records
                except UserError as error:
                    assert "empty" in str(error)
            assert (found_records, found_notes) == (records, notes)


def test_a_template_names_all_splits(tmp_path):
    for name in ("train-0.csv", "train-1.csv", "validation-0.csv", "test-0.csv"):
        write(tmp_path, name, 4, name)
    data = read(tmp_path / "{split}-*.csv")
    assert {split: len(records) for split, records in data.splits.items()} == {"train": 8, "dev": 4, "test": 4}
    assert texts(data, "dev")[0] == "validation-0.csv 0"
    carved = read(tmp_path / "{split}-*.csv", splits={"train": "train[:-3]", "dev": "train[-3:]", "test": "validation"})
    assert texts(carved, "dev") == [f"train-1.csv {i}" for i in (1, 2, 3)] and len(carved.splits["train"]) == 5
    assert texts(carved, "test")[0] == "validation-0.csv 0"
    named = read(tmp_path, splits={split: "{split}-*.csv" for split in ("train", "test")})
    assert {split: len(records) for split, records in named.splits.items()} == {"train": 8, "test": 4}
    with pytest.raises(UserError, match=r"nothing matches 'train\.jsonl' or 'training\.jsonl'"):
        read(tmp_path / "{split}.jsonl")
    write(tmp_path, "{split}.csv", 2, "literal")
    assert texts(read(tmp_path / "{split}.csv"), "train") == ["literal 0", "literal 1"]


def test_a_template_of_folders(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        write(tmp_path / split, "data.csv", 3, split)
    data = read(tmp_path / "{split}" / "data.csv")
    assert texts(data, "dev") == ["val 0", "val 1", "val 2"] and set(data.splits) == {"train", "dev"}


def squad(articles=6, paragraphs=4, questions=5):
    return {
        "data": [
            {
                "title": f"t{a}",
                "paragraphs": [
                    {
                        "context": f"context {a} {p}",
                        "qas": [
                            {
                                "id": f"{a}{p}{q}",
                                "question": f"what {a} {p} {q}?",
                                "answers": [{"text": "c", "answer_start": 0}],
                            }
                            for q in range(questions)
                        ],
                    }
                    for p in range(paragraphs)
                ],
            }
            for a in range(articles)
        ]
    }


def test_no_context_of_squad_stands_in_two_splits(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps(squad()))
    entry = {"reader": "squad", "path": str(tmp_path / "train.json"), "text": ("question", "context")}
    data = datasets.read_dataset("d", {**entry, "dev_fraction": 0.2, "test_fraction": 0.1}, 0)
    contexts = [set(texts(data, split, "context")) for split in data.splits]
    assert [len(actual) for actual in contexts] == [17, 5, 2]  # 24 contexts of 5 questions; of 120: 24 and 12 wanted
    assert len(set.union(*contexts)) == sum(map(len, contexts)) == 24
    assert sum(map(len, data.splits.values())) == 120
    assert [note for note in data.notes if "all records of a context in one split (dev: 25 records, test: 10" in note]
    assert texts(datasets.read_dataset("d", {**entry, "test_fraction": 0.1}, 0), "test", "id") == texts(
        data, "test", "id"
    )
    by_title = datasets.read_dataset("d", {**entry, "dev_fraction": 0.2, "group_by": "title"}, 0)
    assert not set(texts(by_title, "train", "title")) & set(texts(by_title, "dev", "title"))
    single = datasets.read_dataset("d", {**entry, "dev_fraction": 0.2, "group_by": ""}, 0)
    assert len(single.splits["dev"]) == 24
    notes = "24 of 24 records have a 'context' that is also in train (group_by='context'"
    assert [note for note in single.notes if notes in note]
    sliced = datasets.read_dataset("d", {**entry, "splits": {"train": "[:-7]", "dev": "[-7:]"}}, 0)
    assert [note for note in sliced.notes if note == "dev: 2 of 7 records share a context with records of train"]
    (tmp_path / "train.json").write_text(json.dumps(squad(1, 1)))
    with pytest.raises(UserError, match=r"5 records of train in 1 groups are too few.*one context; group=\"\" draws"):
        datasets.read_dataset("d", {**entry, "dev_fraction": 0.2}, 0)


def test_a_field_of_the_user_keeps_records_together(tmp_path):
    rows = [{"text": f"r {i}", "by": f"author {i % 20}" if i % 10 else None} for i in range(200)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {"reader": "jsonl", "path": str(tmp_path / "a.jsonl"), "text": ("text",), "dev_fraction": 0.3}
    data = datasets.read_dataset("d", {**entry, "group_by": "by"}, 0)
    assert not (set(texts(data, "train", "by")) & set(texts(data, "dev", "by"))) - {None}
    assert None in texts(data, "train", "by") and None in texts(data, "dev", "by")
    assert sum(map(len, data.splits.values())) == 200 and abs(len(data.splits["dev"]) - 60) <= 5
    assert data.fingerprint != datasets.read_dataset("d", entry, 0).fingerprint
    with pytest.raises(
        UserError, match=r"group_by: no record has a field 'bye'; fields: by, file, text\. Did you mean"
    ):
        datasets.read_dataset("d", {**entry, "group_by": "bye"}, 0)


CONLLU = "# sent_id = {id}\n1\tyes{n}\t_\tX\t_\t_\t0\troot\t_\t_\n\n"


def test_documents_of_conllu_conll_and_dialogues_stay_together(tmp_path):
    def disjoint(reader, field, fields, **more):
        entry = {"reader": reader, "path": str(tmp_path / "a"), "dev_fraction": 0.25, **fields, **more}
        data = datasets.read_dataset("d", entry, 0)
        sides = [set(texts(data, split, field)) for split in ("train", "dev")]
        assert not sides[0] & sides[1] and sum(map(len, data.splits.values())) == 60, reader
        return data

    words = {"words": "words"}
    for begin in ("# newdoc id = d{}\n", "# newdoc\n"):
        blocks = [(begin.format(n // 6) if n % 6 == 0 else "") + CONLLU.format(id=n, n=n) for n in range(60)]
        (tmp_path / "a").write_text("".join(blocks))
        disjoint("conllu", "document", words)
        disjoint("derived", "document", words, options={"way": "reorder"})
    (tmp_path / "a").write_text("".join(CONLLU.format(id=f"web-a{n // 6}-00{n % 6}", n=n) for n in range(60)))
    data = datasets.read_dataset(
        "d", {"reader": "conllu", "path": str(tmp_path / "a"), **words, "dev_fraction": 0.25}, 0
    )
    documents = [{name.rpartition("-")[0] for name in texts(data, split, "sent_id")} for split in ("train", "dev")]
    assert not documents[0] & documents[1]
    (tmp_path / "a").write_text("".join(CONLLU.format(id=f"train-s{n}", n=n) for n in range(60)))  # one for all: no use
    data = datasets.read_dataset(
        "d", {"reader": "conllu", "path": str(tmp_path / "a"), **words, "dev_fraction": 0.25}, 0
    )
    assert len(data.splits["dev"]) == 15 and "one by one" in data.notes[0]
    blocks = [("-DOCSTART- O\n\n" if n % 6 == 0 else "") + f"w{n} O\n\n" for n in range(60)]
    (tmp_path / "a").write_text("".join(blocks))
    disjoint("conll", "document", words)
    lines = [json.dumps({"turns": [f"{n} {turn}" for turn in range(7)], "id": n}) + "\n" for n in range(10)]
    (tmp_path / "a").write_text("".join(lines))
    disjoint("dialogue", "id", {"text": ("context",)})
    (tmp_path / "b").mkdir()
    for n in range(10):
        (tmp_path / "b" / f"d{n}.txt").write_text("".join(f"line {n} {i}\n" for i in range(6)))
    (tmp_path / "a").unlink()
    (tmp_path / "b").rename(tmp_path / "a")
    disjoint("brat", "document", words)


def test_the_carving_of_single_records_is_as_it_was():
    """Of this version for ever, with or without groups of one record each."""
    for keys in (None, list(range(1000))):
        parts = subsets.carve_random(1000, {"dev": 0.003, "test": 0.002}, "d", 0, keys)
        assert parts["test"].tolist() == [528, 726] and parts["dev"].tolist() == [52, 213, 255]
        assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(1000))


def test_groups_are_never_cut():
    rng = np.random.default_rng(1)
    for trial in range(FUZZ):
        count = int(rng.integers(2, 80))
        keys = [None if rng.random() < 0.2 else int(key) for key in rng.integers(0, rng.integers(1, count + 1), count)]
        shares = {"dev": float(rng.choice([0.0, 0.1, 0.5])), "test": float(rng.choice([0.1, 0.3]))}
        try:
            parts = subsets.carve_random(count, shares, "d", trial, keys)
        except UserError as error:
            assert "too few" in str(error) or "too large" in str(error)
            continue
        assert sorted(i for part in parts.values() for i in part) == list(range(count)) and all(
            map(len, parts.values())
        )
        own = {split: {keys[i] for i in part.tolist()} - {None} for split, part in parts.items()}
        assert sum(map(len, own.values())) == len(set().union(*own.values()))


def test_groups_of_columns_and_of_one_value():
    records = [Record({"doc": ["a", "a", "a"]}, "f", 1), Record({"doc": ["a"]}, "f", 2), Record({"doc": []}, "f", 3)]
    assert groups.find_groups({"train": records}, "doc", "conll", {}).keys["train"] == ["a", "a", None]


def test_the_same_file_or_records_in_two_splits(tmp_path):
    write(tmp_path, "a.csv", 10)
    data = read(tmp_path, splits={"train": "a.csv", "test": "a.csv"})
    assert "test: 10 of 10 records are also records of train, from the same place" in data.notes[0]
    data = read(tmp_path, splits={"train": "a.csv[:8]", "dev": "a.csv[6:]"})
    assert "dev: 2 of 4 records are also records of train" in data.notes[0] and "a.csv:8" in data.notes[0]
    (tmp_path / "b.csv").write_bytes((tmp_path / "a.csv").read_bytes())
    data = read(tmp_path, splits={"train": "a.csv", "test": "b.csv"})
    assert data.notes == [
        'texts that are in two splits: 10 of 10 of test in train (drop_duplicates="train" takes '
        'them out of train, "test" out of test)'
    ]


def test_duplicates_are_counted_and_dropped_from_the_split_that_is_named(tmp_path):
    parts = {"train": ["a", "b", "b", "x", " x", "y"], "dev": ["c", "b", "z"], "test": ["x", "z", "w"]}
    for split, values in parts.items():
        (tmp_path / f"{split}.csv").write_text("text\n" + "".join(f'"{value}"\n' for value in values))
    entry = {"splits": {split: f"{split}.csv" for split in parts}}
    data = read(tmp_path, **entry)
    assert data.notes == [
        "texts that are in two splits: 1 of 3 of dev in train, 1 of 3 of test in train, 1 of 3 of test in dev "
        '(drop_duplicates="train" takes them out of train, "test" out of test)',
        "records that repeat the text of an earlier one of their split: 2 of 6 of train",
    ]
    wanted = {"train": [["a", "y"], ["c", "b"], ["x", "z", "w"]], "test": [parts["train"], ["c", "z"], ["w"]]}
    for where, left in wanted.items():
        data = read(tmp_path, **entry, drop_duplicates=where)
        assert [texts(data, split) for split in parts] == left
        assert not [note for note in data.notes if "are in two splits" in note]
        lost = sum(int(note.split()[1]) for note in data.notes if "removed" in note)
        assert lost + sum(map(len, data.splits.values())) == 12
    with pytest.raises(UserError, match=r'drop_duplicates has to be .*"train" or "test".*True'):
        read(tmp_path, **entry, drop_duplicates=True)


def test_texts_are_told_apart_by_their_parts():
    assert duplicates.text_digest(("a", "b")) != duplicates.text_digest(("ab", "")) != duplicates.text_digest(("ab",))


def test_fdu_mtl_has_539_test_rows_in_train(data_dir):
    folder = data_dir / "fdu_mtl"
    total, rows = 0, 0
    for file in sorted(folder.glob("*.task.train")):
        name = file.name.removesuffix(".task.train")
        entry = {"splits": {"train": f"{name}.task.train", "test": f"{name}.task.test"}, "encoding": "latin-1"}
        entry |= {"reader": "lines", "options": {"pattern": r"(?P<label>[01])\t(?P<text>.*)", "empty": "drop"}}
        splits = read(folder, **entry).splits
        pairs, _ = duplicates.count_duplicates(
            {split: overlaps.content_keys(records, {}, ("text",), "") for split, records in splits.items()}
        )
        total, rows = total + pairs.get(("test", "train"), 0), rows + len(splits["test"])
    assert (total, rows) == (539, 6400)
