"""The direction of imports: a reader finds each symbol of the objective in its own folder, and can lift it out."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[1]

# folder: what of mtl_jax it may import besides itself, mtl_jax.errors and mtl_jax.unicode
ALLOWED = {
    "data": set(),
    "tasks": {"data.schemes"},
    "models": {"data.batch"},
    "sharing": set(),
    "balancing": {"sharing.gram"},
    "schemes": {"tasks"},
    "training": {"data", "tasks", "models", "sharing", "balancing", "schemes", "config"},
    "analysis": {"data", "tasks", "models", "sharing", "balancing", "schemes", "training"},
}
THIRD_PARTY = {"sharing": {"jax", "optax", "numpy"}, "balancing": {"jax", "optax", "numpy"}}


def imports(file: pathlib.Path) -> set[str]:
    """Full names of the modules that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{file}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_folders_import_only_what_lies_below_them():
    wrong = []
    for folder, allowed in ALLOWED.items():
        for file in (ROOT / "mtl_jax" / folder).rglob("*.py"):
            for name in imports(file):
                if not name.startswith("mtl_jax."):
                    continue
                inner = name.removeprefix("mtl_jax.")
                own = inner.split(".")[0] in (folder, "errors", "unicode")
                if not own and not any(
                    inner == a or inner.startswith(a + ".") or a.startswith(inner + ".") for a in allowed
                ):
                    wrong.append(f"{file.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_data_knows_nothing_of_jax():
    for file in (ROOT / "mtl_jax" / "data").rglob("*.py"):
        assert not {name for name in imports(file) if name.split(".")[0] in ("jax", "flax", "optax")}, file


def test_sharing_and_balancing_can_be_lifted_out():
    import sys

    for folder, allowed in THIRD_PARTY.items():
        for file in (ROOT / "mtl_jax" / folder).rglob("*.py"):
            outside = (
                {name.split(".")[0] for name in imports(file)} - set(sys.stdlib_module_names) - allowed - {"mtl_jax"}
            )
            assert not outside, f"{file}: {outside}"


def test_orbax_is_in_one_file():
    users = [f.name for f in (ROOT / "mtl_jax").rglob("*.py") if any(n.startswith("orbax") for n in imports(f))]
    assert users == ["checkpoint.py"]
