"""Data sets on the Hugging Face Hub: the files that an entry names, in the Hub's own cache (`HF_HOME`)."""

from __future__ import annotations

import fnmatch
import pathlib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mtl_jax.data.origins.store import megabytes
from mtl_jax.data.splits import slices
from mtl_jax.errors import UserError

_NAME = re.compile(r"hf://datasets/((?:[\w-][\w.-]*/)?[\w-][\w.-]*)(?:@([\w./~-]+))?")
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\..*)")
_CONVERTED = {"~parquet": "refs/convert/parquet"}  # as the Hub's own URLs abbreviate it


class HubName(NamedTuple):
    """A data set on the Hub: "owner/name", and a branch, tag or commit ("main" by default)."""

    name: str
    revision: str


def parse(origin: str) -> HubName:
    """Raises UserError for what is not "hf://datasets/owner/name" or "hf://datasets/owner/name@revision"."""
    match = _NAME.fullmatch(origin)
    if not match:
        raise UserError(
            f"origin: {origin!r} should be hf://datasets/owner/name or hf://datasets/owner/name@revision; files below "
            "it are named by path and splits"
        )
    revision = match[2] or "main"
    return HubName(match[1], _CONVERTED.get(revision, revision))


def snapshot(hub_name: HubName, entry: Mapping[str, Any], refresh: bool = False) -> pathlib.Path:
    """The folder of a data set in the Hub's cache, with the files that `path` and `splits` of the entry name.

    Where the cache has them, the Hub is not asked, unless `refresh`. What is downloaded, and how much, is printed on
    standard error before; broken downloads are resumed by the Hub's library.

    Raises UserError: no such data set, a private or gated one, no such revision, no file that the entry names, no
    network.
    """
    import huggingface_hub  # late: half a second

    wanted = wanted_files(entry)
    arguments = {"repo_id": hub_name.name, "repo_type": "dataset", "revision": hub_name.revision}
    if not refresh:
        try:
            patterns = [*wanted, *(f"{pattern}/*" for pattern in wanted)]
            cached = huggingface_hub.snapshot_download(**arguments, allow_patterns=patterns, local_files_only=True)
            cached = pathlib.Path(cached)
            if _is_whole(_files_below(cached), wanted):
                return cached
        except (OSError, ValueError):  # nothing of it is in the cache
            pass
    try:
        info = huggingface_hub.HfApi().dataset_info(hub_name.name, revision=hub_name.revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        chosen = [file for file in sizes if any(_matches(file, pattern) for pattern in wanted)]
        if not chosen:
            raise UserError(
                f"{_label(hub_name)} has no file {' or '.join(wanted)}; it has {', '.join(sorted(sizes)[:8])}"
                f"{' …' if len(sizes) > 8 else ''}. Name them in path and splits"
            )
        licence = (info.card_data or {}).get("license") or "not stated"
        print(
            f"{_label(hub_name)}: downloading {len(chosen):,} file{'s' if len(chosen) > 1 else ''}, "
            f"{megabytes(sum(sizes[file] for file in chosen))}; licence: {licence}",
            file=sys.stderr,
        )
        return pathlib.Path(
            huggingface_hub.snapshot_download(**arguments, allow_patterns=[_escaped(file) for file in chosen])
        )
    except UserError:
        raise
    except Exception as error:  # of many libraries (HTTP, file system, Hub)
        raise UserError(_explain(error, hub_name, wanted)) from error


def _explain(error: Exception, hub_name: HubName, wanted: Sequence[str]) -> str:
    from huggingface_hub import constants, errors

    label, page = _label(hub_name), f"{constants.ENDPOINT}/datasets/{hub_name.name}"
    if isinstance(error, errors.GatedRepoError):
        return f"{label} is gated: accept its terms at {page}, then log in with `hf auth login` (or set HF_TOKEN)"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{label}: there is no such data set for you on the Hub. Check the name; for a private one log in with "
            "`hf auth login` (or set HF_TOKEN)"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{label} has no branch, tag or commit {hub_name.revision!r}; {page} lists them"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"{label}: access is refused ({status}); log in with `hf auth login` (or set HF_TOKEN)"
    cause = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
    files = " ".join(f"--include '{pattern}'" for pattern in wanted)
    return (
        f"{label} is not in the Hub's cache {constants.HF_HUB_CACHE}, and cannot be downloaded ({cause}). Where there "
        f"is a network: hf download {hub_name.name} --repo-type dataset --revision {hub_name.revision} {files}; then "
        "put that cache here, or name it in HF_HOME"
    )


def _label(hub_name: HubName) -> str:
    return f"Hub data set {hub_name.name}@{hub_name.revision}"


def wanted_files(entry: Mapping[str, Any]) -> list[str]:
    """What an entry reads, below the top of the repository; "{split}" of a template is any name."""
    path = (entry.get("path") or "").strip("/").replace("{split}", "*")
    values = [[v] if isinstance(v, str) else v for v in (entry.get("splits") or {}).values() if v]
    parts = [_without_slices(part).replace("{split}", "*") for value in values for part in value]
    is_file = bool(re.search(r"\.\w+$", path)) or "{split}" in (entry.get("path") or "")
    if path and (is_file or not parts):
        return [path]
    return sorted({f"{path}/{part}".strip("/") for part in parts if part != "."}) or ["*"]


def _without_slices(part: str) -> str:
    while (shorter := slices.parse_part(part)[0]) != part:
        part = shorter
    return part


def _matches(file: str, pattern: str) -> bool:
    """Whether a file is what the pattern names, or in a folder that it names."""
    return fnmatch.fnmatchcase(file, pattern) or fnmatch.fnmatchcase(file, f"{pattern}/*")


def _is_whole(files: Iterable[str], wanted: Sequence[str]) -> bool:
    """Whether each pattern has a file, and all shards of each sharded file are there."""
    matches = [[file for file in files if _matches(file, pattern)] for pattern in wanted]
    if not all(matches):
        return False
    present = {file for group in matches for file in group}
    for file in present:
        if shard := _SHARD.fullmatch(file):
            stem, _, count, suffix = shard.groups()
            if any(f"{stem}-{n:05d}-of-{count}{suffix}" not in present for n in range(int(count))):
                return False
    return True


def _files_below(folder: pathlib.Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _escaped(file: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", file)
