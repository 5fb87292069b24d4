"""The built wheel works in another environment, far from the repository: commands, shipped configs, their data."""

import importlib.util
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = ("mtl_jax", "configs", "pyproject.toml", "setup.py", "README.md", "LICENSE")
MINE = """
from mtl_jax.configs import ablate_synthetic

def get_config():
    config = ablate_synthetic.get_config("linear")
    config.training.steps = 2
    return config
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    """Built from a copy, so that no build folder is left in the checkout and none of an earlier build gets in."""
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, copy / name)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(copy / "dist")]
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", *options, str(copy)], check=True, timeout=300)
    (built,) = (copy / "dist").glob("mtl_jax-*.whl")
    return built


@pytest.fixture(scope="module")
def bin_folder(wheel, tmp_path_factory) -> pathlib.Path:
    """`bin` of an environment with the wheel, and with the dependencies of the tests' own environment."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=300)
    python = folder / "bin" / "python"
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.run([python, "-c", query], capture_output=True, text=True, check=True).stdout.strip()
    dependencies = [path for path in sys.path if path.endswith("-packages")]
    pathlib.Path(packages, "dependencies.pth").write_text("\n".join(dependencies))
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True, timeout=300)
    return folder / "bin"


def run(folder, env, *command: object) -> str:
    """The output of a command that ends with status 0."""
    env = {name: value for name, value in env.items() if name not in ("PYTHONPATH", "MTL_JAX_DATA")}
    done = subprocess.run([str(part) for part in command], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_shipped_configs_are_in_the_wheel(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"mtl_jax/configs/{file.name}" for file in (ROOT / "configs").glob("*.py")} <= names
    assert "mtl_jax/py.typed" in names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"mtl_jax"}


@pytest.mark.parametrize(
    ("program", "config"),
    [
        (("mtl-jax",), "ablate_synthetic:linear"),
        (("python", "-m", "mtl_jax"), "mine.py"),
    ],
)
def test_it_trains_anywhere(bin_folder, launch_environment, tmp_path, program, config):
    (tmp_path / "mine.py").write_text(MINE)
    flags = [f"--config={config}", "--workdir=run", "--config.training.steps=2"]
    output = run(tmp_path, launch_environment, bin_folder / program[0], *program[1:], *flags)
    assert (tmp_path / "run" / "summary.json").is_file()
    assert f"{' '.join(program)} --workdir=run --mode=predict" in output


def test_loops_of_one_s_own_run_anywhere(bin_folder, launch_environment, tmp_path):
    page = (ROOT / "docs" / "own_loop.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    needs = {"import equinox": "equinox", "import jax, jax.numpy as jnp, torch": "torch"}
    present = [b for b in blocks if all(importlib.util.find_spec(p) for line, p in needs.items() if line in b)]
    assert len(blocks) == 5 and len(present) >= 3
    (tmp_path / "loops.py").write_text("\n".join(f"exec({block!r}, {{}})" for block in present))
    run(tmp_path, launch_environment, bin_folder / "python", "loops.py")


def test_what_is_missing_is_named(bin_folder, launch_environment, tmp_path):
    env = {name: value for name, value in launch_environment.items() if name != "MTL_JAX_DATA"}
    env |= {"https_proxy": "http://127.0.0.1:9", "no_proxy": "", "MTL_JAX_CACHE": str(tmp_path)}  # no network
    done = subprocess.run(
        [bin_folder / "mtl-jax", "--config=snips_joint", "--mode=inspect"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "MTL_JAX_DATA" in done.stderr and "Traceback" not in done.stderr
