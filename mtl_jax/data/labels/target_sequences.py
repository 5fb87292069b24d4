"""Target sequences of generation tasks: read, tokenized, encoded, and the tokens of the input to copy from.

Ids 0 … C-1 are the vocabulary: three special tokens, then the tokens of the training targets. Where a task copies, id
C + t is the input's token at position t of its example, a token that the vocabulary lacks (extended vocabulary: See et
al. 2017; here each position is a word of its own).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mtl_jax import unicode
from mtl_jax.data.encoding import word_spacing
from mtl_jax.data.encoding.encode import EncodedSplit
from mtl_jax.data.encoding.gold_labels import GoldLabels
from mtl_jax.data.encoding.record_inputs import RecordInputs
from mtl_jax.data.labels.label_spec import LabelSpec
from mtl_jax.data.labels.raw_labels import is_list
from mtl_jax.data.labels.vocabulary import LabelVocabulary, no_labels_error
from mtl_jax.data.notices import INFORMATION, LABELS, LENGTH, Notice
from mtl_jax.data.records import Note, Record, find_field, where
from mtl_jax.data.tokenizers import Tokenizer, WordTokenizer
from mtl_jax.errors import UserError

SPECIALS = ("[UNK]", "[BOS]", "[EOS]")
UNKNOWN, BEGIN, END = range(3)
TOKENS = ("words", "tokenizer")


@dataclasses.dataclass(frozen=True)
class TargetSpec:
    """How targets become tokens.

    tokens      "words": the words of a list, or a text split into words and punctuation marks, with markers of unusual
                spacing, see `word_spacing` | "tokenizer": the tokens of the tokenizer of the inputs
    min_count   tokens that are rarer in the targets of train are unknown
    max_size    size of the vocabulary of the most frequent tokens; 0 = all
    max_length  largest number of tokens of a target, its end included; a longer one is truncated and has no end
    copy        True to represent tokens that the vocabulary lacks by their position in the input
    in_row      True where the rows have the targets after the texts, as tokens of the inputs, for a model that
                continues them
    before      with `in_row` what stands between text and target
    """

    tokens: str = "words"
    min_count: int = 1
    max_size: int = 0
    max_length: int = 64
    copy: bool = False
    in_row: bool = False
    before: str = "\n"

    def before_ids(self, tokenizer: Tokenizer) -> list[int]:
        """The tokens of `before`."""
        return tokenizer.encode_texts([self.before])[0] if self.before else []

    def row_tokens(self, tokenizer: Tokenizer) -> int:
        """The tokens of a row that texts leave free."""
        return len(self.before_ids(tokenizer)) + self.max_length if self.in_row else 0


class RawTargets(NamedTuple):
    """Targets of M records.

    tokens   of each target, None where there is none
    texts    the complete texts of these tokens, which generated texts are compared with; "" for no target
    changed  where and how a text differs from the file, other than in blanks: in case, or as a tokenizer joins tokens
    """

    tokens: list[list[str] | None]
    texts: list[str]
    changed: list[Note]


def targets_have_blanks(train: Sequence[Record], spec: LabelSpec, tokenizer: Tokenizer) -> bool:
    """Whether targets are words with markers of spacing: split into words, and one of train is a string, not a list."""
    return _by_words(spec.target, tokenizer) and any(isinstance(_target(record, spec), str) for record in train)


def token_joiner(spec: TargetSpec, tokenizer: Tokenizer, vocabulary: LabelVocabulary) -> Callable[[Sequence[str]], str]:
    """The function that joins tokens to a text."""
    return _joiner(spec, tokenizer, _first_word(vocabulary) > len(SPECIALS))


def collect_targets(records: Sequence[Record], spec: LabelSpec, tokenizer: Tokenizer, with_blanks: bool) -> RawTargets:
    """The targets in field `spec.field`: texts, or lists of words; `with_blanks` by `targets_have_blanks`.

    Raises:
      UserError: by file and line: neither string nor list of words, or empty and not among `spec.missing`.
    """
    units = [_target(record, spec) for record in records]
    cut = iter(_split_targets([unit for unit in units if unit is not None], spec.target, tokenizer, with_blanks))
    tokens = [None if unit is None else next(cut) for unit in units]
    join = _joiner(spec.target, tokenizer, with_blanks)
    texts = ["" if found is None else join(found) for found in tokens]
    changed = []
    for record, unit, text in zip(records, units, texts, strict=True):
        normalized = "" if unit is None else " ".join((unit if isinstance(unit, str) else " ".join(unit)).split())
        if unicode.nfc(normalized) != text:
            changed.append(Note(f"{normalized:.60} -> {text:.60}", record.file, record.line))
    return RawTargets(tokens, texts, changed)


def reference_texts(
    units: Sequence[str | Sequence[str]], spec: TargetSpec, tokenizer: Tokenizer, vocabulary: LabelVocabulary
) -> list[str]:
    """Texts, or lists of words, as the task would write them: what can be compared with targets."""
    with_blanks = _first_word(vocabulary) > len(SPECIALS)
    return list(map(_joiner(spec, tokenizer, with_blanks), _split_targets(units, spec, tokenizer, with_blanks)))


def build_vocabulary(
    spec: LabelSpec, splits: Mapping[str, RawTargets], train: Sequence[Record], with_blanks: bool
) -> LabelVocabulary:
    """The special tokens, then the tokens of the targets of train, the most frequent first.

    Special are `SPECIALS`, and where targets are texts `spacing.MARKERS`. A word that is spelled as one of `SPECIALS`
    is a separate name, after these.

    Raises:
      UserError: train has no targets (`train` are its records); no token is frequent enough.
    """
    if all(tokens is None for tokens in splits["train"].tokens):
        raise no_labels_error(spec, train)
    markers = word_spacing.MARKERS if with_blanks else ()
    counts = collections.Counter(token for tokens in splits["train"].tokens for token in tokens or ())
    ranked = sorted((-n, token) for token, n in counts.items() if n >= spec.target.min_count and token not in markers)
    names = [token for _, token in ranked[: spec.target.max_size or None]]
    if not names:
        raise UserError(
            f"task {spec.task}: no token of the targets of train occurs {spec.target.min_count} times or more "
            f"(config.tasks.{spec.task}.options.min_count)"
        )
    return LabelVocabulary((*SPECIALS, *markers, *names))


def encode_targets(
    raw: RawTargets, spec: LabelSpec, vocabulary: LabelVocabulary, sources: Sequence[Sequence[str]]
) -> tuple[GoldLabels, int, int]:
    """The ids of all targets, their ends included; and how many were cut, and how many of their tokens are unknown.

    `sources` [M] are the tokens to copy from, see `source_tokens`; () for a task that does not copy.
    """
    ids = {name: i for i, name in enumerate(vocabulary.names) if i >= len(SPECIALS)}
    value: list[int] = []
    offsets, cut, unknown = [0], 0, 0
    for m, tokens in enumerate(raw.tokens):
        if tokens is not None:
            places: dict[str, int] = {}
            for place, token in enumerate(sources[m] if sources else ()):
                places.setdefault(token, len(vocabulary.names) + place)
            ids_of_target = [ids[t] if t in ids else places.get(t, UNKNOWN) for t in tokens[: spec.target.max_length]]
            unknown += ids_of_target.count(UNKNOWN)
            cut += len(tokens) >= spec.target.max_length
            value += ids_of_target if len(tokens) >= spec.target.max_length else [*ids_of_target, END]
        offsets.append(len(value))
    known = np.ones(len(value), bool)
    gold = GoldLabels(np.asarray(value, np.int32), known, np.asarray(offsets, np.int64), raw.texts, sources)
    return gold, cut, unknown


def encode_answers(
    records: Sequence[Record], spec: LabelSpec, tokenizer: Tokenizer, split: str
) -> tuple[GoldLabels, list[str]]:
    """Targets as tokens of the inputs, their ends included, and notices about them; see `TargetSpec.in_row`.

    Raises:
      UserError: see `collect_targets`; a tokenizer without a token for the end of a text.
    """
    if tokenizer.end_id is None:
        raise UserError(f"task {spec.task}: the tokenizer names no token for the end of a text (eos_token)")
    units = [_target(record, spec) for record in records]
    texts = ["" if unit is None else unit if isinstance(unit, str) else " ".join(unit) for unit in units]
    ids = iter(tokenizer.encode_texts([text for unit, text in zip(units, texts, strict=True) if unit is not None]))
    most = spec.target.max_length
    by_record = [[] if unit is None else [*next(ids), tokenizer.end_id] for unit in units]
    cut = sum(len(tokens) > most for tokens in by_record)
    by_record = [tokens[:most] for tokens in by_record]
    value = np.asarray([token for tokens in by_record for token in tokens], np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(tokens) for tokens in by_record], dtype=np.int64)])
    gold = GoldLabels(value, np.ones(len(value), bool), offsets, texts)
    return gold, target_notes(spec, split, RawTargets([], texts, []), gold, cut, 0)


def missing_targets(count: int, sources: Sequence[Sequence[str]]) -> GoldLabels:
    """As `encode_targets`, of `count` records without targets."""
    return GoldLabels(np.zeros(0, np.int32), np.zeros(0, bool), np.zeros(count + 1, np.int64), [""] * count, sources)


def source_tokens(inputs: RecordInputs, split: EncodedSplit, tokenizer: Tokenizer) -> list[list[str]]:
    """[M] the tokens of each record's first example as read, "" at the special tokens of the tokenizer."""
    specials = _special_ids(tokenizer)
    first = np.flatnonzero(split.is_first_example)
    result: list[list[str]] = [[] for _ in range(len(split.words))]
    for example in first[np.argsort(split.record[first], kind="stable")]:
        span = slice(split.token_offsets[example], split.token_offsets[example + 1])
        tokens = split.tokens[span].tolist()
        m = int(split.record[example])
        names = ["" if t in specials else tokenizer.id_to_token(t) for t in tokens]
        if isinstance(tokenizer, WordTokenizer):  # a word outside of its vocabulary is known by its letters
            places = [i for i, t in enumerate(tokens) if t not in specials]
            for place, word in zip(places, _surfaces(inputs, m, split, example, tokenizer), strict=True):
                names[place] = word
        result[m] = names
    return result


