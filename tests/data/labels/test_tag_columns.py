"""The tags of a task over all splits: one decision, whatever a file holds. 100 examples of each property; a campaign:

FUZZ=10000 python -m pytest tests/data/labels/test_tag_columns.py
"""

import itertools
import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities

from mtl_jax.data import datasets
from mtl_jax.data.corpus import load
from mtl_jax.data.labels import raw_labels, tag_columns, tag_schemes
from mtl_jax.data.labels.label_spec import LabelSpec
from mtl_jax.data.records import Record, line_numbers
from mtl_jax.data.tokenizers import WordVocabulary
from mtl_jax.errors import UserError
from mtl_jax.tasks import tags as task_tags
from mtl_jax.unicode import nfc

fuzz = settings(
    max_examples=int(os.environ.get("FUZZ", "100")),
    deadline=None,
    derandomize="FUZZ" not in os.environ,
    suppress_health_check=list(HealthCheck),
)


def unify(spec=None, **splits):
    """The tags of splits of sentences; a sentence begins at line 1, 101, ... of a file that has the split's name."""
    spec = spec or LabelSpec("t", "d", "y", level="word")
    raw, counts = {}, {}
    for split, sentences in splits.items():
        sentences = [s.split() if isinstance(s, str) else list(s) for s in sentences]
        records = [
            Record({"y": s}, split, 100 * n + 1, line_numbers(range(100 * n + 1, 100 * n + 1 + len(s))))
            for n, s in enumerate(sentences)
        ]
        counts[split] = [len(s) for s in sentences]
        raw[split] = raw_labels.collect_labels(records, spec, counts[split])
    actual = tag_columns.unify_tags(spec, raw, counts)
    texts = {
        split: [list(values.values[a:b]) for a, b in itertools.pairwise(values.offsets.tolist())]
        for split, values in actual.splits.items()
    }
    return actual, texts


def spec(**fields):
    return LabelSpec("t", "d", "y", level="word", **fields)


WRITTEN = {
    "iob1": "I-PER I-PER B-PER I-LOC O I-ORG I-ORG I-ORG",
    "iob2": "B-PER I-PER B-PER B-LOC O B-ORG I-ORG I-ORG",
    "bioes": "B-PER E-PER S-PER S-LOC O B-ORG I-ORG E-ORG",
    "bilou": "B-PER L-PER U-PER U-LOC O B-ORG I-ORG L-ORG",
    "bmes": "B-PER E-PER S-PER S-LOC O B-ORG M-ORG E-ORG",
    "brackets": "(PER* *) (PER*) (LOC*) * (ORG* * *)",
}


@pytest.mark.parametrize("target", ["iob2", "bioes"])
@pytest.mark.parametrize("scheme", WRITTEN)
def test_every_scheme_becomes_the_one_wanted(scheme, target):
    outside = "*" if scheme == "brackets" else "O"
    actual, texts = unify(spec(target_scheme=target), train=[WRITTEN[scheme]], dev=[outside])
    assert texts == {"train": [WRITTEN[target].split()], "dev": [["O"]]} and actual.spans
    assert actual.notes == (
        [] if scheme == target else [f"task t: tags in field 'y' written in {scheme} and converted to {target}"]
    )
    _, explicit = unify(spec(target_scheme=target, source_scheme=scheme), train=[WRITTEN[scheme]])
    assert explicit["train"] == texts["train"]


