"""What a reader of scores has to know besides them: collected once, repeated in summary.json, tables and reports."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mtl_jax.data.corpus import Corpus
from mtl_jax.data.notices import INFORMATION, LABELS, LENGTH, OTHER, RECORDS, SPLITS, notice
from mtl_jax.storage.workdir import read_summary
from mtl_jax.training import penalty_effect

STEPS = "steps"  # left out, as a loss or gradient was not finite
SCORE = "score"  # not defined
PREDICTIONS = "predictions"  # all alike
PENALTY = "penalty"  # hardly acts, or ties everything
RUNS = "runs"  # further runs or lanes that the result is made of
GRAVITY = (STEPS, SCORE, PREDICTIONS, PENALTY, RUNS, SPLITS, RECORDS, LABELS, LENGTH, OTHER)  # in this order
OF_A_KIND = 3  # lines shown of each kind

Warning_ = dict[str, Any]  # {"kind", "text", "count", "total"}, JSON


def warning(kind: str, text: str, count: int | None = None, total: int | None = None) -> Warning_:
    """One warning: a sentence, its kind (see `GRAVITY`), and of how many how many; None where it is not counted."""
    return {"kind": kind, "text": text, "count": count, "total": total}


def of_data(corpus: Corpus) -> list[Warning_]:
    """The notes of a corpus, without those that merely inform."""
    notes = [notice(note) for note in corpus.notes]
    return [warning(n.kind, str(n), n.count, n.total) for n in notes if n.kind != INFORMATION]


def of_steps(left_out: int, steps: int, by_owner: Mapping[str, int]) -> list[Warning_]:
    """About steps that were left out; `by_owner` {task or "shared": steps left out because of it}."""
    if not left_out:
        return []
    reasons = ", ".join(f"{name} {count}" for name, count in by_owner.items() if count)
    text = f"{left_out} of {steps} steps were left out, as a loss or gradient was not finite"
    return [warning(STEPS, text + (f" (by owner: {reasons})" if reasons else ""), left_out, steps)]


def of_scores(undefined: int, evaluations: int) -> list[Warning_]:
    """About evaluations whose mean dev score was no finite number, so that none of them could be the best."""
    if not undefined:
        return []
    text = f"the mean dev score was not a finite number at {undefined} of {evaluations} evaluations"
    return [warning(SCORE, text + ("" if undefined < evaluations else ", so none is the best"), undefined, evaluations)]


def of_training(workdir: pathlib.Path) -> list[Warning_]:
    """What summary.json of a finished run says of its training; nothing where there is none."""
    if not (workdir / "summary.json").exists():
        return []
    return [entry for entry in read_summary(workdir).get("warnings", ()) if entry["kind"] in (STEPS, SCORE, PENALTY)]


def of_penalties(effects: Mapping[str, penalty_effect.Effect]) -> list[Warning_]:
    """About penalties that hardly acted, or tied everything."""
    texts = {name: penalty_effect.describe(effect) for name, effect in effects.items()}
    return [warning(PENALTY, f"penalty {name}: {text}") for name, text in texts.items() if text]


def of_predictions(remarks: Mapping[str, Mapping[str, str]]) -> list[Warning_]:
    """About predictions that are all alike: {task: {split: remark}}, see `metric_inputs.uniform`."""
    return [
        warning(PREDICTIONS, f"task {task}, {split}: {text}")
        for task, by_split in remarks.items()
        for split, text in by_split.items()
    ]


def ordered(warnings: Iterable[Warning_]) -> list[Warning_]:
    """By gravity, then by share, then by count; each sentence once."""
    unique = {entry["text"]: entry for entry in warnings}

    def key(entry):
        count, total = entry["count"] or 0, entry["total"]
        return GRAVITY.index(entry["kind"]), -(count / total if total else 0.0), -count

    return sorted(unique.values(), key=key)


def of_several(summaries: Mapping[str, Mapping[str, Any]]) -> list[Warning_]:
    """The warnings of several runs {name: summary}, each sentence once, behind the names of those that have it."""
    entries: dict[str, Warning_] = {}
    names: dict[str, list[str]] = {}
    for name, summary in summaries.items():
        for entry in summary.get("warnings", ()):
            entries.setdefault(entry["text"], entry)
            names.setdefault(entry["text"], []).append(name)
    return ordered(
        entry | {"text": f"{'all runs' if len(names[text]) == len(summaries) else ', '.join(names[text])}: {text}"}
        for text, entry in entries.items()
    )


def lines(warnings: Sequence[Warning_], where: str) -> list[str]:
    """The warnings as lines, `OF_A_KIND` of each kind; of the others, how many there are in the file `where`."""
    shown: list[str] = []
    for kind in GRAVITY:
        of_kind = [entry["text"] for entry in warnings if entry["kind"] == kind]
        shown += of_kind[:OF_A_KIND]
        if more := len(of_kind) - OF_A_KIND:
            shown += [f"… and {more} more of this kind in {where}"] if more > 0 else []
    return shown
