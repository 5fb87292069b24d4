"""Integrated gradients: completeness, closed forms, and the page."""

import json

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from mtl_jax.analysis import attribution
from mtl_jax.analysis.integrated_gradients import integrated_gradients
from mtl_jax.config import default
from mtl_jax.data.sampler import evaluation_batches, evaluation_layout
from mtl_jax.errors import UserError
from mtl_jax.runs.build import build
from mtl_jax.runs.train import train
from mtl_jax.training.objective import logits

pytestmark = pytest.mark.usefixtures("standard_promotion")


def attributed(experiment, dataset, steps=64):
    objective = experiment.objective_for(evaluation_layout(experiment.corpus.layout, dataset))
    batch = next(evaluation_batches(experiment.corpus.rows[dataset]["dev"], objective.layout, 4))
    run = jax.jit(integrated_gradients(objective, steps))
    params = experiment.init_params(0)
    return objective, params, batch, jax.device_get(run(params, batch))


def test_of_a_bag_of_words_they_are_its_terms(tiny, differs):
    """Mean pooling and a linear head: S = Σ_t w·x_t / T + b, so A_t = w·x_t / T, without any error of the rule."""
    experiment = build(tiny(model__num_layers=0, model__dropout=0.0))
    objective, params, batch, actual = attributed(experiment, "texts", steps=2)
    attributions, score, baseline = actual["color"]
    ((_, message),) = logits(objective, params, batch, None, None)
    message = np.asarray(message)
    differs("score", score[batch.length[0] > 0], message.max(-1)[batch.length[0] > 0], 1e-6)
    table = np.asarray(params["embed"]["word"]["embedding"][0])
    kernel = np.asarray(params["heads"]["color"]["output"]["kernel"][0])
    row, slot = 0, 0
    begin, length = batch.start[0, row, slot], batch.length[0, row, slot]
    words = table[batch.tokens[0, row, begin : begin + length]]
    assert np.abs(words).max() > 1e-2 and np.abs(kernel).max() > 1e-3
    wanted = words @ kernel[:, message[row, slot].argmax()] / length
    differs("attributions of a bag of words", attributions[row, begin : begin + length], wanted, 1e-6)
    differs("completeness", wanted.sum(), score[row, slot] - baseline[row, slot], 1e-6)


@pytest.mark.parametrize("trunk", ["all", "none"])
@pytest.mark.parametrize("layer", ["bilstm", "transformer"])
def test_they_add_up_to_the_score(tiny, differs, layer, trunk):
    experiment = build(
        tiny(model__layer_type=layer, model__num_heads=2, model__intermediate_size=16, sharing__trunk=trunk)
    )
    for dataset in ("texts", "sentences"):
        _, _, batch, actual = attributed(experiment, dataset)
        for task, (attributions, score, baseline) in actual.items():
            member = batch.segment[0][:, None, :] == np.arange(1, batch.start.shape[-1] + 1)[None, :, None]
            sums = (attributions[:, None, :] * member).sum(-1)
            assert np.abs(score).max() > 0, task
            differs(f"completeness, {layer}", sums, score - baseline, 1e-4)


def test_beside_a_task_that_is_not_explained_and_below_the_top(tiny, differs):
    """A stream of its own for each task of the data set, also for one whose predictions are no classes."""
    config = tiny(model__num_layers=2, sharing__head_layers=ConfigDict({"color": "layer_00"}))
    default.add_task(config, "words", kind="masked_lm", dataset="texts")
    experiment = build(config)
    _, _, batch, actual = attributed(experiment, "texts")
    assert set(actual) == {"color"}
    attributions, score, baseline = actual["color"]
    member = batch.segment[0][:, None, :] == np.arange(1, batch.start.shape[-1] + 1)[None, :, None]
    differs("completeness, bilstm", (attributions[:, None, :] * member).sum(-1), score - baseline, 1e-4)
    color, tags, *_ = attribution._layers_by_task(experiment)
    assert color == ["color", "with all", "with all", "–"] and tags == ["tags", "with all", "with all", "with all"]


@pytest.mark.parametrize(
    "changes",
    [
        {"sharing__trunk": "embed", "sharing__mixer": "cross_stitch"},
        {"sharing__trunk": "embed", "sharing__mixer": "mmoe"},
        {"sharing__cascades": {"color": ("long",)}},
    ],
)
def test_whatever_connects_the_columns_is_a_part_of_the_score(tiny, differs, changes):
    experiment = build(tiny(model__layer_type="cnn", **changes))
    _, _, batch, actual = attributed(experiment, "texts")
    for attributions, score, baseline in actual.values():
        member = batch.segment[0][:, None, :] == np.arange(1, batch.start.shape[-1] + 1)[None, :, None]
        assert np.abs(attributions).max() > 0
        differs("completeness, connected", (attributions[:, None, :] * member).sum(-1), score - baseline, 1e-3)


def test_the_page(tiny, tmp_path):
    config = tiny(training__steps=4, training__eval_every=0)
    train(config, tmp_path / "run")
    source = tmp_path / "in.txt"
    source.write_text("w1 red w2 <b>\n\nw3 blue\n")
    text = attribution.attribute(config, tmp_path / "run", ["best"], str(source), tmp_path / "out")
    assert text.startswith("2 records")
    lines = [json.loads(line) for line in (tmp_path / "out" / "attributions.jsonl").read_text().splitlines()]
    assert [line["line"] for line in lines] == [1, 3] and set(lines[0]["tasks"]) == {"color", "tags", "long"}
    color = lines[1]["tasks"]["color"]
    assert color["tokens"] == ["w3", "blue"] and len(color["attributions"]) == 2
    assert sum(color["attributions"]) == pytest.approx(color["score"] - color["baseline"], abs=5e-3)
    page = (tmp_path / "out" / "attribution.html").read_text()
    assert (
        "with all" in page
        and "<b>" not in page
        and page.count("<span") == sum(len(task["tokens"]) for line in lines for task in line["tasks"].values())
    )
    with pytest.raises(UserError, match="no records in it"):
        source.write_text("\n")
        attribution.attribute(config, tmp_path / "run", ["best"], str(source), tmp_path / "out")
    with pytest.raises(UserError, match="name the input by --input"):
        attribution.attribute(config, tmp_path / "run", ["best"], "", tmp_path / "out")
