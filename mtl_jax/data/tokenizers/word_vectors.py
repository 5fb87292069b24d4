"""Pretrained word vectors, read from text files."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

from mtl_jax import unicode
from mtl_jax.errors import UserError


def read_vectors(path: str, vocabulary: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Word vectors from a file in the text format of GloVe, fastText or word2vec.

    Args:
      path: of a file with a word and its D numbers in each line, separated by blanks; a first line `count D` is
        skipped.
      vocabulary: V words, such as `WordTokenizer.vocabulary`.

    Returns:
      (float32[V, D], bool[V]): the vectors, zeros where the file lacks the word, and whether the file has it.

    Raises:
      UserError: no such file, a line of another length, or an entry that is no number, by file and line.
    """
    index = {word.encode(): i for i, word in enumerate(vocabulary)}
    is_read = np.zeros(len(vocabulary), bool)
    matrix = None
    dim = 0
    try:
        file = open(pathlib.Path(path).expanduser(), "rb")
    except OSError as error:
        raise UserError(f"cannot read the word vectors {path}: {error.strerror}") from None
    with file:
        for number, line in enumerate(file, 1):
            # Words of some files contain blanks, and white space other than " " is part of a word.
            parts = line.rstrip(b" \r\n").split(b" ")
            if number == 1 and len(parts) == 2 and parts[0].isdigit() and parts[1].isdigit():
                dim = int(parts[1])
                continue
            dim = dim or len(parts) - 1
            if dim < 1 or len(parts) <= dim:
                raise UserError(f"{path}:{number}: want a word and {max(dim, 1)} numbers, found {len(parts)} fields")
            if matrix is None:
                matrix = np.zeros((len(vocabulary), dim), np.float32)
            word = b" ".join(parts[:-dim])
            row = index.get(word)
            if row is None and not word.isascii():  # a word of the vocabulary is spelled in NFC
                row = index.get(unicode.nfc(word.decode(errors="surrogateescape")).encode(errors="surrogateescape"))
            if row is None or is_read[row]:
                continue
            try:
                matrix[row] = [float(part) for part in parts[-dim:]]
            except ValueError as error:
                raise UserError(f"{path}:{number}: {error}") from None
            if not np.isfinite(matrix[row]).all():
                raise UserError(f"{path}:{number}: a number of this vector is not finite")
            is_read[row] = True
    if matrix is None:
        raise UserError(f"{path}: no word vectors in this file")
    return matrix, is_read
