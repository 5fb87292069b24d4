"""Finished runs as teachers: what they say stands with the right record and word, and the step learns from it."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax import checks
from mtl_jax.analysis.ablation import lane_program, plan
from mtl_jax.config import default
from mtl_jax.config.plain import from_plain
from mtl_jax.errors import UserError
from mtl_jax.runs import evaluate, predict, train
from mtl_jax.runs.build import build
from mtl_jax.storage import workdir as folders
from mtl_jax.storage.checkpoint import Checkpoints
from mtl_jax.storage.data_identity import data_metadata
from mtl_jax.storage.metrics_log import read_metrics
from mtl_jax.training.parameter_paths import flatten
from mtl_jax.training.step import train_step

pytestmark = pytest.mark.usefixtures("standard_promotion")


@pytest.fixture
def teacher(tiny, tmp_path):
    """The folder of a finished run of all three tasks."""
    workdir = folders.prepare(tmp_path / "teacher")
    train.train(
        tiny(model__layer_type="cnn", training__steps=6, sharing__trunk="none", evaluation__splits=("dev",)), workdir
    )
    return workdir


def student_of(tiny, **changes):
    """Another architecture, other rows, another order of classes."""
    config = tiny(
        model__layer_type="cnn",
        model__num_layers=0,
        model__hidden_size=4,
        data__row_length=32,
        tokenizer__lowercase=True,
        model__dropout=0.2,
        **changes,
    )
    config.tasks.color.classes = ("red", "green", "blue")
    return config


def run_steps(experiment, count, hyper=None):
    state = experiment.init(0)
    function = jax.jit(lambda s, b, h: train_step(experiment.spec, s, b, h))
    metrics = []
    for step in range(count):
        batch = jax.tree.map(lambda leaf: leaf[None], experiment.batches(0).batch(step))
        state, actual = function(state, batch, hyper or experiment.hyper)
        metrics.append(jax.device_get(actual))
    return jax.device_get(state), metrics


def without_labels(tmp_path, name, field, every):
    """Blanks a label in each so-manieth training record; returns the records that have one."""
    file = tmp_path / f"{name}.train.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for i in range(0, len(records), every):
        records[i][field] = None
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


def test_soft_labels_are_what_prediction_says_of_each_record_and_word(tiny, tmp_path, teacher, differs):
    without_labels(tmp_path, "texts", "color", 3)
    config = student_of(tiny, data__packing=True)
    for task in ("color", "tags", "long"):
        default.add_distillation(config, task, teachers=(str(teacher), str(teacher)), weights=(1.0, 3.0))
    checks.check(config)
    data = build(config).corpus
    assert any("32 of them have no gold label" in note for note in data.notes)

    own = from_plain(folders.read_config(teacher))
    message = {}
    for name in ("texts", "sentences"):
        source, target = tmp_path / f"{name}.train.jsonl", tmp_path / "said.jsonl"
        predict.predict(own, teacher, ["best"], str(source), str(target))
        message[name] = [json.loads(line) for line in target.read_text().splitlines()]
    for task, dataset in (("color", "texts"), ("long", "sentences"), ("tags", "sentences")):
        rows, encoded = data.rows[dataset]["train"], data.splits[dataset]["train"].encoded
        arrays, names = rows.labels[task], data.vocabularies[task].names
        seen = 0
        for row, slot in zip(*np.nonzero(rows.example >= 0), strict=True):
            record = encoded.record[rows.example[row, slot]]
            line = message[dataset][record][task]
            if task != "tags":
                assert arrays["teacher_mask"][row, slot]
                wanted = [line["probabilities"][name] for name in names]
                differs("soft label against prediction", arrays["teacher"][row, slot], wanted, 1e-5)
                seen += 1
                continue
            for at in np.flatnonzero((arrays["slot"][row] == slot) & (arrays["segment"][row] > 0)):
                word = arrays["word"][row, at]
                actual = arrays["teacher"][row, at]
                assert actual.sum() == pytest.approx(1.0, abs=1e-4)
                tag = names.index(line["tags"][word])
                differs("soft tag against prediction", actual[tag], line["probabilities"][word], 1e-5)
                seen += 1
        assert seen == sum(
            len(r.fields["words"]) if task == "tags" else 1 for r in data.splits[dataset]["train"].records
        )


def test_no_weight_is_ordinary_training_and_annealing_follows_the_step(tiny, tmp_path, teacher, differs):
    without_labels(tmp_path, "texts", "color", 3)
    plain, _ = run_steps(build(student_of(tiny)), 5)
    config = student_of(tiny)
    for task in ("color", "tags", "long"):
        default.add_distillation(config, task, teachers=(str(teacher),), temperature=2.0, annealing=task != "tags")
    experiment = build(config)
    nothing = experiment.hyper._replace(teaching={t: np.float32(0.0) for t in experiment.tasks})
    untaught, _ = run_steps(experiment, 5, nothing)  # as a lane of an ablation has it
    flat, wanted = flatten(untaught.params), flatten(plain.params)
    for path, leaf in flat.items():
        differs("weight 0 of the teachers against none", leaf, wanted[path], 1e-6)
    for entry in config.distillation.values():
        entry.weight, entry.teachers = 0.0, ("nowhere",)
    assert not build(config).spec.objective.teaching
    taught, metrics = run_steps(experiment, 5)
    for step, actual in enumerate(metrics):
        wanted = {"color": 1 - step / 12, "tags": 1.0, "long": 1 - step / 12}
        assert actual["teaching"] == pytest.approx(wanted)
        assert np.isfinite(actual["losses"]).all() and actual["present"].all()
    assert not int(taught.skipped.sum())
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), taught.params["heads"], plain.params["heads"])
    assert min(max(jax.tree.leaves(of_task)) for of_task in moved.values()) > 1e-3


def test_the_weight_is_an_argument_of_one_program(tiny, teacher):
    config = student_of(tiny, train_tasks=("color",))
    default.add_distillation(config, "color", teachers=(str(teacher),))
    default.add_sweep(config, "weight", field="distillation.*.weight", points=(0.0, 0.5, 1.0), scale="linear")
    (one,) = plan.make_plan(config, lambda c: checks.check(c, "ablate")).programs
    built = lane_program.build(one, lane_program.Sources())
    assert [float(hyper.teaching["color"]) for hyper in built.hypers] == [0.0, 0.5, 1.0]
    assert list(built.spec.objective.teaching) == ["color"]  # though the first lane has none
    assert "teacher" in built.experiment.corpus.rows["texts"]["train"].labels["color"]


def test_a_run_with_teachers_goes_on_only_with_these_and_is_scored_without_them(tiny, tmp_path, teacher):
    config = student_of(tiny, train_tasks=("color",), training__steps=4, training__checkpoint_every=2)
    default.add_distillation(config, "color", teachers=(str(teacher),))
    default.add_distillation(config, "tags", teachers=("nowhere",))  # of a task that is not trained
    workdir = folders.prepare(tmp_path / "student")
    summary = train.train(config, workdir)
    shares = [line["teaching"]["color"] for line in read_metrics(workdir) if line["kind"] == "train"]
    assert shares == pytest.approx([1.0, 0.75, 0.5, 0.25])
    (workdir / "summary.json").unlink()
    assert train.train(config, workdir)["tasks"] == summary["tasks"]
    (workdir / "summary.json").unlink()
    own = build(from_plain(folders.read_config(teacher)))
    for name in ("best", "checkpoints"):
        shutil.rmtree(teacher / name)
    with Checkpoints(teacher, 1, own.spec.objective.groups) as checkpoints:  # other values in the same folder
        checkpoints.save(own.init(1)._replace(step=jnp.asarray(6, jnp.int32)), data_metadata(own.corpus))
    with pytest.raises(UserError, match="other teachers than those that are now"):
        train.train(config, workdir)
    shutil.rmtree(teacher)
    assert evaluate.evaluate(config, workdir, "best")["tasks"] == summary["tasks"]


def test_runs_that_cannot_teach_are_named(tiny, tmp_path, teacher):
    def refused(message, task="color", change=lambda config: None, **fields):
        config = student_of(tiny)
        default.add_distillation(config, task, **({"teachers": (str(teacher),)} | fields))
        change(config)
        with pytest.raises(UserError, match=message):
            checks.check(config)
            build(config)

    where = r"config\.distillation\.color\."
    refused(where + r"teachers: .*nowhere: no config\.json", teachers=("nowhere",))
    refused(where + "teachers: name the folders", teachers=())
    refused(where + "weights: 2 weights for 1 teachers", weights=(1.0, 2.0))
    refused(where + "temperature: 0.0 should be at least", temperature=0.0)
    refused(where + "weight: 1.5 should be", weight=1.5)
    refused(r"config\.distillation\.colour: 'colour' is none of", task="colour")
    refused(where + "teachers: .* has kind = 'tagging' for its task 'tags'", change=_other_task("tags"))
    refused(
        where + r"teachers: .* other classes of 'long': it lacks 'red'.* it also has 'no'", change=_other_task("long")
    )
    refused(where + "teachers: .* has no task 'colour'", change=_other_task("colour"))
    (teacher / "summary.json").unlink()
    refused(where + "teachers: .*the run is not finished")


def _other_task(name):
    def change(config):
        config.distillation.color.task = name

    return change
