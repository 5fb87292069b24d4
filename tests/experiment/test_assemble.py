"""From a config to predictions: every kind of layer, packed against unpacked, values to start from."""

import itertools

import jax
import numpy as np
import pytest

from mtl_jax import checks
from mtl_jax.config import default
from mtl_jax.errors import UserError
from mtl_jax.evaluation import evaluator as evaluator_module
from mtl_jax.evaluation.evaluator import Evaluator, without_probabilities
from mtl_jax.runs.build import build
from mtl_jax.training.step import train_step

pytestmark = pytest.mark.usefixtures("standard_promotion")


def evaluator(experiment):
    return Evaluator(experiment.objective_for, experiment.corpus, 8, lambda batch: batch)


@pytest.mark.parametrize(
    ("layer", "dtype"),
    [
        ("transformer", "float32"),
        ("transformer", "bfloat16"),
        ("lstm", "float32"),
        ("rnn", "float32"),
        ("cnn", "bfloat16"),
    ],
)
def test_every_kind_of_layer_learns(tiny, layer, dtype):
    config = tiny(
        model__layer_type=layer,
        model__dtype=dtype,
        model__num_heads=2,
        model__intermediate_size=16,
        model__hidden_size=16,
    )
    config.model.activation = "gelu"
    config.optimizer.warmup_ratio = 0.0
    experiment = build(config)
    step = jax.jit(lambda s, b, h: train_step(experiment.spec, s, b, h))
    state, totals = experiment.init(0), []
    for number in range(12):
        batch = jax.tree.map(lambda a: a[None], experiment.batches(0).batch(number))
        state, metrics = step(state, batch, experiment.hyper)
        totals.append(float(metrics["total"]))
    assert int(state.skipped.sum()) == 0
    assert np.mean(totals[-3:]) < np.mean(totals[:3]) - 0.1
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(state.params))


@pytest.mark.parametrize("layer", ["transformer", "bilstm", "cnn"])
def test_packed_rows_give_what_single_rows_give(tiny, layer, differs):
    """Example by example, every head: the same predictions and probabilities to 1e-5, and the same loss."""
    packed = build(tiny(model__layer_type=layer, model__num_heads=2, data__row_length=32))
    single = build(tiny(model__layer_type=layer, model__num_heads=2, data__row_length=32, data__packing=False))
    assert len(packed.corpus.rows["texts"]["dev"].tokens) < len(single.corpus.rows["texts"]["dev"].tokens) / 2
    rng = np.random.default_rng(0)  # far from the first values, where all predictions are nearly the same
    params = jax.tree.map(lambda x: x + rng.normal(0, 0.3, x.shape).astype(np.float32), packed.init_params(0))
    for dataset in ("texts", "sentences"):
        first, second = (evaluator(e).predict(params, dataset, "dev") for e in (packed, single))
        for task, values in first.values.items():
            assert first.loss[task] == pytest.approx(second.loss[task], abs=1e-5)
            for name, actual in values.items():
                for a, b in zip(actual, second.values[task][name], strict=True):
                    differs(f"packed against single rows, {layer}, {task}", a, b, 1e-5)


def test_scores_are_those_of_the_metrics(tiny):
    """Accuracy counted by hand from the predictions."""
    experiment = build(tiny())
    params = experiment.init_params(0)
    scores = evaluator(experiment).score(params, "dev")
    predicted = evaluator(experiment).predict(params, "texts", "dev").values["color"]["value"]
    names = experiment.corpus.vocabularies["color"].names
    gold = [record.fields["color"] for record in experiment.corpus.splits["texts"]["dev"].records]
    hits = np.mean([names[p] == g for p, g in zip(predicted, gold, strict=True)])
    assert scores["color"]["accuracy"] == pytest.approx(hits)
    assert list(scores) == ["color", "tags", "long"]


