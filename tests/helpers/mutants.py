"""Breaks the code one operator at a time and lists the changes that no test of their subject notices.

    python tests/helpers/mutants.py                    a sample: 24 changes of each subject
    python tests/helpers/mutants.py crf --changes 0    every change of one subject

A change is a dropped term or factor, a sign, a comparison, an axis, a constant that is off by one, a mask that is
ignored, a reduction of another kind. One that survives is a gap in the tests, unless it leaves the value as it is
(two ways to write one number): that is for the reader to judge.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import multiprocessing
import os
import pathlib
import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
SUBJECTS = {  # name: (files or folders of code, their tests)
    "sharing": (["mtl_jax/sharing"], ["tests/sharing"]),
    "balancing": (["mtl_jax/balancing"], ["tests/balancing"]),
    "crf": (["mtl_jax/tasks/crf.py"], ["tests/tasks/test_crf.py"]),
    "step": (
        [f"mtl_jax/training/{name}.py" for name in ("step", "penalty", "penalty_effect", "update", "clipping")],
        [f"tests/training/test_{name}.py" for name in ("clipping", "penalty", "step", "penalty_effect", "optimizer")],
    ),
    "gradients": (["mtl_jax/training/gradients", "mtl_jax/training/loss_weighting.py"], ["tests/training/gradients"]),
}
LIMIT = 900  # seconds; a change that makes the tests hang is noticed too
SURVIVED, KILLED, FAULTY = "survived", "killed", "cannot be run"
OPPOSITE = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt,
}  # fmt: skip
BOUNDARY = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
FUNCTIONS = {"maximum": "minimum", "max": "min", "sum": "mean", "any": "all", "cumsum": "cumprod", "argmax": "argmin"}
FUNCTIONS |= {after: before for before, after in FUNCTIONS.items()}


class Mutant(NamedTuple):
    """One change: `source` is the file with it, `text` says what became what."""

    path: str
    line: int
    text: str
    source: str


def variants(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in the place of an expression."""

    def changed(**fields) -> ast.AST:
        new = copy.deepcopy(node)
        for name, value in fields.items():
            setattr(new, name, value)
        return new

    match node:
        case ast.BinOp(op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() | ast.BitAnd() | ast.BitOr()):
            yield changed(op=OPPOSITE[type(node.op)]())
            yield node.left
            if isinstance(node.op, ast.Add | ast.Mult):
                yield node.right
        case ast.UnaryOp(op=ast.USub() | ast.Not() | ast.Invert()) if not isinstance(node.operand, ast.Constant):
            yield node.operand
        case ast.BoolOp():
            yield changed(op=OPPOSITE[type(node.op)]())
        case ast.Compare(ops=[op]):
            for table in (OPPOSITE, BOUNDARY):
                if type(op) in table:
                    yield changed(ops=[table[type(op)]()])
        case ast.IfExp():
            yield changed(body=node.orelse, orelse=node.body)
        case ast.Constant() if type(node.value) in (int, float) and node.value in (0, 1):
            yield ast.Constant(node.value + 1)
        case ast.Call(func=ast.Attribute(attr="where"), args=[condition, yes, no]):
            yield changed(args=[condition, no, yes])
            yield yes
            yield no
        case ast.Call(func=ast.Attribute(attr="stop_gradient"), args=[argument]):
            yield argument
        case ast.Call(func=ast.Attribute(attr=name)) if name in FUNCTIONS:
            yield changed(func=ast.Attribute(node.func.value, FUNCTIONS[name], node.func.ctx))
    if isinstance(node, ast.Call) and any(keyword.arg == "where" for keyword in node.keywords):
        yield changed(keywords=[keyword for keyword in node.keywords if keyword.arg != "where"])


def expressions(node: ast.AST) -> Iterator[tuple[ast.AST, str, int | None]]:
    """(parent, field, index) of each expression that decides a value; no annotations, messages, texts or assertions."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "msg"):
            continue
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.Raise | ast.Assert | ast.JoinedStr):
                continue
            if isinstance(child, ast.Expr) and ".assert_" in ast.unparse(child):
                continue
            if isinstance(child, ast.expr):
                yield node, field, index
            yield from expressions(child)


def mutants_of(path: str) -> list[Mutant]:
    """Every change of one file."""
    tree, actual = ast.parse((ROOT / path).read_text()), []
    for parent, field, index in expressions(tree):
        slot = getattr(parent, field)
        before = slot if index is None else slot[index]

        def put(node, parent=parent, field=field, index=index, slot=slot):
            if index is None:
                setattr(parent, field, node)
            else:
                slot[index] = node

        for after in variants(before):
            put(after)
            text = f"{ast.unparse(before)}  ->  {ast.unparse(after)}"
            actual.append(Mutant(path, before.lineno, text, ast.unparse(ast.fix_missing_locations(tree))))
        put(before)
    return actual


class MutatedModule(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Imports one module from a source of its own."""

    def __init__(self, mutant: Mutant):
        module = mutant.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        super().__init__(module, str(ROOT / mutant.path))
        self.source = mutant.source

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self)

    def get_code(self, fullname):
        return compile(self.source, self.path, "exec")


