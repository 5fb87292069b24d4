"""Every family is trained on real data in soft sharing columns from a tiny folder, and its columns are exported."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from make_encoder_goldens import DECODERS, TINY, config_of, hashed_weights
from safetensors.numpy import load_file, save_file

from mtl_jax.checks import check
from mtl_jax.config import default
from mtl_jax.models import families, pretrained
from mtl_jax.models.export import published_values
from mtl_jax.runs import export, train
from mtl_jax.storage import workdir as folders

pytestmark = pytest.mark.usefixtures("standard_promotion")
ROOT = pathlib.Path(__file__).parents[2]
VOCABULARY = 80
FILE = """
import sys
sys.path[:0] = {paths!r}
from runs.test_families import config_for
def get_config():
    return config_for({data!r}, {encoder!r})
"""


def write_folder(folder, family):
    config = {**config_of(family), "vocab_size": VOCABULARY}
    tensors = families.architecture_from_config(config, family).published_tensors()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(hashed_weights({tensor.name: tensor.shape for tensor in tensors}), folder / "model.safetensors")
    return str(folder)


def config_for(data, encoder):
    """Intents and slots of SNIPS, parts of speech of EWT: a column for each task, which a penalty draws together."""
    config = default.get_config()
    few = {"train": 24, "dev": 8, "test": 8}
    splits = {"train": "train", "dev": "valid", "test": "test"}
    default.add_dataset(config, "snips", reader="parallel", path=f"{data}/snips", splits=splits, words="words")
    splits = {split: f"*{split}*.conllu" for split in few}
    default.add_dataset(config, "ewt", reader="conllu", path=f"{data}/ewt", splits=splits, words="words")
    default.add_task(config, "intent", kind="classification", dataset="snips", label="intent")
    default.add_task(config, "pos", kind="tagging", dataset="ewt", label="upos")
    default.add_penalty(config, "l2", kind="l2_to_mean", strength=1e-2, params="^(embed|layer_|relative|final_norm)")
    for dataset in config.datasets.values():
        dataset.max_examples = few
    config.sharing.trunk = "none"
    config.tokenizer.kind, config.tokenizer.max_vocab_size = "words", VOCABULARY - 10
    config.model.pretrained, config.model.num_layers = encoder, 2
    config.model.attention_dropout = 0.1
    config.data.row_length, config.data.rows_per_block, config.evaluation.rows_per_batch = 32, 8, 8
    config.data.overflow = "truncate"
    config.training.steps, config.training.eval_every, config.training.checkpoint_every = 3, 3, 3
    return config


ENCODERS = {config_of(family)["model_type"] for family in TINY if family not in DECODERS}


@pytest.mark.parametrize("family", [*sorted(ENCODERS), "gpt2", "llama", "gemma3_text"])
def test_soft_sharing_on_real_data(family, data_dir, tmp_path):
    config = config_for(data_dir, write_folder(tmp_path / "encoder", family))
    check(config)
    workdir = folders.prepare(tmp_path / "run")
    train.train(config, workdir)
    summary = folders.read_summary(workdir)
    assert all(np.isfinite(summary["tasks"][task]["test"]["loss"]) for task in config.tasks)
    export.export(config, workdir, ["best"], tmp_path / "out")
    start = load_file(tmp_path / "encoder" / "model.safetensors")
    intent, pos = (published_values(*pretrained.load(tmp_path / "out" / task)[:2]) for task in config.tasks)
    assert intent.keys() == pos.keys() and intent.keys() <= start.keys()
    moved = [name for name in intent if not np.array_equal(intent[name], start[name])]
    # a bias of keys changes no softmax
    assert set(intent) - set(moved) <= {name for name in intent if name.endswith("bias")}
    assert any(not np.array_equal(intent[name], pos[name]) for name in moved)


def test_by_the_command_line(data_dir, tmp_path, launch_environment):
    encoder = write_folder(tmp_path / "encoder", "modernbert")
    tests = str(ROOT / "tests")
    (tmp_path / "config.py").write_text(
        FILE.format(paths=[tests, f"{tests}/helpers"], data=str(data_dir), encoder=encoder)
    )
    command = [
        sys.executable,
        str(ROOT / "launch.py"),
        f"--config={tmp_path / 'config.py'}",
        f"--workdir={tmp_path / 'run'}",
    ]
    run = subprocess.run(command, env=launch_environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert np.isfinite(folders.read_summary(tmp_path / "run")["tasks"]["pos"]["test"]["loss"])
