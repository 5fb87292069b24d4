"""Files whose tags once changed the score in silence, or stopped the run: what a run reads and scores of them now."""

import pathlib

import pytest

from mtl_jax import checks
from mtl_jax.config import default
from mtl_jax.evaluation import metric_inputs
from mtl_jax.runs.build import build
from mtl_jax.tasks.metrics import evaluate

CASES = pathlib.Path(__file__).parents[3] / "shared" / "cases"


def _config(folder):
    config = default.get_config()
    config.tokenizer.kind, config.model.layer_type = "words", "cnn"
    config.model.num_layers, config.model.hidden_size = 1, 16
    config.data.row_length, config.data.rows_per_block = 32, 4
    splits = {"train": "train.conll", "dev": "dev.conll" if (folder / "dev.conll").exists() else "train.conll"}
    default.add_dataset(config, "d", reader="conll", path=str(folder), words="words", splits=splits)
    default.add_task(config, "ner", kind="tagging", dataset="d", label="tags")
    return config


@pytest.mark.parametrize(
    ("name", "names", "messages"),
    [
        ("bare_B_I_O_tags", ("O", "B", "I"), ()),
        ("one_stray_tag_switches_f1_off", ("O", "B-LOC", "B-PER", "I-PER"), ("count as O: 'o' (1)", "train.conll:251")),
        ("stray_tag_in_dev_crashes", ("O", "B-LOC", "B-PER", "I-LOC", "I-PER"), ("as O: 'o' (1)", "dev.conll:49")),
    ],
)
def test_tags_are_read_as_spans_in_one_scheme(tmp_path, monkeypatch, name, names, messages):
    if not (CASES / name).is_dir():
        pytest.skip("the cases are not beside the repository")
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path))
    config = _config(CASES / name)
    checks.check(config)
    experiment = build(config)
    (task,) = experiment.tasks
    assert experiment.tasks[task].metrics[0] == "entity_f1"
    assert experiment.corpus.vocabularies[task].names == names and not experiment.corpus.vocabularies[task].extra
    notes = [note for note in experiment.corpus.notes if "tags in field" in note]
    assert all(any(text in note for note in notes) for text in messages)
    # what is gold, predicted, is scored as 1
    objective = experiment.objective_for(experiment.corpus.layout)
    gold = experiment.corpus.splits["d"]["dev"].encoded.labels[task]
    whole = [gold.at_record(m)[0][None] for m in range(len(gold.offsets) - 1)]
    pair = metric_inputs.gold_and_predicted(experiment.corpus, objective, task, "d", "dev", whole)
    assert evaluate("entity_f1", *pair, experiment.corpus.vocabularies[task].all_names) == 1.0
