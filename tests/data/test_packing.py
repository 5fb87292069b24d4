import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtl_jax.data.encoding.encode import copy_for_predicates, encode, select_examples
from mtl_jax.data.encoding.record_inputs import extract_inputs
from mtl_jax.data.labels.label_spec import LabelSpec
from mtl_jax.data.labels.raw_labels import collect_labels
from mtl_jax.data.labels.vocabulary import build_vocabulary, encode_labels
from mtl_jax.data.packing import fill_ratio, pack, pack_sequences
from mtl_jax.data.packing.capacities import Capacities, choose_capacities, predicate_limit
from mtl_jax.data.packing.first_fit import first_fit
from mtl_jax.data.packing.unpacking import gather_text, gather_words
from mtl_jax.data.records import Record
from mtl_jax.data.tokenizers import WordTokenizer
from mtl_jax.errors import UserError

WORDS = [f"w{n}" for n in range(50)]
TOKENIZER = WordTokenizer(WORDS, cls=True)
SPECS = [
    LabelSpec("topic", "d", "topic", classes=tuple("0123456")),
    LabelSpec("pos", "d", "pos", "word", classes=("N", "V")),
    LabelSpec("srl", "d", "roles", "predicate", classes=("O", "A", "B")),
]


def make(lengths, row_length, packed=True, limit=None, seed=0):
    """Random sentences of these lengths with all three levels of labels, some of them missing, packed."""
    rng = np.random.default_rng(seed)
    records = []
    for n, length in enumerate(lengths):
        predicates = [] if n % 3 == 2 else rng.choice(length, min(length, 1 + n % 4), replace=False).tolist()
        fields = {
            "words": rng.choice(WORDS, length).tolist(),
            "topic": None if n % 5 == 4 else str(n % 7),
            "pos": rng.choice(["N", "V", ""], length).tolist(),
            "predicates": predicates,
            "roles": [rng.choice(["O", "A", "B"], length).tolist() for _ in predicates],
        }
        records.append(Record(fields, "f", n + 1))
    records[0].fields.update(topic="0", pos=["N"] * lengths[0])  # train wants a label of each task
    inputs = extract_inputs(records, words="words", predicates="predicates")
    split = encode(inputs, TOKENIZER, row_length, "split")
    labels, classes = {}, {}
    for spec in SPECS:
        raw = collect_labels(records, spec, inputs.word_counts, inputs.predicates)
        vocabulary, _ = build_vocabulary(spec, {"train": raw})
        classes[spec.task] = len(vocabulary.names)
        labels[spec.task] = encode_labels(raw, spec, vocabulary)
    split = split._replace(labels=labels)
    if limit is None:
        limit = predicate_limit([split], row_length, packed)
    split = copy_for_predicates(split, limit)
    split = select_examples(split, rng.permutation(len(split.record)))
    capacities = choose_capacities([split], ["text", "word", "predicate"], row_length, packed)
    return records, split, pack(split, SPECS, classes, capacities, packed), capacities


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=25), st.integers(4, 24), st.booleans(), st.integers(1, 60))
def test_everything_is_in_the_rows_once(lengths, row_length, packed, limit):
    records, split, rows, capacities = make(lengths, row_length, packed, limit)
    assert rows.tokens.shape[1] == row_length and rows.start.shape[1] == capacities.examples
    seen = []
    words = [[None] * length for length in lengths]
    topics, pos, roles = {}, {}, {}
    for r, e in zip(*np.nonzero(rows.example >= 0), strict=True):
        n = rows.example[r, e]
        seen.append(n)
        span = slice(rows.start[r, e], rows.start[r, e] + rows.length[r, e])
        np.testing.assert_array_equal(
            rows.tokens[r, span], split.tokens[split.token_offsets[n] : split.token_offsets[n + 1]]
        )
        np.testing.assert_array_equal(rows.position[r, span], np.arange(rows.length[r, e]))
        assert (rows.segment[r, span] == e + 1).all()
        if rows.labels["topic"]["mask"][r, e]:
            assert split.record[n] not in topics
            topics[split.record[n]] = str(rows.labels["topic"]["value"][r, e])
    assert sorted(seen) == list(range(len(split.record)))
    assert (rows.segment > 0).sum() == len(split.tokens) == rows.length.sum()
    assert not rows.tokens[rows.segment == 0].any() and not rows.position[rows.segment == 0].any()
    for task in ("pos", "srl"):
        named = rows.labels[task]
        names = ("N", "V") if task == "pos" else ("O", "A", "B")
        for r, q in zip(*np.nonzero(named["segment"]), strict=True):
            n = rows.example[r, named["slot"][r, q]]
            record, word = split.record[n], split.first_word[n] + named["word"][r, q]
            fields = records[record].fields
            token = named["token"][r, q]
            assert rows.segment[r, token] == named["slot"][r, q] + 1
            assert TOKENIZER.id_to_token(rows.tokens[r, token]) == fields["words"][word]
            label = names[named["value"][r, q]] if named["mask"][r, q] else ""
            if task == "pos":
                assert (record, word) not in pos
                pos[record, word] = label
                words[record][word] = fields["words"][word]
                assert label == fields["pos"][word]
            else:
                number = named["predicate_number"][r, q]
                assert (record, number, word) not in roles
                roles[record, number, word] = label
                at = fields["predicates"][number]
                assert TOKENIZER.id_to_token(rows.tokens[r, named["predicate"][r, q]]) == fields["words"][at]
                assert rows.segment[r, named["predicate"][r, q]] == named["slot"][r, q] + 1
                assert label == fields["roles"][number][word]
        assert not named["mask"][named["segment"] == 0].any()
        for segment in named["segment"]:  # sequences stand together, numbered 1, 2, ... in their order, padding last
            steps = np.diff(segment)
            assert segment[0] in (0, 1) and (((steps == 0) | (steps == 1)) | (segment[1:] == 0)).all()
    assert words == [record.fields["words"] for record in records]
    assert topics == {n: r.fields["topic"] for n, r in enumerate(records) if r.fields["topic"] is not None}
    if (split.first_word == 0).all():
        wanted = sum(len(r.fields["predicates"]) * len(r.fields["words"]) for r in records)
        assert len(roles) == wanted


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=25), st.integers(4, 24), st.integers(1, 60))
def test_predictions_come_back_by_record(lengths, row_length, limit):
    records, split, rows, _ = make(lengths, row_length, True, limit)
    order = np.random.default_rng(0).permutation(len(rows.tokens))  # any order of the rows
    example = rows.example[order]
    labels = {task: {name: a[order] for name, a in named.items()} for task, named in rows.labels.items()}
    topic = gather_text(split, example, labels["topic"]["value"])
    known = split.labels["topic"].known
    np.testing.assert_array_equal(topic[known], split.labels["topic"].value[known])
    pos = gather_words(split, example, labels["pos"], labels["pos"]["value"])
    for n, actual in enumerate(pos):
        np.testing.assert_array_equal(actual, split.labels["pos"].at_record(n)[0])
    soft = np.stack([labels["pos"]["value"], -labels["pos"]["value"]], -1).astype(np.float32)
    assert gather_words(split, example, labels["pos"], soft)[0].shape == (lengths[0], 2)
    roles = gather_words(split, example, labels["srl"], labels["srl"]["value"])
    for n, actual in enumerate(roles):
        predicates = records[n].fields["predicates"]
        assert actual.shape == (len(predicates), lengths[n])
        gold = split.labels["srl"].at_record(n)[0].reshape(actual.shape)
        begins = [*sorted(split.first_word[(split.record == n) & ~split.copy]), lengths[n]]
        for number, at in enumerate(predicates):  # roles are read off the example that holds the predicate
            inside = max(begin for begin in begins[:-1] if begin <= at)
            example = slice(inside, begins[begins.index(inside) + 1])
            np.testing.assert_array_equal(actual[number, example], gold[number, example])
            assert (np.delete(actual[number], np.arange(example.start, example.stop)) == -1).all()


