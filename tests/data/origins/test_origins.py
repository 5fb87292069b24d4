"""Names, URLs, archives, git repositories and recipes: from what is published to the folder that readers see."""

import dataclasses
import hashlib
import io
import subprocess
import tarfile
import zipfile

import fault_server
import pytest

from mtl_jax.data import datasets, origins
from mtl_jax.data.files.location import local_path
from mtl_jax.data.origins import base, downloads, git_files, propbank, store
from mtl_jax.data.readers import READERS
from mtl_jax.errors import UserError


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setattr(downloads, "SECONDS_BETWEEN", 0.01)
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MTL_JAX_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with fault_server.running() as running:
        yield running


def zipped(**files: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return content.getvalue()


def tarred(**files: str) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return content.getvalue()


def test_every_known_origin_is_pinned_and_has_a_licence():
    for name, origin in origins.ORIGINS.items():
        assert origin.title and origin.licence and origin.homepage.startswith("https://"), name
        for file in origin.files:
            assert len(file.sha256) == 64 and file.size > 0, f"{name}: {file.path}"
        assert origin.git is None or (len(origin.git.commit) == 40 and origin.git.size > 0), name
        assert name == "fdu_mtl" or origin.download_size() > 0
        if origin.recipe:
            assert all(len(sha256) == 64 for sha256 in origin.recipe.results.values())
            assert set(origin.recipe.needs) <= set(origins.ORIGINS)
        assert origin.entry["reader"] in READERS


@pytest.mark.parametrize("name", [name for name, origin in origins.ORIGINS.items() if not origin.wheel])
def test_hashes_are_those_of_the_real_data(name, data_dir):
    origin, folder = origins.ORIGINS[name], data_dir / name
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    for path, sha256 in origin.contents().items():
        assert local_path(folder / path).exists(), path
        if sha256 and (name, path) != ("glue", "MRPC/train.tsv"):  # that copy lacks one of the published rows
            assert local_path(folder / path).sha256() == sha256, path


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_an_archive_by_its_url(server, pack):
    name = "r.zip" if pack is zipped else "r.tar.gz"
    server.files[name] = pack(**{"r/train.csv": "text,label\na,x\nb,y\n", "r/readme": "hello"})
    url = f"{server.url(name)}#sha256={hashlib.sha256(server.files[name]).hexdigest()}"
    entry = {"reader": "csv", "origin": url, "path": "r", "splits": {"train": "train.csv"}, "text": ("text",)}
    data = datasets.read_dataset("d", entry, 0)
    assert [record.fields["label"] for record in data.splits["train"]] == ["x", "y"]
    with pytest.raises(UserError, match=r"r/tran\.csv: no such file"):
        datasets.read_dataset("d", entry | {"splits": {"train": "tran.csv"}}, 0)
    assert len(server.requests) == 1


def test_a_url_without_a_hash_is_taken_as_it_comes(server):
    server.files["t.csv"] = b"text\na\n"
    entry = {"reader": "csv", "origin": server.url("t.csv"), "splits": {"train": "t.csv"}, "text": ("text",)}
    for _ in range(2):
        assert len(datasets.read_dataset("d", entry, 0).splits["train"]) == 1
    assert len(server.requests) == 1


def test_members_of_a_known_archive(server):
    server.files["a.zip"] = zipped(**{"a/train.tsv": "1", "a/test.tsv": "2"})
    file = base.RemoteFile("a.zip", server.url("a.zip"), hashlib.sha256(server.files["a.zip"]).hexdigest(), 1)
    file = file._replace(size=len(server.files["a.zip"]), members=("a/train.tsv",))
    origin = base.Origin("t", "l", "https://h", files=(file,))
    folder = store.fetch("a", origin, origins.folder)
    assert (folder / "a" / "train.tsv").read_text() == "1" and not (folder / "a" / "test.tsv").exists()
    (folder / "a" / "train.tsv").unlink()
    store.fetch("a", origin, origins.folder)  # unpacked again, not downloaded
    assert (folder / "a" / "train.tsv").exists() and len(server.requests) == 1
    lacking = dataclasses.replace(origin, files=(file._replace(members=("b",)),))
    with pytest.raises(UserError, match=r"the archive lacks b; it holds a/train\.tsv, a/test\.tsv"):
        store.fetch("b", lacking, origins.folder)


def test_an_archive_that_leads_outside(server, tmp_path):
    server.files["e.tar.gz"] = tarred(**{"../../../out": "x"})
    with pytest.raises(UserError, match="cannot be unpacked"):
        origins.locate(server.url("e.tar.gz"), {})
    assert not list(tmp_path.rglob("out"))
    server.files["f.zip"] = b"no zip"
    with pytest.raises(UserError, match="cannot be unpacked"):
        origins.locate(server.url("f.zip"), {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"origin": "snip"}, r"origin: 'snip' is neither one of .* Did you mean 'snips'\?"),
        ({"origin": "ftp://x/y"}, "should be https://host/path/file"),
        ({"origin": "https://x/y#md5=1"}, "sha256= with 64 hexadecimal digits"),
        ({"origin": "hf://squad"}, "should be hf://datasets/owner/name"),
        ({"origin": "snips", "wheel": {"name": "a", "version": "1", "sha256": "b"}}, "a wheel is an origin too"),
        ({"origin": "snips", "reader": "tfds"}, "'tfds' finds its data itself"),
        ({"origin": "snips", "reader": "synthetic"}, "reads no files; leave out origin"),
        ({"origin": 3}, "origin has to be a string"),
    ],
)
def test_what_is_no_origin(change, message):
    with pytest.raises(UserError, match=message):
        datasets.read_dataset("d", {"reader": "csv", "text": ("text",)} | change, 0)


