"""Generation tasks derived from sentences: to put words in order, to abridge, to fill a gap.

Random draws are keyed by the words of the sentence, so that they depend neither on the file nor on other sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mtl_jax.data.files.location import Location
from mtl_jax.data.labels import tag_schemes
from mtl_jax.data.readers.options import check_options, declared_options
from mtl_jax.data.records import Note, Record, field, suggestion, where
from mtl_jax.data.splits.subsets import random_generator
from mtl_jax.errors import UserError

# relations of Universal Dependencies whose dependents can be left out of a sentence
MODIFIERS = (
    "acl",
    "acl:relcl",
    "advcl",
    "advcl:relcl",
    "advmod",
    "amod",
    "appos",
    "discourse",
    "nmod",
    "nmod:npmod",
    "nmod:tmod",
    "nmod:unmarked",
    "nmod:desc",
    "obl:npmod",
    "obl:tmod",
    "obl:unmarked",
    "parataxis",
    "vocative",
)
# roles of PropBank that can be left out; negation, modal and light verbs and the like cannot
ADJUNCTS = (
    "ARGM-ADV",
    "ARGM-CAU",
    "ARGM-COM",
    "ARGM-DIR",
    "ARGM-DIS",
    "ARGM-EXT",
    "ARGM-GOL",
    "ARGM-LOC",
    "ARGM-MNR",
    "ARGM-PRP",
    "ARGM-TMP",
)


class Derivation(NamedTuple):
    """How source and target are derived from a sentence; see the function of each way.

    drop, keep   of "abridge", and drop of "roles"
    span, blank  of "infill"
    seed         of what is drawn
    """

    drop: Sequence[str]
    keep: Sequence[str]
    span: int
    blank: str
    seed: int


def read_derived(
    readers: Mapping[str, Callable[..., Iterator[Record | Note]]],
    location: Location,
    encoding: str,
    *,
    way: str,
    reader: str = "conllu",
    options: Mapping[str, object] | None = None,
    words: str = "words",
    shortest: int = 1,
    longest: int = 0,
    unchanged: bool = True,
    drop: Sequence[str] = (),
    keep: Sequence[str] = ("Polarity=Neg",),
    span: int = 3,
    blank: str = "___",
    seed: int = 0,
) -> Iterator[Record | Note]:
    """The records of another reader with the fields source and target, lists of words.

    Args:
      readers: all of them by name, bound by the registry.
      way: "reorder": the words shuffled -> the sentence
           "abridge": the sentence -> without its modifiers, see `abridge`
           "roles": the sentence -> without the adjuncts of its predicates, see `roles`
           "infill": the sentence with a gap -> the words that were there
      reader: the reader of the files: one of files, not of splits.
      options: of that reader.
      words: its field with the sentence, a list of words or a string (split at blanks).
      shortest, longest: numbers of words of a sentence; other sentences are left out and counted. longest 0 = any.
      unchanged: False to leave out, and count, sentences that are equal to their target.
      drop: "abridge": dependency relations that are removed with their subtrees, () = MODIFIERS; "roles": roles that
        are removed, () = ADJUNCTS.
      keep: "abridge": features of FEATS whose words are kept all the same ("not" is a modifier too).
      span: "infill": the largest number of words of a gap, at least 1.
      blank: "infill": the word in place of the gap.
      seed: of the shuffles and gaps.

    Raises UserError for an unknown way or reader, and by file and line for a sentence without the fields needed.
    """
    _check(readers, way, reader, span)
    check_options(readers[reader], dict(options or {}))
    settings = Derivation(drop, keep, span, blank, seed)
    given = {"fields": (words,)} if "fields" in declared_options(readers[reader]) else {}
    for item in readers[reader](location, encoding, **dict(options or {}), **given):
        if isinstance(item, Note):
            yield item
            continue
        sentence = _sentence(item, words)
        if len(sentence) < shortest or (longest and len(sentence) > longest):
            what = "sentences shorter or longer than wanted (options.shortest, longest) left out"
            yield Note(what, item.file, item.line, lost=1, harmless=True)
            continue
        source, target = DERIVATIONS[way](sentence, item, settings)
        if source == target and not unchanged:
            what = "sentences that stay as they are (options.unchanged) left out"
            yield Note(what, item.file, item.line, lost=1, harmless=True)
            continue
        yield item._replace(fields={**item.fields, "source": source, "target": target})


def _check(readers: Mapping[str, Callable[..., Iterator[Record | Note]]], way: str, reader: str, span: int) -> None:
    """Raises UserError naming the option that is wrong."""
    if way not in DERIVATIONS:
        raise UserError(f"options.way: {way!r} is none of {', '.join(DERIVATIONS)}.{suggestion(way, DERIVATIONS)}")
    readable = [name for name, r in readers.items() if "split" not in declared_options(r)]
    if reader not in readable or reader == "derived":
        known = [name for name in readable if name != "derived"]
        raise UserError(f"options.reader: {reader!r} is none of {', '.join(known)}.{suggestion(reader, known)}")
    if span < 1:
        raise UserError("options.span: a gap has at least 1 word")


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

    A punctuation mark next to a removed word is removed, unless it ends the sentence. Reads heads, deprels, feats and
    upos, the fields of CoNLL-U.
    """
    heads, relations, features = (_column(record, name, sentence) for name in ("heads", "deprels", "feats"))
    if None in heads:
        raise UserError(f'{where(record)}: options.way="abridge" needs the head of every word, HEAD is _')
    drop = settings.drop or MODIFIERS
    is_removed = [
        relation in drop and not set(settings.keep) & set((feats or "").split("|"))
        for relation, feats in zip(relations, features, strict=True)
    ]
    return sentence, _remaining(
        sentence, np.asarray([_any_above(i, heads, is_removed) for i in range(len(sentence))]), record
    )