def copied_ids(vocabulary: LabelVocabulary, tokenizer: Tokenizer) -> tuple[int, ...]:
    """For each token id of the inputs its id as a target; -1: the vocabulary lacks it, -2: a special token."""
    ids = {name: i for i, name in enumerate(vocabulary.names) if i >= _first_word(vocabulary)}
    specials = _special_ids(tokenizer)
    return tuple(-2 if t in specials else ids.get(tokenizer.id_to_token(t), -1) for t in range(tokenizer.size))


def target_notes(spec: LabelSpec, split: str, raw: RawTargets, gold: GoldLabels, cut: int, unknown: int) -> list[str]:
    """Notices about targets that were changed or truncated, unknown tokens and missing targets."""
    lengths = np.diff(gold.offsets)
    count, missing = int((lengths > 0).sum()), int((lengths == 0).sum())
    notices = []
    if missing:
        text = f"task {spec.task}: {missing} of {len(lengths)} records of {split} have no target"
        notices.append(Notice(text, LABELS, missing, len(lengths)))
    if raw.changed:
        first = raw.changed[0]
        text = f"task {spec.task}: {len(raw.changed)} of {count} targets of {split} are written and compared as their "
        text += f"tokens make them, first at {first.file}:{first.line}: {first.what}"
        notices.append(Notice(text, INFORMATION, len(raw.changed), count))
    if cut:
        share = cut / max(count, 1)
        text = f"task {spec.task}: {cut} of {count} targets of {split} ({share:.1%}) too long, cut to "
        notices.append(Notice(f"{text}{spec.target.max_length} tokens (max_length)", LENGTH, cut, count))
    if unknown:
        text = f"task {spec.task}: {unknown} tokens of the targets of {split} ({unknown / len(gold.value):.2%}) are "
        text += "not in the vocabulary of train; no model can write them"
        notices.append(Notice(text, LABELS, unknown, len(gold.value)))
    return notices


