"""How --mode=predict reads its input: by the readers of training, with the same refusals."""

import gzip
import io
import json
import re

import pytest

from mtl_jax.config import default
from mtl_jax.data.records import Note
from mtl_jax.errors import UserError
from mtl_jax.evaluation import input_files


@pytest.fixture
def run(tmp_path):
    """The data sets of a config, and the folder of its files: files of every ending, as `make` says."""

    def make(**entries):
        config = default.get_config()
        for name, entry in entries.items():
            default.add_dataset(config, name, path=str(tmp_path), **entry)
        return config.datasets

    return make


def read(datasets, file, **asked):
    """The fields of the records of a file."""
    with input_files.open_input(input_files.InputRequest(str(file), **asked), datasets) as given:
        return [item.fields for item in given.items if not isinstance(item, Note)]


CONLL = "EU B-ORG\nrejects O\n\nGerman B-MISC\ncall O\n"
REVIEWS = {"reader": "csv", "splits": {"train": "train.csv"}, "text": ("text",)}
NEWS = {"reader": "conll", "splits": {"train": "train.txt"}, "words": "words"}


@pytest.mark.parametrize(
    ("name", "content", "fields"),
    [
        ("a.jsonl", '\ufeff{"text": "a"}\n\n{"text": "b"}\n', [{"text": "a"}, {"text": "b"}]),
        ("a.json", '\ufeff[{"text": "a"},\n {"text": "b"}]', [{"text": "a"}, {"text": "b"}]),
        ("a.txt", '\ufeff{"text": "a"}\r\na text\r\n[MASK] too\n', [{"text": "a"}, {"": "a text"}, {"": "[MASK] too"}]),
        ("a", '[\n{"text": "a"}\n]\n', [{"text": "a"}]),
        ("a.csv", 'text,n\n"a, b",1\n', [{"text": "a, b", "n": "1"}]),
        ("a.tsv", 'text\tn\n"a\t1\n', [{"text": '"a', "n": "1"}]),
        (
            "a.conll",
            CONLL,
            [
                {"words": ["EU", "rejects"], "tags": ["B-ORG", "O"]},
                {"words": ["German", "call"], "tags": ["B-MISC", "O"]},
            ],
        ),
    ],
)
def test_an_ending_tells_the_reader(tmp_path, run, name, content, fields):
    file = tmp_path / name
    file.write_text(content, encoding="utf-8")
    assert read(run(), file) == fields
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert read(run(), packed) == fields


def test_options_that_every_data_set_has_are_no_options_of_its_reader(tmp_path, run):
    (tmp_path / "a.txt").write_text(CONLL)
    options = {"schemes": {"tags": "iob1"}, "scheme": "bioes", "empty": "drop", "comment": "German"}
    news = run(news=NEWS | {"options": options})
    for asked in ({}, {"dataset": "news"}):
        assert [fields["words"] for fields in read(news, tmp_path / "a.txt", **asked)] == [["EU", "rejects"], ["call"]]


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a", "text": "b"}', "the key 'text' occurs twice in one object"),
        ("{" + '"a": {' * 100000, "broken JSON: "),
        ('{"text": [' + "[" * 100000, "nested too deeply"),
        ('{"text": ', "broken JSON: Expecting value at column"),
        ('{"text": Infinity}', "Infinity is no JSON number"),
    ],
)
def test_json_is_refused_as_in_training(tmp_path, run, name, line, message):
    (tmp_path / name).write_text('{"text": "a"}\n' + line + "\n")
    with pytest.raises(UserError, match=rf"{re.escape(name)}:2: .*{re.escape(message)}"):
        read(run(), tmp_path / name)


def test_a_file_is_read_as_those_of_the_run(tmp_path, run, capsys):
    semicolons = REVIEWS | {"options": {"delimiter": ";", "columns": ("text", "label")}}
    (tmp_path / "train.csv").write_text("x;1\n")
    (tmp_path / "train.txt").write_text(CONLL)
    (tmp_path / "new.csv").write_text("a, b;1\n")
    (tmp_path / "new.txt").write_text(CONLL)
    (tmp_path / "plain.txt").write_text("EU rejects\nGerman call to boycott\n")
    datasets = run(reviews=semicolons, news=NEWS)
    assert read(datasets, tmp_path / "new.csv") == [{"text": "a, b", "label": "1"}]
    assert "as the data set 'reviews'" not in capsys.readouterr().err
    words = [fields["words"] for fields in read(datasets, tmp_path / "new.txt")]
    assert words == [["EU", "rejects"], ["German", "call"]]
    assert "is read as the data set 'news' (reader 'conll')" in capsys.readouterr().err
    # lines that are none of the format are texts, and so are those of which the user says so
    assert read(datasets, tmp_path / "plain.txt") == [{"": "EU rejects"}, {"": "German call to boycott"}]
    assert read(datasets, tmp_path / "new.txt", reader="texts")[0] == {"": "EU B-ORG"}
    # a header instead of the columns of the run
    (tmp_path / "header.csv").write_text('text\n"a; b"\n')
    assert read(datasets, tmp_path / "header.csv") == [{"text": "a; b"}]
    # broken lines are told by line, and not read in another way
    (tmp_path / "train.txt").write_text(CONLL + "\nlonely\n")
    with pytest.raises(UserError, match=r"train\.txt:7"):
        read(datasets, tmp_path / "train.txt")


