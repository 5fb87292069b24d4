"""Texts to write, derived from sentences: to put words in order, to abridge, to fill a gap.

What is drawn is keyed by the words of the sentence, so that it depends neither on the file nor on other sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mtl_jax.data.files import Location
from mtl_jax.data.readers.options import check_options, options_of
from mtl_jax.data.records import Note, Record, field, suggestion, where
from mtl_jax.data.selection import generator
from mtl_jax.errors import UserError

# of Universal Dependencies: what modifies, and can be left out of a sentence that stays one
MODIFIERS = (
    "acl", "acl:relcl", "advcl", "advcl:relcl", "advmod", "amod", "appos", "discourse", "nmod", "nmod:npmod",
    "nmod:tmod", "nmod:unmarked", "nmod:desc", "obl:npmod", "obl:tmod", "obl:unmarked", "parataxis", "vocative",
)  # fmt: skip


class Derivation(NamedTuple):
    """How source and target come of a sentence; what each way does stands in its function.

    drop, keep   of "abridge"
    span, blank  of "infill"
    seed         of what is drawn
    """

    drop: Sequence[str]
    keep: Sequence[str]
    span: int
    blank: str
    seed: int


def read_derived(
    location: Location,
    encoding: str,
    *,
    way: str,
    reader: str = "conllu",
    options: Mapping[str, object] | None = None,
    words: str = "words",
    shortest: int = 1,
    longest: int = 0,
    drop: Sequence[str] = MODIFIERS,
    keep: Sequence[str] = ("Polarity=Neg",),
    span: int = 3,
    blank: str = "___",
    seed: int = 0,
) -> Iterator[Record | Note]:
    """The records of another reader with the fields source and target, lists of words.

    Args:
      way: "reorder": the words shuffled -> the sentence
           "abridge": the sentence -> without its modifiers, see `abridge`
           "infill": the sentence with a gap -> the words that were there
      reader: what reads the files: one of files, not of splits.
      options: of that reader.
      words: its field with the sentence, a list of words or a text (cut at blanks).
      shortest, longest: words of a sentence; others are left out and counted. longest 0 = any.
      drop: "abridge": dependency relations that go, with all that hangs on them.
      keep: "abridge": features that hold a word back all the same, as they stand in FEATS ("not" is a modifier too).
      span: "infill": words of a gap at most, 1 at least.
      blank: "infill": what stands for the gap.
      seed: of the shuffles and gaps.

    Raises UserError for an unknown way or reader, and by file and line for a sentence without the fields needed.
    """
    from mtl_jax.data.readers import GENERATED, READERS

    if way not in WAYS:
        raise UserError(f"options.way: {way!r} is none of {', '.join(WAYS)}.{suggestion(way, WAYS)}")
    readable = [name for name, r in READERS.items() if name not in GENERATED and "split" not in options_of(r)]
    if reader not in readable or reader == "derived":
        known = [name for name in readable if name != "derived"]
        raise UserError(f"options.reader: {reader!r} is none of {', '.join(known)}.{suggestion(reader, known)}")
    if span < 1:
        raise UserError("options.span: a gap has at least 1 word")
    check_options(READERS[reader], dict(options or {}))
    settings = Derivation(drop, keep, span, blank, seed)
    for item in READERS[reader](location, encoding, **dict(options or {})):
        if isinstance(item, Note):
            yield item
            continue
        sentence = _sentence(item, words)
        if len(sentence) < shortest or (longest and len(sentence) > longest):
            yield Note("sentences shorter or longer than wanted (options.shortest, longest)", item.file, item.line)
            continue
        source, target = WAYS[way](sentence, item, settings)
        yield item._replace(fields={**item.fields, "source": source, "target": target})


def reorder(sentence: list[str], record: Record, settings: Derivation) -> tuple[list[str], list[str]]:
    """(the words in a drawn order, the sentence)."""
    order = _random("reorder", sentence, settings).permutation(len(sentence))
    return [sentence[i] for i in order], sentence


def infill(sentence: list[str], record: Record, settings: Derivation) -> tuple[list[str], list[str]]:
    """(the sentence with `blank` in place of 1 to `span` words that follow each other, those words)."""
    random = _random("infill", sentence, settings)
    count = int(random.integers(1, min(settings.span, len(sentence)) + 1))
    first = int(random.integers(len(sentence) - count + 1))
    return [*sentence[:first], settings.blank, *sentence[first + count :]], sentence[first : first + count]


def abridge(sentence: list[str], record: Record, settings: Derivation) -> tuple[list[str], list[str]]:
    """(the sentence, the sentence without the subtrees whose relation is in `drop`).

    A punctuation mark beside what goes, goes too, unless it ends the sentence. Reads heads, deprels, feats and upos,
    the fields of CoNLL-U.
    """
    heads, relations, features, upos = (_column(record, n, sentence) for n in ("heads", "deprels", "feats", "upos"))
    if None in heads:
        raise UserError(f'{where(record)}: options.way="abridge" needs the head of every word, HEAD is _')
    goes = [
        relation in settings.drop and not set(settings.keep) & set((feats or "").split("|"))
        for relation, feats in zip(relations, features, strict=True)
    ]
    gone = np.asarray([_any_above(i, heads, goes) for i in range(len(sentence))])
    beside = np.zeros(len(sentence), bool)
    beside[1:] |= gone[:-1]
    beside[:-1] |= gone[1:]
    beside[-1] = False
    left = [w for w, g, b, p in zip(sentence, gone, beside, upos, strict=True) if not (g or (b and p == "PUNCT"))]
    return sentence, left or sentence  # punctuation alone is no sentence


WAYS: dict[str, Callable[[list[str], Record, Derivation], tuple[list[str], list[str]]]] = {
    "reorder": reorder,
    "abridge": abridge,
    "infill": infill,
}


def _any_above(word: int, heads: Sequence[int], goes: Sequence[bool]) -> bool:
    """Whether the word or one that it hangs on goes; of a cycle, which is no tree, each word is looked at once."""
    seen = set()
    while word >= 0 and word not in seen:
        if goes[word]:
            return True
        seen.add(word)
        word = heads[word] - 1
    return False


def _sentence(record: Record, name: str) -> list[str]:
    value = field(record, name)
    if isinstance(value, str):
        value = value.split()
    if not isinstance(value, list) or not value or not all(isinstance(word, str) for word in value):
        raise UserError(f"{where(record)}: field {name!r} should be a text or a list of words, found {value!r}"[:200])
    return value


def _column(record: Record, name: str, sentence: list[str]) -> list:
    value = field(record, name)
    if not isinstance(value, list) or len(value) != len(sentence):
        raise UserError(f"{where(record)}: field {name!r} should have an entry for each of {len(sentence)} words")
    return value


def _random(way: str, sentence: list[str], settings: Derivation) -> np.random.Generator:
    return generator(f"{way}/{' '.join(sentence)}", settings.seed)
