"""Every config of the repository, with every argument, is accepted for what it is made for."""

import ast
import importlib
import inspect
import pathlib
import re

import pytest

import configs
from mtl_jax import checks
from mtl_jax.analysis.ablation import plan
from mtl_jax.analysis.relatedness import grouping

FOLDER = pathlib.Path(configs.__file__).parent
NEED_DATA = ("ablate_pretrained", "adapters", "meta")  # their tasks are named in a file of the data
TREE = {"layer_01": (("answers", "email"), ("newsgroup", "reviews", "weblog"))}


def arguments(module) -> list[str]:
    """What get_config takes, as its own message lists it; [""] where it takes nothing."""
    if not inspect.signature(module.get_config).parameters:
        return [""]
    with pytest.raises(ValueError) as error:
        module.get_config("no such argument")
    listed = str(error.value).split("this config is ")[1].split(", not ")[0].removeprefix("one of ")
    return re.findall(r"\w+", listed.replace(" or ", " "))


NAMES = sorted({file.stem for file in FOLDER.glob("*.py")} - {"__init__"})


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_is_accepted(name, request, monkeypatch):
    if name in NEED_DATA or name == "relate":
        request.getfixturevalue("data_dir")
    monkeypatch.setattr(grouping, "tree_of_run", lambda *_: TREE)  # in the place of a finished --mode=relate
    module = importlib.import_module(f"configs.{name}")
    for argument in arguments(module):
        config = module.get_config(argument) if argument else module.get_config()
        if (name, argument) == ("continual", "few"):
            checks.check(config, "adapt")
            continue
        if (name, argument) == ("meta", "adapt"):  # the model is that of the runs that adapt
            config.tokenizer.kind = "words"
            checks.check(config, "adapt")
            continue
        checks.check(config)
        if name == "relate":
            checks.check(config, "relate")
        if config.ablation.sweeps or config.ablation.choices:
            checks.check(config, "ablate")
            plan.make_plan(config, lambda c: checks.check(c, "ablate"))


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_states_command_data_and_scores(name):
    docstring = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text(encoding="utf-8")))
    assert f"launch.py --config=configs/{name}.py" in docstring
    assert re.search(r"^Data: ", docstring, re.M) and re.search(r"^Scores\b.*:", docstring, re.M)
