"""Configs of small linear tasks whose optimum is known."""

from mtl_jax.config import default


def linear_config(penalty="l2_to_mean", strength=0.02, tasks=3, **options):
    config = default.get_config()
    options = {"features": 8, "tokens": 3, "noise": 1.0, "rho": 0.7, "examples": {"train": 32, "dev": 40}} | options
    for k in range(tasks):
        default.add_dataset(
            config,
            f"d{k}",
            reader="synthetic",
            words="words",
            splits={"train": "train", "dev": "dev"},
            options={**options, "task": k},
        )
        default.add_task(
            config,
            f"t{k}",
            kind="regression",
            dataset=f"d{k}",
            label="label",
            metrics=("r2", "mse"),
            options={"head": "none"},
        )
    config.tasks.t1.options = {"head": "none", "mean": 1.0, "scale": 2.0}  # the others are standardised
    config.tasks.t2.weight = 0.5
    default.add_penalty(config, "p", kind=penalty, strength=strength, proximal=True)
    config.tokenizer.kind = "words"
    config.sharing.trunk = "none"
    config.model.layer_type = "cnn"
    config.model.num_layers = 0
    config.model.hidden_size = 1
    config.model.dropout = 0.0
    config.data.row_length = 12  # four examples
    config.data.rows_per_block = 8  # all 32 of them
    config.evaluation.rows_per_batch = 8
    config.optimizer.name = "sgd"
    config.optimizer.learning_rate = 2.0
    config.optimizer.weight_decay = 0.0
    config.optimizer.clip_norm = 0.0
    config.optimizer.warmup_ratio = 0.0
    config.optimizer.schedule = "constant"
    config.evaluation.splits = ("dev",)
    return config
