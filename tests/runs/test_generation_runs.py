"""Runs with a task that generates text: next to others, resumed, as lanes, in prediction; what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import generation
from mtl_jax import checks
from mtl_jax.analysis import inspection
from mtl_jax.analysis.ablation.lanes import shape_of
from mtl_jax.analysis.ablation.scores import LaneScores
from mtl_jax.analysis.attribution import attribute
from mtl_jax.config import default
from mtl_jax.data.readers import READERS
from mtl_jax.errors import UserError
from mtl_jax.evaluation import scores
from mtl_jax.runs import predict, train
from mtl_jax.runs.build import build
from mtl_jax.storage import workdir as folders
from mtl_jax.training.step import train_step

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture
def writer(tiny, tmp_path):
    """The tiny config with a task that writes the color and the last word of each text, some of them missing."""
    for split in ("train", "dev", "test"):
        file = tmp_path / f"texts.{split}.jsonl"
        records = [json.loads(line) for line in file.read_text().splitlines()]
        for number, record in enumerate(records):
            message = f"{record['color']} {record['text'].split()[-1]}"
            record["said"] = None if number % 5 == 4 else message
        file.write_text("".join(json.dumps(record) + "\n" for record in records))

    def make(options=None, **changes):
        config = tiny(**changes)
        default.add_task(
            config,
            "said",
            kind="generation",
            dataset="texts",
            label="said",
            options={"layers": 1, "heads": 2, "max_length": 6, "copy": True, "min_count": 4, **(options or {})},
        )
        del config.tasks["tags"]
        if config.data.mixing == "all":  # one data set does
            del config.tasks["long"], config.datasets["sentences"]
        return config

    return make


def one_step(config, seed=0):
    experiment = build(config)
    count = config.training.grad_accum_steps
    parts = [experiment.batches(seed).batch(i) for i in range(count)]
    batch = jax.tree.map(lambda *leaves: np.stack(leaves), *parts)
    return experiment, jax.jit(lambda s, b, h: train_step(experiment.spec, s, b, h))(
        experiment.init(seed), batch, experiment.hyper
    )


def test_a_run_beside_other_tasks_predicts_what_it_scores(writer, tmp_path):
    config = writer(training__steps=8, training__eval_every=4, training__checkpoint_every=4, sharing__trunk="none")
    default.add_penalty(config, "l2", kind="l2_to_mean", strength=0.01)
    checks.check(config)
    workdir = folders.prepare(tmp_path / "run")
    summary = train.train(config, workdir)
    actual = summary["tasks"]["said"]["test"]
    assert set(actual) == {"bleu", "rougeL", "exact_match", "token_accuracy", "perplexity", "loss"}
    assert summary["tasks"]["color"]["test"]["accuracy"] is not None

    target = tmp_path / "said.jsonl"
    predict.predict(config, workdir, ("best",), str(tmp_path / "texts.test.jsonl"), str(target))
    message = [json.loads(line)["said"]["text"] for line in target.read_text().splitlines()]
    records = [json.loads(line) for line in (tmp_path / "texts.test.jsonl").read_text().splitlines()]
    right = [s == r["said"] for s, r in zip(message, records, strict=True) if r["said"]]
    assert np.mean(right) == pytest.approx(actual["exact_match"])
    assert "the input itself: bleu" in inspection.describe_experiment(config)
    with pytest.raises(UserError, match=r"config\.tasks\.said generates text"):
        attribute(config, workdir, ("best",), str(target), tmp_path / "why")

    # lanes are scored as runs are
    experiment = build(config)
    placement, shape = scores.placement_from_config(experiment), shape_of(1, 1, "map")
    params = scores.restore_params(experiment, placement, workdir, "best").params
    stacked = jax.tree.map(lambda x: np.broadcast_to(x, (shape.seeds, shape.lanes, *x.shape)), jax.device_get(params))
    lane = LaneScores(experiment, shape).score(stacked, "test", lambda: None)[0][0]
    assert lane["said"] == pytest.approx(actual, rel=1e-4)


def test_a_split_without_targets_has_no_score_of_the_task(writer, tmp_path):
    config = writer({"max_length": 3})
    file = tmp_path / "texts.test.jsonl"
    records = [json.loads(line) | {"said": None} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    experiment = build(config)
    params = jax.device_get(experiment.init_params(0))
    actual = scores.make_evaluator(experiment, scores.placement_from_config(experiment)).score(params, "test")
    assert list(actual) == ["color"]
    stacked = jax.tree.map(lambda x: np.broadcast_to(x, (1, 8, *x.shape)), params)
    assert list(LaneScores(experiment, shape_of(1, 1, "map")).score(stacked, "test", lambda: None)[0][0]) == ["color"]


@pytest.mark.parametrize("decoder", ["transformer", "lstm"])
def test_micro_batches_and_tasks_left_out_change_neither_targets_nor_dropout(writer, decoder):
    own = {"decoder": decoder, "heads": 2 if decoder == "transformer" else 0}
    rates = {"model__dropout": 0.3, "model__attention_dropout": 0.2}
    config = writer(own, training__steps=1, data__rows_per_block=8, optimizer__name="sgd", **rates)
    experiment, (whole, metrics) = one_step(config)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(whole.params)) and not metrics["bad_steps"]
    config.data.rows_per_block, config.training.grad_accum_steps = 4, 2
    _, (parts, _) = one_step(config)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole.params, parts.params)
    changed = jax.jit(lambda s, b, h: train_step(experiment.spec, s, b, h))(
        experiment.init(0),
        jax.tree.map(lambda leaf: leaf[None], experiment.batches(0).batch(0)),
        experiment.hyper._replace(dropout=jnp.float32(0.0)),
    )[0]
    moved = (state.params["heads"]["said"]["embedding"] for state in (whole, changed))
    assert np.abs(np.subtract(*moved)).max() > 1e-5
    config.train_tasks = ("color",)  # the targets still shape the rows
    rows, alone = experiment.corpus.rows["texts"]["train"], build(config).corpus.rows["texts"]["train"]
    np.testing.assert_array_equal(rows.tokens, alone.tokens)
    assert set(alone.labels) == {"color"}


def test_a_batch_without_the_task_leaves_its_decoder_as_it_is(writer):
    config = writer(data__mixing="round_robin", optimizer__name="sgd", model__dropout=0.0)
    experiment, (after, metrics) = one_step(config)
    drawn = experiment.corpus.layout.datasets[experiment.batches(0).indices(0)[0][0]]
    present = dict(zip(experiment.tasks, np.asarray(metrics["present"]).tolist(), strict=True))
    assert present["said"] == (drawn == "texts") and np.isfinite(float(metrics["total"]))
    before = experiment.init_params(0)["heads"]["said"]
    moved = [
        np.abs(a - b).max() > 0
        for a, b in zip(*map(jax.tree.leaves, (before, after.params["heads"]["said"])), strict=True)
    ]
    assert any(moved) == present["said"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 0}, r"config\.tasks\.said\.options\.layers: 0 leaves no decoder"),
        ({"copies": True}, r"config\.tasks\.said\.options\.copies: .*no such option. Did you mean 'copy'"),
        ({"min_count": 0}, r"config\.tasks\.said\.options\.min_count: 0 should be a whole number >= 1"),
    ],
)
def test_options_are_checked_before_anything_is_read(writer, options, message):
    config = writer(options)
    with pytest.raises(UserError, match=message):
        checks.check(config)
    config = writer()
    config.tasks.said.classes = ("a",)
    with pytest.raises(UserError, match=r"config\.tasks\.said\.classes"):
        checks.check(config)


def test_bleu_of_targets_without_blanks_is_warned_of(writer, tmp_path):
    config = writer()
    file = tmp_path / "texts.train.jsonl"
    lines = [json.loads(line) | {"said": "我今天去北京。"} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (note,) = [note for note in build(config).corpus.notes if "without blanks" in note]
    assert "task said: 96 of 96 targets of train" in note and "bleu_zh" in note
    config.tasks.said.metrics = ("bleu_zh", "exact_match")
    assert not [note for note in build(config).corpus.notes if "without blanks" in note]


@pytest.mark.parametrize("which", generation.WHICH)
def test_the_configs_pass_their_checks(which):
    config = generation.get_config(which)
    checks.check(config)
    assert config.datasets.ewt.reader in READERS
