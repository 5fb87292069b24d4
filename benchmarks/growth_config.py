"""K generated tasks, a data set each: the configs of `growth.py`.

    python launch.py --config=benchmarks/growth_config.py:hard,64 --workdir=runs/growth

`hard`: one trunk; `columns`: one for each task, drawn together by L2 to the mean; in both every batch has a block of
each data set. `drawn`: one trunk, and 4 blocks a batch whose data sets are drawn.
"""

from mtl_jax.config import default

WAYS = ("hard", "columns", "drawn")
WIDTH, LAYERS, WORDS = 32, 2, 200
ROWS, LENGTH, BLOCKS = 4, 32, 4
STEPS = 100


def get_config(argument: str = "hard,4"):
    way, tasks = argument.split(",")
    if way not in WAYS:
        raise ValueError(f"the argument of this config is one of {', '.join(WAYS)}, a comma and K, not {argument!r}")
    config = default.get_config()
    options = {"kind": "text", "features": WORDS, "tokens": 7, "examples": {"train": 64, "dev": 8, "test": 8}}
    for k in range(int(tasks)):
        default.add_dataset(config, f"data_{k:03d}", reader="synthetic", words="words", options={**options, "task": k})
        default.add_task(
            config,
            f"task_{k:03d}",
            kind="classification",
            dataset=f"data_{k:03d}",
            label="label",
            metrics=("accuracy",),
        )
    config.model.layer_type, config.model.num_layers, config.model.hidden_size = "bilstm", LAYERS, WIDTH
    config.tokenizer.kind = "words"
    config.data.row_length, config.data.rows_per_block = LENGTH, ROWS
    config.training.steps = config.training.eval_every = STEPS
    if way == "columns":
        config.sharing.trunk = "none"
        default.add_penalty(config, "p", kind="l2_to_mean", strength=0.1)
    if way == "drawn":
        config.data.mixing, config.data.blocks_per_batch = "size", BLOCKS
    return config
