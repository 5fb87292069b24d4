"""Predictions in shards: the file that they are joined to is that of one run; parts that do not fit are named."""

import json

import pytest

from mtl_jax.errors import UserError
from mtl_jax.runs import predict, train
from mtl_jax.runtime.shards import Shard
from mtl_jax.storage import workdir as folders

pytestmark = pytest.mark.usefixtures("standard_promotion")


def test_parts_are_joined_to_the_file_of_one_run(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(predict, "CHUNK", 5)
    config, workdir = tiny(model__num_layers=0, train_tasks=("color",)), folders.prepare(tmp_path / "run")
    train.train(config, workdir)
    source, target = tmp_path / "texts.test.jsonl", tmp_path / "parts.jsonl"

    def run(shard=None, target=target, source=source):
        predict.predict(config, workdir, ["best"], str(source), str(target), shard=shard)

    run(target=tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    for i in (2, 0):
        run(Shard(i, 3))
    printed = capsys.readouterr().out
    assert "parts.jsonl is not complete yet: shard 0 of 3, shard 1 of 3 missing" in printed
    assert "complete yet: shard 1 of 3 missing" in printed and not target.exists()
    part = tmp_path / "parts.jsonl.shards" / "0_of_3" / "predictions.jsonl"
    part.write_bytes(part.read_bytes()[:200])  # killed in the middle of its work
    (part.parent / "done.json").unlink()
    run(Shard(1, 3))
    assert "complete yet: shard 0 of 3 missing" in capsys.readouterr().out
    run(Shard(0, 3))
    assert f"all 3 shards are done: {len(whole.splitlines())} predictions" in capsys.readouterr().out
    assert target.read_bytes() == whole

    shorter = tmp_path / "shorter.jsonl"
    shorter.write_text("".join(line + "\n" for line in source.read_text().splitlines()[:-1]))
    with pytest.raises(UserError, match=r"shard 1 of 3 predicted another input and another number of records than sh"):
        run(Shard(0, 3), source=shorter)
    with folders.locked(part.parent), pytest.raises(UserError, match="0_of_3: another run writes here"):
        run(Shard(0, 3))
    with pytest.raises(UserError, match="name both by --input and --output"):
        run(Shard(0, 3), source="-")
    assert json.loads(whole.splitlines()[0])["line"] == 1
