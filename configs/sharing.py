"""Ways of sharing between hard and soft on the same two tasks: intent and slots of SNIPS, a BiLSTM column for each.

    python launch.py --config=configs/sharing.py:cross_stitch --workdir=runs/cross_stitch
    python launch.py --config=configs/sharing.py:all --workdir=runs/sharing --mode=ablate

    :single, :hard             a model for each task; one for both
    :cross_stitch              columns that are mixed behind each layer, by four blocks of channels (Misra et al. 2016)
    :sluice                    by two subspaces of each column, heads read a mixture of the layers (Ruder et al. 2019)
    :attention                 by attention over the columns at each token
    :all                       all of these as an ablation: five learning rates each, three seeds, paired tests

Not measured in full yet.
"""

from ml_collections import ConfigDict

from configs import default, snips_joint

COLUMNS = {"trunk": "none"}
WAYS = {
    "single": COLUMNS,
    "hard": {"trunk": "all"},
    "cross_stitch": {**COLUMNS, "mixer": "cross_stitch", "mixer_options": {"blocks": 4}},
    "sluice": {**COLUMNS, "mixer": "sluice", "read": "mixture"},
    "attention": {**COLUMNS, "mixer": "attention"},
}


def get_config(way: str = "cross_stitch"):
    if way not in (*WAYS, "all"):
        raise ValueError(f"the argument of this config is one of {', '.join((*WAYS, 'all'))}, not {way!r}")
    config = snips_joint.get_config("lstm")
    config.model.width = 64
    config.training.steps = 600
    config.training.eval_every = 150
    config.training.checkpoint_every = 150
    if way != "all":
        for field, value in WAYS[way].items():
            config.sharing[field] = ConfigDict(value) if isinstance(value, dict) else value
        if way not in ("single", "hard"):
            config.optimizer.groups = _faster_mixers()
        return config
    config.training.checkpoint_every = 0
    settings = {name: {"sharing": sharing} for name, sharing in WAYS.items()}
    for name in ("cross_stitch", "sluice", "attention"):
        settings[name]["optimizer"] = {"groups": _faster_mixers().to_dict()}
    default.add_choice(config, "sharing", settings=settings)
    default.add_sweep(config, "rate", field="optimizer.learning_rate", points=(1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2))
    config.ablation.baselines.sharing = ("single", "hard")
    return config


def _faster_mixers():
    return ConfigDict({"mixer": {"leaves": "^mixer_", "rate": 5.0}})
