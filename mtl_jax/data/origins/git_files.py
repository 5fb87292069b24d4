"""Many small files of a git repository in one transfer: a shallow, partial clone of nothing but them."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from mtl_jax.data.origins.base import GitFiles
from mtl_jax.errors import UserError


def checkout(files: GitFiles, folder: pathlib.Path) -> pathlib.Path:
    """The folder with the files, in a new folder below `folder`, which the caller removes.

    git verifies them by the commit. It shows its progress on standard error, and uses its own proxies and logins.

    Raises UserError where git is absent, or with git's message.
    """
    if not shutil.which("git"):
        raise UserError(f"{files.url}: git is needed to download {files.count:,} small files at once, and is absent")
    clone = pathlib.Path(tempfile.mkdtemp(prefix=".git-", dir=folder))
    try:
        _git(clone, "init", "--quiet")
        settings = {
            "remote.origin.url": files.url,
            "remote.origin.promisor": "true",
            "remote.origin.partialclonefilter": "blob:none",
            "core.sparseCheckout": "true",
            "core.autocrlf": "false",
            "gc.auto": "0",
        }
        for name, value in settings.items():
            _git(clone, "config", name, value)
        patterns = clone / ".git" / "info" / "sparse-checkout"
        patterns.parent.mkdir(exist_ok=True)
        patterns.write_text("\n".join(files.patterns) + "\n", encoding="utf-8")
        progress = ["--progress"] if sys.stderr.isatty() else ["--quiet"]
        fetch = ["fetch", *progress, "--depth=1", "--filter=blob:none", "--no-tags", "origin", files.commit]
        _git(clone, *fetch, shown=True, url=files.url)
        _git(clone, "checkout", *progress, "--detach", files.commit, shown=True, url=files.url)
        shutil.rmtree(clone / ".git")
    except BaseException:
        shutil.rmtree(clone, ignore_errors=True)
        raise
    return clone


def _git(clone: pathlib.Path, *arguments: str, shown: bool = False, url: str = "") -> None:
    """Runs git; `shown`: on a terminal its progress goes there."""
    stderr = None if shown and sys.stderr.isatty() else subprocess.PIPE
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_ADVICE": "0", "LC_ALL": "C"}
    done = subprocess.run(
        ["git", "-C", str(clone), "-c", "advice.detachedHead=false", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        text=True,
        errors="replace",
        env=environment,
    )
    if done.returncode:
        lines = [line for line in (done.stderr or "").strip().splitlines() if line.strip()]
        cause = next((line for line in lines if line.startswith(("fatal:", "error:"))), lines[-1] if lines else "")
        raise UserError(f"{url or clone}: git {arguments[0]} failed{f' ({cause})' if cause else ''}")