def test_the_decision_is_that_of_all_splits():
    # dev alone could be IOB2, and what dev has in train's scheme depends on train
    actual, texts = unify(train=["O I-X I-X", "I-X B-X"], dev=["B-X I-X", "B-X"])
    assert texts == {"train": [["O", "B-X", "I-X"], ["B-X", "B-X"]], "dev": [["B-X", "I-X"], ["B-X"]]}
    actual, texts = unify(train=["B-X I-X O", "O O B-X"], test=["U-X O B-X L-X"], dev=["S-X"])
    assert texts["test"] == [["B-X", "O", "B-X", "I-X"]] and texts["dev"] == [["B-X"]] and actual.spans
    assert actual.notes == [
        "task t: tags in field 'y': 1 sentences of test with a broken iob2 sequence repaired; first at test:1",
        "task t: tags in field 'y': 1 sentences of dev with a broken iob2 sequence repaired; first at dev:1",
    ]
    # a letter of another scheme is no reason to take the column for that scheme, with types and without
    for kind in ("-X", ""):
        actual, texts = unify(train=[f"B{kind} I{kind} O"] * 20, dev=[f"O B{kind} I{kind} E{kind} S{kind}"])
        assert texts["train"][0] == [f"B{kind}", f"I{kind}", "O"]
        wanted = "O B-X I-X I-X B-X" if kind else "O B I O O"
        assert texts["dev"] == [wanted.split()] and len(actual.notes) == 1
        assert "repaired; first at dev:4" in actual.notes[0] or "'E' (1), 'S' (1); first at dev:4" in actual.notes[0]
    actual, texts = unify(train=["O O"], dev=["B-X"])
    assert actual.spans and texts["dev"] == [["B-X"]]


def test_of_iob1_and_iob2_fewer_breaks_decide():
    actual, texts = unify(train=["O I-X I-X O"] * 9 + ["O B-X"])
    assert texts["train"][0] == ["O", "B-X", "I-X", "O"] and actual.notes == [
        "task t: tags in field 'y' written in iob1 and converted to iob2",
        "task t: tags in field 'y': 1 sentences of train with a broken iob1 sequence repaired; first at train:902",
    ]
    actual, texts = unify(train=["O B-X I-X O"] * 9, dev=["O I-X", "B-X I-Y I-X"])
    assert texts["dev"] == [["O", "B-X"], ["B-X", "B-Y", "B-X"]] and actual.notes == [
        "task t: tags in field 'y': 2 sentences of dev with a broken iob2 sequence repaired; first at dev:2"
    ]


@pytest.mark.parametrize("odd", "o - 0 . _ B_PER b-PER i-PER PER B- B X-PER Ö O-".split())
def test_odd_tags_count_as_o_and_are_named(odd):
    actual, texts = unify(train=["B-PER I-PER O"] * 9, dev=["O O", ["B-PER", odd, "I-PER", odd]])
    assert texts["dev"] == [["O", "O"], ["B-PER", "O", "B-PER", "O"]] and actual.spans
    assert actual.notes[0] == (
        f"task t: tags in field 'y': 2 of 6 of dev are no tags of spans and count as O: {odd!r} (2); first at dev:102"
    )


def test_another_sign_for_outside():
    for sign in ("0", "-", "_", "o"):
        actual, texts = unify(train=[f"{sign} {sign} {sign} B-X I-X {sign}"])
        assert (
            texts["train"] == [["O", "O", "O", "B-X", "I-X", "O"]] and actual.spans and "count as O" in actual.notes[0]
        )


def test_one_name_for_outside():
    actual, texts = unify(train=["OTHER OTHER OTHER B-X I-X OTHER"])
    assert texts["train"] == ["O O O B-X I-X O".split()] and "count as O: 'OTHER' (4)" in actual.notes[0]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("B I O B", "B I O B"),
        ("I I B O I", "B I B O B"),
        ("B M E S", "B I I B"),
        ("B L O U", "B I O B"),
        ("I O I", "B O B"),
        ("B-misc-x I-misc-x O", "B-misc-x I-misc-x O"),
        ("B-* I-* I-(X*", "B-* I-* B-(X*"),
        ("I-名-Ł O B-ß", "B-名-Ł O B-ß"),
        ("b-per i-per o", "B-per I-per O"),
        ("b i o o", "B I O O"),
        ("B_PER I_PER O", "B-PER I-PER O"),
        ("PER-B PER-I O MISC-X-B", "B-PER I-PER O B-MISC-X"),
        ("B- I- O", "B I O"),
    ],
)
def test_letters_alone_and_other_spellings(text, wanted):
    actual, texts = unify(train=[text])
    assert texts["train"] == [wanted.split()] and actual.spans
    respelled = {t.removesuffix("-") for t in text.split()} - {"O"} and not all(
        tag_schemes.split_tag(t)[0] and t[-1] != "-" for t in text.split()
    )
    assert any("spelled in another way" in note for note in actual.notes) == bool(respelled)


