"""The Python of README and docs runs as it stands there, and their tables name what there is."""

import importlib.util
import pathlib
import re
import textwrap

import jax
import numpy as np
import pytest

from mtl_jax.analysis.ablation import plan
from mtl_jax.checks import check
from mtl_jax.errors import UserError
from mtl_jax.models import families
from mtl_jax.sharing import PENALTIES
from mtl_jax.training import optimizer, schedules

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.S)


def mine() -> dict:
    """The names that the README's config defines."""
    scope: dict = {}
    exec(compile(blocks("README.md")[0], "README.md", "exec"), scope)
    return scope


def test_the_config_of_one_s_own_data():
    assert blocks("docs/getting_started.md") == blocks("README.md")[:1]
    config = mine()["get_config"]()
    assert list(config.tasks) == ["sentiment", "ner"] and config.penalties.l2.kind == "l2_to_mean"
    check(config)


@pytest.mark.parametrize("page", ["docs/tasks.md", "docs/data.md"])
def test_parts_of_configs(page):
    for block in blocks(page):
        scope = mine()
        config = scope["get_config"]()
        exec(compile(textwrap.dedent(block), page, "exec"), scope | {"config": config})
        check(config)


def test_an_optimizer_and_one_of_one_s_own(monkeypatch):
    setting, registering = blocks("docs/optimizer.md")
    scope = mine()
    config = scope["get_config"]()
    for module, name in ((optimizer, "OPTIMIZERS"), (schedules, "SCHEDULES")):
        monkeypatch.setattr(module, name, dict(getattr(module, name)))
    exec(compile(registering, "docs/optimizer.md", "exec"), {})
    optimizer.OptimizerSpec("signs", {"scale": 2.0}, schedules.ScheduleSpec("half", {}, 0, 10))
    exec(compile(setting, "docs/optimizer.md", "exec"), {"config": config})
    check(config)


def test_a_sweep_and_a_choice():
    (block,) = blocks("docs/ablation.md")
    scope = mine()
    config = scope["get_config"]()
    exec(compile(textwrap.dedent(block), "docs/ablation.md", "exec"), scope | {"config": config})
    planned = plan.make_plan(config, lambda c: check(c, "ablate"))
    assert len(planned.seeds) == 5
    assert {name for program in planned.programs for name in program.choices} == {"sentences"}


LOOPS = [("README.md", 1, ""), *(("docs/own_loop.md", *block) for block in enumerate(("", "", "equinox", "torch")))]


@pytest.mark.parametrize("page, number, package", LOOPS)
def test_a_loop_of_one_s_own(page, number, package, capsys):
    if package:
        pytest.importorskip(package, reason=f"{package} is not installed")
    scope: dict = {}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(blocks(page)[number], page, "exec"), scope)
    assert np.isfinite(scope["losses"]).all() and scope["losses"].mean() < 1.0


def test_pieces_without_the_rest():
    scope: dict = {}
    exec(compile(blocks("docs/own_loop.md")[4], "docs/own_loop.md", "exec"), scope)
    assert scope["packed"].tokens.shape == (2, 8) and scope["rows"].shape == (2, 16)
    assert 0 < scope["score"] < 1 and 0 <= scope["test"].p <= 1


def test_a_run_from_python(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny(train_tasks=("color",), training__steps=2)
    code = blocks("docs/library.md")[0].replace("sentiment", "color").replace("a record", "red record")
    scope = {"config": config}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        exec(compile(code, "docs/library.md", "exec"), scope)
    assert scope["run"].folder.name == "mine" and "color" in scope["outputs"]


def test_a_family(monkeypatch):
    (block,) = blocks("docs/families.md")
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    exec(compile(block, "docs/families.md", "exec"), {})
    config = {"model_type": "plain", "depth": 1, "hidden_size": 12}
    names = [tensor.name for tensor in families.architecture_from_config(config, "plain").published_tensors()]
    assert "blocks.0.attn.q.weight" in names and "embeddings.token_type_embeddings.weight" not in names
    with pytest.raises(UserError, match="use_sparse_attention = True is not supported, only False"):
        families.architecture_from_config({**config, "use_sparse_attention": True}, "plain")


def test_no_python_is_left_untried():
    tried = {
        "README.md": 2,
        "docs/getting_started.md": 1,
        "docs/own_loop.md": 5,
        "docs/library.md": 1,
        "docs/ablation.md": 1,
        "docs/optimizer.md": 2,
        "docs/families.md": 1,
    }
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        elsewhere = ("docs/tasks.md", "docs/data.md", "docs/extending.md")  # the last: test_extending
        assert name in elsewhere or len(blocks(name)) == tried.get(name, 0), name


def test_every_penalty_is_in_the_table():
    table = (ROOT / "docs" / "penalties.md").read_text(encoding="utf-8")
    names = {match for row in re.findall(r"^\| (.*?) \|", table, flags=re.M) for match in re.findall(r"`(\w+)\(", row)}
    assert set(PENALTIES) <= names


def test_every_registry_has_its_table_on_a_page():
    spec = importlib.util.spec_from_file_location("hooks", ROOT / "docs" / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name, (module, attribute) in hooks.REGISTRIES.items():
        assert f"<!-- registry: {name} -->" in text, name
        names = re.findall(r"^\| `([^`]+)` \|", hooks.registry_table(name), flags=re.M)
        assert names == list(getattr(importlib.import_module(module), attribute))
    assert set(re.findall(r"<!-- registry: ([\w ]+) -->", text)) == set(hooks.REGISTRIES)


def test_links_lead_somewhere():
    for page in PAGES:
        prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
        for target in re.findall(r"\]\(([^)#:]+)\)", prose):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_configs_that_are_named_exist():
    for page in PAGES:
        for name in re.findall(r"configs/(\w+\.py)", page.read_text(encoding="utf-8")):
            assert name == "mine.py" or (ROOT / "configs" / name).is_file() or name == "new.py", f"{page}: {name}"


def test_files_that_are_named_exist():
    for page in PAGES:
        for name in re.findall(r"`((?:mtl_jax|benchmarks|scripts|tests)/[\w./]+)`", page.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{page}: {name}"


def test_the_readme_is_short():
    assert (ROOT / "README.md").stat().st_size <= 6144
