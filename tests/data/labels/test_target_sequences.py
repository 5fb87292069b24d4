"""Target sequences from records to packed rows and back; derived sentences and dialogues."""

import json

import numpy as np
import pytest

from mtl_jax.data import corpus
from mtl_jax.data.datasets import read_dataset
from mtl_jax.data.files import location
from mtl_jax.data.labels import target_sequences
from mtl_jax.data.labels.label_spec import LabelSpec
from mtl_jax.data.labels.target_sequences import END, TargetSpec, copied_ids
from mtl_jax.data.labels.vocabulary import LabelVocabulary
from mtl_jax.data.readers import READERS
from mtl_jax.data.records import Note, Record
from mtl_jax.data.tokenizers import PretrainedTokenizer, WordVocabulary
from mtl_jax.errors import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))


def load(tmp_path, train, dev=None, target=None, missing=("", None), **entry):
    splits = {"train": train} | ({"dev": dev} if dev else {})
    for split, records in splits.items():
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    entry = {
        "reader": "jsonl",
        "path": str(tmp_path),
        "splits": {s: f"{s}.jsonl" for s in splits},
        "text": ("x",),
    } | entry
    spec = LabelSpec("t", "d", "y", "sequence", "tokens", missing=missing, target=target or TargetSpec())
    tokenizer = WordVocabulary(min_count=2, lower=False)
    return corpus.load({"d": entry}, [spec], tokenizer, row_length=12)


TRAIN = [
    {"x": "a b c", "y": "c b a"},
    {"x": "a rare b", "y": "b rare"},
    {"x": "a a", "y": ""},
    {"x": "b c", "y": "one two three four five"},
]


def test_targets_are_packed_with_their_examples_and_copied_words_have_places(tmp_path):
    dev = [{"x": "new a old", "y": "old b gone"}]
    data = load(tmp_path, TRAIN, dev, TargetSpec(min_count=2, max_length=4, copy=True))
    names = data.vocabularies["t"].names
    assert names == ("[UNK]", "[BOS]", "[EOS]", "[NO BLANK]", "[BLANK]", "b")
    size = len(names)
    wanted = {0: [size + 2, 5, size + 0, END], 1: [5, size + 1, END], 2: [], 3: [0, 0, 0, 0]}
    rows, split = data.rows["d"]["train"], data.splits["d"]["train"]
    arrays = rows.labels["t"]
    seen = {}
    for row, slot in zip(*np.nonzero(rows.example >= 0), strict=True):
        own = (arrays["segment"][row] > 0) & (arrays["slot"][row] == slot)
        seen[int(split.encoded.record[rows.example[row, slot]])] = arrays["value"][row, own].tolist()
        assert arrays["position"][row, own].tolist() == list(range(own.sum())) and arrays["mask"][row, own].all()
    assert seen == wanted
    assert (arrays["mask"] == (arrays["segment"] > 0)).all()
    gold = data.splits["d"]["dev"].encoded.labels["t"]
    assert gold.at_record(0)[0].tolist() == [size + 2, 5, 0, END] and gold.texts == ["old b gone"]
    assert gold.sources[0] == ["new", "a", "old"]  # words that the tokenizer does not know, too
    table = copied_ids(data.vocabularies["t"], data.tokenizer)
    assert [table[data.tokenizer.index[w]] for w in ("a", "b", "[UNK]", "[SEP]")] == [-1, 5, -1, -2]
    message = "\n".join(data.notes)
    for part in ("1 of 4 records of train have no target", "too long, cut to 4 tokens", "not in the vocabulary"):
        assert part in message
    assert data.statistics["tasks"]["t"]["train"] == {
        "known": 3,
        "missing": 1,
        "mean": 11 / 3,
        "std": pytest.approx(np.std([4, 3, 4])),
        "min": 3.0,
        "max": 4.0,
    }


@pytest.mark.parametrize(
    ("train", "missing", "message"),
    [
        ([{"x": "a", "z": "b"}] * 2, ("", None), "task t: data set d has no field 'y'.*known fields: file, x, z"),
        ([{"x": "a", "y": ""}] * 2, ("", None), "every label in field 'y' of the train split is missing"),
        ([{"x": "a a", "y": "b"}, {"x": "a", "y": " "}], (None,), r"train\.jsonl:2: task t: field 'y': empty target"),
        (
            [{"x": "a a", "y": 7}],
            ("", None),
            r"train\.jsonl:1: task t: field 'y' should be a string or a list of words",
        ),
        ([{"x": "a a", "y": ["b", 1]}], ("", None), r"train\.jsonl:1: .*should be a string or a list of words"),
    ],
)
def test_bad_targets_are_told_by_file_and_line(tmp_path, train, missing, message):
    with pytest.raises(UserError, match=message):
        load(tmp_path, train, missing=missing)
    with pytest.raises(UserError, match=r"occurs 9 times or more .config\.tasks\.t\.options\.min_count"):
        load(tmp_path, TRAIN, target=TargetSpec(min_count=9))


