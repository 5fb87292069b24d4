"""Soft sharing over λ: parts of speech in the five genres of UD English-EWT, with a BiLSTM for each genre.

    python launch.py --config=configs/ablate_lambda.py --workdir=runs/ablate_lambda --mode=ablate

    :full     four penalties (L2 to the mean, trace norm, subspace of two dimensions, Laplacian) with seven λ each, 50
              to 400 labelled sentences per genre, five seeds; single-task training, tied columns and hard sharing as
              limits. 860 lanes, 36 minutes on one CPU core
    :surface  L2 with 200 sentences, λ × learning rate. 5 minutes on 2 cores
    :l2       the curve of L2 with 200 sentences only; add --config.ablation.method=halving or =hypergradient
    :smoke    50 sentences, two penalties, three λ and two seeds: a quick trial of the whole pipeline

Data: ewt (UD English-EWT).
Scores: mean test accuracy with 200 sentences: L2 0.825, tied 0.847, hard 0.841, single-task 0.780; `:surface` 0.849 at
λ = 3 and learning rate 0.12; `:l2` chooses λ = 9.5 (0.825). All sizes: docs/results/ablation.md. `:smoke`: not
measured.
"""

from ml_collections import ConfigDict

from mtl_jax.config import default

GENRES = ("answers", "email", "newsgroup", "reviews", "weblog")
UPOS = (
    "ADJ",
    "ADP",
    "ADV",
    "AUX",
    "CCONJ",
    "DET",
    "INTJ",
    "NOUN",
    "NUM",
    "PART",
    "PRON",
    "PROPN",
    "PUNCT",
    "SCONJ",
    "SYM",
    "VERB",
    "X",
)
# Newsgroup and weblog have longer, edited sentences; answers, email and reviews have short, unedited ones. Weak edges
# between the two groups keep the graph connected, so that λ → ∞ is one model for all genres.
EDGES = (
    ("newsgroup", "weblog", 1.0),
    ("answers", "email", 1.0),
    ("answers", "reviews", 1.0),
    ("email", "reviews", 1.0),
    ("email", "newsgroup", 0.25),
    ("reviews", "weblog", 0.25),
)
# Alternative: kind, options, lowest and highest λ. `center` = "mean" penalises the differences of the genres, not their
# norm. A step takes rate·λ from each singular value (trace norm) or a fraction of about 2·rate·λ (the others). On 50
# sentences L2 to the mean left a relative distance of 0.95 at rate·λ = 0.001 (single-task: 1.0), 0.21 at 0.03 and 0.007
# at 1.
PENALTIES = {
    "l2": ("l2_to_mean", {}, 0.03, 30.0),
    "trace_norm": ("trace_norm", {"center": "mean"}, 0.3, 100.0),
    "subspace": ("subspace", {"dim": 2, "center": "mean"}, 0.03, 30.0),
    "laplacian": ("laplacian", {"edges": EDGES}, 0.02, 70.0),
}


def genres() -> ConfigDict:
    """The five tasks and a small BiLSTM for each, without a penalty and without an ablation."""
    config = default.get_config()
    for genre in GENRES:
        default.add_dataset(
            config,
            genre,
            reader="conllu",
            origin="ewt",
            words="words",
            splits={"train": "*train*.conllu", "dev": "*dev*.conllu", "test": "*test*.conllu"},
            options={"genre": "([a-z]+)-"},
            filter={"genre": genre},
            max_examples={"train": 100, "dev": 200, "test": 300},
        )
        default.add_task(
            config, genre, kind="tagging", dataset=genre, label="upos", metrics=("accuracy",), classes=UPOS
        )
    config.tokenizer = ConfigDict({**config.tokenizer.to_dict(), "kind": "words", "lowercase": True})
    config.model.layer_type = "bilstm"
    config.model.num_layers = 1
    config.model.hidden_size = 32
    config.model.dropout = 0.3
    config.sharing.trunk = "none"
    config.data.row_length = 32
    config.data.rows_per_block = 4
    config.optimizer.learning_rate = 3e-2  # also good for tied columns, whose update is the mean of five
    config.optimizer.weight_decay = 0.0
    config.training.steps = 200
    config.training.eval_every = 50
    config.training.checkpoint_every = 0
    config.training.log_every = 20
    return config


def get_config(size: str = "full"):
    if size not in ("full", "l2", "surface", "smoke"):
        raise ValueError(f"the argument of this config is 'full', 'l2', 'surface' or 'smoke', not {size!r}")
    config = genres()
    default.add_penalty(config, "p", kind="l2_to_mean", strength=1.0, proximal=True)
    default.add_sweep(config, "strength", field="penalties.p.strength", low=0.03, high=30.0, count=7)
    default.add_choice(config, "sentences", field="datasets.*.max_examples.train", alternatives=(50, 100, 200, 400))
    settings = {
        name: {
            "penalties": {"p": {"kind": kind, "options": options}},
            "ablation": {"sweeps": {"strength": {"low": low, "high": high}}},
        }
        for name, (kind, options, low, high) in PENALTIES.items()
    }
    if size == "smoke":
        config.ablation.choices.sentences.alternatives = (50,)
        config.ablation.sweeps.strength.count = 3
        settings = {name: settings[name] for name in ("l2", "trace_norm")}
    if size in ("l2", "surface"):
        config.ablation.choices.sentences.alternatives = (200,)
        settings = {"l2": settings["l2"]}
    default.add_choice(config, "penalty", settings=settings)
    if size == "surface":
        default.add_sweep(config, "rate", field="optimizer.learning_rate", points=(0.03, 0.06, 0.12, 0.24))
    config.ablation.num_seeds = 2 if size == "smoke" else 5
    config.ablation.lr_factors = (1.0, 4.0) if size == "smoke" else (0.25, 0.5, 1.0, 2.0, 4.0)
    return config
