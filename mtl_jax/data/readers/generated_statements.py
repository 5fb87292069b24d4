"""Generated statements about the pictures of NLVR, true or false by their structured representations.

A statement is a number of boxes, or of items, of which something holds: "there are exactly two blue squares touching
the edge", "there is a tower with a black block above a yellow block", "each box has at least one circle".
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from mtl_jax.data.splits.subsets import random_generator

Item = Mapping[str, Any]
Box = Sequence[Item]
BoxPhrase = tuple[str, Callable[[Sequence[Mapping[str, Any]]], bool]]  # words, and whether a box fits them
T = TypeVar("T")
TRIES = 20  # statements drawn for each one that is true of some picture and false of another

COLORS = ("yellow", "black", "blue")
SHAPES = ("square", "circle", "triangle")
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")


def normalized(sentence: str) -> str:
    """What two sentences share that differ in case and full stop alone."""
    return " ".join(sentence.lower().rstrip(" .").split())


def statements_about(
    pictures: Sequence[Sequence[Box]],
    count: int,
    name: str,
    without: frozenset[str] = frozenset(),
    balanced: bool = True,
) -> list[tuple[int, str, str]]:
    """(number of the picture, sentence, "true" or "false") of `count` statements or fewer.

    Args:
      pictures: boxes of items, as in `structured_rep`, colors by name.
      count: the largest number of statements.
      name: keys the random draws.
      without: sentences, `normalized`, that are not to be generated.
      balanced: each statement is paired with a picture of which it is true and one of which it is false; else with one
        picture.
    """
    rng = random_generator(f"statements {name}", 0)
    towers = [n for n, boxes in enumerate(pictures) if is_tower(boxes)]
    others = sorted(set(range(len(pictures))) - set(towers))
    found: list[tuple[int, str, str]] = []
    for _ in range(TRIES * count):
        if len(found) >= (1 + balanced) * count:
            break
        of_tower = bool(rng.random() < len(towers) / max(len(pictures), 1))
        sentence, holds = _Grammar(rng, of_tower).statement()
        if sentence in without:
            continue
        group = towers if of_tower else others
        if not balanced:
            n = int(rng.choice(group))
            found.append((n, sentence, str(bool(holds(pictures[n]))).lower()))
            continue
        by_truth: dict[bool, list[int]] = {True: [], False: []}
        for n in group:
            by_truth[bool(holds(pictures[n]))].append(n)
        if all(by_truth.values()):
            found += [(int(rng.choice(by_truth[t])), sentence, str(t).lower()) for t in (True, False)]
    return found


def is_tower(boxes: Sequence[Box]) -> bool:
    """Whether all items are stacked blocks."""
    return all(item["x_loc"] == 40 for box in boxes for item in box)


class _Grammar:
    """Draws statements about pictures of towers, or of scattered items."""

    def __init__(self, rng: np.random.Generator, of_tower: bool):
        self.rng, self.of_tower = rng, of_tower

    def one_of(self, *values: T) -> T:
        """One of the values, drawn uniformly."""
        return values[int(self.rng.integers(len(values)))]

    def statement(self) -> tuple[str, Callable[[Sequence[Box]], bool]]:
        """A sentence, and whether it holds of a picture."""
        if self.one_of("box", "box", "item") == "item":
            one, many, holds = self._item()
            words, compare = self._amount(int(self.rng.integers(1, 5)), one, many)
            return words, lambda boxes: compare(sum(holds(item) for box in boxes for item in box))
        words_of_box, holds = self._of_box()
        what = self.one_of("tower", "tower", "box") if self.of_tower else self.one_of("box", "box", "grey box")
        if self.one_of(*range(8)) == 0:
            has = words_of_box.replace("with", self.one_of("has", "contains"), 1).replace("having", "has", 1)
            return f"{self.one_of('each', 'every')} {what} {has}", lambda boxes: all(holds(box) for box in boxes)
        words, compare = self._amount(int(self.rng.integers(1, 4)), what, plural(what))
        return f"{words} {words_of_box}", lambda boxes: compare(sum(holds(box) for box in boxes))

    def _number(self, number: int) -> str:
        return self.one_of(str(number), NUMBERS[number])

    def _amount(self, number: int, one: str, many: str) -> tuple[str, Callable[[int], bool]]:
        """ "there are at least two boxes", and whether it holds of a count."""
        kind = self.one_of("a", "a", "a", "", "exactly", "at least", "no")
        if kind == "a":
            return f"there is {self.one_of('a', 'a', 'one', '1', 'at least one')} {one}", lambda n: n >= 1
        if kind == "no":
            return f"there is no {one}", lambda n: n == 0
        words = f"{kind} {self._number(number)} {one if number == 1 else many}".strip()
        is_are = "is" if number == 1 else "are"
        return f"there {is_are} {words}", (lambda n: n == number) if kind == "exactly" else (lambda n: n >= number)

    def _item(self, bare: bool = False) -> tuple[str, str, Callable[[Item], bool]]:
        """An item and several, and whether it is such a one."""
        color = self.one_of("", *COLORS)
        shape = "" if self.of_tower else self.one_of("", *SHAPES)
        noun = shape or (self.one_of("block", "block", "item") if self.of_tower else self.one_of("item", "object"))
        place = "" if self.of_tower or bare else self.one_of("", "", *PLACES)
        negated = bool(place) and self.one_of(*range(5)) == 0
        touching = "not touching" if negated else self.one_of("touching", "closely touching")
        place_words = f" {touching} {PLACES[place][0] if not negated else PLACES[place][1]}" if place else ""

        def holds(item: Item) -> bool:
            of_kind = (not color or item["color"] == color) and (not shape or item["type"] == shape)
            return of_kind and (not place or PLACES[place][2](item) != negated)

        named = f"{color} {noun}".strip()
        return named + place_words, plural(named) + place_words, holds

    def _of_box(self) -> tuple[str, Callable[[Box], bool]]:
        """What a box has, and whether one has it."""
        kinds = [self._count, self._count, self._only, self._colors]
        if self.of_tower:
            kinds += [self._end, self._end, self._above, self._above, self._end_of_height]
        return self.one_of(*kinds)()

    def _count(self, noun: str = "") -> BoxPhrase:
        number = self.one_of(1, 2, 3, 4)
        one, many, is_such = (noun, plural(noun), lambda item: True) if noun else self._item(bare=True)
        kind = self.one_of("", "exactly ", "at least ", "only ")
        at_least = kind == "at least "

        def holds(box: Box) -> bool:
            count = sum(is_such(item) for item in box)
            return count >= number if at_least else count == number

        return f"with {kind}{self._number(number)} {one if number == 1 else many}", holds

    def _only(self) -> BoxPhrase:
        first, second = self.rng.permutation(COLORS)[:2]
        noun = plural(self.one_of("block", "block", "item") if self.of_tower else self.one_of("item", "object"))
        if self.one_of(True, True, False):
            return f"with only {first} {noun}", lambda box: bool(box) and _colors(box) == {first}
        return f"with only {first} and {second} {noun}", lambda box: _colors(box) == {first, second}

    def _colors(self) -> BoxPhrase:
        number = self.one_of(1, 2, 3)
        noun = plural(self.one_of("block", "block", "item") if self.of_tower else self.one_of("item", "object"))
        words = {1: ("only one color", "the same color"), 2: ("2 different colors",), 3: ("all 3 different colors",)}
        return f"with {noun} of {self.one_of(*words[number])}", lambda box: len(_colors(box)) == number

    def _above(self) -> BoxPhrase:
        first, second, below = self.one_of(*COLORS), self.one_of(*COLORS), self.one_of(True, False)
        wanted = (second, first) if below else (first, second)

        def holds(box: Box) -> bool:
            order = sorted(box, key=lambda item: item["y_loc"])
            return any((upper["color"], lower["color"]) == wanted for upper, lower in itertools.pairwise(order))

        word = "below" if below else self.one_of("above", "over", "on")
        return f"{self.one_of('with', 'having')} a {first} block {word} a {second} block", holds

    def _end(self) -> BoxPhrase:
        color, base = self.one_of(*COLORS), self.one_of(True, False)
        end, place = (max, self.one_of("base", "bottom")) if base else (min, "top")
        words = self.one_of(f"with a {color} block at the {place}", f"having a {color} block as the {place}")
        return words, lambda box: bool(box) and end(box, key=lambda item: item["y_loc"])["color"] == color

    def _end_of_height(self) -> BoxPhrase:
        (height, is_high), (end, ends) = self._count("block"), self._end()
        return f"{height} {end.replace('with', 'having')}", lambda box: is_high(box) and ends(box)


def plural(word: str) -> str:
    """The plural of a noun of the grammar."""
    return f"{word}es" if word.endswith("x") else f"{word}s"


def _colors(box: Box) -> set[str]:
    return {item["color"] for item in box}


def _at_base(item: Item) -> bool:
    return item["y_loc"] + item["size"] >= 99


def _at_top(item: Item) -> bool:
    return item["y_loc"] <= 1


def _at_left(item: Item) -> bool:
    return item["x_loc"] <= 1


def _at_right(item: Item) -> bool:
    return item["x_loc"] + item["size"] >= 99


# name: (words, words after "not", whether an item touches it)
PLACES = {
    "edge": ("the edge", "any edge", lambda i: _at_base(i) or _at_top(i) or _at_left(i) or _at_right(i)),
    "wall": ("the wall", "any wall", lambda i: _at_base(i) or _at_top(i) or _at_left(i) or _at_right(i)),
    "corner": ("the corner", "any corner", lambda i: (_at_base(i) or _at_top(i)) and (_at_left(i) or _at_right(i))),
    "base": ("the base", "the base", _at_base),
    "bottom": ("the bottom of a box", "the bottom of a box", _at_base),
    "top": ("the top", "the top", _at_top),
    "left": ("left wall of a box", "left wall of a box", _at_left),
    "right": ("right wall of a box", "right wall of a box", _at_right),
}
