"""Soft sharing against λ: parts of speech in the five genres of UD English-EWT, a BiLSTM for each genre.

    python launch.py --config=configs/ablate_lambda.py --workdir=runs/ablate_lambda --mode=ablate

Four penalties (L2 to the mean, trace norm, subspace of two dimensions, Laplacian) of seven λ each, 50 to 400 labelled
sentences a genre, five seeds; single-task training, tied columns and hard sharing beside them. 860 lanes, 36 minutes on
one CPU core. Test accuracy with 200 sentences: L2 0.825, tied 0.847, hard 0.841, single-task 0.780; more in the README.

    :surface  L2 with 200 sentences, λ × learning rate: 0.849 at λ = 3, rate 0.12. 5 minutes on 2 cores
    :l2       the curve of L2 with 200 sentences alone; add --config.ablation.method=halving or =hypergradient
    :smoke    50 sentences, two penalties, three λ and two seeds: to see that all works
"""

from ml_collections import ConfigDict

from mtl_jax.config import default

from . import data_path

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
# Written for whoever reads, with longer sentences: newsgroup, weblog. Unedited and short: answers, email, reviews.
# The weak edges between the two kinds keep the graph connected, so that λ → ∞ is one model for all.
EDGES = (
    ("newsgroup", "weblog", 1.0),
    ("answers", "email", 1.0),
    ("answers", "reviews", 1.0),
    ("email", "reviews", 1.0),
    ("email", "newsgroup", 0.25),
    ("reviews", "weblog", 0.25),
)
# Alternative: kind, options, lowest and highest λ. `center` = "mean" penalises how the genres differ, not their size.
# The trace norm takes rate·λ off each singular value at a step, the others a share of about 2·rate·λ. On 50 sentences
# L2 to the mean left a relative distance of 0.95 at rate·λ = 0.001 (single-task: 1.0), 0.21 at 0.03 and 0.007 at 1.
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
            path=data_path("ewt"),
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
    config.optimizer.learning_rate = 3e-2  # good for tied columns too, which move by the mean of five updates
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
