"""Runs with pictures, text, and both: what is learned, gone on with, predicted, refused, and left as it was."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from mtl_jax import checks
from mtl_jax.analysis import attribution, inspection, paired_test
from mtl_jax.config import default
from mtl_jax.errors import UserError
from mtl_jax.runs import export, predict, train
from mtl_jax.runs.build import build
from mtl_jax.storage import workdir as folders
from mtl_jax.training.objective import task_batch
from mtl_jax.training.parameter_paths import flatten

pytestmark = pytest.mark.usefixtures("standard_promotion")

COLORS = {"red": (220, 40, 40), "blue": (40, 40, 220)}


@pytest.fixture
def pictured(tiny, tmp_path):
    """Makes configs with the tasks of `tiny` and two more: whether a text names the color of its picture, and the
    colors of pictures alone."""
    rng = np.random.default_rng(0)
    lines = {"shown": [], "alone": []}
    for n in range(96):
        color = str(rng.choice(list(COLORS)))
        pixels = np.clip(np.asarray(COLORS[color]) + rng.integers(-20, 20, (8, 8, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{n}.png")
        message = str(rng.choice(list(COLORS)))
        truth = "true" if message == color else "false"
        lines["shown"].append({"text": f"w1 {message} w2", "image": f"{n}.png", "truth": truth})
        lines["alone"].append({"image": [f"{n}.png"], "color": color})
    for name, records in lines.items():
        for split, part in (("train", records[:64]), ("dev", records[64:80]), ("test", records[80:])):
            (tmp_path / f"{name}.{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in part))

    def make(**changes):
        config = tiny(**changes)
        for name, field in (("shown", {"text": ("text",)}), ("alone", {})):
            splits = {split: f"{name}.{split}.jsonl" for split in ("train", "dev", "test")}
            default.add_dataset(config, name, reader="jsonl", path=str(tmp_path), splits=splits, image="image", **field)
        default.add_task(config, "truth", kind="grounded_classification", dataset="shown", label="truth")
        default.add_task(config, "seen", kind="classification", dataset="alone", label="color")
        config.images.patch_size = 4
        checks.check(config)
        return config

    return make


def test_a_run_on_text_pictures_and_both(pictured, tmp_path, capsys):
    options = {"training__steps": 24, "training__eval_every": 12, "training__checkpoint_every": 12}
    options |= {"model__layer_type": "cnn", "train_tasks": ("color", "truth", "seen"), "optimizer__learning_rate": 2e-2}
    config = pictured(**options)
    whole = train.train(config, folders.prepare(tmp_path / "whole"))
    assert set(whole["tasks"]) == {"color", "truth", "seen"}
    assert whole["tasks"]["seen"]["test"]["accuracy"] > 0.9
    text = inspection.describe_experiment(config)
    assert "[4 patches] w1" in text and "8 × 8" in text and "2 × 2" in text

    # cut off behind step 12, gone on with: the same to the last bit
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / "summary.json").unlink()
    newest = max((tmp_path / "cut" / "checkpoints").iterdir(), key=lambda folder: int(folder.name))
    shutil.rmtree(newest)
    again = train.train(config, tmp_path / "cut")
    assert "resuming from step 12" in capsys.readouterr().out
    assert {**again, "seconds": 0} == {**whole, "seconds": 0}
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "cut")]
    assert lines[0] == lines[1]

    # prediction on new lines, paths from the folder of the file
    source, target = tmp_path / "input.jsonl", tmp_path / "said.jsonl"
    source.write_text((tmp_path / "alone.test.jsonl").read_text() + (tmp_path / "shown.test.jsonl").read_text())
    predict.predict(config, tmp_path / "whole", ["best"], str(source), str(target))
    message = [json.loads(line) for line in target.read_text().splitlines()]
    gold = [json.loads(line) for line in source.read_text().splitlines()]
    assert {"seen"} == message[0].keys() - {"line"} and {"truth", "seen", "color"} == message[-1].keys() - {"line"}
    right = np.mean([s["seen"]["label"] == g["color"] for s, g in zip(message[:16], gold[:16], strict=True)])
    assert right == pytest.approx(whole["tasks"]["seen"]["test"]["accuracy"])
    Image.new("RGB", (8, 12)).save(tmp_path / "tall.png")
    for line, wrong in (
        ({"image": "tall.png"}, r"input\.jsonl:1: picture tall\.png is 12 × 8 .*those of training 8 × 8"),
        ({"image": ["0.png", "1.png"]}, "2 pictures; in training a record had at most 1"),
        ({"image": "none.png"}, r"picture none\.png.*no such file"),
    ):
        source.write_text(json.dumps(line))
        with pytest.raises(UserError, match=wrong):
            predict.predict(config, tmp_path / "whole", ["best"], str(source), str(target))
    source.write_text(json.dumps({"text": "w1 red w2", "image": "0.png"}))
    attribution.attribute(config, tmp_path / "whole", ["best"], str(source), tmp_path / "why")
    truth = json.loads((tmp_path / "why" / "attributions.jsonl").read_text())["tasks"]["truth"]
    assert truth["tokens"].count("[picture 1]") == 1  # its patches are one entry
    assert sum(truth["attributions"]) == pytest.approx(truth["score"] - truth["baseline"], abs=0.05)

    # against itself: no difference; against the same model with blank pictures: a paired test
    blank = pictured(images__blank=True, **options)
    train.train(blank, folders.prepare(tmp_path / "blank"))
    configs = {tmp_path / "whole": config, tmp_path / "blank": blank}
    tests = paired_test.compare_runs([tmp_path / "whole"], [tmp_path / "blank"], configs.__getitem__)
    assert tests["seen"].examples == 16 and tests["seen"].first == pytest.approx(right)
    assert tests["seen"].p < 0.05 and tests["seen"].only_first > tests["seen"].only_second
    assert "seen" in paired_test.describe(tests)


@pytest.mark.parametrize("kind", ["transformer", "bilstm"])
def test_tasks_on_text_see_nothing_of_pictures(pictured, kind):
    """Loss and gradients of a text task, bitwise, of the same parameters with and without data sets of pictures."""
    options = {"model__layer_type": kind, "model__num_layers": 1}
    options |= {"model__num_heads": 2, "model__intermediate_size": 16} if kind == "transformer" else {}
    options["sharing__trunk"] = "none"
    both, alone = build(pictured(**options)), build(pictured(train_tasks=("color",), **options))
    assert alone.corpus.pictures is None and both.corpus.pictures.max_images == 1
    params, own = both.init_params(0), alone.init_params(0)
    assert any("patches" in path for path in flatten(params)) and not any("patches" in path for path in flatten(own))
    column = {path: jax.tree.map(lambda leaf: leaf[:1], tree) for path, tree in params.items() if path != "heads"}
    without = {name: tree for name, tree in column["embed"].items() if name != "patches"}
    for path, tree in own.items():
        if path != "heads":
            jax.tree.map(np.testing.assert_array_equal, tree, without if path == "embed" else column[path])
    from mtl_jax.data.sampler import evaluation_batches, evaluation_layout
    from mtl_jax.training import objective as terms

    def losses(experiment, params):
        layout = evaluation_layout(experiment.corpus.layout, "texts")
        objective = experiment.objective_for(layout)
        batch = next(evaluation_batches(experiment.corpus.rows["texts"]["train"], layout, 8))
        assert batch.pixels is None

        def loss(params):
            ((part, logits),) = terms.logits(objective, params, batch, None, None)
            return part.loss_sums(params, logits, {}).sum()

        return jax.jit(jax.value_and_grad(loss))(params)

    (loss, gradient), (own_loss, own_gradient) = losses(both, params), losses(alone, own)
    np.testing.assert_array_equal(loss, own_loss)
    gradient, own_gradient = flatten(gradient), flatten(own_gradient)
    for path, leaf in own_gradient.items():
        actual = gradient[path] if path.startswith("heads/") else gradient[path][:1]
        np.testing.assert_array_equal(actual, leaf, err_msg=path)


@pytest.mark.parametrize("trunk", ["all", "none"])
def test_a_batch_of_all_kinds_is_its_blocks_alone(pictured, trunk, differs):
    """Hidden states of one batch with text, both and pictures, against those of each block by itself."""
    experiment = build(pictured(sharing__trunk=trunk, data__rows_per_block=4))
    params, batch = experiment.init_params(1), experiment.batches(0).batch(3)
    apply = experiment.spec.objective.network.apply
    assert batch.pixels.shape[0] == 2 and batch.tokens.shape[0] == 4
    together = jax.jit(apply)(params, batch).hidden
    from mtl_jax.data.sampler import evaluation_layout

    for name, task in (("texts", "color"), ("shown", "truth"), ("alone", "seen")):
        block = experiment.corpus.layout.datasets.index(name)
        layout = evaluation_layout(experiment.corpus.layout, name)
        apart = {
            field: getattr(batch, field)[block][None]
            for field in ("dataset", "row", "tokens", "segment", "position", "token_type", "start", "length", "example")
        }
        for field in ("patch", "pixels"):
            place = layout.pictured.index(block) if block in layout.pictured else None
            apart[field] = None if place is None else getattr(batch, field)[place][None]
        one = batch._replace(**apart)
        alone = jax.jit(experiment.objective_for(layout).network.apply)(params, one).hidden
        differs("blocks together and alone", alone[task], together[task], 1e-5)
        objective = experiment.spec.objective
        seen = task_batch(objective, batch, task).features(objective.network.apply(params, batch).features).patch
        shown = np.zeros_like(seen) if place is None else np.asarray(batch.pixels[place]).any(-1)  # none is all black
        np.testing.assert_array_equal(seen, shown)


def test_gradients_told_apart_add_up_with_pictures(pictured, differs):
    """The mean of the K gradients, taken apart, is a K-th of the plain sum."""
    options = {
        "optimizer__name": "sgd",
        "optimizer__clip_norm": 0.0,
        "optimizer__weight_decay": 0.0,
        "model__dropout": 0.0,
    }
    after = []
    for method, rate in (("sum", 0.1), ("mean", 0.5)):
        experiment = build(pictured(aggregation__method=method, optimizer__learning_rate=rate, **options))
        from mtl_jax.training.step import train_step

        batch = jax.tree.map(lambda a: jnp.asarray(a)[None], experiment.batches(0).batch(0))
        state, _ = jax.jit(lambda s, b, e=experiment: train_step(e.spec, s, b, e.hyper))(experiment.init(0), batch)
        after.append({path: leaf for path, leaf in flatten(state.params).items() if not path.startswith("heads/")})
    for path, leaf in after[0].items():
        differs("gradients told apart, with pictures", after[1][path], leaf, 1e-5)


def test_a_transformer_with_patches_of_a_vit_is_exported_as_a_program_alone(pictured, tmp_path):
    from tests.models.test_patch_embeddings import vit_folder

    folder = tmp_path / "vit"
    folder.mkdir()
    options = {
        "model__layer_type": "transformer",
        "model__num_heads": 2,
        "model__intermediate_size": 16,
        "model__hidden_size": 6,
    }
    config = pictured(training__steps=1, images__pretrained=str(vit_folder(folder)), **options)
    workdir = folders.prepare(tmp_path / "run")
    train.train(config, workdir)
    kernel = flatten(build(config).init_params(0))["embed/patches/projection/kernel"]
    assert kernel.shape == (1, 48, 6) and float(jnp.abs(kernel).max()) > 1.0  # not drawn with deviation 0.02
    shutil.rmtree(folder)  # prediction needs the checkpoint alone
    source, target = tmp_path / "alone.test.jsonl", tmp_path / "said.jsonl"
    predict.predict(config, workdir, ["best"], str(source), str(target))
    assert len(target.read_text().splitlines()) == 16
    lines = export.export(config, workdir, ["best"], tmp_path / "export")
    assert "no place for patches of pictures" in lines[0] and not list((tmp_path / "export").rglob("config.json"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks__color__kind": "grounded_classification"}, r"tasks\.color\.kind: .* name both in .*texts: image, and"),
        ({"datasets__shown__image_size": (8,)}, r"datasets\.shown\.image_size: .*\(height, width\)"),
        ({"datasets__shown__image_size": (8, 6)}, r"image_size: \(8, 6\) should be multiples of .* = 4"),
        ({"datasets__texts__image_size": (8, 8)}, r"datasets\.texts\.image_size: there is nothing to resize"),
        ({"images__num_channels": 2}, r"config\.images\.num_channels: 2 should be 3 \(RGB\) or 1"),
        ({"tasks__truth__options": ConfigDict({"copy": True})}, r"truth\.options\.copy: patches of"),
        ({"optimizer__cache_frozen": True}, "config.optimizer.cache_frozen: .*False with pictures"),
    ],
)
def test_configs_that_cannot_work(pictured, changes, message):
    config = pictured()
    for field, value in changes.items():
        *path, last = field.split("__")
        node = config
        for key in path:
            node = node[key]
        node[last] = value
    with pytest.raises(UserError, match=message):
        checks.check(config)


def test_no_picture_to_blank(tiny):
    with pytest.raises(UserError, match=r"config\.images\.blank: no data set has pictures"):
        checks.check(tiny(images__blank=True))
