"""The notebooks of the documentation run, and give the numbers that they were committed with."""

import pathlib
import re

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def outputs(notebook: nbformat.NotebookNode) -> list:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def last_numbers(notebook: nbformat.NotebookNode) -> list[float]:
    """What the last cell prints."""
    printed = "".join(output.get("text", "") for output in notebook.cells[-1].outputs)
    return [float(number) for number in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", printed)]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_gives_its_numbers_again(file, launch_environment):
    committed = nbformat.read(file, as_version=4)
    executed = nbformat.read(file, as_version=4)
    env = {**launch_environment, "PYTHONPATH": str(ROOT)}
    NotebookClient(executed, timeout=600, kernel_name="python3").execute(cwd=str(ROOT), env=env)
    numbers = last_numbers(committed)
    assert len(numbers) >= 4
    np.testing.assert_allclose(last_numbers(executed), numbers, atol=0.02, err_msg="run `make notebooks`")
    pictures = [output for output in outputs(committed) if "image/png" in output.get("data", {})]
    assert pictures and len(file.read_bytes()) < 300_000


def test_lambda_curve_meets_the_exact_optimum():
    committed = nbformat.read(ROOT / "docs" / "notebooks" / "lambda_curve.ipynb", as_version=4)
    assert last_numbers(committed)[-1] < 1e-3  # its last line: largest difference to the closed form


def test_the_trace_norm_helps_and_its_operator_reaches_a_lower_rank():
    committed = nbformat.read(ROOT / "docs" / "notebooks" / "penalties_in_your_own_loop.ipynb", as_version=4)
    _, alone, by_gradient, rank, by_operator, lower_rank = last_numbers(committed)
    assert by_gradient < 0.6 * alone and by_operator < 0.6 * alone and lower_rank < rank