@pytest.mark.parametrize(
    "text",
    [
        "NNP VBD IN NN . O",  # parts of speech with O among them
        "PRON-Prs NOUN-Sing VERB-Fin AUX-Fin",
        "S E S V B A I S N P",  # ISST-TANL: noun, preposition, adverb, ...
        "S O S O",
        "B E B U E E E O",  # Bengali, English, universal
        "B E B E E B B O",
        "B E B B S S",
        "O - 0",
        "O O O",
        "NN-S VB-B NN-S NN-I",  # no sign of what is outside
        "B-X NNP NNP O",  # one tag of a span among three
        "(NP* *) (TOP(S* *)) *)) O",
        "0 3 4 0 1",
    ],
)
def test_columns_that_mark_no_spans_stay_as_they_are(text):
    actual, texts = unify(train=[text])
    assert texts["train"] == [text.split()] and actual.spans is False


def test_a_note_where_letters_are_those_of_no_scheme():
    actual, texts = unify(train=["B I O E", "B I I I B E S"])
    assert actual.spans is False and texts["train"][0] == ["B", "I", "O", "E"]
    assert "'B' (3), 'I' (4), 'E' (2), 'S' (1) are not the letters of one scheme" in actual.notes[0]


def test_a_note_where_few_are_tags_of_spans_and_where_tags_are_numbers():
    actual, _ = unify(train=["B-X NNP NNP O", "B-X VB"])
    assert actual.notes == [
        "task t: tags in field 'y' are read as labels without spans: 2 of 5 that are not O are tags such as 'B-X', "
        "most are others such as 'NNP' at train:2"
    ]
    actual, _ = unify(train=[[0, 3, 4]])
    assert "are numbers, of which no spans are read" in actual.notes[0] and "`classes`" in actual.notes[0]
    actual, texts = unify(spec(classes=("O", "B-X", "I-X")), train=[[0, 1, 2]], dev=[[2, 0, 0]])
    assert texts == {"train": [["O", "B-X", "I-X"]], "dev": [["B-X", "O", "O"]]} and actual.spans


def test_a_scheme_that_the_user_names_is_strict_and_none_leaves_all_as_it_is():
    for text, problem in (
        ("O PER", r"train:2: task t: 'PER' is no tag of the scheme iob2, which options.schemes\['y'\] of data set d"),
        (
            "B-X I-Y O",
            r"train:2: .*'I-Y' follows no tag of its type; .*without it broken sequences are repaired and other",
        ),
        ("B-X I-X E-X", "'E-X' is no tag of the scheme iob2"),
        ("B-X I-X B", "'B' is no tag of the scheme iob2"),
    ):
        with pytest.raises(UserError, match=problem):
            unify(spec(source_scheme="iob2"), train=[text])
    with pytest.raises(UserError, match="without it these are no spans"):
        unify(spec(source_scheme="iob2"), train=["NN VB"])
    actual, texts = unify(spec(source_scheme="none"), train=["I-X I-Y"])
    assert texts["train"] == [["I-X", "I-Y"]] and actual.spans is False and not actual.notes


def test_classes_follow_the_tags():
    for classes, wanted in (
        (("O", "B-X", "L-X", "I-X", "U-X"), ("O", "B-X", "I-X")),
        (("O", "I-X", "B-X"), ("O", "I-X", "B-X")),
        (("O", "U-X"), ("O", "B-X", "I-X")),
    ):
        actual, _ = unify(spec(classes=classes), train=["U-X O B-X L-X"])
        assert actual.spec.classes == wanted
    actual, _ = unify(spec(classes=("O", "I-X")), train=["I-X I-X O", "I-Y"])
    assert actual.spec.classes == ("O", "I-X", "B-X")  # B-Y is left to be refused, as Y is none of the types


def test_classes_that_are_no_tags_are_refused():
    with pytest.raises(UserError, match=r"tags in field 'y' mark spans, but its classes name 'yes', which is no"):
        unify(spec(classes=("O", "B-X", "I-X", "yes")), train=["B-X I-X O"])
    tags = [f"B-X I-X {'odd' if n == 0 else 'O'}" for n in range(100)]  # an odd tag of the file may be listed: it is O
    actual, _ = unify(spec(classes=("O", "B-X", "I-X", "odd")), train=tags)
    assert actual.spec.classes == ("O", "B-X", "I-X")


