"""What surrounds the code tells the truth: metadata, make targets, workflows."""

import pathlib
import re
import tomllib

import yaml

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_one_address():
    home = PROJECT["urls"]["Homepage"]
    assert all(url.startswith(home) for url in PROJECT["urls"].values())
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["url"] == home
    assert f"site_url: {home}\n" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def test_commands_of_workflows_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M))
    commands = [(ROOT / ".ci" / "run").read_text(encoding="utf-8")]
    for file in WORKFLOWS:
        for job in yaml.safe_load(file.read_text(encoding="utf-8"))["jobs"].values():
            commands += [step["run"] for step in job["steps"] if "run" in step]
    used = set(re.findall(r"\bmake ([\w-]+)", "\n".join(commands)))
    assert {"test", "test-all", "docs", "lint", "types", "wheel", "benchmark"} <= used <= targets


def test_tested_versions_of_python_are_those_of_the_classifiers():
    tests = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    tested = tests["jobs"]["tests"]["strategy"]["matrix"]["python"]
    named = [entry.rpartition(" ")[2] for entry in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d", entry)]
    assert tested == named and PROJECT["requires-python"] == f">={tested[0]}"


def test_files_that_workflows_and_hooks_name_exist():
    for file in [*WORKFLOWS, ROOT / ".pre-commit-config.yaml"]:
        yaml.safe_load(file.read_text(encoding="utf-8"))
        for name in re.findall(r"\b(?:benchmarks|docs|tests|scripts)/[\w./]+", file.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{file}: {name}"


def test_hooks_format_with_the_version_of_the_tests():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (rev,) = [repo["rev"] for repo in hooks["repos"] if repo["repo"].endswith("/ruff-pre-commit")]
    (ruff,) = [entry for entry in PROJECT["optional-dependencies"]["test"] if entry.startswith("ruff>=")]
    assert rev.removeprefix("v").rpartition(".")[0] == ruff.removeprefix("ruff>=")
