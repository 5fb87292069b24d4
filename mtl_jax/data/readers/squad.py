"""The format of SQuAD: articles, paragraphs, and questions on each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mtl_jax.data.files.location import Location
from mtl_jax.data.readers.json_values import parse_json, type_name
from mtl_jax.data.records import Note, Record
from mtl_jax.errors import UserError


def read_squad(location: Location, encoding: str) -> Iterator[Record | Note]:
    """One record for each question of {"data": [{"title", "paragraphs": [{"context", "qas": [...]}]}]}.

    Fields: question, context, title, id; answers: a list of {"text", "answer_start"}, empty where the question is
    marked as impossible (`is_impossible`, SQuAD 2.0; its `plausible_answers` are not read), absent where the file has
    none (a test set). Record.line is the number of the question.

    Left out and counted: questions and contexts without text; answers without text, so that their question may have no
    label; "answers": [] of a question that is marked as possible, which has no label either.

    Raises UserError at the place in the file: a missing key, or a value of another type.
    """
    document = parse_json(location.text(encoding), location.name)
    number = 0
    for a, article in enumerate(_list(document, "data", location.name)):
        for p, paragraph in enumerate(_list(article, "paragraphs", f"{location.name}: data[{a}]")):
            place = f"{location.name}: data[{a}].paragraphs[{p}]"
            context = _text(paragraph, "context", place)
            for q, question in enumerate(_list(paragraph, "qas", place)):
                number += 1
                fields = {
                    "question": _text(question, "question", f"{place}.qas[{q}]"),
                    "context": context,
                    "title": article.get("title") or "",
                    "id": question.get("id", str(number)),
                }
                if not fields["question"].strip() or not context.strip():
                    what = "questions without text, or on a context without text, left out"
                    yield Note(what, location.name, number, lost=1)
                    continue
                answers, odd, count = _answers(question, f"{place}.qas[{q}]")
                if odd:
                    yield Note(odd, location.name, number, count)
                yield Record(fields if answers is None else fields | {"answers": answers}, location.name, number)


def _answers(question: Mapping[str, Any], place: str) -> tuple[list[Any] | None, str, int]:
    """(the answers, [] for an unanswerable question, None where they are unknown; a problem or "", its count)."""
    impossible = question.get("is_impossible", False)
    if not isinstance(impossible, bool):
        raise UserError(f"{place}: 'is_impossible' has to be true or false, found {type_name(impossible)}")
    if impossible:
        return [], "", 0
    if question.get("answers") is None:
        return None, "", 0
    given = _list(question, "answers", place)
    with_text = [
        a for a in given if not (isinstance(a, dict) and isinstance(a.get("text"), str) and not a["text"].strip())
    ]
    if not with_text and (given or "is_impossible" in question):
        return None, "questions that have an answer by their mark, but none is given; they have no label", 1
    fewer = len(given) - len(with_text)
    return with_text, "answers without text left out" if fewer else "", fewer


def _list(value: Any, key: str, place: str) -> list[Any]:
    return _typed(value, key, list, "a list", place)


def _text(value: Any, key: str, place: str) -> str:
    return _typed(value, key, str, "a string", place)


def _typed(value: Any, key: str, wanted: type, name: str, place: str) -> Any:
    if not isinstance(value, dict):
        raise UserError(f"{place}: has to be an object with {key!r}, found {type_name(value)}")
    if not isinstance(value.get(key), wanted):
        raise UserError(f"{place}: {key!r} has to be {name}, found {type_name(value.get(key))}")
    return value[key]
