"""When two answers agree, as SQuAD compares them (Rajpurkar et al. 2016; unanswerable questions: 2018).

Texts are compared by their words, lower-cased, without ASCII punctuation and the articles a, an, the: on English as by
SQuAD's script. Beyond it, in one spelling (NFC), without the punctuation of other scripts, and each Han character and
Hiragana is a word (as MLQA's script has it, Lewis et al. 2020). Answers that are tuples of word indices are compared as
they are.
"""

from __future__ import annotations

import collections
import re
import string
from collections.abc import Hashable, Sequence
from typing import Any

from mtl_jax import unicode

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised_words(answer: str) -> list[str]:
    """The words that count."""
    text = unicode.without_foreign_punctuation(unicode.nfc(answer.lower()).translate(_PUNCTUATION))
    return unicode.spaced(_ARTICLES.sub(" ", text)).split()


def comparable_answers(right: Sequence[Any]) -> Sequence[Any]:
    """The right answers without those that have no counting word; [""], "no answer", if none is left."""
    comparable = [answer for answer in right if not isinstance(answer, str) or normalised_words(answer)]
    return comparable or [""]


def exact_match(right: Any, predicted: Any) -> float:
    """1 for the same words, else 0."""
    return float(_items(right) == _items(predicted))


def overlap_f1(right: Any, predicted: Any) -> float:
    """F1 over the words that both have, as often as both have them; 1 where neither has any."""
    gold, guess = _items(right), _items(predicted)
    if not gold or not guess:
        return float(gold == guess)
    both = (collections.Counter(gold) & collections.Counter(guess)).total()
    return 2.0 * both / (len(gold) + len(guess))


def _items(answer: Any) -> list[Hashable]:
    return normalised_words(answer) if isinstance(answer, str) else list(answer)
