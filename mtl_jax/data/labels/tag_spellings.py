"""How the values of a column spell the tags of spans, detected by how often each value occurs.

A spelling is a function from a value to its tag, "B-PER", "B" or "O" (in the scheme "brackets" to itself); to "" for
a value that is no tag.
"""

from __future__ import annotations

import collections
import functools
import itertools
import re
from collections.abc import Callable, Mapping

from mtl_jax.data.labels import tag_schemes

# Values that some files have in place of O: no evidence against spans, but no tags either, so that they are counted.
OUTSIDE = frozenset({"O", "o", "0", "-", "_", "."})
_MOST = 0.5  # share of tags such as B-PER, among values that are not outside, above which a column marks spans
_NEARLY_ALL = 0.9  # the same for ambiguous spellings: letters alone, PER-B, B_PER, b-per, (PER*

Spelling = Callable[[str], str]
_LETTER = f"[{''.join(tag_schemes.SPAN_POSITIONS)}]"
# Other spellings: lower case; another sign between letter and type; the type first.
_OTHERS = [
    (re.compile(form.replace("L", letters), re.DOTALL), case)
    for form in ("(?P<l>L)[-_](?P<t>.+)", "(?P<t>.+)[-_](?P<l>L)", "(?P<l>L)")
    for letters, case in ((_LETTER, str), (_LETTER.lower(), str.upper))
]


def usual_spelling(value: str, typed: bool) -> str:
    """The usual spelling. `typed`: letters without a type are no tags, as most have one."""
    letter, kind = tag_schemes.split_tag(value)
    if kind or letter == "O":
        return value if letter else ""
    return "" if typed else letter


def bracket_spelling(value: str) -> str:
    """The spelling of the scheme "brackets"."""
    return value if tag_schemes.is_bracket(value) else ""


def _normalised_tag(value: str, form: re.Pattern[str], case: Callable[[str], str]) -> str:
    if case(value) == "O":
        return "O"
    match = form.fullmatch(value)
    if not match:
        return ""
    kind = match.groupdict().get("t")
    return case(match["l"]) + (f"-{kind}" if kind else "")


def _of_letters(value: str, parse: Spelling, letters: str) -> str:
    """As `parse`; of tags without a type only those in `letters`."""
    tag = parse(value)
    return "" if len(tag) == 1 and tag not in ("O", *letters) else tag


def outside_tag(parse: Spelling) -> str:
    """The tag of a word outside of all spans."""
    return "*" if parse is bracket_spelling else "O"


def spelling_of_scheme(scheme: str, counts: Mapping[str, int]) -> Spelling:
    """The spelling of a scheme that the user named."""
    if scheme == "brackets":
        return bracket_spelling
    parts = [(tag_schemes.split_tag(value), n) for value, n in counts.items() if value != "O"]
    typed, bare = (sum(n for (letter, kind), n in parts if letter and bool(kind) == t) for t in (True, False))
    return functools.partial(usual_spelling, typed=typed > bare)


def detect_spelling(counts: Mapping[str, int]) -> Spelling | None:
    """How the tags of a column are spelled, by how often each value occurs; None where it marks no spans."""
    inner = {value: n for value, n in counts.items() if value not in OUTSIDE}
    total = sum(inner.values())
    if not total:
        return None

    def share(parse: Spelling) -> float:
        return sum(n for value, n in inner.items() if parse(value) not in ("", "O")) / total

    def marks(parse: Spelling) -> bool:
        tags = collections.Counter()
        for value, n in inner.items():
            tags[parse(value)] += n
        return tag_schemes.are_span_tags(tags.keys() - {""}) and _as_many_ends(tags)

    typed, untyped = functools.partial(usual_spelling, typed=True), functools.partial(usual_spelling, typed=False)
    others = [value for value in inner if not typed(value)]
    # A single other value in a column without an outside value means outside.
    has_one_other = len(others) == 1 < len(inner) and not counts.keys() & OUTSIDE
    if share(typed) > _MOST or has_one_other:
        return typed
    if share(bracket_spelling) > _NEARLY_ALL and any("*" in value for value in inner):
        return bracket_spelling
    spellings: list[Spelling] = [untyped]
    if counts.keys() & OUTSIDE:  # other spellings need values outside of all spans as evidence
        spellings += [functools.partial(_normalised_tag, form=form, case=case) for form, case in _OTHERS]
    for spelling, letters in itertools.product(spellings, ("BI", "BIES", "BILU", "BMES")):
        parse = functools.partial(_of_letters, parse=spelling, letters=letters)
        if share(parse) > _NEARLY_ALL and marks(parse):
            return parse
    return None


def _as_many_ends(tags: Mapping[str, int]) -> bool:
    """Whether tags without a type have an end for nearly every beginning, where the scheme has ends."""
    if not tags.keys() & (tag_schemes.SPAN_POSITIONS.keys() - {"B", "I"}):
        return True
    begins, ends = tags.get("B", 0), tags.get("E", 0) + tags.get("L", 0)
    return abs(begins - ends) <= (1 - _NEARLY_ALL) * max(begins, ends)