def test_rows_not_seen_are_minus_one():
    _, split, rows, _ = make([3, 4], 8, False)
    one = {name: a[:1] for name, a in rows.labels["pos"].items()}
    actual = gather_words(split, rows.example[:1], one, one["value"])
    assert (actual[0] >= 0).all() and actual[1].tolist() == [-1] * 4
    assert gather_text(split, rows.example[:1], np.ones((1, 1), np.int32)).tolist() == [1, -1]


def brute_first_fit(demand, limits):
    rows, result = [], []
    for need in demand.tolist():
        fitting = (n for n, free in enumerate(rows) if all(f >= x for f, x in zip(free, need, strict=True)))
        n = next(fitting, len(rows))
        if n == len(rows):
            rows.append(list(limits))
        rows[n] = [f - x for f, x in zip(rows[n], need, strict=True)]
        result.append(n)
    return result


def test_first_fit_is_first_fit():
    rng = np.random.default_rng(0)
    demand = np.stack([rng.integers(1, 20, 200), np.ones(200, int), rng.integers(0, 30, 200)], 1)
    limits = np.asarray([32, 5, 40])
    row = first_fit(demand, limits, window=10_000)
    assert row.tolist() == brute_first_fit(demand, limits)
    row = first_fit(demand, limits, window=2)
    for a in range(3):
        assert (np.bincount(row, demand[:, a]) <= limits[a]).all()


