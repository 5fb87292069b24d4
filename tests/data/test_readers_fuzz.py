"""Whatever stands in a file, a reader gives records or a UserError; and the words of records stand in the file.

    FUZZ=1000 python -m pytest tests/data/test_readers_fuzz.py tests/test_config_fuzz.py     # 14,000 inputs
"""

import os

import hypothesis
import pytest
from hypothesis import strategies as st

from mtl_jax.data import files
from mtl_jax.data.readers import READERS
from mtl_jax.data.records import Note, Record
from mtl_jax.errors import UserError

PIECES = st.sampled_from(
    ["\n", "\r\n", "\r", "\t", " ", ",", '"', "{", "}", "[", "]", ":", '"a"', "1", "1-2", "_", "O", "B-X", "I-Y", "E-X",
     "-", "go.01", "# k = v\n", "train", "\x00", "\ufeff", "\u2028", "é", "\\ud800", "NaN", "1e999", "0\ta\tb\tc\t-\n",
     "1\ta\ta\tX\tY\t_\t0\tr\t_\t_\n", '{"train": [["a", "b"]]}', "a O\n", "-DOCSTART- O\n",
     '{"data": [{"paragraphs": [{"context": "a b", "qas": [{"question": "q", "answers": []}]}]}]}',
     "T1\tX 0 1\n", '{"text": "a b", "spans": [[0, 1, "X"]]}\n', "(X*", "*)", "*", "\x1f\x8b\x08", "PAR1", "ARROW1",
     '{"turns": ["a", 1]}\n', '{"turns": ["a", "b"]}\n',
     '{"sentence": "a", "label": "true", "identifier": "1-0", "directory": "0", ',
     '"structured_rep": [[], [{"color": "Black"}], []]}\n', "\x00\x00\x08\x01\x00\x00\x00\x01\x05",
     '<a b="1">', "</a>", "<b>", "</b>", "<!DOCTYPE a [", "]>", '<!ENTITY a "b">', "&a;", "&amp;"]
)  # fmt: skip
CONTENT = st.binary(max_size=60) | st.lists(PIECES, max_size=30).map(lambda pieces: "".join(pieces).encode())
FOLDERS = {  # reader: files of the folder that it reads, the same content in each
    "parallel": ("a", "b"),
    "folders": ("label/c", "other/d"),
    "nlvr": ("dev/dev.json", "dev/images/0/dev-1-0-0.png"),
    "idx": ("f", "g"),
    "brat": ("f.txt", "f.ann"),
}
OPTIONS = {
    "json_splits": {"split": "train"},
    "conll": {"columns": ("words", "tags")},
    "parallel": {"files": {"words": "a", "slots": "b"}},
    "idx": {"labels": "g"},
    "lines": {"pattern": r"(?P<text>\S+)\s?(?P<rest>.*)", "lists": {"rest": "a"}},
    "xml": {"record": "a", "lists": ("b",)},
    "derived": {"way": "infill", "reader": "conll", "options": {"columns": ("words", "tags")}},
}
EXAMPLES = int(os.environ.get("FUZZ", "100"))


@pytest.mark.parametrize("reader", sorted(set(READERS) - {"synthetic", "tfds"}))
@hypothesis.settings(
    max_examples=EXAMPLES, deadline=None, derandomize="FUZZ" not in os.environ,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)  # fmt: skip
@hypothesis.given(content=CONTENT, encoding=st.sampled_from(["utf-8", "utf-16", "latin-1", "utf-8|cp1252"]))
def test_records_or_user_error(tmp_path, reader, content, encoding):
    for name in FOLDERS.get(reader, ("f",)):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(content)
    places = {"parallel": "", "folders": "", "brat": "", "nlvr": "dev/images/0"}
    place = tmp_path / places.get(reader, "f")
    try:
        items = list(READERS[reader](files.local(place), encoding, **OPTIONS.get(reader, {})))
    except UserError as error:
        assert str(tmp_path) in str(error)
        return
    decoded = [content.decode(name, "replace") for name in encoding.split("|")]
    for item in items:
        assert isinstance(item, Record | Note)
        if isinstance(item, Record) and "words" in item.fields:
            lists = [v for k, v in item.fields.items() if k in ("words", "tags", "slots", "upos", "heads")]
            assert len({len(values) for values in lists}) == 1
            for word in item.fields["words"] if reader in ("conll", "conllu", "srl", "parallel") else ():
                assert any(word in text for text in decoded), word
