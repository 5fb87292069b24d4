"""NLVR: is a sentence true of a picture? Words and patches in one sequence, with a text task on the same trunk.

    python launch.py --config=configs/nlvr.py:pictures --workdir=runs/nlvr
    python launch.py --config=configs/nlvr.py:blank --workdir=runs/nlvr_blank
    python launch.py --mode=compare --runs=runs/nlvr --against=runs/nlvr_blank --by=presentation --output=runs/nlvr_test

Train is NLVR's dev (except a sixth, which is dev here) and two of the seven folders of its test, with additional
sentences generated from the structured representations of these pictures; the other five folders are test. Further
tasks: what single boxes contain, and the intents of SNIPS.

Data: nlvr, snips.
Scores: test accuracy 0.662, with blank pictures 0.548 (most frequent answer 0.55); difference +0.115 (95 %: 0.080 to
0.149, p < 0.001, by 190 presentations). Details of boxes F1 0.867, intent 0.980. One seed, 12 minutes each on 2 CPU
cores.
"""

from ml_collections import ConfigDict

from mtl_jax.config import default

WAYS = ("pictures", "blank")


def get_config(way: str = "pictures"):
    if way not in WAYS:
        raise ValueError(f"the argument of this config is one of {', '.join(WAYS)}, not {way!r}")
    config = default.get_config()
    folders = {"train": ("dev/images/[0-4]", "test/images/[01]"), "dev": "dev/images/5", "test": "test/images/[2-6]"}
    train_folders = (*(f"dev/{n}" for n in range(5)), "test/0", "test/1")
    pictures = {"reader": "nlvr", "origin": "nlvr", "image": "image", "image_size": (20, 20)}
    default.add_dataset(
        config,
        "nlvr",
        **pictures,
        text=("sentence",),
        splits=folders,
        drop_duplicates="train",
        options={"orders": 6, "statements": 6000, "added_to": train_folders},
    )
    default.add_dataset(config, "boxes", **pictures, splits=folders, options={"single": True})
    default.add_dataset(
        config,
        "snips",
        reader="parallel",
        origin="snips",
        words="words",
        splits={"train": "train", "dev": "valid", "test": "test"},
    )
    default.add_task(
        config,
        "nlvr",
        kind="grounded_classification",
        dataset="nlvr",
        label="label",
        metrics=("accuracy",),
        options={"hidden": 128},
    )
    default.add_task(config, "details", kind="multilabel", dataset="boxes", label="details", metrics=("micro_f1",))
    default.add_task(config, "intent", kind="classification", dataset="snips", label="intent", metrics=("accuracy",))
    config.images.patch_size = 20
    config.images.blank = way == "blank"
    config.tokenizer = ConfigDict({**config.tokenizer.to_dict(), "kind": "words", "lowercase": True, "min_count": 3})
    config.data.row_length = 64
    config.data.mixing = "weights"
    config.data.mixing_weights = ConfigDict({"nlvr": 6.0, "boxes": 2.0, "snips": 0.5})
    config.model.layer_type = "cnn"
    config.model.num_layers = 2
    config.optimizer.learning_rate = 1e-3
    config.training.steps = 15000
    config.training.eval_every = 5000
    config.training.checkpoint_every = 5000
    config.evaluation.checkpoint = "last"
    return config
