"""All methods of balancing tasks, compared with single-task training and a tuned plain sum by paired tests.

    python launch.py --config=configs/balance.py:ewt --workdir=runs/balance_ewt --mode=ablate

    :ewt        parts of speech in the five genres of UD English-EWT, of unequal size, one BiLSTM for all. 34 minutes on
                one CPU core
    :glue       CoLA, MRPC, RTE, STS-B with one MiniLM, of which the last layer is trained; the other layers are frozen
                and their outputs cached. About two hours on 2 cores
    :glue_full  the same with all of MiniLM trained, for a GPU
    :smoke      :ewt with two methods, two rates, two seeds and few steps: a quick trial of the whole pipeline

Each method has the options of its paper, and the same steps and five learning rates as the plain sum and single-task
training (in `:glue` one rate, the middle one). The rate is chosen on dev; tests are paired by seed and corrected over
the methods.

Data: ewt or glue; MiniLM from its wheel.
Scores: `:ewt` has test accuracy 0.848 with the plain sum, which no method beats, and 0.775 single-task. `:glue`, too
short to learn any task but STS-B, has mean test score 0.418 with the plain sum and 0.424 single-task; no method is
better than the sum. `:glue_full`, `:smoke`: not measured.
"""

from mtl_jax.config import default

from . import ablate_lambda, glue

SIZES = {"answers": 400, "email": 200, "newsgroup": 100, "reviews": 400, "weblog": 100}  # labelled sentences
BASELINES = ("sum", "single")
LOSS_WEIGHTS = (
    "by_size",
    "uncertainty",
    "dwa",
    "gls",
    "rlw",
    "gradnorm",
    "imtl_l",
    "stch",
    "excess_mtl",
    "famo",
    "kl",
    "dtp",
)
AGGREGATION = (
    "mgda",
    "pcgrad",
    "gradvac",
    "cagrad",
    "imtl_g",
    "nash_mtl",
    "aligned_mtl",
    "fairgrad",
    "dualproj",
    "upgrad",
    "config",
    "graddrop",
    "moco",
    "modo",
    "sdmgrad",
    "pcd",
    "trimmed_mean",
    "krum",
    "db_mtl",
)


def get_config(which: str = "ewt"):
    if which not in ("ewt", "glue", "glue_full", "smoke"):
        raise ValueError(f"the argument of this config is 'ewt', 'glue', 'glue_full' or 'smoke', not {which!r}")
    config = _glue(which) if which.startswith("glue") else _genres()
    separate = {"trunk": "layer_04" if which == "glue" else "none"}  # frozen layers are the same for all
    settings = {"sum": {}, "single": {"sharing": separate}}
    settings |= {name: {"loss_weights": {"method": name}} for name in LOSS_WEIGHTS}
    settings |= {name: {"aggregation": {"method": name}} for name in AGGREGATION}
    settings["cr_mogm"] = {"aggregation": {"method": "mgda", "smoothing": 0.9}}
    if which == "glue":  # two hours on 2 cores have no room for five rates of every method
        single_rate = {"sweeps": {"rate": {"points": (config.optimizer.learning_rate,)}}}
        settings |= {
            name: {**entry, "ablation": single_rate} for name, entry in settings.items() if name not in BASELINES
        }
    if which == "smoke":
        settings = {name: settings[name] for name in (*BASELINES, "dwa", "cagrad")}
        config.training.steps = 20
        config.ablation.num_seeds = 2
        config.ablation.sweeps.rate.points = (1e-2, 3e-2)
    default.add_choice(config, "method", settings=settings)
    config.ablation.baselines.method = BASELINES
    return config


def _genres():
    config = ablate_lambda.genres()
    for genre, size in SIZES.items():
        config.datasets[genre].max_examples.train = size
    config.sharing.trunk = "all"
    config.ablation.num_seeds = 5
    default.add_sweep(config, "rate", field="optimizer.learning_rate", points=(7.5e-3, 1.5e-2, 3e-2, 6e-2, 1.2e-1))
    return config


def _glue(which):
    config = glue.get_config()
    config.optimizer.learning_rate = 2e-4
    if which == "glue":
        config.optimizer.learning_rate = 1e-3
        config.optimizer.freeze = ("^embed/", "^layer_0[0-4]/")
        config.optimizer.cache_frozen = True
        config.data.rows_per_block = 2
        config.training.steps = 100
        config.training.eval_every = 0
    config.data.mixing, config.data.mixing_temperature = "all", 1.0  # a block of each task at every step
    config.training.checkpoint_every = 0
    config.ablation.num_seeds = 3 if which == "glue" else 5
    rates = tuple(config.optimizer.learning_rate * factor for factor in (0.25, 0.5, 1.0, 2.0, 4.0))
    default.add_sweep(config, "rate", field="optimizer.learning_rate", points=rates)
    return config
