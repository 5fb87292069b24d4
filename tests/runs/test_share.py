"""A run goes to the Hub and comes back: the Hub is a folder."""

import shutil

import huggingface_hub
import pytest

import mtl_jax
from mtl_jax.errors import UserError
from mtl_jax.runs import share

pytestmark = pytest.mark.usefixtures("standard_promotion")


class Folder:
    """A Hub with one repository."""

    def __init__(self, place):
        self.place, self.calls = place, []

    def create_repo(self, name, private, exist_ok):
        self.calls.append((name, private, exist_ok))
        return f"https://hub/{name}"

    def upload_file(self, path_or_fileobj, path_in_repo, repo_id):
        self.place.mkdir(exist_ok=True)
        (self.place / path_in_repo).write_bytes(path_or_fileobj)

    def upload_folder(self, repo_id, folder_path, allow_patterns, commit_message):
        for file in huggingface_hub.utils.filter_repo_objects(
            [str(f.relative_to(folder_path)) for f in folder_path.rglob("*") if f.is_file()],
            allow_patterns=allow_patterns,
        ):
            (self.place / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder_path / file, self.place / file)


def test_a_run_goes_to_the_hub_and_comes_back(tiny, tmp_path, monkeypatch):
    run = mtl_jax.train(tiny(train_tasks=("color",), training__steps=2), tmp_path / "run")
    hub = Folder(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    text = share.push(run.config, run.folder, "me/colors", dry_run=True)
    assert not hub.calls and "would send" in text and "README.md" in text and "summary.json" in text
    assert f"| color | test | accuracy | {run.scores['color']['test']['accuracy']:.4f} |" in text
    assert "https://hub/me/colors" in share.push(run.config, run.folder, "me/colors", dry_run=False)
    assert hub.calls == [("me/colors", True, True)] and not (hub.place / "checkpoints").exists()
    sent = {str(file.relative_to(hub.place)) for file in hub.place.rglob("*") if file.is_file()}
    chosen = {str(f.relative_to(run.folder)) for p in share.FILES for f in run.folder.glob(p) if f.is_file()}
    assert sent == chosen | {"README.md"}  # what is listed is what is sent

    def snapshot_download(name, revision):
        assert (name, revision) == ("me/colors", "v1")
        return str(hub.place)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    again = mtl_jax.load("hf://me/colors@v1")
    assert again.scores == run.scores and again.predict(["w1 red"]) == run.predict(["w1 red"])


def test_what_is_wrong_is_one_sentence(tiny, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="name the repository as owner/name"):
        share.push(tiny(), tmp_path, "colors", dry_run=True)
    with pytest.raises(UserError, match="the run is not finished"):
        share.push(tiny(), tmp_path, "me/colors", dry_run=True)

    def refuse(*_, **__):
        raise OSError("401 Client Error")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match=r"hf://me/x: cannot be downloaded .*401.*`hf auth login`"):
        mtl_jax.load("hf://me/x")
    with pytest.raises(UserError, match="a run on the Hub is hf://owner/name"):
        mtl_jax.load("hf://x")
