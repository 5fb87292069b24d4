"""What a reader of scores has to know: collected once, repeated in summary.json, tables and reports."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping, Sequence

from mtl_jax.data.corpus import Corpus
from mtl_jax.data.notices import INFORMATION, LABELS, LENGTH, OTHER, RECORDS, SPLITS, notice
from mtl_jax.storage.summary import RunWarning, Summary
from mtl_jax.storage.workdir import read_summary
from mtl_jax.training import penalty_effect

PARTIAL = "partial"  # lanes that are missing
STEPS = "steps"  # skipped, because a loss or gradient was not finite
SCORE = "score"  # not defined
PREDICTIONS = "predictions"  # all alike
PENALTY = "penalty"  # has hardly any effect, or ties everything
RUNS = "runs"  # other runs or lanes that the result depends on
SEVERITY = (PARTIAL, STEPS, SCORE, PREDICTIONS, PENALTY, RUNS, SPLITS, RECORDS, LABELS, LENGTH, OTHER)  # in this order
LINES_PER_KIND = 3  # lines shown of each kind


def warning(kind: str, text: str, count: int | None = None, total: int | None = None) -> RunWarning:
    """A sentence, its kind (see `SEVERITY`), and `count` of `total` cases; None where they are not counted."""
    return {"kind": kind, "text": text, "count": count, "total": total}


def data_warnings(corpus: Corpus) -> list[RunWarning]:
    """The notes of a corpus, without those that merely inform."""
    notes = [notice(note) for note in corpus.notes]
    return [warning(n.kind, str(n), n.count, n.total) for n in notes if n.kind != INFORMATION]


def step_warnings(left_out: int, steps: int, by_owner: Mapping[str, int]) -> list[RunWarning]:
    """About skipped steps; `group_by_owner` {task or "shared": steps skipped because of it}."""
    if not left_out:
        return []
    reasons = ", ".join(f"{name} {count}" for name, count in by_owner.items() if count)
    text = f"{left_out} of {steps} steps were skipped, because a loss or gradient was not finite"
    return [warning(STEPS, text + (f" (by owner: {reasons})" if reasons else ""), left_out, steps)]


def score_warnings(undefined: int, evaluations: int) -> list[RunWarning]:
    """About evaluations whose mean dev score was not a finite number, so that none of them could be the best."""
    if not undefined:
        return []
    text = f"the mean dev score was not a finite number at {undefined} of {evaluations} evaluations"
    return [warning(SCORE, text + ("" if undefined < evaluations else ", so none is the best"), undefined, evaluations)]


def training_warnings(workdir: pathlib.Path) -> list[RunWarning]:
    """The warnings about training in the summary.json of a finished run; [] where there is none."""
    if not (workdir / "summary.json").exists():
        return []
    return [entry for entry in read_summary(workdir).get("warnings", ()) if entry["kind"] in (STEPS, SCORE, PENALTY)]


def penalty_warnings(effects: Mapping[str, penalty_effect.Effect]) -> list[RunWarning]:
    """About penalties that had hardly any effect, or tied everything."""
    texts = {name: penalty_effect.describe(effect) for name, effect in effects.items()}
    return [warning(PENALTY, f"penalty {name}: {text}") for name, text in texts.items() if text]


def prediction_warnings(remarks: Mapping[str, Mapping[str, str]]) -> list[RunWarning]:
    """About predictions that are all alike: {task: {split: remark}}, see `metric_inputs.constant_remark`."""
    return [
        warning(PREDICTIONS, f"task {task}, {split}: {text}")
        for task, by_split in remarks.items()
        for split, text in by_split.items()
    ]


def by_severity(warnings: Iterable[RunWarning]) -> list[RunWarning]:
    """By gravity, then by share, then by count; each sentence once."""
    unique = {entry["text"]: entry for entry in warnings}

    def key(entry):
        count, total = entry["count"] or 0, entry["total"]
        return SEVERITY.index(entry["kind"]), -(count / total if total else 0.0), -count

    return sorted(unique.values(), key=key)


def combine_runs(summaries: Mapping[str, Summary]) -> list[RunWarning]:
    """The warnings of several runs {name: summary}, each sentence once, after the names of the runs that have it."""
    entries: dict[str, RunWarning] = {}
    names: dict[str, list[str]] = {}
    for name, summary in summaries.items():
        for entry in summary.get("warnings", ()):
            entries.setdefault(entry["text"], entry)
            names.setdefault(entry["text"], []).append(name)
    return by_severity(
        entry | {"text": f"{'all runs' if len(names[text]) == len(summaries) else ', '.join(names[text])}: {text}"}
        for text, entry in entries.items()
    )


def format_lines(warnings: Sequence[RunWarning], where: str) -> list[str]:
    """At most `LINES_PER_KIND` warnings of each kind as lines, and how many more there are in the file `where`."""
    shown: list[str] = []
    for kind in SEVERITY:
        of_kind = [entry["text"] for entry in warnings if entry["kind"] == kind]
        shown += of_kind[:LINES_PER_KIND]
        if more := len(of_kind) - LINES_PER_KIND:
            shown += [f"… and {more} more of this kind in {where}"] if more > 0 else []
    return shown