def test_where_readers_differ_the_user_says_which(tmp_path, run):
    other = REVIEWS | {"options": {"columns": ("label", "text")}}
    file = tmp_path / "new.csv"
    file.write_text("a,b\nc,d\n")
    datasets = run(reviews=REVIEWS, other=other)
    with pytest.raises(UserError, match=r"as the data set 'reviews'.* or as the data set 'other'.*--dataset=NAME"):
        read(datasets, file)
    assert read(datasets, file, dataset="other")[0] == {"label": "a", "text": "b"}
    assert read(datasets, file, dataset="reviews") == [{"a": "c", "b": "d"}]
    (tmp_path / "train.csv").write_text("x,y\n1,2\n")
    assert read(run(reviews=REVIEWS, other=other | {"splits": {"train": "o.csv"}}), tmp_path / "train.csv")
    for asked, message in (
        ({"dataset": "revews"}, "no such data set; it has: reviews, other. Did you mean 'reviews'"),
        ({"reader": "csvv"}, "no such reader.*Did you mean 'csv'"),
        ({"reader": "csv"}, "can be read as"),
        ({"reader": "lines", "split": "x"}, "finds no splits in a file"),
        ({"reader": "json_splits"}, "--split=NAME"),
        ({"reader": "synthetic"}, "reads no files"),
    ):
        with pytest.raises(UserError, match=message):
            read(datasets, file, **asked)
    with pytest.raises(UserError, match="no such file"):
        read(datasets, tmp_path / "nowhere.csv")
    with pytest.raises(UserError, match="is a folder; choose how it is read"):
        read(datasets, tmp_path)


def test_folders_and_splits_inside_of_a_file(tmp_path, run):
    for label, text in (("good", "fine"), ("bad", "awful")):
        (tmp_path / "data" / label).mkdir(parents=True)
        (tmp_path / "data" / label / "1.txt").write_text(text)
    datasets = run(films={"reader": "folders", "splits": {"train": "data"}, "text": ("text",)})
    assert sorted(fields["text"] for fields in read(datasets, tmp_path / "data")) == ["awful", "fine"]
    file = tmp_path / "data.json"
    file.write_text(json.dumps({"val": [["a", "x"]], "test": [["b", "y"]]}))
    datasets = run(known={"reader": "json_splits", "splits": {"train": "val"}, "text": ("text",)})
    assert read(datasets, file, dataset="known", split="test") == [{"text": "b", "label": "y"}]


def test_the_standard_input_comes_as_it_is_written(monkeypatch, run):
    taken = []

    class Lines(io.StringIO):
        def __next__(self):
            taken.append(line := super().__next__())
            return line

    monkeypatch.setattr("sys.stdin", Lines('\ufeff{"text": "a"}\nb\nc\n'))
    with input_files.open_input(input_files.InputRequest("-"), run()) as given:
        assert next(given.items).fields == {"text": "a"} and len(taken) == 1
        assert next(given.items).fields == {"": "b"} and len(taken) == 2
    monkeypatch.setattr("sys.stdin", io.StringIO('[{"text": "a"},\n{"text": "b"}]\n'))
    assert read(run(), "-") == [{"text": "a"}, {"text": "b"}]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"text\na\n"), "ascii"))
    assert read(run(), "-", reader="csv") == [{"text": "a"}]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("ä\n".encode() + b"caf\xe9\n"), "ascii"))
    with pytest.raises(UserError, match="--input=-: not UTF-8"):
        read(run(), "-")


def test_one_ending_of_two_forms(tmp_path, run):
    """JSON of a form of the run's own, and plain objects under the same ending."""
    squad = {
        "data": [
            {
                "title": "t",
                "paragraphs": [
                    {
                        "context": "a b",
                        "qas": [{"id": "1", "question": "which?", "answers": [{"text": "a", "answer_start": 0}]}],
                    }
                ],
            }
        ]
    }
    (tmp_path / "train.json").write_text(json.dumps(squad))
    (tmp_path / "new.json").write_text(json.dumps(squad))
    (tmp_path / "plain.json").write_text('[{"question": "which?", "context": "a b"}]')
    datasets = run(squad={"reader": "squad", "splits": {"train": "train.json"}, "text": ("question", "context")})
    assert read(datasets, tmp_path / "new.json")[0]["question"] == "which?"
    assert read(datasets, tmp_path / "plain.json") == [{"question": "which?", "context": "a b"}]


def test_data_sets_with_other_fields_and_general_options_read_alike(tmp_path, run):
    (tmp_path / "new.jsonl").write_text('{"text": "a"}\n{"words": ["b"]}\n')
    (tmp_path / "new.conll").write_text(CONLL)
    options = {"columns": ("words", "ner"), "schemes": {"ner": "iob2"}}
    tagged = NEWS | {"splits": {"train": "a.conll"}, "options": options}
    datasets = run(
        texts={"reader": "jsonl", "splits": {"train": "a.jsonl"}, "text": ("text",), "options": {"empty": "drop"}},
        words={"reader": "jsonl", "splits": {"train": "b.jsonl"}, "words": "words", "options": {"scheme": "bioes"}},
        news=tagged,
    )
    assert read(datasets, tmp_path / "new.jsonl") == [{"text": "a"}, {"words": ["b"]}]
    assert read(datasets, tmp_path / "new.conll")[0] == {"words": ["EU", "rejects"], "ner": ["B-ORG", "O"]}
