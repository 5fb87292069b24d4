"""Tasks made from annotated sentences: questions for roles, predicates with an argument, endings to choose from."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from mtl_jax.data.files.location import Location
from mtl_jax.data.labels import tag_schemes
from mtl_jax.data.readers.conllu import read_conllu
from mtl_jax.data.readers.srl import read_srl
from mtl_jax.data.records import Note, Record, suggestion
from mtl_jax.data.splits.subsets import random_generator
from mtl_jax.errors import UserError

_NEAR = 5  # wrong endings are drawn from this multiple of their number: of sentences on both sides, or of orders
QUESTIONS = {
    "ARG0": "Who or what does {predicate}?",
    "ARG1": "Whom or what does it {predicate}?",
    "ARGM-TMP": "When does it {predicate}?",
    "ARGM-LOC": "Where does it {predicate}?",
}


def read_srl_questions(
    location: Location,
    encoding: str,
    *,
    questions: Mapping[str, str] = QUESTIONS,
    unanswerable: int = 0,
    sentences: int = 1,
) -> Iterator[Record | Note]:
    """One record for each predicate and role that the predicate has, from the columns of the reader `srl`.

    Fields: question, its template filled with the word of the predicate (and " (2)" for its second occurrence in the
    context); context, the words with blanks between; answers, {"text": [...], "answer_start": [...]}, one for each
    span of the role; role.

    Args:
      questions: role -> template with "{predicate}".
      unanswerable: every n-th role that a predicate lacks is asked for as well, without an answer; 0 = none.
      sentences: number of consecutive sentences of a context.
    """
    if sentences < 1:
        raise UserError(f"options.sentences: a context has at least 1 sentence, not {sentences}")
    for role, template in questions.items():
        if "{predicate}" not in template:
            raise UserError(f'options.questions[{role!r}]: has to hold "{{predicate}}", found {template!r}')
    lacking = 0
    for record in _merge_sentences(read_srl(location, encoding), sentences):
        words = record.fields["words"]
        begins = [0]
        for word in words:
            begins.append(begins[-1] + len(word) + 1)
        context = " ".join(words)
        for predicate, tags in zip(record.fields["predicates"], record.fields["roles"], strict=True):
            name = words[predicate]
            occurrence = words[: predicate + 1].count(name)
            if occurrence > 1:
                name += f" ({occurrence})"
            spans = list(_spans(tags))
            for role, template in questions.items():
                places = [(begins[a], begins[b + 1] - 1) for a, b, span_role in spans if span_role == role]
                if not places:
                    lacking += 1
                    if not unanswerable or lacking % unanswerable:
                        continue
                answers = {"text": [context[a:b] for a, b in places], "answer_start": [a for a, _ in places]}
                question = template.replace("{predicate}", name)
                fields = {"question": question, "context": context, "answers": answers, "role": role}
                yield Record(fields, record.file, record.line)


def read_srl_pairs(
    location: Location, encoding: str, *, roles: Sequence[str] = (), longest: int = 0
) -> Iterator[Record | Note]:
    """One record for each predicate and argument, from the columns of the reader `srl`.

    Fields: words; predicate and argument, [first, last] word from 0; role, the argument's.

    Args:
      roles: of the arguments that are read; () = all.
      longest: the largest number of words of an argument, 0 = any.
    """
    for record in read_srl(location, encoding):
        words = record.fields["words"]
        for predicate, tags in zip(record.fields["predicates"], record.fields["roles"], strict=True):
            for first, last, role in _spans(tags):
                if roles and role not in roles:
                    what = "arguments of other roles left out (options.roles)"
                    yield Note(what, record.file, record.line, lost=1, harmless=True)
                    continue
                if longest and last - first >= longest:
                    what = "longer arguments left out (options.longest)"
                    yield Note(what, record.file, record.line, lost=1, harmless=True)
                    continue
                fields = {"words": words, "predicate": [predicate] * 2, "argument": [first, last], "role": role}
                yield Record(fields, record.file, record.line)


def read_conllu_endings(
    location: Location, encoding: str, *, wrong: str = "others", choices: int = 4, shortest: int = 8, seed: int = 0
) -> Iterator[Record | Note]:
    """One record a sentence: its first half, and its second half among wrong ones.

    Fields: beginning, its words with blanks between; endings, a list; label, the number of the true one from 0; sent_id
    and document, where the file has them. All endings of a record differ.

    Args:
      wrong: "others": endings of other sentences of the file, drawn from those nearest in their number of words, since
        halves of one sentence have the same. "reordered": the true ending with its words, but for the last one, in
        another order.
      choices: number of endings of a record.
      shortest: the smallest number of words of a sentence.
      seed: of the random draws.
    """
    if choices < 2:
        raise UserError(f"options.choices: at least 2, not {choices}")
    if wrong not in ("others", "reordered"):
        raise UserError(
            f'options.wrong: "others" or "reordered", not {wrong!r}.{suggestion(wrong, ("others", "reordered"))}'
        )
    sentences = []
    for record in read_conllu(location, encoding):
        if len(record.fields["words"]) >= max(shortest, 2):
            sentences.append(record)
        else:
            what = "sentences shorter than wanted (options.shortest) left out"
            yield Note(what, record.file, record.line, lost=1, harmless=True)
    if len(sentences) < choices:
        raise UserError(
            f"{location.name}: {len(sentences)} sentences of {shortest} words or more, {choices} are needed"
        )
    endings = [" ".join(r.fields["words"][len(r.fields["words"]) // 2 :]) for r in sentences]
    drawn = random_generator("conllu_endings", seed)
    by_length = sorted(range(len(sentences)), key=lambda n: len(sentences[n].fields["words"]))
    rank = {number: at for at, number in enumerate(by_length)}
    reach = _NEAR * choices
    for number, record in enumerate(sentences):
        words = record.fields["words"]
        if wrong == "others":
            near = by_length[max(rank[number] - reach, 0) : rank[number] + reach + 1]
            candidates = [endings[other] for other in near]
        else:
            *moved, last = endings[number].split(" ")
            orders = [drawn.permutation(len(moved)) for _ in range(_NEAR * choices)]
            candidates = [" ".join([*(moved[i] for i in order), last]) for order in orders]
        others = [ending for ending in dict.fromkeys(candidates) if ending != endings[number]]
        if len(others) < choices - 1:
            what = "sentences left out, since too few endings differ from theirs"
            yield Note(what, record.file, record.line, lost=1)
            continue
        offered = [others[n] for n in drawn.choice(len(others), choices - 1, replace=False)]
        label = int(drawn.integers(choices))
        offered.insert(label, endings[number])
        fields = {"beginning": " ".join(words[: len(words) // 2]), "endings": offered, "label": label}
        fields |= {name: record.fields[name] for name in ("sent_id", "document") if name in record.fields}
        yield Record(fields, record.file, record.line)


def _merge_sentences(records: Iterator[Record | Note], count: int) -> Iterator[Record]:
    """Records of `count` sentences each, the last one of the remaining ones: words, predicates and roles."""
    while group := list(itertools.islice(records, count)):
        words = [word for record in group for word in record.fields["words"]]
        predicates, roles, begin = [], [], 0
        for record in group:
            end = begin + len(record.fields["words"])
            predicates += [begin + p for p in record.fields["predicates"]]
            roles += [["O"] * begin + tags + ["O"] * (len(words) - end) for tags in record.fields["roles"]]
            begin = end
        yield group[0]._replace(fields={"words": words, "predicates": predicates, "roles": roles})


def _spans(tags: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """(first, last word, role) of each span but that of the verb."""
    for span in tag_schemes.spans_from_tags(tags, "iob2", strict=False):
        if span.type not in ("V", "C-V"):
            yield span.start, span.end - 1, span.type
