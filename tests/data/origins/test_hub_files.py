"""Data sets on the Hub: from a local cache, and what is said where the Hub refuses; the Hub is a local server."""

import http.server
import json
import pathlib
import re
import subprocess
import sys
import threading

import pytest

from mtl_jax.data import datasets
from mtl_jax.data.origins import hub
from mtl_jax.errors import UserError

COMMIT = "a" * 40
ENTRY = {
    "reader": "csv",
    "origin": "hf://datasets/me/reviews",
    "path": "data",
    "splits": {"train": "train-*.csv[:-1]", "test": "test.csv"},
    "text": ("text",),
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the Hub as its library makes it, with one data set."""
    repository = tmp_path / "hub" / "datasets--me--reviews"
    snapshot = repository / "snapshots" / COMMIT
    (snapshot / "data").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for number in range(2):
        (snapshot / "data" / f"train-0000{number}-of-00002.csv").write_text(f"text\na{number}\nb{number}\n")
    (snapshot / "data" / "test.csv").write_text("text\nc\n")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def read(environment, code):
    """The output of Python code in a process with these variables."""
    done = subprocess.run(
        [sys.executable, "-c", "from mtl_jax.data.origins import hub\n" + code],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout + done.stderr


def test_from_the_cache(cache):
    data = datasets.read_dataset("d", ENTRY, 0)
    assert [record.fields["text"] for record in data.splits["train"]] == ["a0", "b0", "a1"]
    for revision in ("main", COMMIT):
        actual = hub.snapshot(hub.HubName("me/reviews", revision), ENTRY)
        assert actual == cache / "hub" / "datasets--me--reviews" / "snapshots" / COMMIT


def test_a_shard_that_is_missing_is_not_overlooked(cache, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    next(cache.rglob("train-00001*")).unlink()
    with pytest.raises(UserError, match=r"hf download me/reviews --repo-type dataset --revision main --include 'data/"):
        datasets.read_dataset("d", ENTRY, 0)


@pytest.mark.parametrize(
    ("entry", "files"),
    [
        (ENTRY, ["data/test.csv", "data/train-*.csv"]),
        ({"path": "all.json", "splits": {"train": "train"}}, ["all.json"]),
        ({"path": "data/{split}-*.parquet", "splits": {}}, ["data/*-*.parquet"]),
        ({"path": "", "splits": {"train": ("a.csv", "b.csv[:50%]")}}, ["a.csv", "b.csv"]),
        ({"path": "rte", "splits": {}}, ["rte"]),
        ({}, ["*"]),
    ],
)
def test_the_files_that_an_entry_names(entry, files):
    assert hub.wanted_files(entry) == files


FILES = {"data/test.csv": b"text\nc\n", "data/train-00000-of-00001.csv": b"text\na\nb\n", "other.csv": b"text\n"}


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the Hub does: a public data set, a gated one, and none."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        if "gated" in path:
            self._send(403, b"", {"X-Error-Code": "GatedRepo"})
        elif "/datasets/me/open" not in path:
            self._send(401, b"", {"X-Error-Code": "RepoNotFound"})
        elif "no-branch" in path:
            self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        elif path.startswith("/api/") and "/xet" not in path:
            siblings = [{"rfilename": name, "size": len(body)} for name, body in FILES.items()]
            info = {"id": "me/open", "sha": COMMIT, "siblings": siblings, "cardData": {"license": "mit"}, "tags": []}
            if "/tree/" in path:
                info = [
                    {"type": "file", "path": name, "size": len(body), "oid": "0" * 40} for name, body in FILES.items()
                ]
            self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
        elif body := next((body for name, body in FILES.items() if path.endswith(name)), None):
            self._send(200, body, {"X-Repo-Commit": COMMIT, "ETag": f'"{len(body):040d}"'})
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

    def _send(self, status, body, headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def environment(tmp_path_factory, launch_environment):
    """Variables with which the library asks the local server, and has a cache of its own."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {
        **{name: value for name, value in launch_environment.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path_factory.mktemp("home")),
        "HF_HUB_DISABLE_XET": "1",
        "no_proxy": "127.0.0.1",
        "PYTHONPATH": str(pathlib.Path(__file__).parents[3]),
    }
    server.shutdown()


REFUSALS = {
    'hub.HubName("me/gated", "main")': r"me/gated@main is gated: accept its terms at http://127.0.0.1:\d+/datasets/me/gat",
    'hub.HubName("me/none", "main")': "there is no such data set for you on the Hub. Check the name; for a private one",
    'hub.HubName("me/open", "no-branch")': "me/open@no-branch has no branch, tag or commit 'no-branch'",
}


def test_what_the_hub_refuses(environment):
    calls = "\n".join(
        f"try: hub.snapshot({name}, {ENTRY!r})\nexcept ValueError as error: print(error)" for name in REFUSALS
    )
    absent = ENTRY | {"splits": {"train": "trian.csv"}}
    calls += (
        f"\ntry: hub.snapshot(hub.HubName('me/open', 'main'), {absent!r})\nexcept ValueError as error: print(error)"
    )
    output = read(environment, calls)
    for message in (*REFUSALS.values(), "has no file data/trian.csv; it has data/test.csv, data/train-00000"):
        assert re.search(message, output), output
    assert "Traceback" not in output


def test_a_download_takes_what_is_named_and_is_not_repeated(environment):
    code = f"print(hub.snapshot(hub.HubName('me/open', 'main'), {ENTRY!r}))"
    output = read(environment, code)
    folder = pathlib.Path(next(line for line in output.splitlines() if line.startswith("/")))
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"data/test.csv", "data/train-00000-of-00001.csv"}, output
    assert "Hub data set me/open@main: downloading 2 files, 0.0 kB; licence: mit" in output
    assert read({**environment, "HF_HUB_OFFLINE": "1"}, code).strip() == str(folder)


def test_no_network(environment, tmp_path):
    offline = {**environment, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    code = f"try: hub.snapshot(hub.HubName('me/open', 'main'), {ENTRY!r})\nexcept ValueError as error: print(error)"
    output = read(offline, code)
    assert f"is not in the Hub's cache {tmp_path}/hub, and cannot be downloaded" in output
    assert "hf download me/open --repo-type dataset --revision main --include 'data/test.csv'" in output