def test_word_vectors_are_where_training_begins(tiny, tmp_path):
    (tmp_path / "vectors.txt").write_text("red 1 2 3 4 5 6 7 8\nblue 8 7 6 5 4 3 2 1\n")
    config = tiny(sharing__trunk="none")
    config.model.word_vectors = str(tmp_path / "vectors.txt")
    experiment = build(config)
    table = np.asarray(experiment.init_params(0)["embed"]["word"]["embedding"])
    red = experiment.corpus.tokenizer.vocabulary.index("red")
    np.testing.assert_array_equal(table[:, red], np.tile(np.arange(1.0, 9.0), (3, 1)))
    config.model.hidden_size = 4
    with pytest.raises(UserError, match=r"config.model.hidden_size: 4, but the vectors .* have 8"):
        build(config).init_params(0)


def test_a_finished_run_does_without_the_file_of_its_word_vectors(tiny, tmp_path):
    (tmp_path / "vectors.txt").write_text("red 1 2 3 4 5 6 7 8\n")
    config = tiny(model__word_vectors=str(tmp_path / "vectors.txt"))
    checks.check(config)
    (tmp_path / "vectors.txt").unlink()
    checks.check(config, "predict")
    experiment = build(config)
    shapes = jax.eval_shape(lambda: experiment.init_params(0))  # into which a checkpoint is read
    assert shapes["embed"]["word"]["embedding"].shape[-1] == 8
    with pytest.raises(UserError, match=r"config\.model\.word_vectors: there is no file"):
        checks.check(config)
    with pytest.raises(UserError, match=r"vectors\.txt"):
        experiment.init_params(0)


def test_a_task_left_out_changes_no_other_rows_or_initial_values(tiny):
    both, alone = build(tiny(sharing__trunk="none")), build(tiny(sharing__trunk="none", train_tasks=("color",)))
    for step in (0, 7):
        np.testing.assert_array_equal(both.batches(0).indices(step)[1][0], alone.batches(0).indices(step)[1][0])
    jax.tree.map(
        np.testing.assert_array_equal, both.init_params(0)["heads"]["color"], alone.init_params(0)["heads"]["color"]
    )


def test_anchor_is_the_initial_tree(tiny):
    config = tiny(sharing__trunk="none")
    default.add_penalty(config, "sp", kind="l2_to_anchor", strength=1.0)
    experiment = build(config)
    state = experiment.init(0)
    value = experiment.spec.objective.penalties["sp"].value
    from mtl_jax.training.parameter_paths import flatten

    assert float(value(flatten(state.params), state.anchor, {})) == 0.0
    moved = jax.tree.map(lambda leaf: leaf + 0.5, state.params)
    size = sum(leaf.size for path, leaf in flatten(state.params).items() if not path.startswith("heads/"))
    assert float(value(flatten(moved), state.anchor, {})) == pytest.approx(0.25 * size, rel=1e-5)


def test_data_sets_are_scored_together_as_each_by_itself(tiny):
    """One program for data sets of like size, with other numbers of example slots, and a split that one has not."""
    config = tiny()
    del config.datasets.sentences.splits["test"]
    experiment = build(config)
    params, actual, programs = experiment.init_params(0), {}, []
    for like, small in ((1.5, 4), (0.0, 0)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evaluator_module, "SIZE_RATIO", like)
            patch.setattr(evaluator_module, "SMALL_BATCHES", small)
            patch.setattr(
                evaluator_module,
                "without_probabilities",
                lambda run: programs.append(run) or without_probabilities(run),
            )
            one = evaluator(experiment)
            actual[like] = {split: one.score(params, split) for split in ("dev", "test")}
        programs.append("|")
    assert [len(list(group)) for is_run, group in itertools.groupby(programs, callable) if is_run] == [1, 2]
    assert actual[1.5]["dev"].keys() == {"color", "tags", "long"} and actual[1.5]["test"].keys() == {"color"}
    for split, scores in actual[0.0].items():
        for task, values in scores.items():
            assert actual[1.5][split][task] == pytest.approx(values, abs=1e-5), (split, task)
