"""Labels of span extraction: the answers to a question as spans of a text, and as spans of its tokens.

A label is, in the field of the task:

    {"text": [...], "answer_start": [...]}      SQuAD, columns; single values instead of lists too
    [{"text": ..., "answer_start": ...}, ...]   SQuAD, as in its files
    {"start": ..., "end": ...}, [start, end]    a span without its text; or a list of such

or it is in two fields, named together as "text+start" or "start+end". Spans of plain text are in characters, the end
exclusive; spans of words in indices from 0, both inclusive. No answer, [] or a start of -1, means that the question
cannot be answered from the text; an absent field means that the question is not labelled.

Published offsets are sometimes wrong: an answer that is not at its offset is searched for, first literally, then
ignoring case and the number of blanks. The nearest occurrence is taken and counted. Answers that do not occur are
counted as well; they cannot be learned from, but in evaluation their text counts. Offsets refer to the text as it is
in the file; the answer may be spelled in other characters (é as e with an accent).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtl_jax import unicode
from mtl_jax.data import string_values
from mtl_jax.data.encoding.encode import EncodedSplit
from mtl_jax.data.encoding.gold_labels import GoldLabels
from mtl_jax.data.encoding.record_inputs import RecordInputs
from mtl_jax.data.labels.label_spec import LabelSpec
from mtl_jax.data.labels.raw_labels import RawLabels, is_missing
from mtl_jax.data.records import Note, Record, find_field, where
from mtl_jax.errors import UserError

CLASS_NAMES = ("answer", "no answer")
ELSEWHERE = "elsewhere"  # replaces "no answer" where every question has an answer, but some windows do not contain it
NONE, UNKNOWN = -1, -2  # in `GoldLabels.value`: no answer; an answer that does not occur in the text
_MOVED = "answers are not at their offsets, the nearest occurrence was taken"
_NOWHERE = "answers do not occur in the text, they are not learned from"
_WIDENED = "answers begin or end inside a token, all of which is taken"


class Answer(NamedTuple):
    """One answer: [begin, end) in characters or words, begin = -1 where it does not occur; text "" for words."""

    begin: int
    end: int
    text: str


def collect_answers(inputs: RecordInputs, spec: LabelSpec) -> tuple[RawLabels, list[Note]]:
    """For each record a tuple of answers, () where the question has none, None where it is not labelled.

    Raises:
      UserError: by file and line: a label of another form, a span outside of the words.
    """
    notes: list[Note] = []
    values = []
    for m, record in enumerate(inputs.records):
        raw = _raw(record, spec)
        if raw is None:
            values.append(None)
            continue
        text = inputs.words[m] if inputs.texts is None else inputs.texts[m][-1]
        answers = []
        for raw_answer in raw:
            locate = _locate_in_text if isinstance(text, str) else _locate_in_words
            answer, problem = locate(raw_answer, text, record, spec)
            answers.append(answer)
            if problem:
                notes.append(Note(problem, record.file, record.line))
        values.append(tuple(answers))
    return RawLabels(values, np.arange(len(values) + 1, dtype=np.int64), inputs.records), notes


def encode_answers(raw: RawLabels, split: EncodedSplit) -> tuple[GoldLabels, list[Note]]:
    """Gold labels of the answer to learn, the first one that occurs in the text: value int32[M, 2], first and last
    token of the last text (or word), see `NONE` and `UNKNOWN`.
    """
    value = np.full((len(raw.values), 2), UNKNOWN, np.int32)
    known = np.fromiter((v is not None for v in raw.values), bool, len(raw.values))
    begins = np.concatenate([[0], np.cumsum(split.words, dtype=np.int64)])
    notes = []
    for m, answers in enumerate(raw.values):
        if not known[m]:
            continue
        if not answers:
            value[m] = NONE
        for answer in answers:
            if answer.begin < 0:
                continue
            if not len(split.char_offsets):
                value[m] = answer.begin, answer.end - 1
                break
            offsets = split.char_offsets[begins[m] : begins[m + 1]]
            inside = np.flatnonzero((offsets[:, 0] < answer.end) & (offsets[:, 1] > answer.begin))
            if len(inside):
                value[m] = inside[0], inside[-1]
                if offsets[inside[0], 0] < answer.begin or offsets[inside[-1], 1] > answer.end:
                    record = raw.records[m]
                    notes.append(Note(_WIDENED, record.file, record.line))
                break
    return GoldLabels(value, known, raw.offsets), notes


def complete_answers(split: EncodedSplit, gold: GoldLabels) -> tuple[np.ndarray, np.ndarray]:
    """(bool[N], whether the example holds the whole answer of its record; bool[M], whether one of its examples
    does).
    """
    first, last = gold.value[split.record].T
    inside = (first >= split.first_word) & (last < split.first_word + split.example_words) & ~split.copy
    is_complete = np.zeros(len(split.words), bool)
    is_complete[split.record[inside]] = True
    return inside, is_complete


def count_truncated(split: EncodedSplit, gold: GoldLabels) -> int:
    """Number of records whose answer no example holds."""
    return int((gold.known & (gold.value[:, 0] >= 0) & ~complete_answers(split, gold)[1]).sum())


def has_windows_without_answer(split: EncodedSplit, gold: GoldLabels) -> bool:
    """Whether there is an example without the answer, which another one of its record holds."""
    inside, is_complete = complete_answers(split, gold)
    return bool((~split.copy & ~inside & (gold.known & is_complete)[split.record]).any())


def answer_text(words_or_text: str | Sequence[str], split: EncodedSplit, record: int, first: int, last: int) -> str:
    """The text from token (word) `first` to `last` of a record's last text (words); "" for no answer."""
    if first < 0:
        return ""
    if not isinstance(words_or_text, str):
        return " ".join(words_or_text[first : last + 1])
    begin, end = character_span(split, record, first, last)
    return words_or_text[begin:end]


