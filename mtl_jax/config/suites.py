"""Suites of tasks by name: which data sets and tasks `default.add_suite` adds.

A suite is read from the Hugging Face Hub, from the Parquet files that the Hub makes of every data set (its branch
"refs/convert/parquet": configuration/split/0000.parquet), so that nothing has to be installed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

PAIR = ("sentence1", "sentence2")
TWEETS = ("emoji", "emotion", "hate", "irony", "offensive", "sentiment")
STANCES = ("stance_abortion", "stance_atheism", "stance_climate", "stance_feminist", "stance_hillary")


class Member(NamedTuple):
    """A task of a suite, and its data set: fields of `entries.Dataset` and `entries.Task`.

    folder  configuration of the data set on the Hub
    dev     the split that is dev
    """

    folder: str
    dataset: Mapping[str, Any]
    task: Mapping[str, Any]
    dev: str = "validation"


@dataclasses.dataclass(frozen=True)
class Suite:
    """Data sets of one repository on the Hub.

    title        what it is, with its authors
    repository   "owner/name"
    members      by the name of the task
    public_test  whether the labels of test are public
    any_member   what stands for members that are not listed, with "{}" for the name in its folder; None: there are none
    """

    title: str
    repository: str
    members: Mapping[str, Member]
    public_test: bool = True
    any_member: Member | None = None

    def member(self, name: str) -> Member | None:
        """The member of this name; None where there is none."""
        other = self.any_member._replace(folder=self.any_member.folder.format(name)) if self.any_member else None
        return self.members.get(name, other)


def _classes(folder: str, *text: str, **task: Any) -> Member:
    """A classification of one text or two."""
    return Member(folder, {"text": text}, {"kind": "classification", "label": "label", **task})


def _tags(folder: str, words: str, label: str, **task: Any) -> Member:
    """Tags of words."""
    return Member(folder, {"words": words}, {"kind": "tagging", "label": label, **task})


SUITES: dict[str, Suite] = {
    "glue": Suite(
        "GLUE (Wang et al. 2018)",
        "nyu-mll/glue",
        {
            "cola": _classes("cola", "sentence", metrics=("matthews", "accuracy")),
            "sst2": _classes("sst2", "sentence"),
            "mrpc": _classes("mrpc", *PAIR, metrics=("f1", "accuracy"), classes=("not_equivalent", "equivalent")),
            "qqp": _classes(
                "qqp", "question1", "question2", metrics=("f1", "accuracy"), classes=("not_duplicate", "duplicate")
            ),
            "stsb": Member(
                "stsb",
                {"text": PAIR},
                {"kind": "regression", "label": "label", "metrics": ("pearson", "spearman")},
            ),
            "mnli": _classes("mnli", "premise", "hypothesis")._replace(dev="validation_matched"),
            "qnli": _classes("qnli", "question", "sentence"),
            "rte": _classes("rte", *PAIR),
            "wnli": _classes("wnli", *PAIR),
        },
        public_test=False,
    ),
    "super_glue": Suite(
        "SuperGLUE (Wang et al. 2019) without MultiRC, ReCoRD and WSC",
        "aps/super_glue",
        {
            "boolq": _classes("boolq", "question", "passage"),
            "cb": _classes("cb", "premise", "hypothesis", metrics=("macro_f1", "accuracy")),
            "rte": _classes("rte", "premise", "hypothesis"),
            "wic": _classes("wic", *PAIR),
        },
        public_test=False,
    ),
    "tweet_eval": Suite(
        "TweetEval (Barbieri et al. 2020)",
        "cardiffnlp/tweet_eval",
        {
            name: _classes(name, "text", metrics=("macro_f1", "accuracy"))
            for name in (
                "emoji",
                "emotion",
                "hate",
                "irony",
                "offensive",
                "sentiment",
                *(f"stance_{s}" for s in STANCES),
            )
        },
    ),
    "ud": Suite(
        "Universal Dependencies: parts of speech of treebanks by code, e.g. en_ewt",
        "universal-dependencies/universal_dependencies",
        {},
        any_member=_tags("{}", "tokens", "upos"),
    ),
    "pan_x": Suite(
        "PAN-X of XTREME (Hu et al. 2020): named entities in 40 languages by code, e.g. de",
        "google/xtreme",
        {},
        any_member=_tags("PAN-X.{}", "tokens", "ner_tags", options={"scheme": "iob2"}),
    ),
}
