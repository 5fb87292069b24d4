"""Sentiment of reviews in the sixteen domains of FDU-MTL (Liu, Qiu & Huang 2017), shared in nine ways; small BiLSTMs.

    python launch.py --config=configs/fdu_mtl.py:hard --workdir=runs/fdu_hard                           one way
    python launch.py --config=configs/fdu_mtl.py --workdir=runs/fdu --mode=ablate                       all of them
    python launch.py --config=configs/fdu_mtl.py --workdir=runs/fdu --mode=ablate --shard=0/8           a part; report
    python launch.py --config=configs/fdu_mtl.py:clean --workdir=runs/fdu_clean --mode=ablate

    :table      single, hard, tree, soft_l2_* and soft_trace_norm_* (by λ), cross_stitch, mmoe, ple and shared_private
                (ASP), five seeds, six settings each, chosen on dev: learning rates, or two of them with three λ. 270
                lanes
    :clean      the same without test examples that stand in train or dev, and dev examples that stand in train
    :tree,mmoe  any ways, with two learning rates and two seeds; :first is single, hard and soft_l2_medium
    :minilm_hard, :minilm_soft    the last two layers of MiniLM, for all domains or for each, with an L2 penalty

Any way is also an argument. No word vectors from outside; the vocabulary is that of all domains.

Data: fdu_mtl, put in place by hand: 14 kinds of products of Amazon, IMDb and MR. 559 of 6,400 test texts are also in
train, of magazines 169 of 400. The last 200 examples of train are dev, by convention.
Cost: CPU seconds of a step with all domains, on 2 busy cores: tree, hard and single 0.3, soft 0.7, shared and private
0.9, MMoE 1.4, PLE and cross-stitch 7 to 8. By these `:table` takes about 130 hours of a core. `:first` took 37 minutes
on 2 cores, in part beside other work.
Scores: `:first`, test errors in percent: single 22.4, soft 17.3, hard 14.2 (docs/results/sixteen_domains.md); Liu et
al. with word vectors LSTM 18.2, BiLSTM 17.4, MT-DNN 15.7, MT-CNN 15.5, FS 15.3, SP 14.9, ASP 13.9; TF-IDF with a linear
SVM (benchmarks/fdu_svm.py) 14.9 for each domain, 11.4 for all domains in one, and on test texts that are not in train
16.1 and 12.4.
"""

from mtl_jax.analysis.ablation import traced_fields
from mtl_jax.config import default

