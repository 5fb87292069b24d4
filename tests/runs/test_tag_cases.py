"""Files whose tags once changed the score in silence, or stopped the run: what a run reads and scores of them now."""

import importlib.util
import pathlib

import pytest

from mtl_jax import checks
from mtl_jax.evaluation import metric_inputs
from mtl_jax.runs.build import build
from mtl_jax.tasks.metrics import evaluate

CASES = pathlib.Path(__file__).parents[3] / "shared" / "cases"


@pytest.mark.parametrize(
    ("name", "names", "said"),
    [
        ("bare_B_I_O_tags", ("O", "B", "I"), ()),
        ("one_stray_tag_switches_f1_off", ("O", "B-LOC", "B-PER", "I-PER"), ("count as O: 'o' (1)", "train.conll:251")),
        ("stray_tag_in_dev_crashes", ("O", "B-LOC", "B-PER", "I-LOC", "I-PER"), ("as O: 'o' (1)", "dev.conll:49")),
    ],
)
def test_tags_are_read_as_spans_in_one_scheme(tmp_path, monkeypatch, name, names, said):
    if not (CASES / name).is_dir():
        pytest.skip("the cases are not beside the repository")
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path))
    spec = importlib.util.spec_from_file_location(name, CASES / name / "config.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    checks.check(config)
    experiment = build(config)
    (task,) = experiment.tasks
    assert experiment.tasks[task].metrics[0] == "entity_f1"
    assert experiment.corpus.vocabularies[task].names == names and not experiment.corpus.vocabularies[task].extra
    notes = [note for note in experiment.corpus.notes if "tags in field" in note]
    assert all(any(text in note for note in notes) for text in said)
    # what is gold, predicted, is scored as 1
    objective = experiment.objective_for(experiment.corpus.layout)
    gold = experiment.corpus.splits["d"]["dev"].encoded.labels[task]
    whole = [gold.at_record(m)[0][None] for m in range(len(gold.offsets) - 1)]
    pair = metric_inputs.gold_and_predicted(experiment.corpus, objective, task, "d", "dev", whole)
    assert evaluate("entity_f1", *pair, experiment.corpus.vocabularies[task].all_names) == 1.0
