"""Similar tasks share more layers: a tree of the five genres of UD English-EWT, from measured relatedness.

    python launch.py --config=configs/relate.py:ewt --workdir=runs/relate_ewt --mode=relate
    python launch.py --config=configs/tree.py --workdir=runs/tree
    python launch.py --config=configs/tree.py:compare --workdir=runs/tree_compare --mode=ablate

    :tree     all genres share the lower of two layers; each of three groups of genres has an upper layer
    :compare  trees by measured transfer, by gradient cosine and by label distributions, against one model for all and a
              model for each; five learning rates, five seeds, paired tests. 4 minutes on 2 CPU cores

Data: ewt (UD English-EWT), and the finished run runs/relate_ewt.
Scores: mean test accuracy of `:compare` at the rate chosen on dev, ± 95 %: tree by label distributions 0.796 ± 0.012,
by gradient cosine 0.794 ± 0.021, by transfer 0.791 ± 0.020; one model for all 0.787 ± 0.020, one for each
0.700 ± 0.022. All trees are better than a model for each (p ≤ 0.002), but not significantly better than one model for
all (+0.004 to +0.009, corrected p = 0.31 and above). `:tree`: not measured.
"""

from mtl_jax.analysis.relatedness import grouping
from mtl_jax.config import default

from . import ablate_lambda

RUN = "runs/relate_ewt"  # its tasks have the same names
GROUPS = {"layer_00": 1, "layer_01": 3}  # layer -> number of groups from it up
MEASURES = ("transfer", "gradient_cosine", "label_divergence")


def get_config(which: str = "tree"):
    if which not in ("tree", "compare"):
        raise ValueError(f"the argument of this config is 'tree' or 'compare', not {which!r}")
    config = ablate_lambda.genres()
    config.model.num_layers = 2
    config.sharing.trunk = "all"
    if which == "tree":
        config.sharing.task_groups = grouping.tree_of_run(RUN, GROUPS)
        return config
    settings = {"hard": {}, "single": {"sharing": {"trunk": "none"}}}
    for measure in MEASURES:
        settings[measure] = {"sharing": {"task_groups": grouping.tree_of_run(RUN, GROUPS, measure)}}
    default.add_choice(config, "tree", settings=settings)
    default.add_sweep(config, "rate", field="optimizer.learning_rate", points=(7.5e-3, 1.5e-2, 3e-2, 6e-2, 1.2e-1))
    config.ablation.baselines.tree = ("hard", "single")
    config.ablation.num_seeds = 5
    return config
