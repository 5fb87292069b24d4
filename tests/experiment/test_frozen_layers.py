"""Frozen layers computed once a row: the same training and the same scores as without."""

import json

import jax
import numpy as np
import pytest
from make_published_goldens import TINY, hashed_weights
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from mtl_jax import checks
from mtl_jax.analysis.ablation.device_rows import draws, gather, resident_rows
from mtl_jax.errors import UserError
from mtl_jax.evaluation.evaluator import Evaluator
from mtl_jax.models import families
from mtl_jax.runs.build import build
from mtl_jax.training.parameter_paths import flatten
from mtl_jax.training.step import train_step

LOW = ConfigDict({"color": "layer_00"})
pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture
def encoder(tmp_path):
    """A folder with a tiny BERT of two layers."""
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**TINY["bert"], "vocab_size": 80}), encoding="utf-8")
    tensors = families.architecture_from_config({**TINY["bert"], "vocab_size": 80}, "tiny").published_tensors()
    save_file(hashed_weights({tensor.name: tensor.shape for tensor in tensors}), folder / "model.safetensors")
    return str(folder)


def config_of(tiny, encoder, **changes):
    return tiny(
        model__layer_type="transformer",
        model__num_layers=0,
        model__pretrained=encoder,
        model__dropout=0.0,
        data__rows_per_block=2,
        optimizer__name="sgd",
        **{"optimizer__freeze": ("^embed/", "^layer_00/"), "train_tasks": ("color", "long"), **changes},
    )


def trained(experiment, steps=3):
    state = experiment.init(0)
    step = jax.jit(lambda s, b, h: train_step(experiment.spec, s, b, h))
    for number in range(steps):
        batch = jax.tree.map(lambda leaf: np.asarray(leaf)[None], experiment.batches(0).batch(number))
        state, metrics = step(state, batch, experiment.hyper)
    return state.params, metrics


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sharing__trunk": "none"},
        {"aggregation__method": "pcgrad"},
        {"aggregation__level": "representation", "aggregation__method": "mgda", "train_tasks": ("tags", "long")},
        {"sharing__head_layers": LOW},
        {
            "optimizer__freeze": ("^embed/", "^layer_"),
            "sharing__adapter": "lora",
            "sharing__adapter_layers": ("layer_01",),
        },
    ],
    ids=["hard", "columns", "balanced", "representation", "a head below the top", "below the adapters"],
)
def test_kept_outputs_change_nothing(tiny, encoder, differs, changes):
    plain = build(config_of(tiny, encoder, **changes))
    remaining = build(config_of(tiny, encoder, optimizer__cache_frozen=True, **changes))
    assert any("frozen layers up to layer_00" in note for note in remaining.corpus.notes)
    (actual, metrics), (wanted, expected) = trained(remaining), trained(plain)
    for path, leaf in flatten(wanted).items():
        differs("trained on kept outputs", flatten(actual)[path], leaf, 1e-5)
    differs("losses on kept outputs", metrics["losses"], expected["losses"], 1e-5)
    scores = [
        Evaluator(e.objective_for, e.corpus, 4, lambda batch: batch).score(actual, "dev") for e in (plain, remaining)
    ]
    for task, by_metric in scores[0].items():
        differs("scores on kept outputs", list(by_metric.values()), list(scores[1][task].values()), 1e-5)


def test_they_are_what_the_layers_read_and_are_gathered_on_the_device(tiny, encoder):
    remaining = build(config_of(tiny, encoder, optimizer__cache_frozen=True))
    batches = remaining.batches(0)
    drawn = draws(batches, 0, 1, 1)
    batch = gather(resident_rows(batches), batches.layout, drawn.dataset[0, 0], drawn.row[0, 0])
    jax.tree.map(np.testing.assert_array_equal, batch, batches.batch(0))
    wrong = jax.tree.map(lambda leaf: np.asarray(leaf)[None], batches.batch(0))
    wrong = wrong._replace(hidden=wrong.hidden + 1.0, tokens=np.zeros_like(wrong.tokens))
    _, right = trained(remaining, 1)
    _, actual = jax.jit(lambda s, b, h: train_step(remaining.spec, s, b, h))(remaining.init(0), wrong, remaining.hyper)
    assert not np.allclose(actual["losses"], right["losses"])


def test_nothing_to_keep_is_an_error(tiny, encoder):
    with pytest.raises(UserError, match="cache_frozen: 'embed' is trained"):
        build(config_of(tiny, encoder, optimizer__cache_frozen=True, optimizer__freeze=("^layer_00/",)))
    with pytest.raises(UserError, match=r"cache_frozen.*needs config\.model\.pretrained"):
        checks.check(tiny(optimizer__cache_frozen=True, optimizer__freeze=("^embed/",)))
