"""Whatever stands in a file, a reader gives records or a UserError."""

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
     "1\ta\ta\tX\tY\t_\t0\tr\t_\t_\n", '{"train": [["a", "b"]]}', "a O\n", "-DOCSTART- O\n"]
)  # fmt: skip
CONTENT = st.binary(max_size=60) | st.lists(PIECES, max_size=30).map(lambda pieces: "".join(pieces).encode())
OPTIONS = {"json_splits": {"split": "train"}, "conll": {"columns": ("words", "tags")}}


@pytest.mark.parametrize("reader", ["jsonl", "csv", "conll", "conllu", "srl", "json_splits", "parallel", "folders"])
@hypothesis.settings(
    max_examples=100, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(content=CONTENT, encoding=st.sampled_from(["utf-8", "utf-16", "latin-1", "utf-8|cp1252"]))
def test_records_or_user_error(tmp_path, reader, content, encoding):
    if reader in ("parallel", "folders"):
        (tmp_path / "label").mkdir(exist_ok=True)
        for name in ("a", "b", "label/c"):
            (tmp_path / name).write_bytes(content)
        options = {"files": {"words": "a", "slots": "b"}} if reader == "parallel" else {}
        location = files.local(tmp_path)
    else:
        (tmp_path / "f").write_bytes(content)
        location, options = files.local(tmp_path / "f"), OPTIONS.get(reader, {})
    try:
        items = list(READERS[reader](location, encoding, **options))
    except UserError as error:
        assert str(tmp_path) in str(error)
        return
    for item in items:
        assert isinstance(item, Record | Note)
        if isinstance(item, Record) and "words" in item.fields:
            lists = [v for k, v in item.fields.items() if k in ("words", "tags", "slots", "upos", "heads")]
            assert len({len(values) for values in lists}) == 1
