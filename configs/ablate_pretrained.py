"""Soft sharing over λ with a MiniLM: ten few-shot intent tasks, the domains of CLINC150, with lower layers shared.

    python launch.py --config=configs/ablate_pretrained.py --workdir=runs/ablate_pretrained --mode=ablate
    python launch.py --config=configs/ablate_pretrained.py:small --workdir=runs/ablate_small --mode=ablate

    :full   all ten domains, nine λ, two trunks, five seeds; for a GPU
    :small  three domains, only the last layer trained, four λ and two seeds; for 2 CPU cores

Each task has the fifteen intents of its domain and about 5 or 10 utterances of each (75 or 150 in all, drawn at
random).

Data: clinc150; MiniLM from its wheel.
Scores: not measured.
"""

import json

from mtl_jax.config import default
from mtl_jax.data import origins

SMALL = ("banking", "travel", "kitchen_and_dining")


def add_domains(config, limit, chosen=()) -> None:
    """MiniLM, and a task for each of the ten domains (or the chosen ones); `limit`: {split: number of examples}."""
    default.use_minilm(config)
    for domain, intents in _domains().items():
        if not chosen or domain in chosen:
            default.add_dataset(
                config,
                domain,
                reader="json_splits",
                origin="clinc150",
                path="data_full.json",
                text=("text",),
                splits={"train": "train", "dev": "val", "test": "test"},
                filter={"label": tuple(intents)},
                max_examples=limit,
            )
            default.add_task(
                config,
                domain,
                kind="classification",
                dataset=domain,
                label="label",
                classes=tuple(intents),
                metrics=("accuracy",),
            )
    config.data.row_length = 64
    config.data.rows_per_block = 8
    config.optimizer.param_groups = {"heads": {"params": "^heads/", "lr_multiplier": 10.0}}
    config.optimizer.weight_decay = 0.0
    config.training.steps = 150
    config.training.eval_every = 25
    config.training.checkpoint_every = 0


def get_config(size: str = "full"):
    if size not in ("full", "small"):
        raise ValueError(f"the argument of this config is 'full' or 'small', not {size!r}")
    small = size == "small"
    config = default.get_config()
    if small:
        add_domains(config, {"train": 75, "dev": 100, "test": 150}, SMALL)
    else:
        add_domains(config, {"train": 75})
    config.sharing.trunk = "layer_04" if small else "layer_01"
    default.add_penalty(config, "p", kind="l2_to_mean", strength=1.0, proximal=True)
    if small:
        config.data.rows_per_block, config.training.steps, config.training.eval_every = 2, 40, 20
        # the shared layers stay as published; only the columns are trained
        config.optimizer.freeze = ("^embed/", "^layer_0[0-4]/")
        default.add_sweep(config, "strength", field="penalties.p.strength", low=1.0, high=1e3, count=4)
        config.ablation.num_seeds = 2
        config.ablation.lr_factors = (1.0,)
    else:
        default.add_sweep(config, "strength", field="penalties.p.strength", low=0.1, high=1e3, count=9)
        default.add_choice(config, "examples", field="datasets.*.max_examples.train", alternatives=(75, 150))
        default.add_choice(config, "trunk", field="sharing.trunk", alternatives=("layer_01", "layer_03"))
        config.ablation.num_seeds = 5
    return config


def _domains() -> dict[str, list[str]]:
    """{domain: its intents}, as published with the data."""
    return json.loads((origins.folder("clinc150") / "domains.json").read_text(encoding="utf-8"))
