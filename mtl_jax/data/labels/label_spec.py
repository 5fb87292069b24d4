"""What a task reads: the level, the type and the options of its labels."""

from __future__ import annotations

import dataclasses
from typing import Any

from mtl_jax.data.string_values import MISSING
from mtl_jax.errors import UserError
from mtl_jax.unicode import nfc

LEVELS = ("text", "word", "predicate", "sequence", "pair", "choice", "span", "token")
LABEL_TYPES = ("class", "set", "real", "tokens", "choice", "span", "hidden")
RECORD_LEVELS = ("text", "pair", "choice", "span")  # levels with one label for each record


def default_missing(level: str) -> tuple[str, ...]:
    """The values that mean "not labelled" by default: "", and `MISSING` where a record has one label."""
    return ("", *MISSING) if level in RECORD_LEVELS else ("",)


@dataclasses.dataclass(frozen=True)
class LabelSpec:
    """The labels that a task reads.

    task, dataset  names; the task's is used in every message
    field          field of the records with the label: one label for a text, a list of labels for a sentence (one for
                   each word), for "predicate" a list of such lists, one for each predicate of the record, for
                   "sequence" a string or a list of words. Several fields are joined, see `label_fields`: kind "class"
                   as one label, "coarse+fine"; kind "set" as a field of 0 and 1 for each class, "toxic+insult"
    level          "text" | "word" | "predicate" | "sequence" | "pair" (a text with two marked spans) | "choice" (one of
                   several texts) | "span" (of a text) | "token" (the text itself, with hidden tokens)
    kind           "class": one class, or a distribution as {class: probability} or C numbers in the order of `classes`
                   "set": several classes (level "text"): a list of names, also as one string (see
                   `string_values`); a string with `delimiter` between them, " " for any blanks; {name: 0 or 1}; a list
                   with 0 or 1 for each of `classes`
                   "real": a number (level "text")
                   "tokens": a target sequence (level "sequence"), tokenized and encoded by `target`
                   "choice", "span": of the levels of these names, see `choices` and `answer_spans`
                   "hidden": the hidden tokens (level "token"); `field` is not read
    classes        names in the order of the ids; () = those of the training data, sorted, "O" first for tagging
    missing        values that mean "not labelled", as well as None and the number NaN; by default `default_missing`
    predicates     field with the word indices of the predicates (level "predicate")
    labelled       records of train that keep their labels, drawn by seed among those that have some; 0 = all
    source_scheme  levels "word" and "predicate": the scheme of tags of spans, see `tag_schemes`; "none": the labels do
                   not mark spans; "": detected from all splits
    target_scheme  "iob2" | "bioes", which the tags are converted to
    """

    task: str
    dataset: str
    field: str
    level: str = "text"
    kind: str = "class"
    classes: tuple[str, ...] = ()
    missing: tuple[str | None, ...] = ("", None)
    delimiter: str = ","
    predicates: str = "predicates"
    labelled: int = 0
    source_scheme: str = ""
    target_scheme: str = "iob2"
    target: Any = None  # `mtl_jax.data.labels.target_sequences.TargetSpec`, of level "sequence" alone

    def __post_init__(self) -> None:
        for name, value, known in (("level", self.level, LEVELS), ("kind", self.kind, LABEL_TYPES)):
            if value not in known:
                raise UserError(f"task {self.task}: {name} {value!r} is none of {', '.join(known)}")
        if (self.kind == "tokens") != (self.level == "sequence") or (self.target is None) == (self.kind == "tokens"):
            raise UserError(f"task {self.task}: kind 'tokens' and a target belong to level 'sequence', and only there")
        if self.kind in ("set", "real") and self.level != "text":
            raise UserError(f"task {self.task}: labels of kind {self.kind} belong to texts, not to level {self.level}")
        if self.labelled and self.kind in ("tokens", "hidden"):
            raise UserError(f"task {self.task}: labels of kind {self.kind} are all there, `labelled` has to be 0")
        object.__setattr__(self, "classes", tuple(map(nfc, self.classes)))
        if len(set(self.classes)) != len(self.classes):
            raise UserError(f"task {self.task}: classes names a class twice")
        if not isinstance(self.delimiter, str) or not self.delimiter:
            raise UserError(
                f"config.tasks.{self.task}.options.delimiter: {self.delimiter!r} should be the string between the "
                'classes of a set, such as ";"'
            )
