"""Formats as published sets have them: lines with a label somewhere in them, and XML."""

import gzip

import pytest

from mtl_jax.data import datasets
from mtl_jax.data.files import location
from mtl_jax.data.readers import READERS
from mtl_jax.data.records import Note, Record, field
from mtl_jax.errors import UserError


def read(reader, file, content, encoding="utf-8", **options):
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(READERS[reader](location.local_path(file), encoding, **options))


def test_fasttext(tmp_path):
    content = "__label__sauce __label__cheese How much does\tit cost?\r\n\n__label__a-b Zürich\n"
    pattern = r"(?P<labels>(?:__label__\S+\s+)+)(?P<text>.+)"
    actual = read("lines", tmp_path / "cooking.train", content, pattern=pattern, lists={"labels": "__label__"})
    assert [r.fields for r in actual] == [
        {"labels": ["sauce", "cheese"], "text": "How much does\tit cost?"},
        {"labels": ["a-b"], "text": "Zürich"},
    ]
    assert [r.line for r in actual] == [1, 3]


def test_trec(tmp_path):
    pattern = r"(?P<fine>(?P<label>\w+):\w+)\s(?P<text>.+)"
    assert pattern in READERS["lines"].func.__doc__
    content = b"DESC:manner How did caf\xe9s begin ?\nNUM:other a\nLOC:other b\n"
    first, *others = read("lines", tmp_path / "t", content, "latin-1", pattern=pattern)
    assert first.fields == {"label": "DESC", "fine": "DESC:manner", "text": "How did cafés begin ?"}
    assert [r.fields["fine"] for r in others] == ["NUM:other", "LOC:other"]  # two classes, though both are "other"


def test_a_file_for_each_label(tmp_path):
    (tmp_path / "rt-polarity.pos").write_text("good\nfine\n")
    (tmp_path / "rt-polarity.neg.gz").write_bytes(gzip.compress(b"bad\n"))
    splits = {"train": ("rt-polarity.pos", "rt-polarity.neg.gz")}
    actual = datasets.read_dataset(
        "d", {"reader": "lines", "path": str(tmp_path), "text": ("text",), "splits": splits}, 0
    )
    assert [(r.fields["text"], r.fields["file"]) for r in actual.splits["train"]] == [
        ("good", "rt-polarity.pos"),
        ("fine", "rt-polarity.pos"),
        ("bad", "rt-polarity.neg"),
    ]


def test_groups_that_take_no_part_and_lines_that_do_not_match(tmp_path):
    options = {"pattern": r"(?:(?P<id>\d+) )?(?P<text>[a-z ]+)", "on_bad_line": "skip"}
    actual = read("lines", tmp_path / "f", "12 a b\nc\nX\n", **options)
    assert [i.fields["id"] for i in actual if isinstance(i, Record)] == ["12", None]
    assert [i.line for i in actual if isinstance(i, Note)] == [3]
    with pytest.raises(UserError, match=r"f:3: the line does not match options.pattern .*'X'"):
        read("lines", tmp_path / "f", "12 a b\nc\nX\n", pattern=options["pattern"])


SEMEVAL = """1\t"The <e1>configuration</e1> of antenna <e2>elements</e2> is "old"."
Component-Whole(e2,e1)
Comment: Not a collocation:\tthere are many.

2\t"The <e1>child</e1> was wrapped into the <e2>cradle</e2>."
Other
Comment:

"""
RELATION = r'(?P<id>\d+)\t"(?P<text>.+)"\n(?P<relation>.+)\nComment:(?P<comment>.*)'


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_records_up_to_a_blank_line(tmp_path, ends):
    options = {"pattern": RELATION, "lines_per_record": 0}
    actual = read("lines", tmp_path / "TRAIN_FILE.TXT", SEMEVAL.replace("\n", ends), **options)
    assert [r.fields["relation"] for r in actual] == ["Component-Whole(e2,e1)", "Other"] and actual[1].line == 5
    assert actual[0].fields["text"] == 'The <e1>configuration</e1> of antenna <e2>elements</e2> is "old".'
    broken = SEMEVAL.replace("Other\n", "").replace("\n\n2", "\n \t\n2").rstrip("\n")
    with pytest.raises(UserError, match=r"f:5: the record does not match options.pattern .*cradle"):
        read("lines", tmp_path / "f", broken, **options)
    record, note = read("lines", tmp_path / "f", broken, on_bad_line="skip", **options)
    assert record.fields["id"] == "1" and note[1:5] == (str(tmp_path / "f"), 5, 2, 1)  # two lines, one record


