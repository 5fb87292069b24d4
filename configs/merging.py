"""Merging after training: parts of speech in five genres of UD English-EWT, with a BiLSTM for each, from one seed.

    for way in single soft tied hard; do
        python launch.py --config=configs/merging.py:$way --workdir=runs/merging_$way
    done
    for way in single soft; do
        python launch.py --config=configs/merging.py:soft --mode=merge --runs=runs/merging_$way \\
            --output=runs/merged_$way
    done

    :single  λ = 0, independent columns
    :soft    columns with an L2 penalty to their mean, λ = 1; also --config.penalties.p.strength=10.0
    :tied    λ → ∞
    :hard    one encoder

Data: ewt (UD English-EWT).
Scores: mean test accuracy, one seed, options chosen on dev: single 0.724, merged 0.505 (slerp of task vectors); soft
with λ = 1 0.774, merged 0.682 (slerp); with λ = 10 0.796, merged 0.796 (ties); tied 0.804; hard 0.816.
"""

from mtl_jax.config import default

from . import ablate_lambda


def get_config(way: str = "soft"):
    if way not in ("single", "soft", "tied", "hard"):
        raise ValueError(f"the argument of this config is 'single', 'soft', 'tied' or 'hard', not {way!r}")
    config = ablate_lambda.genres()
    if way == "hard":
        config.sharing.trunk = "all"
    else:
        default.add_penalty(config, "p", kind="l2_to_mean", strength=1.0 if way == "soft" else 0.0, proximal=True)
        config.sharing.tied = way == "tied"
    config.merging.reference_runs = ("runs/merging_tied", "runs/merging_hard")
    return config
