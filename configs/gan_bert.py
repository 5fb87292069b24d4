"""GAN-BERT: intents of SNIPS and CLINC150 from few labelled utterances and many unlabelled ones.

    python launch.py --config=configs/gan_bert.py --workdir=runs/gan_bert
    python launch.py --config=configs/gan_bert.py:compare --workdir=runs/gan_compare --mode=ablate

    :mt_gan   a generator and a discriminator for each task on one MiniLM (MT-GAN-BERT; Breazzano et al. 2021)
    :compare  a MiniLM for each task, from labelled utterances only and as GAN-BERT (Croce et al. 2020); one MiniLM for
              both tasks, likewise. Three learning rates, three seeds, paired tests

Labelled are 70 of 700 utterances of SNIPS and 300 of 1,500 of CLINC150. The last layer of MiniLM is trained; the other
layers are frozen and their outputs cached.

Data: snips and clinc150; MiniLM from its wheel.
Scores: not measured.
"""

from mtl_jax.config import default

SIZES = {"snips": (700, 70), "clinc": (1500, 300)}  # utterances of train, labelled ones


def get_config(which: str = "mt_gan"):
    if which not in ("mt_gan", "compare"):
        raise ValueError(f"the argument of this config is 'mt_gan' or 'compare', not {which!r}")
    config = default.get_config()
    default.use_minilm(config)
    default.add_dataset(
        config,
        "snips",
        reader="parallel",
        origin="snips",
        words="words",
        splits={"train": "train", "dev": "valid", "test": "test"},
    )
    default.add_dataset(
        config,
        "clinc",
        reader="json_splits",
        origin="clinc150",
        path="data_full.json",
        text=("text",),
        splits={"train": "train", "dev": "val", "test": "test"},
    )
    for name, label in (("snips", "intent"), ("clinc", "label")):
        utterances, labelled = SIZES[name]
        config.datasets[name].max_examples = {"train": utterances, "dev": 700, "test": 1500}
        default.add_task(
            config,
            name,
            kind="gan_classification",
            dataset=name,
            label=label,
            metrics=("accuracy",),
            max_labels=labelled,
        )
    config.data.row_length = 64
    config.data.rows_per_block = 8
    config.optimizer.freeze = ("^embed/", "^layer_0[0-4]/")
    config.optimizer.cache_frozen = True
    config.optimizer.learning_rate = 1e-3
    config.training.steps = 300
    config.training.eval_every = 0
    config.training.checkpoint_every = 100
    if which == "compare":
        config.training.checkpoint_every = 0
        supervised = {"tasks": {name: {"kind": "classification"} for name in SIZES}}
        separate = {"sharing": {"trunk": "layer_04"}}
        settings = {
            "single": {**supervised, **separate},
            "gan_bert": separate,
            "multi_task": supervised,
            "mt_gan_bert": {},
        }
        default.add_choice(config, "way", settings=settings)
        default.add_sweep(config, "rate", field="optimizer.learning_rate", points=(5e-4, 1e-3, 2e-3))
        config.ablation.baselines.way = ("single", "multi_task")
    return config