def _target(record: Record, spec: LabelSpec) -> str | list[str] | None:
    value = find_field(record, spec.field)
    if is_list(value) and all(isinstance(word, str) for word in value):
        words = [word for word in value if word.strip()]
        value, empty = words, not words
    elif isinstance(value, str) or value is None:
        value = value and value.strip()
        empty = not value
    else:
        problem = f"field {spec.field!r} should be a string or a list of words, found {value!r}"[:200]
        raise UserError(f"{where(record)}: task {spec.task}: {problem}")
    if value is None or (empty and "" in spec.missing) or (isinstance(value, str) and value in spec.missing):
        return None
    if empty:
        raise UserError(
            f"{where(record)}: task {spec.task}: field {spec.field!r}: empty target; with '' in "
            f"config.tasks.{spec.task}.missing it counts as not given"
        )
    return value


def _by_words(spec: TargetSpec, tokenizer: Tokenizer) -> bool:
    return not spec.in_row and (spec.tokens == "words" or isinstance(tokenizer, WordTokenizer))


def _split_targets(
    units: Sequence[str | Sequence[str]], spec: TargetSpec, tokenizer: Tokenizer, with_blanks: bool
) -> list[list[str]]:
    if not _by_words(spec, tokenizer):
        return tokenizer.tokenize(units)
    lower = isinstance(tokenizer, WordTokenizer) and tokenizer.lower
    if not with_blanks:
        return WordTokenizer.split_words(units, lower)
    tokens = []
    for unit in units:
        if isinstance(unit, str):
            tokens.append(word_spacing.mark_blanks(*WordTokenizer.split_with_blanks(unit, lower)))
        else:
            (words,) = WordTokenizer.split_words([unit], lower)
            tokens.append(word_spacing.mark_blanks(words, [number > 0 for number in range(len(words))]))
    return tokens