GOODS = ("apparel", "baby", "camera_photo", "electronics", "health_personal_care", "kitchen_housewares", "software")
GOODS += ("sports_outdoors", "toys_games")
MEDIA = ("books", "dvd", "imdb", "magazines", "MR", "music", "video")
RATES = (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
STRENGTHS = {"weak": 0.1, "medium": 1.0, "strong": 10.0}
COLUMNS, TRUNK, EXPERTS = {"trunk": "none"}, {"trunk": "all"}, {"trunk": "embed"}


def _soft(kind: str, **options) -> dict:
    """{name: columns with a penalty} for each λ; together they have as many settings as another way has learning rates.

    Proximal: decoupled from Adam, so that λ acts as given.
    """
    sweeps = {"rate": {"points": RATES[2:4]}}
    ways = {}
    for name, strength in STRENGTHS.items():
        penalty = default.penalty(kind=kind, strength=strength, proximal=True, options=options)
        changes = {"sharing": COLUMNS, "penalties": {"p": penalty.to_dict()}, "ablation": {"sweeps": sweeps}}
        ways[f"soft_{kind.removesuffix('_to_mean')}_{name}"] = changes
    return ways


def _mixed(sharing: dict, mixer: str, **options) -> dict:
    """The few weights of a mixer act on all features, so they learn faster."""
    groups = {"mixers": {"params": "^mixer_", "lr_multiplier": 10.0}}
    return {
        "sharing": {**sharing, "mixer": mixer, "mixer_options": options},
        "optimizer": {"param_groups": groups},
    }


WAYS = {
    "single": {"sharing": COLUMNS},
    "hard": {"sharing": TRUNK},
    "tree": {"sharing": {**TRUNK, "task_groups": {"layer_01": (GOODS, MEDIA)}}},
    **_soft("l2_to_mean"),
    **_soft("trace_norm", center="mean"),
    "cross_stitch": _mixed(COLUMNS, "cross_stitch", blocks=4),
    "mmoe": _mixed(EXPERTS, "mmoe", experts=4),
    "ple": _mixed(EXPERTS, "ple", shared=1, private=1),
    "shared_private": _mixed(EXPERTS, "shared_private"),
}
TABLES = ("table", "clean")
FIRST = ("single", "hard", "soft_l2_medium")
MINILM = ("minilm_hard", "minilm_soft")


def get_config(which: str = "table"):
    names = FIRST if which == "first" else tuple(WAYS) if which in TABLES else tuple(which.split(","))
    if which not in MINILM and (unknown := [name for name in names if name not in WAYS]):
        known = ", ".join((*WAYS, *TABLES, "first", *MINILM))
        raise ValueError(
            f"the argument of this config is one of {known}, not {unknown[0]!r}; ways may stand with commas"
        )
    config = default.get_config()
    _add_domains(config, drop_duplicates="test" if which == "clean" else "")
    if which in MINILM:
        return _minilm(config, which.removeprefix("minilm_"))
    config.tokenizer.kind = "words"
    config.tokenizer.min_count = 5  # each column has an embedding of its own
    config.model.layer_type = "bilstm"
    config.model.num_layers = 2
    config.model.hidden_size = 64
    config.model.dropout = 0.3
    config.data.row_length = 256
    config.data.rows_per_block = 4
    config.optimizer.learning_rate = 4e-3
    config.training.steps = 800
    config.training.eval_every = config.training.checkpoint_every = 100
    if which in WAYS:
        way = {name: value for name, value in WAYS[which].items() if name != "ablation"}
        return traced_fields.merged(config, way, f"configs/fdu_mtl.py:{which}")
    complete = names == tuple(WAYS)
    default.add_choice(config, "sharing", settings={name: WAYS[name] for name in names})
    default.add_sweep(config, "rate", field="optimizer.learning_rate", points=RATES if complete else RATES[2:4])
    if baselines := tuple(name for name in ("single", "hard") if name in names):
        config.ablation.baselines.sharing = baselines
    config.ablation.num_seeds = 5 if complete else 2
    return config


def _add_domains(config, drop_duplicates: str) -> None:
    """A data set and a task for each domain. The files hold one line without a text."""
    for name in sorted((*GOODS, *MEDIA), key=str.lower):
        train = f"{name}.task.train"
        default.add_dataset(
            config,
            name,
            reader="lines",
            origin="fdu_mtl",
            splits={"train": f"{train}[:-200]", "dev": f"{train}[-200:]", "test": f"{name}.task.test"},
            text=("text",),
            encoding="latin-1",
            drop_duplicates=drop_duplicates,
            options={"pattern": r"(?P<label>[01])\t\s*(?P<text>\S.*)", "on_bad_line": "skip"},
        )
        default.add_task(
            config, name, kind="classification", dataset=name, label="label", classes=("0", "1"), metrics=("accuracy",)
        )


def _minilm(config, sharing: str):
    default.use_minilm(config)
    config.model.dtype = "bfloat16"
    config.data.row_length = 256
    config.data.rows_per_block = 2
    config.data.overflow = "truncate"
    config.optimizer.learning_rate = 3e-5
    config.optimizer.param_groups = {"heads": {"params": "^heads/", "lr_multiplier": 10.0}}
    config.optimizer.freeze = ("^embed/", "^layer_0[0-3]/")
    config.optimizer.cache_frozen = True
    config.training.steps = 1000
    config.training.eval_every = config.training.checkpoint_every = 200
    config.sharing.trunk = "all" if sharing == "hard" else "layer_03"
    if sharing == "soft":
        default.add_penalty(config, "p", kind="l2_to_mean", strength=1.0, proximal=True)
    return config
