"""`filter`: one file, several data sets."""

import json

import pytest
from ml_collections import ConfigDict

from mtl_jax.data import datasets
from mtl_jax.errors import UserError

GENRES = ("answers", "email", "newsgroup", "reviews", "weblog")


@pytest.fixture
def entry(tmp_path):
    for split, count in (("train", 60), ("test", 12)):
        rows = [
            {"text": f"{split} {i}", "domain": "abc"[i % 3], "stars": i % 4, "meta": {"id": i % 2}}
            for i in range(count)
        ]
        rows[0].pop("stars")  # a record without the field
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = {"train": "train.jsonl", "test": "test.jsonl"}
    return {"reader": "jsonl", "path": str(tmp_path), "splits": splits, "text": ("text",)}


def numbers(data, split):
    return [int(record.fields["text"].split()[1]) for record in data.splits[split]]


def test_records_are_chosen_before_they_are_carved_and_limited(entry):
    chosen = {**entry, "filter": {"domain": "b", "stars": (1, "2")}}
    right = [i for i in range(60) if i % 3 == 1 and i % 4 in (1, 2)]
    data = datasets.read_dataset("d", ConfigDict(chosen), 0)
    assert numbers(data, "train") == right
    assert numbers(data, "test") == [i for i in range(12) if i in right]
    assert sorted(data.notes) == ["test: 2 of 12 records (filter)", "train: 10 of 60 records (filter)"]
    data = datasets.read_dataset("d", {**chosen, "dev_fraction": 0.2, "max_examples": {"train": 5}}, 0)
    assert data.available == {"train": 8, "test": 2, "dev": 2} and len(data.splits["train"]) == 5
    assert set(numbers(data, "train") + numbers(data, "dev")) < set(right)


def test_it_is_part_of_the_fingerprint_and_reaches_inside_objects(entry):
    one, other = ({**entry, "filter": {"meta.id": value}} for value in (0, 1))
    assert numbers(datasets.read_dataset("d", other, 0), "test") == [1, 3, 5, 7, 9, 11]
    prints = {datasets.read_dataset("d", e, 0).fingerprint for e in (entry, one, other, {**entry, "filter": {}})}
    assert len(prints) == 3


def test_an_empty_text_of_a_record_left_out_does_not_matter(entry, tmp_path):
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"text": "", "domain": "other", "stars": 0}\n')
    assert len(datasets.read_dataset("d", {**entry, "filter": {"domain": "a"}}, 0).splits["train"]) == 20
    with pytest.raises(UserError, match="is empty"):
        datasets.read_dataset("d", entry, 0)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"domian": "a"}, r"filter.domian: no record has such a field; fields: domain, file, meta, stars, text"),
        ({"domain": "d"}, r"filter.domain: no record of train has 'd'; there are: 'a' \(20\), 'b' \(20\), 'c' \(20\)"),
        ({"domain": "b", "stars": ("5", 6)}, "filter.stars: no record of train has '5' or '6'; there are: .*'1' "),
        ({"domain": ()}, "filter.domain: has to be a value or a tuple of values"),
        ({"domain": {"x": 1}}, "filter.domain: has to be a value or a tuple of values"),
        ("domain", "filter has to be {} or such as"),
    ],
)
def test_wrong_conditions(entry, where, message):
    with pytest.raises(UserError, match=f"data set 'd': .*{message}"):
        datasets.read_dataset("d", {**entry, "filter": where}, 0)


def test_genres_of_ewt(data_dir):
    """Counted by hand from the lines `# sent_id = genre-...`."""
    lines = (data_dir / "ewt" / "en_ewt-ud-dev.conllu").read_text(encoding="utf-8").splitlines()
    ids = [line.split(" = ")[1] for line in lines if line.startswith("# sent_id")]
    entry = {
        "reader": "conllu",
        "path": str(data_dir / "ewt"),
        "words": "words",
        "splits": {"train": "*dev*.conllu"},
        "options": {"genre": "([a-z]+)-"},
    }
    actual = {
        genre: datasets.read_dataset("d", {**entry, "filter": {"genre": genre}}, 0).splits["train"] for genre in GENRES
    }
    assert {g: [r.fields["sent_id"] for r in records] for g, records in actual.items()} == {
        g: [i for i in ids if i.startswith(g)] for g in GENRES
    }
    assert sum(map(len, actual.values())) == 2001
    with pytest.raises(UserError, match=r"has 'blog'; there are: 'reviews' \(554\).* Did you mean 'weblog'"):
        datasets.read_dataset("d", {**entry, "filter": {"genre": "blog"}}, 0)


def test_domains_of_clinc150(data_dir):
    domains = json.loads((data_dir / "clinc150" / "domains.json").read_text())
    entry = {
        "reader": "json_splits",
        "path": str(data_dir / "clinc150" / "data_full.json"),
        "text": ("text",),
        "splits": {"train": "train", "dev": "val", "test": "test"},
        "max_examples": {"train": 150},
    }
    entry["filter"] = {"label": tuple(domains["banking"])}
    data = datasets.read_dataset("banking", entry, 0)
    assert data.available == {"train": 15 * 100, "dev": 15 * 20, "test": 15 * 30}
    assert {r.fields["label"] for r in data.splits["test"]} == set(domains["banking"])
