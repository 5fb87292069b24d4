"""The mutation checks themselves: which changes they make, and that what they name is there."""

import ast

import mutants
import pytest


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a + b", {"a - b", "a", "b"}),
        ("a / b", {"a * b", "a"}),
        ("-a", {"a"}),
        ("a < b", {"a >= b", "a <= b"}),
        ("a if c else b", {"b if c else a"}),
        ("x.sum(axis=1)", {"x.mean(axis=1)"}),
        ("x.max(where=m)", {"x.min(where=m)", "x.max()"}),
        ("jnp.where(c, a, b)", {"jnp.where(c, b, a)", "a", "b"}),
        ("jax.lax.stop_gradient(a)", {"a"}),
        ("1", {"2"}),
        ("64", set()),
        ("-1", set()),
    ],
)
def test_what_an_expression_becomes(before, after):
    node = ast.parse(before, mode="eval").body
    assert {ast.unparse(variant) for variant in mutants.variants(node)} == after
    assert ast.unparse(node) == before


def test_annotations_messages_and_assertions_stay():
    source = 'def f(a: int | None = None) -> int | str:\n    assert a + 1\n    raise ValueError("a" + f"{a + 1}")\n'
    places = [getattr(parent, field) for parent, field, _ in mutants.expressions(ast.parse(source))]
    assert not any(isinstance(place, ast.BinOp) for place in places)


@pytest.mark.parametrize("subject", mutants.SUBJECTS)
def test_every_subject_has_changes_and_tests(subject):
    chosen = mutants.sample(subject, 3, seed=0)
    assert len(chosen) == 3
    for mutant, tests in chosen:
        assert (mutants.ROOT / mutant.path).is_file() and tests
        assert ast.unparse(ast.parse((mutants.ROOT / mutant.path).read_text())) != mutant.source