class FirstFailure:
    """A pytest plugin: the name of the first test that failed."""

    name = ""

    def pytest_runtest_logreport(self, report):
        if report.failed and not self.name:
            self.name = report.nodeid

    def pytest_collectreport(self, report):
        if report.failed and not self.name:
            self.name = f"{report.nodeid} (import)"


def _run_tests(mutant: Mutant | None, tests: list[str], answer) -> None:
    """In a process of its own: (exit code of pytest, first test that failed)."""
    import pytest

    os.chdir(ROOT)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    if mutant is not None:
        sys.meta_path.insert(0, MutatedModule(mutant))
    failure = FirstFailure()
    code = pytest.main(["-x", "-q", "-p", "no:randomly", "-p", "no:cacheprovider", *tests], plugins=[failure])
    answer.send((int(code), failure.name))
    answer.close()
    os._exit(0)


def run(mutant: Mutant | None, tests: list[str]) -> tuple[str, str]:
    """(SURVIVED, KILLED or FAULTY, the test that noticed it). None: the code as it stands."""
    process = multiprocessing.get_context("fork")
    receiver, sender = process.Pipe(duplex=False)
    child = process.Process(target=_run_tests, args=(mutant, tests, sender))
    child.start()
    sender.close()
    try:
        code, name = receiver.recv() if receiver.poll(LIMIT) else (1, "time limit")
    except EOFError:
        code, name = 1, "the process ended"
    child.kill()
    child.join()
    return {0: SURVIVED, 1: KILLED, 2: KILLED}.get(code, FAULTY), name


def tests_of(path: str, folders: list[str]) -> list[str]:
    """The tests of a subject, those named after the module first."""
    names = [str(file.relative_to(ROOT)) for folder in folders for file in _files(folder, "test_*.py")]
    return sorted(names, key=lambda name: pathlib.Path(name).stem != f"test_{pathlib.Path(path).stem}")


def _files(path: str, pattern: str) -> list[pathlib.Path]:
    return sorted((ROOT / path).rglob(pattern)) if (ROOT / path).is_dir() else [ROOT / path]


def sample(subject: str, size: int, seed: int, at: str = "") -> list[tuple[Mutant, list[str]]]:
    """Changes of a subject with the tests that should notice them, as many of one file as of another; size 0: all."""
    code, tests = SUBJECTS[subject]
    paths = sorted({str(file.relative_to(ROOT)) for path in code for file in _files(path, "*.py")})
    by_file = [[mutant for mutant in mutants_of(path) if at in f"{path}:{mutant.line}:"] for path in paths]
    random.Random(seed).shuffle(by_file)
    for mutants in by_file:
        random.Random(seed).shuffle(mutants)
    in_rounds = [mutant for one_each in itertools.zip_longest(*by_file) for mutant in one_each if mutant is not None]
    return [(mutant, tests_of(mutant.path, tests)) for mutant in sorted(in_rounds[: size or None])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", help=f"of {', '.join(SUBJECTS)}; default: all")
    parser.add_argument("--changes", type=int, default=24, help="how many of each subject; 0: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="changes tried at a time")
    parser.add_argument("--at", default="", help="only changes whose place contains this, e.g. crf.py or crf.py:98:")
    parser.add_argument("--list", action="store_true", help="print the changes, run nothing")
    arguments = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.path.insert(0, str(ROOT))
    drawn = []
    for subject in arguments.subjects or SUBJECTS:
        drawn += sample(subject, arguments.changes, arguments.seed, arguments.at)
    if arguments.list:
        print("\n".join(f"{mutant.path}:{mutant.line}: {mutant.text}" for mutant, _ in drawn))
        return
    # each process below begins with the slow imports done; JAX starts its threads only when it computes
    import chex  # noqa: F401
    import hypothesis  # noqa: F401
    import jax  # noqa: F401
    import optax  # noqa: F401
    import scipy.optimize  # noqa: F401

    for tests in {tuple(sorted(tests)) for _, tests in drawn}:
        result, name = run(None, list(tests))
        if result != SURVIVED:
            raise SystemExit(f"the tests fail without any change: {name}")
    start, counts = time.perf_counter(), dict.fromkeys((KILLED, SURVIVED, FAULTY), 0)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        for (mutant, _), (result, name) in zip(drawn, pool.map(lambda pair: run(*pair), drawn), strict=True):
            counts[result] += 1
            print(f"{result:9} {mutant.path}:{mutant.line}: {mutant.text}  [{name}]", flush=True)
    seconds = time.perf_counter() - start
    print(f"{len(drawn)} changes: " + ", ".join(f"{n} {what}" for what, n in counts.items()) + f"; {seconds:.0f} s")
    raise SystemExit(1 if counts[SURVIVED] else 0)


if __name__ == "__main__":
    main()
