"""The direction of imports: a reader finds each symbol of the objective in its own folder, and can lift it out."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[1]

# folders from the ground up; each may import those before it, and errors and unicode
ORDER = (
    "config",
    "sharing",
    "data",
    "balancing",
    "tasks",
    "models",
    "runtime",
    "training",
    "storage",
    "experiment",
    "evaluation",
    "runs",
    "analysis",
    "checks",
    "library",
    "modes",
    "data_command",
    "command_line",
    "__main__",
)
GROUND = {"errors", "unicode"}
# what is lifted into other code: all that these may import
ALONE = {"sharing": set(), "balancing": {"sharing"}, "data": {"data"}}
THIRD_PARTY = {"sharing": {"jax", "optax", "numpy"}, "balancing": {"jax", "optax", "numpy"}}
# imports inside functions: of what takes long and is not always needed
LATE = {
    "mtl_jax/runtime/config_file.py",  # mistakes in flags are told at once
    "mtl_jax/command_line.py",  # help and mistakes are shown at once
    "mtl_jax/data_command.py",  # a command imports what it needs
    "mtl_jax/modes.py",  # a mode imports what it needs
    "mtl_jax/__main__.py",  # nothing is imported twice where Python is restarted
    "mtl_jax/analysis/report_sections.py",  # matplotlib
}


def module(file: pathlib.Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module(file): file for file in (ROOT / "mtl_jax").rglob("*.py")}


def imports(file: pathlib.Path) -> set[str]:
    """Full names of the modules that a file imports anywhere in it; of this project the files themselves."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in FILES else node.module for name in inner}
    return names


def folder(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def test_every_folder_has_its_place():
    assert {folder(name) for name in FILES} - {""} == {*ORDER, *GROUND}


def test_folders_import_only_what_lies_below_them():
    wrong = []
    for name, file in FILES.items():
        own = folder(name)
        for other in imports(file):
            target = folder(other)
            if other.split(".")[0] == "configs":
                wrong.append(f"{name} imports {other}")
            if not other.startswith("mtl_jax.") or own == target or target in GROUND or not own:
                continue
            below = ORDER[: ORDER.index(own)] if own in ORDER else ()
            if target not in below:
                wrong.append(f"{name} imports {other}")
    assert not wrong, "\n".join(wrong)


def test_no_file_imports_itself_by_way_of_others():
    graph = {name: {other for other in imports(file) if other in FILES} - {name} for name, file in FILES.items()}
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name]):
                walk(other, (*path, name))
            done.add(name)

    for name in graph:
        walk(name, ())


def test_imports_stand_at_the_top():
    wrong = []
    for file in FILES.values():
        if str(file.relative_to(ROOT)) in LATE:
            continue
        for function in ast.walk(ast.parse(file.read_text())):
            if isinstance(function, ast.FunctionDef):
                wrong += [
                    f"{file.relative_to(ROOT)}:{node.lineno}"
                    for node in ast.walk(function)
                    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mtl_jax")
                ]
    assert not wrong, "\n".join(wrong)


def test_data_sharing_and_balancing_stand_alone():
    for own, allowed in ALONE.items():
        for file in (ROOT / "mtl_jax" / own).rglob("*.py"):
            inner = {folder(name) for name in imports(file) if name.startswith("mtl_jax")}
            assert inner <= {own, *allowed, *GROUND, ""}, f"{file}: {inner}"


def test_data_knows_nothing_of_jax():
    for file in (ROOT / "mtl_jax" / "data").rglob("*.py"):
        assert not {name for name in imports(file) if name.split(".")[0] in ("jax", "flax", "optax")}, file


def test_sharing_and_balancing_can_be_lifted_out():
    import sys

    for own, allowed in THIRD_PARTY.items():
        for file in (ROOT / "mtl_jax" / own).rglob("*.py"):
            outside = {name.split(".")[0] for name in imports(file)} - set(sys.stdlib_module_names) - {"mtl_jax"}
            assert outside <= allowed, f"{file}: {outside - allowed}"


def test_orbax_is_in_one_file():
    users = [file.name for file in FILES.values() if any(name.startswith("orbax") for name in imports(file))]
    assert users == ["checkpoint.py"]
