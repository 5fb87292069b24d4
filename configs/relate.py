"""Which tasks help which: the five genres of UD English-EWT, or the ten domains of CLINC150.

    python launch.py --config=configs/relate.py:ewt --workdir=runs/relate_ewt --mode=relate

    :ewt     parts of speech with 100 labelled sentences per genre, one BiLSTM, five seeds. 3 minutes on one CPU core
    :clinc   intents of ten domains with 75 labelled utterances each, one MiniLM; for a GPU
    :clinc_frozen  the same domains with all of MiniLM but its last layer frozen and computed once; for 2 CPU cores
    :smoke   :ewt with two seeds and few steps: a quick trial of the whole pipeline

Data: ewt or clinc150; MiniLM from its wheel.
Scores: in `:ewt` every genre gains from every other, +0.028 to +0.057, 13 of 20 pairs significantly; the divergence of
label distributions predicts the order best (ρ = 0.61, Mantel p = 0.008). Grad-TAG does not predict it (ρ = 0.05, 95 %
interval −0.75 to 0.79). `:clinc`, `:clinc_frozen`, `:smoke`: not measured.
"""

from mtl_jax.config import default

from . import ablate_lambda, ablate_pretrained


def get_config(which: str = "ewt"):
    if which not in ("ewt", "clinc", "clinc_frozen", "smoke"):
        raise ValueError(f"the argument of this config is 'ewt', 'clinc', 'clinc_frozen' or 'smoke', not {which!r}")
    config = default.get_config()
    if which == "clinc_frozen":
        ablate_pretrained.add_domains(config, limit={"train": 75, "dev": 100, "test": 15})
        config.optimizer.freeze, config.optimizer.cache_frozen = ("^embed/", "^layer_0[0-4]/"), True
        config.data.rows_per_block, config.training.steps, config.training.eval_every = 2, 40, 0
        config.evaluation.splits = ("dev",)
        config.relatedness.measures = ("gradient_cosine", "tag", "grad_tag", "fisher")
        config.relatedness.num_seeds, config.relatedness.max_groups = 1, 3
        config.ablation.max_lanes = 6  # their optimizer states are in memory together
        return config
    if which == "clinc":
        ablate_pretrained.add_domains(config, limit={"train": 75})
        config.relatedness.num_seeds = 5
        config.relatedness.max_groups = 3
        return config
    config = ablate_lambda.genres()
    config.sharing.trunk = "all"
    config.relatedness.num_seeds = 2 if which == "smoke" else 5
    if which == "smoke":
        config.training.steps = 40
    return config
