import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from mtl_jax.data.tokenizers import PretrainedTokenizer, WordTokenizer, WordVocabulary, load
from mtl_jax.data.tokenizers.word_vectors import read_vectors
from mtl_jax.errors import UserError

WORDS = ["play", "##ing", "the", "song", ",", "a", "un", "##known", "."]


@pytest.fixture
def bert(tmp_path):
    """A small WordPiece tokenizer with BERT's template; truncation and padding are on, as in published files."""
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.fixture
def roberta(tmp_path):
    """Byte-level BPE as RoBERTa has it: a space is part of the word, `add_prefix_space` is off in the file."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {t: i for i, t in enumerate(["<s>", "<pad>", "</s>", "<unk>", *alphabet, "Ġa", "ab", "Ġab"])}
    merges = [("Ġ", "a"), ("a", "b"), ("Ġa", "b")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    folder = tmp_path / "roberta"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder, vocabulary


def assemble(template, *texts):
    parts = [*template.before, *((i, template.types[0]) for i in texts[0])]
    if len(texts) == 2:
        parts += [*template.between, *((i, template.types[1]) for i in texts[1])]
    return [*parts, *template.after]


def test_bert_equals_transformers(bert):
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_file(str(bert / "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    published = PreTrainedTokenizerFast(tokenizer_object=backend)
    ours = PretrainedTokenizer(str(bert))
    for text in ("Playing the song, unknown.", "a"):
        (ids,) = ours.encode_texts([text])
        assert [i for i, _ in assemble(ours.single, ids)] == published(text)["input_ids"]
    first, second = ours.encode_texts(["playing the song", "a song ."])
    expected = published("playing the song", "a song .", return_token_type_ids=True)
    assert assemble(ours.pair, first, second) == list(
        zip(expected["input_ids"], expected["token_type_ids"], strict=True)
    )
    words = ["Playing", "the", "song", ","]
    expected = published(words, is_split_into_words=True)
    (actual,) = ours.encode_words([words])
    assert [i for ids in actual for i in ids] == expected["input_ids"][1:-1]
    assert [w for w, ids in enumerate(actual) for _ in ids] == expected.word_ids()[1:-1]


def test_a_word_without_subwords_keeps_its_place(bert):
    ours = PretrainedTokenizer(str(bert))
    (actual,) = ours.encode_words([["the", "\u200b", "song"]])
    assert actual == [[6], [1], [7]]
    assert ours.encode_texts(["\u200b"]) == [[1]]


def test_byte_level_words_stand_after_a_space(roberta):
    folder, vocabulary = roberta
    ours = PretrainedTokenizer(str(folder))
    assert ours.encode_words([["ab", "a"]]) == [[[vocabulary["Ġab"]], [vocabulary["Ġa"]]]]
    assert ours.encode_texts(["ab a"]) == [[vocabulary["ab"], vocabulary["Ġa"]]]  # plain text as the file says
    assert [i for i, _ in assemble(ours.pair, [9], [8])] == [0, 9, 2, 2, 8, 2]
    assert ours.pair.types == (0, 0)  # RoBERTa has one token type
    assert ours.encode_words([["ab", ""]])[0][1] == [vocabulary["<unk>"]]


def test_many_texts_keep_their_order(bert):
    ours = PretrainedTokenizer(str(bert))
    texts = ["a " * (1 + n % 3) for n in range(2500)]
    assert [len(ids) for ids in ours.encode_texts(texts)] == [1 + n % 3 for n in range(2500)]


def test_fingerprint_follows_the_content(bert):
    before = PretrainedTokenizer(str(bert)).fingerprint
    assert PretrainedTokenizer(str(bert)).fingerprint == before
    file = bert / "tokenizer.json"
    file.write_text(file.read_text().replace('"song"', '"sing"'))
    assert PretrainedTokenizer(str(bert)).fingerprint != before


def test_a_folder_without_tokenizer_json_goes_through_transformers(tmp_path):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    ours = PretrainedTokenizer(str(tmp_path))
    assert ours.encode_words([["Playing", "\u200b"]]) == [[[5, 6], [1]]]
    assert [i for i, _ in assemble(ours.single, [5])] == [2, 5, 3]
    with pytest.raises(UserError, match="no tokenizer at"):
        PretrainedTokenizer(str(tmp_path / "absent"))


def test_saved_tokenizers_come_back(bert, roberta, tmp_path):
    cased = WordTokenizer.build(["Ünder the cat"], lower=False, cls_token=True)
    for n, ours in enumerate([PretrainedTokenizer(str(bert)), PretrainedTokenizer(str(roberta[0])), cased]):
        folder = tmp_path / str(n)
        folder.mkdir()
        ours.save(folder)
        again = load(folder)
        assert again.fingerprint == ours.fingerprint and again.size == ours.size
        assert again.single == ours.single and again.pair == ours.pair
        assert again.encode_words([["the", "", "Ünder"]]) == ours.encode_words([["the", "", "Ünder"]])
    (folder / "word_vocabulary.json").write_text("{}")
    with pytest.raises(UserError, match=r"word_vocabulary\.json"):
        load(folder)


@pytest.mark.parametrize("content", ["{", "[]", "{}"])
def test_a_broken_file_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        PretrainedTokenizer(str(tmp_path))


def test_word_vocabulary_by_hand():
    tokenizer = WordVocabulary(min_count=2)(["The cat, the dog", ["the", "Cat"], ["bird"]])
    assert tokenizer.vocabulary == ("[PAD]", "[UNK]", "[SEP]", "[CLS]", "the", "cat")
    assert tokenizer.encode_texts(["THE bird's cat!", " "]) == [[4, 1, 5, 1], [1]]
    assert tokenizer.encode_words([["the", "[PAD]", "Cat"]]) == [[[4], [1], [5]]]
    assert tokenizer.size == 6 and tokenizer.single.special_count == 0
    assert [i for i, _ in assemble(tokenizer.pair, [4], [5])] == [4, 2, 5]
    assert WordVocabulary(max_size=1, cls_token=True)(["b a b"]).vocabulary[4:] == ("b",)
    with pytest.raises(UserError, match="min_count"):
        WordVocabulary(min_count=9)(["a b"])


def test_case_is_kept_where_wanted():
    tokenizer = WordTokenizer.build(["A a"], lower=False)
    assert tokenizer.encode_texts(["a A"]) == [[tokenizer.index["a"], tokenizer.index["A"]]]


@pytest.mark.parametrize("header", ["", "3 2\n"])
def test_vectors(tmp_path, header):
    file = tmp_path / "vectors.txt"
    file.write_text(header + "the 1 2\n. . . 3 4\ncat 5 -6e-1 \nthe 9 9\n", encoding="utf-8")
    matrix, actual = read_vectors(str(file), ("[PAD]", "cat", "the", ". . ."))
    np.testing.assert_array_equal(actual, [False, True, True, True])
    np.testing.assert_array_equal(matrix, np.asarray([[0, 0], [5, -0.6], [1, 2], [3, 4]], np.float32))


@pytest.mark.parametrize(
    "text, place", [("the 1 2\ncat 1\n", ":2"), ("the 1 2\ncat 1 x\n", ":2"), ("the 1 nan\n", ":1"), ("", "no word")]
)
def test_bad_vectors_name_the_line(tmp_path, text, place):
    file = tmp_path / "vectors.txt"
    file.write_text(text)
    with pytest.raises(UserError, match=place):
        read_vectors(str(file), ("the", "cat"))
    with pytest.raises(UserError, match="No such file"):
        read_vectors(str(tmp_path / "absent"), ("the",))


def test_vectors_and_words_may_be_spelled_in_different_characters(tmp_path):
    file = tmp_path / "vectors.txt"
    file.write_text("cafe\u0301 1 2\n", encoding="utf-8")
    assert read_vectors(str(file), ("the", "café"))[1].tolist() == [False, True]


@pytest.fixture
def sentencepiece(tmp_path):
    """Pieces of a unigram model as T5, ALBERT and DeBERTa-v3 have them: words begin with ▁; T5's template, which has
    nothing before a text.
    """
    special = [(name, 0.0) for name in ("<pad>", "</s>", "<unk>")]
    pieces = [("▁", -3.0), ("▁play", -1.0), ("ing", -1.0), ("▁song", -1.5), *((letter, -5.0) for letter in "aeghnst")]
    tokenizer = Tokenizer(models.Unigram([*special, *pieces], unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    folder = tmp_path / "sentencepiece"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_pieces_of_words_equal_transformers(sentencepiece, roberta):
    from transformers import PreTrainedTokenizerFast

    words = ["playing", "song", "hats", "\u4e2d", "the"]
    for folder, prefix in ((sentencepiece, None), (roberta[0], True)):
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        if prefix:
            backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # as transformers asks for words
        published = PreTrainedTokenizerFast(tokenizer_object=backend)
        ours = PretrainedTokenizer(str(folder))
        expected = published(words, is_split_into_words=True)
        (actual,) = ours.encode_words([words])
        assert [i for i, _ in assemble(ours.single, [i for ids in actual for i in ids])] == expected["input_ids"]
        assert [w for w, ids in enumerate(actual) for _ in ids] == [w for w in expected.word_ids() if w is not None]
        first, second = actual[0], actual[1]
        pair = published(words[:1], words[1:2], is_split_into_words=True)["input_ids"]
        assert [i for i, _ in assemble(ours.pair, first, second)] == pair
    assert ours.single.before
    assert not PretrainedTokenizer(str(sentencepiece)).single.before
