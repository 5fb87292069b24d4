"""What each reader says about dirty files: the right line, the right records, or an error that names the place."""

import json

import pytest

from mtl_jax.data.files import location
from mtl_jax.data.readers import READERS
from mtl_jax.data.records import Note, Record, summarize_notes
from mtl_jax.errors import UserError


def run(tmp_path, reader, content, name="f.txt", encoding="utf-8", **options):
    """(records, notes) of a file with this content."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    items = list(READERS[reader](location.local_path(path), encoding, **options))
    return [i for i in items if isinstance(i, Record)], [i for i in items if isinstance(i, Note)]


def fields(tmp_path, reader, content, **options):
    return [record.fields for record in run(tmp_path, reader, content, **options)[0]]


def lines(tmp_path, reader, content, **options):
    return [record.line for record in run(tmp_path, reader, content, **options)[0]]


# files


def test_byte_order_mark_and_utf16(tmp_path):
    assert fields(tmp_path, "jsonl", b'\xef\xbb\xbf{"a": 1}') == [{"a": 1}]
    text = '{"a": "é"}\r\n{"a": "ü"}\r\n'
    assert fields(tmp_path, "jsonl", text.encode("utf-16"), encoding="utf-16") == [{"a": "é"}, {"a": "ü"}]
    with pytest.raises(UserError, match="perhaps utf-16"):
        fields(tmp_path, "jsonl", text.encode("utf-16"))


def test_not_utf8_names_the_line(tmp_path):
    content = b'{"a": 1}\n' * 20000 + '{"a": "é"}\n'.encode("latin-1")
    with pytest.raises(UserError, match=r"f\.txt:20001: byte \d+ is not utf-8; set `encoding`"):
        fields(tmp_path, "jsonl", content)
    assert fields(tmp_path, "jsonl", content, encoding="latin-1")[-1] == {"a": "é"}
    with pytest.raises(UserError, match="not known"):
        fields(tmp_path, "jsonl", content, encoding="utf-nine")


def test_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"trian\.jsonl: no such file or folder.*holds: train\.jsonl"):
        list(READERS["jsonl"](location.local_path(tmp_path / "trian.jsonl"), "utf-8"))
    with pytest.raises(UserError, match="is a folder"):
        list(READERS["jsonl"](location.local_path(tmp_path), "utf-8"))


def test_environment_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("CORPORA", str(tmp_path))
    (tmp_path / "a").write_text("x")
    assert location.local_path("$CORPORA/a").text("utf-8") == "x"
    with pytest.raises(UserError, match=r"\$NO_SUCH_VARIABLE is not set"):
        location.local_path("$NO_SUCH_VARIABLE/a")


def test_glob(tmp_path):
    for name in ("b/2.txt", "b/1.txt", "a/3.txt", "a/deep/4.txt", "a/.hidden.txt", "5.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")

    def found(pattern):
        return [place.name.removeprefix(f"{tmp_path}/") for place in location.local_path(tmp_path).glob(pattern)]

    assert found("*/*.txt") == ["a/3.txt", "b/1.txt", "b/2.txt"]
    assert found("**/*.txt") == ["a/3.txt", "a/deep/4.txt", "b/1.txt", "b/2.txt"]
    assert found(f"{tmp_path}/b/[12].txt") == ["b/1.txt", "b/2.txt"]
    assert found("5.csv") == ["5.csv"] and found("*.tsv") == []


# jsonl


def test_jsonl(tmp_path):
    assert lines(tmp_path, "jsonl", '\n{"a": 1}\n  \n{"a": 2}') == [2, 4]
    assert fields(tmp_path, "jsonl", '{"a": NaN}') == [{"a": None}]
    assert fields(tmp_path, "jsonl", '{"a": "x\u2028y\x85z"}\n') == [{"a": "x\u2028y\x85z"}]  # no ends of lines


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"a": 1', r"f\.txt:2: broken JSON: .*column 8"),
        ("[1, 2]", r"f\.txt:2: .*found a list"),
        ('{"a": Infinity}', r"f\.txt:2: broken JSON: Infinity"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', r"f\.txt:2: .*'c' occurs twice"),
        ('{"a": ' + "[" * 100000 + "}", r"f\.txt:2: .*"),
        ('{"a": ' + "1" * 5000 + "}", r"f\.txt:2: .*"),
    ],
)
def test_jsonl_errors(tmp_path, line, message):
    with pytest.raises(UserError, match=message):
        fields(tmp_path, "jsonl", '{"a": 1}\n' + line + "\n")


# csv


def test_csv_quotes_newlines_and_line_numbers(tmp_path):
    content = 'text,label\r\n"a ""b""\r\nc",1\r\n\r\n d ,2'
    assert fields(tmp_path, "csv", content) == [{"text": 'a "b"\r\nc', "label": "1"}, {"text": " d ", "label": "2"}]
    assert lines(tmp_path, "csv", content) == [2, 5]


def test_csv_long_field_and_nul(tmp_path):
    assert len(fields(tmp_path, "csv", "text\n" + "x" * 300_000)[0]["text"]) == 300_000
    assert fields(tmp_path, "csv", "text,l\na\0b,1")[0]["text"] == "a\0b"


def test_tsv_takes_quotes_as_they_are(tmp_path):
    content = 'text\tlabel\n"a\tx\n'
    assert fields(tmp_path, "csv", content, name="f.tsv") == [{"text": '"a', "label": "x"}]
    with pytest.raises(UserError, match=r"f\.tsv:2: broken quotes"):
        fields(tmp_path, "csv", content, name="f.tsv", quoting="minimal")


def test_csv_header_options(tmp_path):
    three = "text\tclass\nstring\td\nmeta\tclass\nx\t1\n"
    assert fields(tmp_path, "csv", three, name="f.tab", skip_after_header=2) == [{"text": "x", "class": "1"}]
    assert lines(tmp_path, "csv", three, name="f.tab", skip_after_header=2) == [4]
    names = {"columns": ("a", "b")}
    assert len(fields(tmp_path, "csv", three, delimiter="\t", **names)) == 4
    assert fields(tmp_path, "csv", "x,y\n1,2", header=True, **names) == [{"a": "1", "b": "2"}]
    quoted = '# a "comment\nx,y\n1,2'
    assert lines(tmp_path, "csv", quoted, skip_before_header=1) == [3]
    assert fields(tmp_path, "csv", ",y\n1,2") == [{"column_1": "1", "y": "2"}]


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("a,b\n1,2\n1,2,3\n", {}, r"f\.txt:3: 3 columns, 2 wanted \(a, b\)"),
        ('a,b\n"x\ny",2\n1\n', {}, r"f\.txt:4: 1 columns"),
        ('a,b\n1,2\n"open,2\n3,4\n', {}, r"f\.txt:3: broken quotes"),
        ("a,a\n1,2\n", {}, r"names 'a' twice"),
        ("1,2\n", {"columns": ("x",)}, r"f\.txt:1: 2 columns, 1 wanted"),
        ("1,2\n", {"header": False}, "needs options.columns"),
        ("1,2\n", {"delimiter": "::"}, "one character"),
        ('"a"x,b\n1,2\n', {"on_bad_line": "skip"}, r"f\.txt:1: the header has broken quotes"),
        ("1,2\n", {"quoting": "all"}, 'has to be "minimal" or "none"'),
    ],
)
def test_csv_errors(tmp_path, content, options, message):
    with pytest.raises(UserError, match=message):
        fields(tmp_path, "csv", content, **options)


def test_csv_skips_bad_lines_and_counts_them(tmp_path):
    content = 'a,b\n1,2\n1,2,3\n"x"y,2\n3,4\n'
    records, notes = run(tmp_path, "csv", content, on_bad_line="skip")
    assert [r.line for r in records] == [2, 5] and [n.line for n in notes] == [3, 4]
    assert summarize_notes("train", notes) == [
        f"train: 2 bad lines skipped (options.on_bad_line); first at {notes[0].file}:3"
    ]


# conll


CONLL = "-DOCSTART- -X- O\n\nEU NNP I-ORG\nBonn NNP B-ORG\n \t\nPeter NNP I-PER\n\xa0 NNP I-PER\nran VBD O"


def test_conll_markers_blank_lines_and_iob1(tmp_path):
    records, notes = run(tmp_path, "conll", CONLL, columns=("words", "pos", "ner"))
    assert [r.line for r in records] == [3, 6]
    columns = {"words": ["EU", "Bonn"], "pos": ["NNP", "NNP"], "ner": ["I-ORG", "B-ORG"]}
    assert records[0].fields == {"document": 1, **columns}
    assert records[1].fields["words"][1] == "\xa0" and not notes
    assert [list(r.lines) for r in records] == [[3, 4], [6, 7, 8]]
    assert fields(tmp_path, "conll", CONLL, columns=("words", "_", "ner"))[0].keys() == {"document", "words", "ner"}


def test_conll_lines_of_words_pass_over_comments(tmp_path):
    records, _ = run(tmp_path, "conll", "# c\na B-X\n# d\nb I-Y\n\nc B-X\n", comment="#")
    assert [list(r.lines) for r in records] == [[2, 4], [6]] and records[0].line == 2


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("a O\nb\n", {}, r"f\.txt:2: 1 columns, options.columns names 2"),
        ("a X O\n", {}, r"f\.txt:1: 3 columns.*is called \"_\""),
        ("a O\n", {"columns": ("words", "words")}, "has a name twice"),
    ],
)
def test_conll_errors(tmp_path, content, options, message):
    with pytest.raises(UserError, match=message):
        fields(tmp_path, "conll", content, **options)


# conllu


def conllu(*rows):
    return "".join("\t".join(row) + "\n" for row in rows) + "\n"


def word(index, form, head="0"):
    return (str(index), form, form.lower(), "X", "Y", "_", head, "dep", "_", "_")


def test_conllu_ranges_and_empty_nodes(tmp_path):
    rows = [("1-2", "don't", *"________"), word(1, "do"), word(2, "n't", "1"), ("2.1", "go", *"________")]
    content = "# sent_id = web-1\n# text = don't\n# nothing\n" + conllu(*rows)
    record = run(tmp_path, "conllu", content, genre=r"[a-z]+")[0][0]
    assert record.fields["words"] == ["do", "n't"] and record.fields["heads"] == [0, 1] and record.line == 1
    assert record.fields["text"] == "don't" and record.fields["genre"] == "web"


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (conllu(word(1, "a"), word(3, "b")), {}, r"f\.txt:2: the word's number should be 2, found '3'"),
        (conllu(word(1, "a")[:9]), {}, r"f\.txt:1: 9 columns"),
        (conllu(word(1, "a", "7")), {}, r"f\.txt:1: HEAD has to be 0 to 1 or _, found '7'"),
        (conllu(word(1, "a")), {"genre": "x"}, r"f\.txt:1: options.genre 'x' does not match"),
        (conllu(word(1, "a")), {"genre": "("}, "no regular expression"),
    ],
)
def test_conllu_errors(tmp_path, content, options, message):
    with pytest.raises(UserError, match=message):
        fields(tmp_path, "conllu", content, **options)


# parallel


def parallel(tmp_path, words, slots, labels, **options):
    for name, content in (("seq.in", words), ("seq.out", slots), ("label", labels)):
        (tmp_path / name).write_text(content, "utf-8")
    return list(READERS["parallel"](location.local_path(tmp_path), "utf-8", **options))


def test_parallel(tmp_path):
    records = parallel(tmp_path, "a b\nc \n", "O O\nB-x", "x\ny\n\n")
    assert [r.fields for r in records] == [
        {"words": ["a", "b"], "slots": ["O", "O"], "intent": "x"},
        {"words": ["c"], "slots": ["B-x"], "intent": "y"},
    ]
    own = parallel(tmp_path, "a b\n", "", "x\n", files={"text": "seq.in", "y": "label"}, split_fields=())
    assert own[0].fields == {"text": "a b", "y": "x"}
    with pytest.raises(UserError, match=r"numbers of words: 2 in .*seq\.in:2, 1 in .*seq\.out:2"):
        parallel(tmp_path, "a\nb c\n", "O\nO\n", "x\ny\n")
    with pytest.raises(UserError, match=r"numbers of lines: 2 in .*seq\.in, 2 in .*seq\.out, 1 in .*label"):
        parallel(tmp_path, "a\nb\n", "O\nO\n", "x\n")
    with pytest.raises(UserError, match=r"lable: no such file.*label"):
        parallel(tmp_path, "a\n", "O\n", "x\n", files={"words": "seq.in", "intent": "lable"}, split_fields=("words",))


# folders


def test_folders(tmp_path):
    for name in ("pos/2.txt", "pos/1.txt", "pos/x.md", "neg/3.txt", "unsup/4.txt", ".git/5.txt", "README"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f" {name}\n")
    reader, place = READERS["folders"], location.local_path(tmp_path)
    items = list(reader(place, "utf-8", pattern="*.txt", labels=("pos", "neg")))
    actual = [tuple(r.fields.values()) for r in items if isinstance(r, Record)]
    assert [(n.what, n.file.removeprefix(f"{tmp_path}/"), n.count, n.lost) for n in items if isinstance(n, Note)] == [
        ("files outside of the labels' folders left out", "README", 1, 0),
        ("files of other names left out (options.pattern)", "pos/x.md", 1, 1),
        ("files of other labels left out (options.labels)", "unsup/4.txt", 1, 1),
    ]
    assert actual == [("neg/3.txt", "neg", "3.txt"), ("pos/1.txt", "pos", "1.txt"), ("pos/2.txt", "pos", "2.txt")]
    with pytest.raises(UserError, match=r"no folder for the label 'poss'.*Did you mean 'pos'"):
        list(reader(place, "utf-8", labels=("poss",)))
    with pytest.raises(UserError, match="holds no folders"):
        list(reader(place.child("pos"), "utf-8"))


# srl


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["0\ta\tX\tY\t-\n", "1\tb\tX\tY\tgo.01\tB-V\n"], r"f\.txt:2: 6 columns, 5 wanted"),
        (["0\ta\tX\tY\tbe.01\n", "1\tb\tX\tY\t-\n"], r"f\.txt:1: 0 columns of roles for 1 predicates"),
        (["0\ta\tX\tY\t-\tB-V\n", "1\tb\tX\tY\tgo.01\tO\n"], r"f\.txt:2: .* has 'O' here, not B-V"),
        (["0\ta\tX\tY\tgo.01\tB-V\n", "1\tb\tX\tY\t-\t*\n"], r"f\.txt:2: '\*' is no tag of a role"),
        (["0\ta\tX\n"], r"f\.txt:1: 3 columns, 5 wanted"),
    ],
)
def test_srl_errors(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        fields(tmp_path, "srl", "".join(rows))


def test_srl_column_order(tmp_path):
    content = "- I B-A0\ngo.01 go B-V\n"
    actual = fields(tmp_path, "srl", content, columns=("rolesets", "words"), separator=None)
    assert actual == [{"words": ["I", "go"], "predicates": [1], "rolesets": ["go.01"], "roles": [["B-A0", "B-V"]]}]


# json_splits


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"train": [["a", "b"], ["c"]]}', r"f\.txt:train:2: 1 values, options.columns names 2"),
        ('{"train": [3]}', r"f\.txt:train:1: an item has to be a list or an object, found a number"),
        ('{"trian": []}', r"no split 'train'; there are: trian.*Did you mean 'trian'"),
        ('{"train": {}}', "has to be a list of items, or .*, found an object without keys"),
        ("[]", "one JSON object of splits, found a list"),
        ('{"train":\n[}', r"f\.txt: broken JSON: .* line 2, column 2"),
    ],
)
def test_json_splits_errors(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        fields(tmp_path, "json_splits", content, split="train")


# nlvr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"structured_rep": [[], [{"color": "Black"}], []]}, r"dev\.json:1: structured_rep is not .*'x_loc'"),
        ({"structured_rep": [[{"color": "Black", "type": 3, "x_loc": 1, "y_loc": 1, "size": 9}]]}, "an item of type 3"),
        ({"structured_rep": 3}, "structured_rep is not"),
        ({"identifier": 7}, r"dev\.json:1: field 'identifier' has to be a string, found 7"),
    ],
)
def test_nlvr_errors(tmp_path, change, message):
    row = {"sentence": "a", "label": "true", "identifier": "1-0", "directory": "0", "structured_rep": [[], [], []]}
    (tmp_path / "dev" / "images" / "0").mkdir(parents=True)
    (tmp_path / "dev" / "dev.json").write_text(json.dumps(row | change))
    with pytest.raises(UserError, match=message):
        list(READERS["nlvr"](location.local_path(tmp_path / "dev" / "images" / "0"), "utf-8"))
