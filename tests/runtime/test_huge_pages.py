"""Large pages: the command runs again once, with the environment that asks for them."""

import os
import sys

import pytest

from mtl_jax.runtime import huge_pages


@pytest.mark.parametrize(
    ("kernel", "before", "after"),
    [
        ("always [madvise] never", None, "glibc.malloc.hugetlb=1"),
        ("always [madvise] never", "glibc.malloc.arena_max=2", "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"),
        ("always [madvise] never", "glibc.malloc.hugetlb=0", None),  # declined, or the second time
        ("[always] madvise never", None, None),
        ("always madvise [never]", None, None),
        (None, None, None),  # another kernel
    ],
)
def test_restart(tmp_path, monkeypatch, kernel, before, after):
    file = tmp_path / "enabled"
    if kernel:
        file.write_text(kernel)
    monkeypatch.setattr(huge_pages, "KERNEL", file)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "launch.py", "--mode=train"])
    calls = []
    monkeypatch.setattr(os, "execv", lambda *arguments: calls.append(arguments))
    monkeypatch.setenv("GLIBC_TUNABLES", before or "")
    huge_pages.restart_with_huge_pages()
    if after is None:
        assert not calls
    else:
        assert calls == [(sys.executable, [sys.executable, "-X", "dev", "launch.py", "--mode=train"])]
        assert os.environ["GLIBC_TUNABLES"] == after
