"""Runs as objects: what the modes of the command line do, from Python."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtl_jax
from mtl_jax.config import default
from mtl_jax.errors import UserError
from mtl_jax.runs.predict import predict

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture
def run(tiny, tmp_path):
    return mtl_jax.train(tiny(training__steps=4, training__eval_every=2), tmp_path / "run")


def test_a_run_has_scores_predicts_and_is_a_function(run, tmp_path):
    assert run.scores == json.loads((run.folder / "summary.json").read_text())["tasks"]
    assert mtl_jax.load(run.folder).scores == run.scores and "color" in repr(run)
    examples = ["w1 red w2", {"text": "blue w3"}, {"words": ["w4", "green"]}]
    lines = run.predict(examples)
    assert [sorted(line) for line in lines] == [["color", "long", "tags"], ["color"], ["long", "tags"]]
    assert list(run.predict(examples[:1], ["color"])[0]) == ["color"]
    (tmp_path / "in.txt").write_text("w1 red w2\n")  # as --mode=predict
    predict(run.config, run.folder, ["best"], str(tmp_path / "in.txt"), str(tmp_path / "out.jsonl"))
    expected = json.loads((tmp_path / "out.jsonl").read_text())
    assert {"line": 1, **lines[0]} == expected

    batches = run.encode(["w1 red w2", "blue w3"])
    outputs = run.apply(run.params, batches)
    assert set(outputs) == {"color", "long", "tags"}
    example = next(batch.example for name, batch in batches.items() if name == "texts")[0]
    ((row, slot),) = np.argwhere(example == 0)
    probabilities = outputs["color"]["probability"][row, slot]
    ranked = list(lines[0]["color"]["probabilities"].values())
    np.testing.assert_allclose(sorted(probabilities, reverse=True), ranked, rtol=1e-3)

    def confidence(params):
        return jnp.log(run.apply(params, batches)["color"]["probability"][row, slot].max())

    norms = jax.tree.map(lambda g: float(jnp.abs(g).sum()), jax.jit(jax.grad(confidence))(run.params))
    assert max(jax.tree.leaves(norms["embed"])) > 0
    again = mtl_jax.evaluate(run)
    assert again["tasks"]["color"]["test"] == pytest.approx(run.scores["color"]["test"], abs=1e-6)


def test_mistakes_are_errors_that_say_what(run, tiny, tmp_path):
    for call, message in (
        (lambda: run.predict("a text"), "a list of texts"),
        (lambda: run.predict(["a"], ["colour"]), "no task 'colour'; it has: color, tags, long"),
        (lambda: run.predict([{"title": "a"}]), r"examples:1: no task can read this line"),
        (lambda: mtl_jax.load(tmp_path), "not the folder of a run"),
        (lambda: mtl_jax.train(tiny(training__steps=0)), "config.training.steps"),
        (lambda: mtl_jax.train(tiny(optimizer__clip_norm=7.0), run.folder), "another config"),
        (lambda: mtl_jax.ablate(tiny()), "config.ablation"),
        (lambda: mtl_jax.merge([], tmp_path / "m"), "one run or more"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = mtl_jax.trian


def test_the_other_modes_return_their_results(tiny, tmp_path):
    config = tiny(train_tasks=("color", "long"), training__steps=4, sharing__trunk="none", model__layer_type="cnn")
    default.add_penalty(config, "l2", kind="l2_to_mean", strength=0.1)
    default.add_sweep(config, "strength", field="penalties.l2.strength", points=(0.1, 10.0))
    config.ablation.num_seeds, config.ablation.intervals, config.ablation.limits = 1, False, False
    before = config.to_json()
    grid = mtl_jax.ablate(config, tmp_path / "grid")
    assert len(grid.lanes) == 2 and (tmp_path / "grid" / "ablation.json").exists()
    run = mtl_jax.train(config)  # in a temporary folder
    merged = mtl_jax.merge([run], tmp_path / "merged")
    assert set(merged.scores) == {"color", "long"} and merged.predict(["w1 red"])[0]["color"]
    assert config.to_json() == before


def test_importing_the_package_imports_nothing_else():
    code = "import sys, mtl_jax; print(sorted({'jax', 'numpy', 'ml_collections', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]" and "train" in dir(mtl_jax)