def _joiner(spec: TargetSpec, tokenizer: Tokenizer, with_blanks: bool) -> Callable[[Sequence[str]], str]:
    if not _by_words(spec, tokenizer):
        return tokenizer.join
    return word_spacing.join_words if with_blanks else " ".join


def _first_word(vocabulary: LabelVocabulary) -> int:
    """The id of the first name that is no special token."""
    first = len(SPECIALS)
    return first + 2 * (vocabulary.names[first : first + 2] == word_spacing.MARKERS)


def _special_ids(tokenizer: Tokenizer) -> set[int]:
    """Ids of the tokens that templates add."""
    return {
        index
        for template in (tokenizer.single, tokenizer.pair)
        for part in (template.before, template.between, template.after)
        for index, _ in part
    }


def _surfaces(inputs: RecordInputs, m: int, split: EncodedSplit, example: int, tokenizer: WordTokenizer) -> list[str]:
    """The words of a first example, special tokens left out."""
    if inputs.texts is None:
        return tokenizer.tokenize([inputs.words[m]])[0][: split.example_words[example]]
    sides = tokenizer.tokenize(inputs.texts[m])
    span = slice(split.token_offsets[example], split.token_offsets[example + 1])
    second = int((split.token_type[span] == tokenizer.pair.types[1]).sum()) if len(sides) == 2 else 0
    template = tokenizer.pair if len(sides) == 2 else tokenizer.single
    counts = (split.lengths[example] - second - template.special_count, second)
    return [word for side, n in zip(sides, counts, strict=False) for word in side[:n]]