def test_data_without_a_source_are_put_by_hand(server, tmp_path):
    with pytest.raises(UserError, match=r"has to be put on this machine by hand .*MR\.task\.train.* below fdu_mtl/"):
        origins.locate("fdu_mtl", {})


@pytest.fixture
def repository(tmp_path):
    """A git repository with a few of many files; git serves parts of it."""
    folder = tmp_path / "repository"
    for name, text in {"d/a/1.txt": "one", "d/a/2.txt": "two", "d/b/1.txt": "three", "other": "x"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    for command in (
        ["init", "--quiet"],
        ["config", "uploadpack.allowFilter", "true"],
        ["config", "uploadpack.allowAnySHA1InWant", "true"],
        ["add", "."],
        [*who, "commit", "--quiet", "-m", "all"],
    ):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    commit = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
    return base.GitFiles(f"file://{folder}", commit.stdout.strip(), ("/d/*/1.txt",), "d", 2, 8)


def test_files_of_a_repository(server, repository, tmp_path):
    expected = tmp_path / "expected"
    expected.mkdir()
    (expected / "1.txt").write_text("one")
    origin = base.Origin("t", "l", "https://h", git=repository, folders={"a": local_path(expected).sha256(), "b": ""})
    folder = store.fetch("r", origin, origins.folder)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"a/1.txt", "b/1.txt", ".complete"}
    (folder / "a" / "1.txt").write_text("damaged")
    assert store.fetch("r", origin, origins.folder, verify=True) == folder
    assert (folder / "a" / "1.txt").read_text() == "one"
    wrong = dataclasses.replace(origin, folders={"a": "0" * 64})
    with pytest.raises(UserError, match="a is not what https://h had"):
        store.fetch("w", wrong, origins.folder)


def test_a_repository_that_is_not_there(repository, tmp_path, monkeypatch):
    gone = repository._replace(url=f"file://{tmp_path}/gone")
    with pytest.raises(UserError, match=r"gone: git fetch failed \(fatal: .*does not appear to be a git repository"):
        git_files.checkout(gone, tmp_path)
    assert not list(tmp_path.glob(".git-*"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="git is needed to download 2 small files at once, and is absent"):
        git_files.checkout(repository, tmp_path)


SKELETON = """\
f 0 0 [WORD] PRP (S* - - (ARG0*) *
f 0 1 [WORD] VBP * want want.01 (V*) *
f 0 2 [WORD] TO * - - (ARG1* *
f 0 3 [WORD] VB *) go go.02 *) (V*)

f 1 0 [WORD] NN * - -
f 1 1 [WORD] NN * - -
"""
CONLLU = """\
# newdoc id = weblog-x
# sent_id = weblog-x-0001
1\tI\tI\tPRON\tPRP\t_\t2\tnsubj\t_\t_
2\twant\twant\tVERB\tVBP\t_\t0\troot\t_\t_
3\tto\tto\tPART\tTO\t_\t4\tmark\t_\t_
4\tgo\tgo\tVERB\tVB\t_\t2\txcomp\t_\t_

# sent_id = weblog-x-0002
1\tother\tother\tADJ\tJJ\t_\t2\tamod\t_\t_
2\tone\tone\tNOUN\tNN\t_\t0\troot\t_\t_

# sent_id = weblog-absent-0001
1\thi\thi\tINTJ\tUH\t_\t0\troot\t_\t_

"""


def test_roles_join_words(tmp_path):
    (tmp_path / "weblog" / "00").mkdir(parents=True)
    (tmp_path / "weblog" / "00" / "x.xml.gold_skel").write_text(SKELETON)
    for split in ("train", "dev", "test"):
        (tmp_path / f"en_ewt-ud-{split}.conllu").write_text(CONLLU)
    made = propbank.join_roles(tmp_path, {"ewt": tmp_path})["dev.conll"].decode()
    assert made.split("\n") == [
        "0\tI\tPRON\tPRP\t-\tB-ARG0\tO",
        "1\twant\tVERB\tVBP\twant.01\tB-V\tO",
        "2\tto\tPART\tTO\t-\tB-ARG1\tO",
        "3\tgo\tVERB\tVB\tgo.02\tI-ARG1\tB-V",
        "",
        "",
    ]  # the second sentence agrees in one tag of two, the third document has no roles