def test_words_without_a_label_are_passed_over():
    _, texts = unify(train=[["I-X", None, "I-X", "", "O"], [None], ["O", None, "I-X"]])
    assert texts["train"] == [["B-X", None, "I-X", None, "O"], [None], ["O", None, "B-X"]]


def test_predicates_have_a_sequence_each():
    records = [Record({"y": [["B-A", "I-A"], ["I-A", "B-V"]], "p": [0, 1]}, "f", 1), Record({"y": []}, "f", 9)]
    role = LabelSpec("t", "d", "y", level="predicate")
    raw = {"train": raw_labels.collect_labels(records, role, [2, 3], [[0, 1], []])}
    actual = tag_columns.unify_tags(role, raw, {"train": [2, 3]})
    assert actual.splits["train"].values == ["B-A", "I-A", "B-A", "B-V"]
    assert "1 sentences of train with a broken iob2" in actual.notes[0]


def test_distributions_are_left_alone():
    actual, _ = unify(train=[[{"B-X": 0.5, "O": 0.5}, "O"]])
    assert actual.spans is None


@pytest.mark.parametrize("reader", ["jsonl", "conll", "parallel"])
def test_a_task_on_any_reader_gets_tags_in_one_scheme(tmp_path, monkeypatch, reader):
    """BILOU in train, one odd tag and a type of its own in dev: the classes are those of IOB2, and dev is all known."""
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    written = {"train": ["B-X L-X O", "U-Y O O"] * 9, "dev": ["U-X O Z", "O B-W L-W"]}
    for split, sentences in written.items():
        rows = [{"w": list("abc"), "y": s.split()} for s in sentences]
        text = {
            "jsonl": "".join(json.dumps(row) + "\n" for row in rows),
            "conll": "\n".join("".join(f"{w} {y}\n" for w, y in zip(*row.values(), strict=True)) for row in rows),
        }
        if reader == "parallel":
            (tmp_path / split).mkdir()
            (tmp_path / split / "w").write_text("a b c\n" * len(rows))
            (tmp_path / split / "y").write_text("".join(s + "\n" for s in sentences))
        else:
            (tmp_path / split).write_text(text[reader])
    parallel = {"files": {"w": "w", "y": "y"}, "split_fields": ("w", "y")}
    options = {"conll": {"columns": ("w", "y")}, "parallel": parallel}
    entry = {"reader": reader, "path": str(tmp_path), "splits": {"train": "train", "dev": "dev"}, "words": "w"}
    entry["options"] = options.get(reader, {})
    corpus = load({"d": entry}, [spec()], WordVocabulary(), row_length=8, max_unseen_labels=1.0)
    vocabulary = corpus.vocabularies["t"]
    assert vocabulary.names == ("O", "B-X", "B-Y", "I-X") and vocabulary.extra == ("B-W", "I-W") and vocabulary.spans
    place = {"jsonl": "dev:1", "conll": "dev:3", "parallel": "dev/w:1"}[reader]
    assert any("'Z' (1)" in note and note.endswith(place) for note in corpus.notes)
    gold = corpus.splits["d"]["dev"].encoded.labels["t"]
    ids = [gold.at_record(record)[0] for record in range(2)]
    assert sorted(span[1:] for span in task_tags.spans(ids, vocabulary.all_names)) == [(0, 0, "X"), (1, 2, "W")]


def test_options_about_tags_are_checked(tmp_path):
    (tmp_path / "f").write_text("a O\n")
    entry = {"reader": "conll", "path": str(tmp_path / "f"), "words": "words"}
    for options, message in (
        ({"schemes": {"tags": "iob3"}}, r"options\.schemes\['tags'\]: 'iob3' is not one of .*Did you mean 'iob[12]'"),
        ({"schemes": "iob2"}, r"options\.schemes has to be a mapping of fields to schemes"),
        ({"scheme": "iob1"}, r'options\.scheme has to be "iob2" or "bioes"'),
    ):
        with pytest.raises(UserError, match=message):
            datasets.read_dataset("d", {**entry, "options": options}, 0)


