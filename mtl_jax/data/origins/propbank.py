"""Semantic roles of the English Web Treebank: PropBank's annotation, which has no words, on the words of UD's."""

from __future__ import annotations

import itertools
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence

# Columns of a line of PropBank's .gold_skel; from _ROLES on there is one for each predicate.
_XPOS, _ROLESET, _ROLES = 4, 7, 8
_MIN_AGREEMENT = 0.8  # of the tags of two sentences that are taken to be the same


def join_roles(skeletons: pathlib.Path, others: Mapping[str, pathlib.Path]) -> dict[str, bytes]:
    """{"train.conll" | "dev.conll" | "test.conll": lines of index, word, UPOS, XPOS, roleset and a BIO column each}.

    A sentence of UD is that of PropBank with the same number in its document, counted from the beginning or else from
    the end, if it has as many tokens and at least four fifths of its tags; others are left out.

    Args:
      skeletons: folder with {genre}/00/{document}.xml.gold_skel.
      others: {"ewt": folder with UD English-EWT}.
    """
    splits = {}
    for split in ("train", "dev", "test"):
        file = others["ewt"] / f"en_ewt-ud-{split}.conllu"
        blocks = []
        sentences = _read_conllu(file)
        for document, group in itertools.groupby(sentences, key=lambda sentence: sentence[0].rpartition("-")[0]):
            words = [rows for _, rows in group]
            genre, _, name = document.partition("-")
            roles = _read_skeleton(skeletons / genre / "00" / f"{name}.xml.gold_skel")
            for number, rows in enumerate(words):
                match = _matching(rows, roles, (number, number - len(words)))
                if match:
                    blocks.append(_join(rows, match))
        splits[f"{split}.conll"] = "".join(block + "\n\n" for block in blocks).encode("utf-8")
    return splits


def _read_conllu(file: pathlib.Path) -> Iterator[tuple[str, list[list[str]]]]:
    """(sent_id, columns of each word) of each sentence."""
    for block in file.read_text(encoding="utf-8").split("\n\n"):
        lines = block.split("\n")
        rows = [line.split("\t") for line in lines if line[:1].isdigit()]
        if rows:
            name = next(line for line in lines if line.startswith("# sent_id")).partition("=")[2].strip()
            yield name, [row for row in rows if row[0].isdigit()]


def _read_skeleton(file: pathlib.Path) -> list[list[list[str]]]:
    """Columns of each token of each sentence; none where PropBank has no such document."""
    if not file.is_file():
        return []
    blocks = re.split(r"\n\s*\n", file.read_text(encoding="utf-8"))
    return [[line.split() for line in block.split("\n") if line.strip()] for block in blocks if block.strip()]


def _matching(
    rows: Sequence[Sequence[str]], sentences: Sequence[list[list[str]]], numbers: Sequence[int]
) -> list[list[str]] | None:
    """The first of the numbered sentences that is the one in `rows`."""
    for number in numbers:
        if -len(sentences) <= number < len(sentences) and len(sentences[number]) == len(rows):
            equal = sum(row[_XPOS] == token[_XPOS] for row, token in zip(rows, sentences[number], strict=True))
            if equal >= _MIN_AGREEMENT * len(rows):
                return sentences[number]
    return None


def _join(rows: Sequence[Sequence[str]], tokens: Sequence[Sequence[str]]) -> str:
    columns = [_bio_tags(column) for column in zip(*(token[_ROLES:] for token in tokens), strict=True)]
    return "\n".join(
        "\t".join([str(index), row[1], row[3], row[4], token[_ROLESET], *(tags[index] for tags in columns)])
        for index, (row, token) in enumerate(zip(rows, tokens, strict=True))
    )


def _bio_tags(column: Sequence[str]) -> list[str]:
    """ "(ARG0*", "*", "*)" as B-ARG0, I-ARG0, I-ARG0."""
    tags, role = [], ""
    for cell in column:
        begin = re.match(r"\(([^*]+)\*", cell)
        if begin:
            role = begin[1]
        tags.append(f"{'B' if begin else 'I'}-{role}" if role else "O")
        if cell.endswith(")"):
            role = ""
    return tags