def test_records_of_so_many_lines(tmp_path):
    """The targets of Dong et al. (2014); after a line that is missing, reading goes on at the next record."""
    content = "i love $T$\nfoo\n1\n$T$ is bad\nbar\n-1\n\nso $T$\nbaz\n0\n"
    options = {"pattern": r"(?P<text>.*\$T\$.*)\n(?P<target>.+)\n(?P<label>-?[01])", "lines_per_record": 3}
    actual = read("lines", tmp_path / "f", content, **options)
    assert [(r.fields["target"], r.fields["label"], r.line) for r in actual] == [
        ("foo", "1", 1),
        ("bar", "-1", 4),
        ("baz", "0", 8),
    ]
    broken = content.replace("bar\n", "")
    with pytest.raises(UserError, match="f:4: the record does not match"):
        read("lines", tmp_path / "f", broken, **options)
    first, note, last = read("lines", tmp_path / "f", broken, on_bad_line="skip", **options)
    assert [first.line, last.line] == [1, 7] and note[2:5] == (4, 2, 1)
    _, _, note = read("lines", tmp_path / "f", content[: content.index("baz")], on_bad_line="skip", **options)
    assert note[2:5] == (8, 1, 1)  # the file ends inside a record


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "(?P<text>"}, "no regular expression"),
        ({"pattern": ".*"}, "names no group"),
        ({"lists": {"labels": " "}}, "lists.labels: names a group"),
        ({"lists": {"text": ""}}, "the string between"),
        ({"on_bad_line": "ignore"}, "on_bad_line"),
    ],
)
def test_wrong_options_of_lines(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        read("lines", tmp_path / "f", "a\n", **options)


RTE = """<?xml version="1.0" encoding="UTF-8"?>
<entailment-corpus>
  <pair id="1" entailment="YES" task="IE">
    <t>A &amp; B met in Paris.</t>
    <h>They met.</h>
  </pair>
  <pair id="2" entailment="NO"><t>Rain.</t><h/></pair>
</entailment-corpus>
"""

ABSA = """<sentences><sentence id="s1"><text>The food was good.</text><aspectTerms>
<aspectTerm term="food" polarity="positive" from="4" to="8"/></aspectTerms></sentence>
<sentence id="s2"><text>Meh.</text></sentence>
<sentence id="s3"><text>Staff, menu</text><aspectTerms><aspectTerm term="Staff" polarity="neutral" from="0" to="5"/>
<aspectTerm term="menu" polarity="neutral" from="7" to="11"/></aspectTerms></sentence></sentences>"""


def test_rte(tmp_path):
    first, second = read("xml", tmp_path / "dev.xml", RTE, record="pair")
    text = {"t": "A & B met in Paris.", "h": "They met."}
    assert first == Record({"id": "1", "entailment": "YES", "task": "IE", **text}, str(tmp_path / "dev.xml"), 3)
    assert second.fields == {"id": "2", "entailment": "NO", "t": "Rain.", "h": ""} and second.line == 7


def test_absa(tmp_path):
    actual = read("xml", tmp_path / "r.xml", ABSA, record="sentence", lists=("aspectTerm",))
    terms = [[t["term"] for t in field(r, "aspectTerms.aspectTerm")] for r in actual if "aspectTerms" in r.fields]
    assert terms == [["food"], ["Staff", "menu"]] and [r.fields["text"] for r in actual][1] == "Meh."
    alone = read("xml", tmp_path / "r.xml", ABSA, record="sentence")[0]
    assert field(alone, "aspectTerms.aspectTerm.polarity") == "positive"  # without `lists` one child is no list


def test_text_with_marks_inside(tmp_path):
    content = '<d><s n="1">The <e t="PER">old\nman</e> sat.</s><s>bare</s><s>a<s>b</s></s></d>'
    actual = read("xml", tmp_path / "f", content, record="s")
    assert [r.fields for r in actual] == [
        {"n": "1", "e": {"t": "PER", "text": "old\nman"}, "text": "The old\nman sat."},
        {"text": "bare"},
        {"text": "b"},
        {"s": "b", "text": "ab"},
    ]


def test_other_encodings_are_those_of_the_config(tmp_path):
    content = '<?xml version="1.0" encoding="ISO-8859-1"?><a><b>Café</b></a>'.encode("latin-1")
    assert read("xml", tmp_path / "f", content, "latin-1", record="b")[0].fields == {"text": "Café"}
    assert read("xml", tmp_path / "f", "<a>é</a>".encode("utf-16"), "utf-16", record="a")[0].fields == {"text": "é"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<a>\n<b></a>", "f:2: not well-formed XML: mismatched tag"),
        ("<a><c/></a>", "no element 'b'.*there are a, c"),
        ('<!DOCTYPE a [\n<!ENTITY lol "lol">]><a><b>&lol;</b></a>', "f:2: the entity 'lol' is declared"),
        ('<!DOCTYPE a SYSTEM "a.dtd"><a><b>&auml;</b></a>', "f:1: the entity 'auml' is not known"),
        ("<a><b>&auml;</b></a>", "f:1: not well-formed XML: undefined entity"),
        ("", "f:1: not well-formed XML: no element found"),
    ],
)
def test_wrong_xml(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        read("xml", tmp_path / "f", content, record="b")
