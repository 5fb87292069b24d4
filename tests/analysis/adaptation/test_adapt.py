"""--mode=adapt: draws, choice, one adaptation by hand, the whole mode on tiny runs, and its errors."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import checks
from mtl_jax.analysis.adaptation import adapt as modes
from mtl_jax.analysis.adaptation import report
from mtl_jax.analysis.adaptation.episodes import draw_supports
from mtl_jax.analysis.adaptation.sources import INITIAL_VALUES, load_sources
from mtl_jax.config.plain import from_plain
from mtl_jax.errors import UserError
from mtl_jax.models import activation_sharding
from mtl_jax.runs import evaluate, predict, train
from mtl_jax.runtime import distributed
from mtl_jax.storage import workdir as folders
from mtl_jax.training.parameter_paths import flatten, with_leaves

pytestmark = pytest.mark.usefixtures("standard_promotion")


def trained(tiny, folder, **changes):
    """A finished run on the two tasks of sentences; its folder."""
    fields = {
        "model__num_layers": 0,
        "train_tasks": ("tags", "long"),
        "training__steps": 2,
        "training__eval_every": 0,
        "training__checkpoint_every": 0,
        "tokenizer__lowercase": True,
        "tasks__tags__options": {},
    }
    config = tiny(**{**fields, **changes})
    train.train(config, folders.prepare(folder))
    return folder


def adapted(config, runs, out):
    return modes.adapt(config, configs_of(runs), None, out, check)


def sources(config, run):
    return load_sources(config, configs_of([run]), "last", check)


def configs_of(runs):
    return {run: from_plain(folders.read_config(run)) for run in runs}


def check(config):
    checks.check(config, "adapt")


def new_task(tiny, **changes):
    """The config of a task that the runs have not seen."""
    config = tiny(**changes)
    for name in ("tags", "long"):
        del config.tasks[name]
    del config.datasets["sentences"]
    config.adaptation.shots, config.adaptation.num_supports, config.adaptation.num_tuning_supports = (2, 5), 3, 2
    config.adaptation.learning_rates, config.adaptation.steps = (0.1, 5.0), (0, 1, 4)
    config.adaptation.keep = ""
    return config


@pytest.fixture
def run(tiny, tmp_path):
    return trained(tiny, tmp_path / "hard")


def test_the_whole_mode(tiny, tmp_path, run, differs):
    columns = trained(tiny, tmp_path / "columns", sharing__trunk="none", model__column_init="independent")
    actual = adapted(new_task(tiny), [run, columns], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapt.json").read_text()) == json.loads(json.dumps(actual))
    assert list(actual["runs"]) == ["hard", "columns", INITIAL_VALUES] and actual["metric"] == "accuracy"
    for name in actual["runs"]:
        for k in ("2", "5"):
            scores, chosen = np.asarray(actual["scores"][name][k]["color"]), actual["chosen"][name][k]
            assert scores.shape == (3,) and chosen["rate"] in (0.1, 5.0) and chosen["steps"] in (0, 1, 4)
            differs("mean over draws", actual["mean"][name][k]["mean"], scores.mean(), 1e-12)
            at = actual["steps"].index(chosen["steps"])
            assert actual["curves"][name][k][at] == actual["mean"][name][k]
            if name != INITIAL_VALUES:
                other = np.asarray(actual["scores"][INITIAL_VALUES][k]["color"])
                differs("paired", actual["differences"][name][k]["mean"], (scores - other).mean(), 1e-12)
    text = report.render(actual, tmp_path / "out")
    assert "initial values" in text and "columns" in text
    assert {file.name for file in (tmp_path / "out" / "figures").iterdir()} == {"adapt_steps.png", "adapt_shots.png"}


@pytest.mark.parametrize("devices", [1, 2])
def test_draws_and_one_adaptation_by_hand(tiny, run, monkeypatch, devices):
    """Plain descent from a zero head on the mean loss of the support, on so many devices."""
    monkeypatch.setattr(activation_sharding, "LARGE_LEAF", 64)
    (source, *_) = sources(new_task(tiny), run).values()
    source.config.training.mesh.fsdp = devices
    one = modes._make_task(source, "color")
    episode = one.learner.episode
    few = draw_supports(episode, 4, draws=2, seed=0, purpose="test")
    placed = []
    place = distributed.place
    monkeypatch.setattr(distributed, "place", lambda tree, to: placed.append(place(tree, to)) or placed[-1])
    outputs = one.learner.predictions("test", source.layers, False, few, [5.0])
    predicted = outputs.values[..., : len(episode.rows["test"].tokens), 0]
    specs = {axis for leaf in jax.tree.leaves(placed[0]) for axis in leaf.sharding.spec}
    assert ("fsdp" in specs) == (devices > 1)
    rows, classes = episode.rows, len(episode.names)

    def bag(params, split, index):
        """Mean word vectors and logits by hand: the model has no layer above the embeddings."""
        locked = rows[split]
        real = (locked.segment[index] > 0).astype(np.float32)
        vectors = params["embed"]["word"]["embedding"][0][locked.tokens[index]]
        mean = (vectors * real[..., None]).sum(1) / real.sum(1, keepdims=True)
        head = jax.tree.map(lambda leaf: leaf[0], params["heads"]["color"]["output"])
        return mean @ head["kernel"] + jnp.broadcast_to(head["bias"], (len(index), len(head["bias"])))

    for draw in range(2):
        width = source.layers["embed"]["word"]["embedding"].shape[-1]
        head = {"output": {"kernel": jnp.zeros((1, width, classes)), "bias": jnp.zeros((1, classes))}}
        params = jax.tree.map(jnp.asarray, {**source.layers, "heads": {"color": head}})
        gold = episode.classes[few[draw]]
        assert np.bincount(gold).tolist() == [4, 4, 4]

        def loss(flat, params=params, gold=gold, draw=draw):
            log_p = jax.nn.log_softmax(bag(with_leaves(params, flat), "train", few[draw]))
            return -jnp.take_along_axis(log_p, jnp.asarray(gold)[:, None], axis=1).mean()

        flat, steps = flatten(params), []
        for number in range(5):
            if number in (0, 1, 4):
                everything = np.arange(len(rows["test"].tokens))
                steps.append(np.asarray(bag(with_leaves(params, flat), "test", everything).argmax(-1)))
            gradient = jax.grad(loss)(flat)
            flat = {path: leaf - 5.0 * gradient[path] for path, leaf in flat.items()}
        assert np.mean(np.stack(steps)[1:] == predicted[draw, 0, 1:]) > 0.99  # ties of float32 aside
        assert not predicted[draw, 0, 0].any()  # a head of zeros says the first class
    # what is drawn
    gold = episode.classes
    some = draw_supports(episode, 3, draws=4, seed=0, purpose="test")
    assert some.shape == (4, 9)
    for row in some:
        assert len(set(row.tolist())) == 9 and gold[row].tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert len({tuple(row) for row in some.tolist()}) == 4
    np.testing.assert_array_equal(some, draw_supports(episode, 3, draws=4, seed=0, purpose="test"))
    other = draw_supports(episode, 3, draws=4, seed=0, purpose="tune")
    assert not {tuple(row) for row in some.tolist()} & {tuple(row) for row in other.tolist()}


def test_columns(tiny, tmp_path):
    """The mean of the columns, or that of one task."""
    run = trained(tiny, tmp_path / "columns", sharing__trunk="none", model__column_init="independent")
    config = new_task(tiny)
    table = {}
    for column in ("", "tags", "long"):
        config.adaptation.column = column
        (source, *_) = sources(config, run).values()
        table[column] = source.layers["embed"]["word"]["embedding"]
    assert table[""].shape[0] == 1 and np.abs(table["tags"] - table["long"]).max() > 0.01
    np.testing.assert_allclose(table[""], (table["tags"] + table["long"]) / 2, atol=1e-7)


ERRORS = [
    (
        {"adaptation__shots": (60,)},
        r"task color: class '\w+' has \d+ examples in train, config.adaptation.shots asks for 60",
    ),
    ({"adaptation__column": "ner"}, "config.adaptation.column: 'ner' is not one of the run's tasks tags, long"),
    ({"adaptation__params": "^layer_09"}, "config.adaptation.params: '.layer_09' matches no parameter"),
    ({"adaptation__baseline": "nobody"}, "config.adaptation.baseline: 'nobody' is not one of 'hard', 'initial values'"),
    ({"adaptation__tuning_tasks": ("color",)}, "config.adaptation.tuning_tasks: names all tasks"),
    ({"adaptation__steps": ()}, "config.adaptation.steps: name at least one"),
    ({"adaptation__shots": (1.5,)}, "config.adaptation.shots: 1.5 should be a whole number"),
]


def test_what_cannot_be_adapted_is_said(tiny, tmp_path, run):
    for changes, message in ERRORS:
        config = new_task(tiny)
        for field, value in changes.items():
            *path, last = field.split("__")
            node = config
            for key in path:
                node = node[key]
            node[last] = value
        with pytest.raises(UserError, match=message):
            adapted(config, [run], tmp_path / "out")
    twin = shutil.copytree(run, tmp_path / "elsewhere" / "hard")
    config = new_task(tiny)
    del config.datasets.texts.splits["dev"]
    for runs, given, message in (
        ([tmp_path / "nowhere"], new_task(tiny), "nowhere: no config.json"),
        ([run, twin], new_task(tiny), "two folders are named 'hard'"),
        ([run], config, "data set texts: .*there is no dev"),
    ):
        with pytest.raises(UserError, match=message):
            adapted(given, runs, tmp_path / "out")


@pytest.mark.parametrize("way", ["mmoe", "adapters"])
def test_tags_from_few_sentences_end_in_a_run(tiny, tmp_path, way):
    """A task of words, from a run with experts or adapters: a folder that evaluates and predicts."""
    sharing = {
        "mmoe": {"sharing__trunk": "embed", "sharing__mixer": "mmoe", "sharing__mixer_options": {"experts": 2}},
        "adapters": {"sharing__adapter": "bottleneck", "sharing__adapter_options": {"size": 2}},
    }[way]
    run = trained(tiny, tmp_path / way, model__num_layers=1, **sharing)
    config = tiny(tasks__tags__options={})
    for name in ("color", "long"):
        del config.tasks[name]
    config.adaptation.shots, config.adaptation.num_supports, config.adaptation.num_tuning_supports = (20,), 2, 2
    config.adaptation.learning_rates, config.adaptation.steps = (0.1,), (3, 40)
    config.adaptation.optimizer = "adam"
    config.adaptation.params = "^(heads/|adapter_|embed/)" if way == "adapters" else ".*"
    config.adaptation.column = "tags" if way == "adapters" else ""
    result = adapted(config, [run], tmp_path / "out")
    (folder,) = (tmp_path / "out" / name for name in result["saved"][way]["20"]["tags"])
    scores = result["scores"][way]["20"]["tags"]
    saved_config = from_plain(folders.read_config(folder))
    checks.check(saved_config, "evaluate")
    shutil.rmtree(run)  # the folder needs no other
    summary, again = folders.read_summary(folder), evaluate.evaluate(saved_config, folder, "best")
    assert again["tasks"] == summary["tasks"] and summary["step"] in (3, 40)
    assert summary["tasks"]["tags"]["test"]["entity_f1"] == pytest.approx(scores[0], abs=1e-6) and scores[0] > 0
    source, target = tmp_path / "input.jsonl", tmp_path / "output.jsonl"
    source.write_text(json.dumps({"words": ["w1", "red", "w2"]}))
    predict.predict(saved_config, folder, ["best"], str(source), str(target))
    assert len(json.loads(target.read_text())["tags"]["tags"]) == 3