SOME = ["O", *(f"{letter}{kind}" for letter in "BIESMLU" for kind in ("", "-X", "-Y-Z"))]
OTHERS = ["o", "-", "B-", "b-X", "X-B", "NN", "(X*", "*", "*)", "", "B-*", "B_X"]
sentences = st.lists(
    st.lists(st.sampled_from([*SOME, *OTHERS]) | st.text(max_size=4), min_size=1, max_size=6), min_size=1, max_size=5
)


@fuzz
@given(sentences, sentences, st.sampled_from(["iob2", "bioes"]), st.sampled_from(["", *tag_schemes.SCHEMES, "none"]))
def test_total(train, dev, target, source):
    """Nothing crashes, no label is lost, and what comes out is strictly of the scheme and stays as it is."""
    wanted = spec(target_scheme=target, source_scheme=source, missing=(None,))
    try:
        actual, texts = unify(wanted, train=train, dev=dev)
    except UserError as error:
        assert source
        assert str(error).startswith(("train:", "dev:"))
        return
    assert [[len(s) for s in texts[split]] for split in texts] == [[len(s) for s in split] for split in (train, dev)]
    if not actual.spans:
        plain = {name: [[nfc(t.strip()) for t in s] for s in split] for name, split in (("train", train), ("dev", dev))}
        outside = {t for split in texts.values() for s in split for t in s} == {"O"}
        assert outside or texts == plain
        return
    for sentence in itertools.chain(*texts.values()):
        tag_schemes.check_tags(sentence, target)
    _, same = unify(spec(target_scheme=target, source_scheme=target), **texts)
    assert same == texts


@fuzz
@given(st.lists(st.lists(st.sampled_from(SOME[:13]), min_size=1, max_size=8), min_size=1, max_size=4))
def test_spans_are_those_of_seqeval_before_and_after(split):
    """Whatever the order of tags in a column of one kind, its spans before and after are seqeval's."""
    split = [[tag if "-" in tag or tag == "O" else "O" for tag in sentence] for sentence in split]
    _, texts = unify(train=split)
    for before, after in zip(split, texts["train"], strict=True):
        assert get_entities(after) == get_entities(before)


names = st.lists(st.sampled_from(SOME) | st.text(max_size=5), min_size=1, max_size=8)


@fuzz
@given(st.data(), names)
def test_spans_of_ids_lie_within_their_sentences(data, names):
    """Any names and any ids: each sentence alone gives its spans, in it, in order, none in another."""
    split = data.draw(st.lists(st.lists(st.integers(-1, len(names) - 1), max_size=6), max_size=4))
    actual = task_tags.spans(split, names)
    alone = [(n, *span[1:]) for n, s in enumerate(split) for span in task_tags.spans([s], names)]
    assert actual == alone
    assert all(0 <= a <= b < len(split[n]) for n, a, b, _ in actual)
    assert all(b < c for (n, _, b, _), (m, c, _, _) in itertools.pairwise(actual) if n == m)


@fuzz
@given(st.lists(st.sampled_from(SOME), max_size=8))
def test_spans_of_ids_and_of_names_are_seqevals(sentence):
    """In seqeval's default mode, which knows the letters B, I, E and S."""
    wanted = get_entities([{"M": "I", "L": "E", "U": "S"}.get(tag[0], tag[0]) + tag[1:] for tag in sentence])
    ids = [SOME.index(tag) for tag in sentence]
    assert [(kind, a, b) for _, a, b, kind in task_tags.spans([ids], SOME)] == wanted
    lenient = tag_schemes.spans_from_tags(sentence, "bioes", strict=False)
    assert [(kind or "_", a, b - 1) for kind, a, b in lenient] == wanted


@fuzz
@given(st.data(), st.sampled_from(list(tag_schemes.LETTERS)), st.integers(0, 9))
def test_tags_and_spans_are_inverse(data, scheme, length):
    cuts = sorted(data.draw(st.sets(st.integers(0, length))))
    kinds = st.sampled_from(["X", "Y-Z", "", "B"])
    chosen = [tag_schemes.Span(data.draw(kinds), a, b) for a, b in itertools.pairwise(cuts) if data.draw(st.booleans())]
    written = tag_schemes.tags_from_spans(chosen, length, scheme)
    assert (
        tag_schemes.spans_from_tags(written, scheme)
        == tag_schemes.spans_from_tags(written, scheme, strict=False)
        == chosen
    )