def test_pairs_and_sentences_keep_the_words_to_copy(tmp_path):
    records = [{"x": "a b zz", "w": "a yy", "y": ["zz", "yy"]}, {"x": "a b", "w": "b", "y": ["a"]}]
    data = load(tmp_path, records, target=TargetSpec(copy=True), text=("x", "w"))
    assert data.splits["d"]["train"].encoded.labels["t"].sources[0] == ["a", "b", "zz", "", "a", "yy"]
    words = [{"s": ["A", "zz"], "y": "zz"}, {"s": ["A"], "y": "A"}]
    data = load(tmp_path, words, target=TargetSpec(copy=True), text=(), words="s")
    assert data.splits["d"]["train"].encoded.labels["t"].sources == [["A", "zz"], ["A"]]


def test_a_published_tokenizer_cuts_and_joins_targets(tmp_path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    vocabulary = {t: i for i, t in enumerate(["[UNK]", "[CLS]", "[SEP]", "play", "##ing", "ball", "."])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    backend.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = PretrainedTokenizer(str(tmp_path))
    cut = tokenizer.tokenize(["playing ball .", ["ball", "playing"]])
    assert cut == [["play", "##ing", "ball", "."], ["ball", "play", "##ing"]]
    assert tokenizer.join(cut[0]) == "playing ball."
    assert tokenizer.tokenize(["play 🎈ball", ["x", "ball"], ""]) == [["play", "🎈ball"], ["x", "ball"], [""]]


TREE = """# sent_id = x-1
# text = t
1\tHowever\thowever\tADV\tRB\t_\t5\tadvmod\t_\t_
2\t,\t,\tPUNCT\t,\t_\t5\tpunct\t_\t_
3\tshe\tshe\tPRON\tP\t_\t5\tnsubj\t_\t_
4\tnever\tnever\tADV\tRB\tPolarity=Neg\t5\tadvmod\t_\t_
5\tsaw\tsee\tVERB\tV\t_\t0\troot\t_\t_
6\tthe\tthe\tDET\tD\t_\t8\tdet\t_\t_
7\tvery\tvery\tADV\tRB\t_\t9\tadvmod\t_\t_
8\tman\tman\tNOUN\tN\t_\t5\tobj\t_\t_
9\told\told\tADJ\tJ\t_\t8\tamod\t_\t_
10\t.\t.\tPUNCT\t.\t_\t5\tpunct\t_\t_
"""


def derived(tmp_path, **options):
    (tmp_path / "x.conllu").write_text(TREE + "\n")
    return list(READERS["derived"](location.local_path(str(tmp_path / "x.conllu")), "utf-8", **options))


SRL = """1\tThe\tDET\tDT\t-\tB-ARGM-TMP\tO
2\tday\tNOUN\tNN\t-\tI-ARGM-TMP\tO
3\twhen\tADV\tWRB\t-\tB-R-ARGM-TMP\tO
4\the\tPRON\tPRP\t-\tB-ARG0\tO
5\tcame\tVERB\tVBD\tcome.01\tB-V\tO
6\t,\tPUNCT\t,\t-\tO\tO
7\thappily\tADV\tRB\t-\tB-ARGM-MNR\tO
8\tit\tPRON\tPRP\t-\tO\tB-ARG1
9\tdid\tAUX\tVBD\t-\tO\tO
10\tnot\tPART\tRB\t-\tO\tB-ARGM-NEG
11\train\tVERB\tVB\train.01\tO\tB-V
12\there\tADV\tRB\t-\tO\tB-ARGM-LOC
13\t.\tPUNCT\t.\t-\tO\tO
"""


def test_sentences_without_adjuncts(tmp_path):
    place = location.local_path(str(tmp_path / "x.srl"))
    (tmp_path / "x.srl").write_text(SRL)

    def target(**options):
        (record,) = READERS["derived"](place, "utf-8", reader="srl", way="roles", **options)
        return " ".join(record.fields["target"])

    # "when" refers to the day, which stays; "not" is no adjunct; the comma goes with its neighbour, the full stop not
    assert target() == "The day when he came it did not rain ."
    assert target(drop=("ARGM-LOC",)) == "The day when he came , happily it did not rain ."
    assert target(drop=("ARG9",)) == " ".join(line.split("\t")[1] for line in SRL.splitlines())
    (note,) = READERS["derived"](place, "utf-8", reader="srl", way="roles", drop=("ARG9",), unchanged=False)
    assert "options.unchanged" in note.what
    with pytest.raises(UserError, match=r"x\.conllu:1: .*'predicates'"):
        derived(tmp_path, way="roles")


def test_derived_sentences(tmp_path):
    (abridged,) = derived(tmp_path, way="abridge")
    assert abridged.fields["source"] == "However , she never saw the very man old .".split()
    assert abridged.fields["target"] == "she never saw the man .".split()  # "very" hangs on "old"
    (all_,) = derived(tmp_path, way="abridge", keep=(), drop=("nsubj", "advmod"))
    assert all_.fields["target"] == "saw the man old .".split()
    shuffled, again = derived(tmp_path, way="reorder")[0].fields, derived(tmp_path, way="reorder")[0].fields
    assert shuffled == again and shuffled["source"] != shuffled["target"] == all_.fields["words"]
    assert sorted(shuffled["source"]) == sorted(shuffled["target"])
    assert derived(tmp_path, way="reorder", seed=1)[0].fields["source"] != shuffled["source"]
    gap = derived(tmp_path, way="infill", span=4)[0].fields
    at = gap["source"].index("___")
    filled = [*gap["source"][:at], *gap["target"], *gap["source"][at + 1 :]]
    assert filled == gap["words"] and 1 <= len(gap["target"]) <= 4
    (note,) = derived(tmp_path, way="reorder", shortest=11)
    assert isinstance(note, Note)
    for options, message in (
        ({"way": "abridg"}, r"options\.way: 'abridg' is none of .*Did you mean 'abridge'"),
        ({"way": "reorder", "reader": "tfds"}, r"options\.reader: 'tfds' is none of"),
        ({"way": "reorder", "options": {"genr": "x"}}, r"options\.genr: this reader has no such option"),
        ({"way": "infill", "span": 0}, r"options\.span"),
        ({"way": "abridge", "reader": "folders"}, r"a folder is needed"),
        ({"way": "reorder", "words": "wrds"}, r"x\.conllu:1: there is no field 'wrds'"),
    ):
        with pytest.raises(UserError, match=message):
            derived(tmp_path, **options)


def test_turns_of_dialogues(tmp_path):
    lines = [{"id": 1, "turns": ["hi", {"text": "hello"}, "how are you ?"]}, {"turns": ["alone"]}]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    entry = {"reader": "dialogue", "path": str(tmp_path), "splits": {"train": "d.jsonl"}, "text": ("context",)}
    actual = [r.fields for r in read_dataset("d", entry | {"options": {"before": 1}}, 0).splits["train"]]
    assert actual == [
        {"id": 1, "context": "hi", "reply": "hello", "turn": 2, "file": "d.jsonl"},
        {"id": 1, "context": "hello", "reply": "how are you ?", "turn": 3, "file": "d.jsonl"},
    ]
    whole = read_dataset("d", entry | {"options": {"before": 0, "separator": " / "}}, 0).splits["train"]
    assert whole[1].fields["context"] == "hi / hello"
    (tmp_path / "d.jsonl").write_text('{"turns": ["a", 3]}\n')
    with pytest.raises(UserError, match=r"d\.jsonl:1: turn 2 of 'turns' should be a string, found 3"):
        read_dataset("d", entry, 0)


def test_answers_in_rows_are_joined_as_their_tokenizer_does(tmp_path):
    """Byte-level tokens of words and blanks come back as the text, not as tokens between blanks."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    names = sorted({*pre_tokenizers.ByteLevel.alphabet(), "<eos>"})
    backend = Tokenizer(models.BPE({name: n for n, name in enumerate(names)}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = PretrainedTokenizer(str(tmp_path))
    spec = LabelSpec("t", "d", "answer", "sequence", "tokens", target=TargetSpec(in_row=True))
    record = Record({"answer": "Don't say  “no”!"}, "f", 1)
    gold, _ = target_sequences.encode_answers([record], spec, tokenizer, "train")
    vocabulary = LabelVocabulary(tuple(map(tokenizer.id_to_token, range(tokenizer.size))))
    join = target_sequences.token_joiner(spec.target, tokenizer, vocabulary)
    assert join([vocabulary.names[n] for n in gold.value if n != tokenizer.end_id]) == gold.texts[0]
