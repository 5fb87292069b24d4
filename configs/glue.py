"""Four tasks of GLUE with one shared MiniLM: CoLA, MRPC, RTE, STS-B (single sentences, pairs, regression).

    python launch.py --config=configs/glue.py --workdir=runs/glue

GLUE's dev sets serve as test, since its test labels are not public; dev is carved out of train.

Data: glue; MiniLM from its wheel.
Scores after 400 steps: CoLA Matthews 0.06, MRPC accuracy 0.777 (F1 0.854), RTE accuracy 0.534, STS-B Pearson 0.842.
CoLA and RTE are hardly learned: they have little data, a small encoder made for sentence similarity, and a quarter of
the steps each.
"""

from mtl_jax.config import default


def get_config():
    config = default.get_config()
    default.use_minilm(config)
    glue = {"reader": "csv", "splits": {"train": "train.tsv", "test": "dev.tsv"}, "dev_fraction": 0.05}
    default.add_dataset(
        config,
        "cola",
        origin="glue",
        path="CoLA",
        text=("sentence",),
        options={"columns": ("source", "label", "note", "sentence"), "header": False},
        **glue,
    )
    default.add_dataset(config, "mrpc", origin="glue", path="MRPC", text=("#1 String", "#2 String"), **glue)
    default.add_dataset(config, "rte", origin="glue", path="RTE", text=("sentence1", "sentence2"), **glue)
    default.add_dataset(config, "stsb", origin="glue", path="STS-B", text=("sentence1", "sentence2"), **glue)
    default.add_task(
        config, "cola", kind="classification", dataset="cola", label="label", metrics=("matthews", "accuracy")
    )
    default.add_task(config, "mrpc", kind="classification", dataset="mrpc", label="Quality", metrics=("accuracy", "f1"))
    default.add_task(config, "rte", kind="classification", dataset="rte", label="label", metrics=("accuracy",))
    default.add_task(config, "stsb", kind="regression", dataset="stsb", label="score", metrics=("pearson", "spearman"))
    config.data.mixing = "temperature"
    config.data.mixing_temperature = 2.0
    config.optimizer.learning_rate = 2e-4
    config.optimizer.param_groups = {"heads": {"params": "^heads/", "lr_multiplier": 5.0}}
    config.training.steps = 400
    config.training.eval_every = 400
    config.training.checkpoint_every = 100
    return config
