"""--mode=export: what others load predicts what `--mode=predict` predicts."""

import importlib.util
import json

import jax.numpy as jnp
import numpy as np
import pytest
from export_runs import encoder_folder, make_config, untrained, write_data

from mtl_jax.data import tokenizers
from mtl_jax.errors import UserError
from mtl_jax.runs import export, export_program
from mtl_jax.runs.predict import predict

pytestmark = pytest.mark.usefixtures("standard_promotion")
TASKS = ("topic", "pos", "choice", "hidden")
FILES = {"topic": "texts", "pos": "sentences", "choice": "endings", "hidden": "masked"}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(folder, config) of a run whose tasks are exported, and their predictions."""
    folder = tmp_path_factory.mktemp("export")
    write_data(folder)
    masked = [{"text": f"w1 [MASK] w{n}"} for n in range(12)]
    (folder / "masked.jsonl").write_text("".join(json.dumps(record) + "\n" for record in masked))
    options = {task: {"head_form": "published"} for task in TASKS}
    options["hidden"]["tied"] = True
    config = make_config(folder, encoder_folder(folder / "encoder", "bert"), TASKS, **options)
    workdir, programs = untrained(folder / "run", config), {}

    def save(place, program):
        place.mkdir(parents=True)
        programs[program.task] = program
        return "a program"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "save_program", save)
        export.export(config, workdir, ["last"], folder / "out")
    for task in TASKS:
        source, target = folder / f"{FILES[task]}.jsonl", folder / f"{task}.predictions"
        predict(config, workdir, ["last"], str(source), str(target), [task])
    return folder, programs


def inputs(folder, task):
    """What the program of a task reads, of the records of its file."""
    tokenizer = tokenizers.load(folder / "run" / "model")
    records = [json.loads(line) for line in (folder / f"{FILES[task]}.jsonl").read_text().splitlines()]
    rows, types = [], []
    for record in records:
        text = record["text"].split() if "text" in record else record["words"]
        for option in record.get("options", [""]):
            first, second = ([tokenizer.token_to_id(word) for word in part] for part in (text, option.split()))
            rows.append([2, *first, 3, *([*second, 3] if second else [])])
            types.append([0] * (len(first) + 2) + [1] * (len(second) + 1 if second else 0))
    length = max(map(len, rows))
    arrays = {
        "tokens": np.array([row + [0] * (length - len(row)) for row in rows], np.int32),
        "mask": np.array([[1] * len(row) + [0] * (length - len(row)) for row in rows], np.int32),
        "token_type": np.array([row + [0] * (length - len(row)) for row in types], np.int32),
    }
    if task == "choice":
        return {name: array.reshape(len(records), -1, length) for name, array in arrays.items()}
    if task == "pos":
        words = [len(record["words"]) for record in records]
        arrays["token"] = np.array(
            [[n + 1 if n < count else -1 for n in range(max(words))] for count in words], np.int32
        )
    if task == "hidden":
        arrays["token"] = np.full((len(records), 1), 2, np.int32)
    return arrays


def predictions(folder, task):
    return [json.loads(line)[task] for line in (folder / f"{task}.predictions").read_text().splitlines()]


@pytest.mark.parametrize("task", TASKS)
def test_programs_predict_as_the_run(exported, task):
    folder, programs = exported
    program, given = programs[task], inputs(folder, task)
    leaves = export_program.flatten(program.params)
    outputs = export_program._forward(program)(leaves, {name: jnp.asarray(array) for name, array in given.items()})
    names, p = program.experiment.tasks[task].names, np.asarray(outputs["probability"])
    for row, predicted in enumerate(predictions(folder, task)):
        if task == "topic":
            expected = [predicted["probabilities"][name] for name in names]
        elif task == "hidden":
            expected = [[*predicted[0]["probabilities"].values()]]
        else:
            expected = predicted["probabilities"]
        np.testing.assert_allclose(p[row][: len(expected)], expected, atol=2e-6, err_msg=f"{task} {row}")


def test_transformers_scores_as_the_programs(exported):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder, programs = exported
    for task in TASKS:
        config = json.loads((folder / "out" / task / "config.json").read_text())
        model = getattr(transformers, config["architectures"][0]).from_pretrained(folder / "out" / task).eval()
        given = inputs(folder, task)
        outputs = export_program._forward(programs[task])(
            export_program.flatten(programs[task].params), {name: jnp.asarray(array) for name, array in given.items()}
        )
        names = {"tokens": "input_ids", "mask": "attention_mask", "token_type": "token_type_ids"}
        with torch.no_grad():
            logits = model(**{names[name]: torch.tensor(given[name]).long() for name in names}).logits
        p = np.asarray(outputs["probability"])
        theirs = logits.softmax(-1).numpy()
        if task == "pos":
            at = np.maximum(given["token"], 0)
            theirs = np.take_along_axis(theirs, at[:, :, None], 1).max(-1) * (given["token"] >= 0)
        if task == "hidden":
            theirs = -np.sort(-theirs[:, 2:3], axis=-1)[..., : p.shape[-1]]
        np.testing.assert_allclose(p, theirs, atol=2e-6, err_msg=task)


def test_a_program_is_loaded_without_this_project(exported, tmp_path):
    pytest.importorskip("flatbuffers")
    folder, programs = exported
    line = export_program.save_program(tmp_path / "jax", programs["pos"])
    assert line.endswith("any b, q, t")
    spec = importlib.util.spec_from_file_location("load", tmp_path / "jax" / "load.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    outputs = module.load(tmp_path / "jax")(**inputs(folder, "pos"))
    for row, predicted in enumerate(predictions(folder, "pos")):
        expected = predicted["probabilities"]
        np.testing.assert_allclose(outputs["probability"][row][: len(expected)], expected, atol=2e-6)
    text = (tmp_path / "jax" / "load.py").read_text()
    assert "mtl_jax" not in text and len(text.splitlines()) <= 24


def test_the_card_and_the_tokenizer(exported):
    folder, _ = exported
    card = (folder / "out" / "topic" / "README.md").read_text()
    for part in (
        "BertForSequenceClassification",
        "trained together with pos, choice, hidden",
        "`t0`, `t1`, `t2`",
        "licence",
    ):
        assert part in card
    fields = json.loads((folder / "out" / "topic" / "tokenizer_config.json").read_text())
    assert fields["cls_token"] == "[CLS]" and fields["model_max_length"] == 64
    assert (folder / "out" / "shared" / "model.safetensors").is_file()


def test_a_published_form_decides_the_pooling(tmp_path):
    write_data(tmp_path)
    encoder = encoder_folder(tmp_path / "encoder", "bert")
    config = make_config(tmp_path, encoder, ("topic",), topic={"head_form": "published", "pooler": True})
    with pytest.raises(UserError, match=r"topic\.options\.pooler: is decided by head_form"):
        untrained(tmp_path / "run", config)
