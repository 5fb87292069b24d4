"""The predictions of independent shards: a part each, joined to one file by the shard that ends last."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
from typing import NamedTuple, TypedDict

from mtl_jax.errors import UserError
from mtl_jax.runtime.shards import Shard
from mtl_jax.storage.workdir import write_json


class PartIdentity(TypedDict):
    """What all parts have in common: hashes of the records and of the model, and the number of records."""

    input: str
    records: int
    model: str


_WHAT = {"input": "another input", "records": "another number of records", "model": "another model, or other tasks"}


class PredictionPart(NamedTuple):
    """The part of one shard, in the folder `<target>.shards`."""

    target: pathlib.Path
    shard: Shard

    @property
    def folder(self) -> pathlib.Path:
        """Of this part."""
        return self._folder(self.shard)

    @property
    def file(self) -> pathlib.Path:
        """The predictions of this part."""
        return self.folder / "predictions.jsonl"

    def _folder(self, shard: Shard) -> pathlib.Path:
        return self.target.with_name(f"{self.target.name}.shards") / shard.name

    def begin(self) -> None:
        """This part is not complete (any more)."""
        (self.folder / "done.json").unlink(missing_ok=True)

    def finish(self, identity: PartIdentity) -> list[Shard]:
        """Says that this part is complete; joins all parts to the target if they are.

        Returns:
          the shards that are missing; []: the target is complete.

        Raises:
          UserError: another part is of another input or model.
        """
        write_json(self.folder / "done.json", identity)
        others = [Shard(i, self.shard.count) for i in range(self.shard.count)]
        done = {other: _read(self._folder(other) / "done.json") for other in others}
        for other, saved in done.items():
            if saved is not None and saved != identity:
                what = " and ".join(text for key, text in _WHAT.items() if saved.get(key) != identity[key])
                raise UserError(f"{self._folder(other)}: {other} predicted {what} than {self.shard}; start it again")
        missing = [other for other, saved in done.items() if saved is None]
        if not missing:
            self._join(others)
        return missing

    def _join(self, shards: list[Shard]) -> None:
        temporary = self.target.with_name(f"{self.target.name}.{os.getpid()}")
        with temporary.open("wb") as joined:
            for shard in shards:
                with (self._folder(shard) / "predictions.jsonl").open("rb") as part:
                    shutil.copyfileobj(part, joined)
        os.replace(temporary, self.target)


def _read(file: pathlib.Path) -> PartIdentity | None:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