def roles(sentence: list[str], record: Record, settings: Derivation) -> tuple[list[str], list[str]]:
    """(the sentence, the sentence without the spans whose role of any predicate is in `drop`).

    A span is kept that contains its predicate, or that a relative word refers to (R-ARGM-TMP: "the day when he came").
    Punctuation as in `abridge`. Reads roles, predicates and upos, the fields of the reader `srl`.
    """
    drop = settings.drop or ADJUNCTS
    removed = np.zeros(len(sentence), bool)
    for predicate, tags in zip(field(record, "predicates"), field(record, "roles"), strict=True):
        spans = tag_schemes.spans_from_tags(tags, "iob2", strict=False)
        referred = {span.type.removeprefix("R-") for span in spans if span.type.startswith("R-")}
        for span in spans:
            role = span.type.removeprefix("C-")  # C-: the continuation of a role
            if role in drop and role not in referred and not span.start <= predicate < span.end:
                removed[span.start : span.end] = True
    return sentence, _remaining(sentence, removed, record)


def _remaining(sentence: list[str], removed: np.ndarray, record: Record) -> list[str]:
    """The sentence without `removed` bool[words] and adjacent punctuation; unchanged where nothing would be left."""
    upos = _column(record, "upos", sentence)
    adjacent = np.zeros(len(sentence), bool)
    adjacent[1:] |= removed[:-1]
    adjacent[:-1] |= removed[1:]
    adjacent[-1] = False
    dropped = [r or (a and p == "PUNCT") for r, a, p in zip(removed, adjacent, upos, strict=True)]
    return [word for word, is_dropped in zip(sentence, dropped, strict=True) if not is_dropped] or sentence


DERIVATIONS: dict[str, Callable[[list[str], Record, Derivation], tuple[list[str], list[str]]]] = {
    "reorder": reorder,
    "abridge": abridge,
    "roles": roles,
    "infill": infill,
}


def _any_above(word: int, heads: Sequence[int], is_removed: Sequence[bool]) -> bool:
    """Whether the word or one of its ancestors is removed; in a cycle, which is no tree, each word is visited once."""
    seen = set()
    while word >= 0 and word not in seen:
        if is_removed[word]:
            return True
        seen.add(word)
        word = heads[word] - 1
    return False


def _sentence(record: Record, name: str) -> list[str]:
    value = field(record, name)
    if isinstance(value, str):
        value = value.split()
    if not isinstance(value, list) or not value or not all(isinstance(word, str) for word in value):
        raise UserError(f"{where(record)}: field {name!r} should be a string or a list of words, found {value!r}"[:200])
    return value


def _column(record: Record, name: str, sentence: list[str]) -> list:
    value = field(record, name)
    if not isinstance(value, list) or len(value) != len(sentence):
        raise UserError(f"{where(record)}: field {name!r} should have an entry for each of {len(sentence)} words")
    return value


def _random(way: str, sentence: list[str], settings: Derivation) -> np.random.Generator:
    return random_generator(f"{way}/{' '.join(sentence)}", settings.seed)
