"""Parts of lists of work, and what is wrong with a --shard."""

import itertools

import pytest

from mtl_jax.errors import UserError
from mtl_jax.runtime.shards import Shard, parse, shards_in


def test_parts_are_consecutive_and_of_equal_size():
    for total, count in itertools.product(range(12), range(1, 6)):
        parts = [Shard(i, count).part(range(total)) for i in range(count)]
        assert [item for part in parts for item in part] == list(range(total))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4/4", "--shard=4/4: the numbers of 4 shards are 0 to 3"),
        ("0/0", "one shard at least"),
        ("-1/2", "write i/n"),
        ("1", "write i/n"),
        ("a/b", "write i/n"),
    ],
)
def test_a_number_out_of_range(text, message):
    with pytest.raises(UserError, match=message):
        parse(text)


def test_names(tmp_path):
    assert parse("") is None and parse("2/11") == Shard(2, 11)
    for shard in (Shard(10, 11), Shard(2, 11)):
        shard.folder(tmp_path).mkdir(parents=True)
        (shard.folder(tmp_path) / "config.json").touch()
    for name in ("other", "0_of_5"):  # the second was refused
        (tmp_path / "shards" / name).mkdir()
    assert list(shards_in(tmp_path)) == [Shard(2, 11), Shard(10, 11)]