def character_span(split: EncodedSplit, record: int, first: int, last: int) -> tuple[int, int]:
    """[begin, end) in characters of tokens `first` to `last` of a record's last text."""
    begin = int(split.words[:record].sum(dtype=np.int64))
    return int(split.char_offsets[begin + first, 0]), int(split.char_offsets[begin + last, 1])


class _RawAnswer(NamedTuple):
    """An answer as in the file: with its text or with its end."""

    text: str | None
    start: int
    end: int | None


def _raw(record: Record, spec: LabelSpec) -> list[_RawAnswer] | None:
    """The answers of a record, [] where there are none; None where it is not labelled."""
    if "+" in spec.field and spec.field not in record.fields:
        first, second = (find_field(record, name.strip()) for name in spec.field.split("+", 1))
        if is_missing(second, spec) or first is None or (isinstance(first, float) and is_missing(first, spec)):
            return None
        second = _integer(second, spec, record)
        if second == -1 or (not isinstance(first, int) and str(first).strip() == "-1"):
            return []
        if isinstance(first, int) or str(first).strip().isdecimal():
            return [_RawAnswer(None, _integer(first, spec, record), second)]
        return [_RawAnswer(str(first), second, None)]
    value = find_field(record, spec.field)
    if is_missing(value, spec):
        return None
    if isinstance(value, str) and (parsed := string_values.parse_literal(value)) is not None:
        value = parsed
    if isinstance(value, Mapping):
        value = _columns(value, spec, record)
    if isinstance(value, list | tuple) and len(value) == 2 and all(type(v) is int for v in value):
        value = [value]
    if not isinstance(value, list | tuple):
        raise _label_error(
            record, spec, f"answers are objects with text and answer_start, or start and end, found {value!r}"
        )
    answers = [_raw_answer(item, spec, record) for item in value]
    return [answer for answer in answers if answer.start != -1]


def _columns(value: Mapping[str, Any], spec: LabelSpec, record: Record) -> list[Any]:
    """A list of answers from an object of lists, or of single values."""
    columns = {name: list(v) if isinstance(v, list | tuple) else [v] for name, v in value.items()}
    used = [name for name in ("text", "answer_start", "start", "end") if name in columns]
    if len({len(columns[name]) for name in used}) > 1:
        raise _label_error(
            record, spec, "lists of different lengths: " + ", ".join(f"{len(columns[n])} {n}" for n in used)
        )
    return [dict(zip(used, row, strict=True)) for row in zip(*(columns[name] for name in used), strict=True)] or (
        [] if used else [value]
    )


def _raw_answer(item: Any, spec: LabelSpec, record: Record) -> _RawAnswer:
    if isinstance(item, list | tuple) and len(item) == 2:
        item = {"start": item[0], "end": item[1]}
    if not isinstance(item, Mapping) or not {"answer_start", "start"} & set(item) or not {"text", "end"} & set(item):
        raise _label_error(record, spec, f"an answer has text and answer_start, or start and end, found {item!r}")
    start = _integer(item["answer_start"] if "answer_start" in item else item["start"], spec, record)
    if "text" in item:
        if not isinstance(item["text"], str):
            raise _label_error(record, spec, f"the text of an answer should be a string, found {item['text']!r}")
        return _RawAnswer(item["text"], start, None)
    return _RawAnswer(None, start, _integer(item["end"], spec, record))


def _locate_in_text(raw: _RawAnswer, context: str, record: Record, spec: LabelSpec) -> tuple[Answer, str]:
    """(the answer with its span in `context`, what is wrong with it or "")."""
    text, start, end = raw
    if text is None:
        if not 0 <= start < end <= len(context):
            raise _label_error(record, spec, f"no characters {start} to {end} in a text of {len(context)}")
        return Answer(start, end, context[start:end]), ""
    bare = text.strip()
    shifted = start + len(text) - len(text.lstrip())
    if bare and context.startswith(bare, max(shifted, 0)):
        return Answer(shifted, shifted + len(bare), text), ""
    composed, offsets = (context, None) if context.isascii() else unicode.nfc_with_offsets(context)
    literal, loose = unicode.nfc(bare), r"\s+".join(map(re.escape, unicode.nfc(bare).split()))
    for pattern, flags in ((re.escape(literal), 0), (loose, re.IGNORECASE)) if bare else ():
        spans = [match.span(1) for match in re.finditer(f"(?=({pattern}))", composed, flags)]  # they may overlap
        if spans:
            if offsets is not None:
                spans = [(offsets[begin], offsets[end]) for begin, end in spans]
            begin, end = min(spans, key=lambda span: abs(span[0] - start))
            in_place = begin == shifted and not flags  # only the spelling differs
            return Answer(begin, end, text), "" if in_place else _MOVED
    return Answer(-1, -1, text), _NOWHERE


def _locate_in_words(raw: _RawAnswer, words: Sequence[str], record: Record, spec: LabelSpec) -> tuple[Answer, str]:
    """As `_locate_in_text`, for an answer among words."""
    _, start, end = raw
    if end is None:
        raise _label_error(record, spec, "answers in a list of words are given by start and end, the indices of words")
    if not 0 <= start <= end < len(words):
        raise _label_error(record, spec, f"no words {start} to {end} among {len(words)}")
    return Answer(start, end + 1, ""), ""


def _integer(value: Any, spec: LabelSpec, record: Record) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and value.strip().lstrip("-").isdecimal():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise _label_error(record, spec, f"an offset should be an integer, found {value!r}")
    return value


def _label_error(record: Record, spec: LabelSpec, message: str) -> UserError:
    return UserError(f"{where(record)}: task {spec.task}: {message[:300]}")
