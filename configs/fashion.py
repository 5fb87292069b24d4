"""Fashion-MNIST (Xiao et al. 2017): which of ten garments a picture shows. Pictures without text, in 16 patches.

    python launch.py --config=configs/fashion.py --workdir=runs/fashion

Data: fashion_mnist; Debian's package dataset-fashion-mnist has it too.
Scores: not measured.
"""

from mtl_jax.config import default

NAMES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")


def get_config():
    config = default.get_config()
    default.add_dataset(
        config,
        "fashion",
        reader="idx",
        origin="fashion_mnist",
        image="image",
        dev_fraction=0.05,
        splits={"train": "train-images-idx3-ubyte.gz", "test": "t10k-images-idx3-ubyte.gz"},
        options={"labels": "{}-labels-idx1-ubyte.gz", "names": NAMES},
    )
    default.add_task(config, "garment", kind="classification", dataset="fashion", label="label")
    config.images.patch_size = 7
    config.images.num_channels = 1
    config.tokenizer.kind = "words"
    config.model.hidden_size = 64
    config.model.intermediate_size = 256
    config.model.initializer_range = 0.1
    config.optimizer.learning_rate = 2e-3
    config.training.eval_every = 500
    config.training.checkpoint_every = 500
    return config