def test_15k_examples_pack_within_a_second_and_well():
    rng = np.random.default_rng(0)
    demand = np.zeros((15_000, 4), np.int64)
    demand[:, 0] = np.clip(rng.lognormal(3, 0.6, 15_000), 3, 128)
    demand[:, 1] = 1
    begin = time.perf_counter()
    row = first_fit(demand, np.asarray([128, 12, 0, 0]))
    assert time.perf_counter() - begin < 1
    assert demand[:, 0].sum() / ((row.max() + 1) * 128) > 0.95


def test_one_example_a_row():
    _, split, rows, capacities = make([3, 9, 1], 16, packed=False)
    assert rows.tokens.shape == (len(split.record), 16) and capacities.examples == 1
    np.testing.assert_array_equal(rows.example[:, 0], np.arange(len(split.record)))


def test_one_long_sentence_does_not_decide_the_label_positions():
    lengths = [4] * 303 + [100]  # the long one has four predicates: 400 pairs, three times what other rows hold
    _, split, rows, capacities = make(lengths, 128)
    assert split.copy.sum() == 3 and split.record[split.copy].tolist() == [303] * 3
    _, _, _, unlimited = make(lengths, 128, limit=10**6)
    assert 100 <= capacities.predicate < 300 and unlimited.predicate >= 400
    assert fill_ratio(rows) > 0.9


def test_labels_that_train_lacks_are_masked_but_kept():
    _, split, _, capacities = make([3, 9, 1], 16)
    rows = pack(split, SPECS, {"topic": 1, "pos": 2, "srl": 3}, capacities)
    at = rows.labels["topic"]["value"] >= 1
    assert at.any() and not rows.labels["topic"]["mask"][at].any()


def test_what_does_not_fit_is_said():
    _, split, _, _ = make([3, 9], 16)
    with pytest.raises(UserError, match="rows hold"):
        pack(split, SPECS, {"topic": 9, "pos": 2, "srl": 3}, Capacities(16, 1, 4, 99))
    with pytest.raises(UserError, match="row_length 5"):
        choose_capacities([split], ["text"], 5, True)


def test_sequences_are_packed_whole_and_in_order():
    rng = np.random.default_rng(0)
    sequences = [rng.integers(1, 99, rng.integers(1, 9)).tolist() for _ in range(40)]
    packed = pack_sequences(sequences, 16)
    assert packed.tokens.shape[1] == 16 and len(packed.tokens) < 15
    for n, (row, start) in enumerate(zip(packed.row, packed.start, strict=True)):
        inside = slice(start, start + len(sequences[n]))
        assert packed.tokens[row, inside].tolist() == sequences[n]
        assert packed.position[row, inside].tolist() == list(range(len(sequences[n])))
        assert len(set(packed.segment[row, inside])) == 1
    counts = [len(set(segments) - {0}) for segments in packed.segment.tolist()]
    assert counts == np.bincount(packed.row).tolist()  # each a segment of its own
    assert (packed.segment > 0).sum() == sum(map(len, sequences))
    with pytest.raises(UserError, match="sequence 1 has 5 tokens, a row 4"):
        pack_sequences([[1], [1] * 5], 4)
    assert pack_sequences([], 4).tokens.shape == (0, 4)
