"""What written texts are compared with: a model without a mistake scores 1, and what none can reach is told."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from mtl_jax.analysis.tables import results_rows
from mtl_jax.data import corpus
from mtl_jax.data.labels import target_sequences
from mtl_jax.data.labels.label_spec import LabelSpec
from mtl_jax.data.labels.target_sequences import TargetSpec
from mtl_jax.data.tokenizers import PretrainedTokenizer, WordVocabulary
from mtl_jax.evaluation.metric_inputs import metric_ceiling
from mtl_jax.tasks.generation import Generation

ENGLISH = ["Hello, world. Don't e-mail U.S.A. at 3.14!", 'It costs $5 (or 4.50) - ok?  "Yes," he said.', "Well"]
TARGETS = {
    "English": ENGLISH,
    "Hindi": ["प्रधानमंत्री राठौर, दिल्ली में हैं।", "वे 3.5 % कहते हैं: “ठीक”।"],
    "Chinese": ["我今天去北京大学。", "iPhone 15 的价格是¥5,999！"],
    "decomposed": ["Le Cafe\u0301 de l’I\u0307le", "çà\tet  là"],
    "lists": [["Hello", ",", "world", "."], ["[EOS]", "do", "n't", "[BLANK]"]],
    "both": [["a", ".", "b"], "a. b"],
}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """An uncased WordPiece as BERT's, which lacks some characters, and a byte-level BPE."""
    folder = tmp_path_factory.mktemp("published")
    texts = [*ENGLISH, *TARGETS["Hindi"], *TARGETS["Chinese"], "hello [EOS] do n't a b"]
    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pieces.normalizer, pieces.decoder = normalizers.BertNormalizer(lowercase=True), decoders.WordPiece()
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    pieces.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[MASK]"]))
    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer, pairs.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    pairs.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    for name, backend in (("uncased", pieces), ("bytes", pairs)):
        (folder / name).mkdir()
        backend.save(str(folder / name / "tokenizer.json"))
    return {name: PretrainedTokenizer(str(folder / name)) for name in ("uncased", "bytes")}


@pytest.fixture
def written(tmp_path, monkeypatch, published):
    """(corpus, task) of targets; train has them all unless `train` names others."""
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))

    def make(values, tokenizer, train=None, **options):
        splits = {"train": train or values, "dev": values}
        for split, own in splits.items():
            lines = [{"x": y if isinstance(y, str) else " ".join(y), "y": y} for y in own]
            (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        entry = {"reader": "jsonl", "path": str(tmp_path), "splits": {s: f"{s}.jsonl" for s in splits}, "text": ("x",)}
        spec = LabelSpec("t", "d", "y", "sequence", "tokens", target=TargetSpec(**options))
        kinds = {"cased": WordVocabulary(lower=False), "lower": WordVocabulary(lower=True), **published}
        data = corpus.load({"d": entry}, [spec], kinds[tokenizer], row_length=128)
        join = target_sequences.token_joiner(spec.target, data.tokenizer, data.vocabularies["t"])
        metrics = ("exact_match", "bleu", "bleu_char", "rougeL", "perplexity")
        return data, Generation("t", data.vocabularies["t"].names, metrics=metrics, join=join)

    return make


@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("tokens", ["words", "tokenizer"])
@pytest.mark.parametrize("tokenizer", ["cased", "lower", "uncased", "bytes"])
def test_the_gold_tokens_themselves_score_1(written, tokenizer, tokens, copy):
    for values in TARGETS.values():
        data, task = written(values, tokenizer, tokens=tokens, copy=copy)
        assert metric_ceiling(data, task, "dev") == metric_ceiling(data, task, "train") == {}
        if tokens == "words" and tokenizer != "lower" and isinstance(values[0], str):
            assert data.splits["d"]["dev"].encoded.labels["t"].texts[0] == target_sequences.unicode.nfc(values[0])
            assert not any("as their tokens make them" in note for note in data.notes)


def test_what_tokens_change_is_told_by_both_spellings(written):
    data, _ = written(ENGLISH, "lower")
    assert data.splits["d"]["dev"].encoded.labels["t"].texts[2] == "well"
    (note,) = [note for note in data.notes if "of dev are written and compared as their tokens make them" in note]
    assert "3 of 3 targets" in note and "dev.jsonl:1: Hello, world" in note and "-> hello, world" in note


def test_what_no_model_can_write_lowers_the_ceiling(written):
    def bound(*args, **options):
        return metric_ceiling(*written(*args, **options), "dev")

    assert bound(ENGLISH, "cased", max_length=64) == {}
    cut = bound(ENGLISH, "cased", max_length=12)  # "Well" alone is whole
    assert cut["exact_match"] == pytest.approx(1 / 3) and 0.0 < cut["bleu"] < 1.0 and 0.0 < cut["rougeL"] < 1.0
    assert bound(["a b", "a c"], "cased", train=["a b", "a b"])["exact_match"] == 0.5
    assert bound(["a b", "a c"], "cased", train=["a b", "a b"], copy=True) == {}
    smile = bound(["hello world ☃"], "uncased", train=["hello world"], tokens="tokenizer")
    assert smile["exact_match"] == 0.0 and "perplexity" not in smile
    assert bound(["hello world ☃"], "uncased", tokens="tokenizer") == {}  # train has it, so it can be written


def test_the_table_has_the_ceiling():
    scores = {"t": {"dev": {"bleu": 0.5, "loss": 1.0}, "test": {"bleu": 0.4, "loss": 1.0}}}
    sizes = {"t": {split: {"scored": 3, "total": 3} for split in ("dev", "test")}}
    summary = {"tasks": scores, "examples": sizes, "ceilings": {"t": {"test": {"bleu": 0.9}}}}
    assert results_rows(summary)[1][:2] == [
        ["t", "bleu", 0.5, "3", 0.4, "3"],
        ["t", "bleu of the gold tokens", None, None, 0.9, None],
    ]
