"""Ways of sharing between hard and soft on the same tasks, with small BiLSTMs.

    python launch.py --config=configs/sharing.py:cross_stitch --workdir=runs/cross_stitch
    python launch.py --config=configs/sharing.py:snips --workdir=runs/sharing_snips --mode=ablate
    python launch.py --config=configs/sharing.py:ewt --workdir=runs/sharing_ewt --mode=ablate

One way by its name, on intent and slots of SNIPS, the last two on the three tasks of `:ewt`:

    :single, :structure, :hard    a model for each task, from the same initial values or different ones; one for both
    :soft                         columns with an L2 penalty to their mean
    :cross_stitch, :sluice        columns mixed after each layer (Misra et al. 2016; Ruder et al. 2019)
    :attention, :attention_text   columns mixed by attention, for each token or for each text
    :mtan                         one trunk, each task attends to its layers (Liu, Johns & Davison 2019)
    :mmoe, :cgc, :ple, :dselect_k experts with gates (Ma et al. 2018; Tang et al. 2020; Hazimeh et al. 2021)
    :adapters, :lora              few parameters for each task on one trunk (Bapna & Firat 2019; Hu et al. 2022)
    :adapters_soft                the same adapters with an L2 penalty to their mean
    :hierarchy, :cascade          a head at a lower layer; its labels also fed upwards (Hashimoto et al. 2017)
    :shared_private               adversarial shared and private columns (Liu et al. 2017); it needs two data sets
    :tree                         similar tasks share more layers

Tables of all of them against single-task training and hard sharing, each tuned on dev over five learning rates, three
seeds, paired tests: `:snips`; `:ewt` with parts of speech, semantic roles and genre of UD English-EWT; `:snips_full`,
`:ewt_full` with wider layers and as many steps as the tasks need.

Data: snips; for `:ewt` ewt and ewt_srl.
Scores of `:snips`, mean of test intent accuracy (level, 0.97) and slot F1; 80 minutes on 2 busy cores: sluice 0.947,
cross-stitch 0.936, cascade 0.933, hierarchy 0.928, soft 0.922, CGC 0.921, PLE 0.915, structure, MMoE, DSelect-k 0.910,
attention 0.906, single 0.906, attention of texts 0.900, hard 0.898, LoRA 0.893, MTAN 0.892, adapters with a penalty
0.876, adapters 0.868. With three seeds and 17 comparisons only cascades are better than single training (p = 0.002),
and they and cross-stitch better than hard sharing (p = 0.03).
Scores of `:ewt`, mean test score; 300 lanes, 110 minutes on 2 cores: sluice 0.666, shared-private 0.637, single 0.634,
cross-stitch 0.633, attention 0.629, structure 0.625, attention of texts 0.616, CGC and tree 0.612, soft 0.609, cascade
0.608, PLE 0.604, hierarchy 0.600, MMoE 0.599, hard 0.588, DSelect-k and adapters with a penalty 0.587, LoRA 0.586,
adapters 0.583, MTAN 0.580. Corrected for 19 comparisons nothing is better than single training; hard sharing, MMoE,
CGC, PLE, adapters and LoRA are worse; sluice is better than hard sharing (p = 0.02).
`:snips_full`, `:ewt_full`: not measured.
"""

from ml_collections import ConfigDict

from mtl_jax.analysis.ablation import traced_fields
from mtl_jax.config import default

from . import ewt, snips_joint

COLUMNS, TRUNK, EXPERTS = {"trunk": "none"}, {"trunk": "all"}, {"trunk": "embed"}
# The few weights of a mixer act on all features of the columns, so they learn faster.
FASTER = {"mixers": {"params": "^mixer_", "lr_multiplier": 10.0}}
L2 = {"kind": "l2_to_mean", "strength": 0.01}


def _ways(low: str, high: tuple[str, ...], groups: tuple[tuple[str, ...], ...] = ()) -> dict:
    """{way: nested fields}. `low`: the task whose head may stand at the lower layer; `high`: those it may be fed to;
    `groups`: groups of similar tasks.
    """
    low_head = {**TRUNK, "head_layers": {low: "layer_00"}}
    ways = {
        "single": {"sharing": COLUMNS},
        "structure": {"sharing": COLUMNS, "model": {"column_init": "independent"}},
        "hard": {"sharing": TRUNK},
        "soft": {"sharing": COLUMNS, "penalties": {"l2": default.penalty(**L2).to_dict()}},
        "cross_stitch": _mixed(COLUMNS, "cross_stitch", {"blocks": 4}),
        "sluice": _mixed({**COLUMNS, "readout": "mixture"}, "sluice", {"subspaces": 2}),
        "attention": _mixed(COLUMNS, "attention", {}),
        "attention_text": _mixed(COLUMNS, "attention", {"level": "sequence"}),
        "mtan": {"sharing": {**TRUNK, "readout": "attention"}},
        "mmoe": _mixed(EXPERTS, "mmoe", {"experts": 3}),
        "cgc": _mixed(EXPERTS, "cgc", {"shared": 1, "private": 1}),
        "ple": _mixed(EXPERTS, "ple", {"shared": 1, "private": 1}),
        "dselect_k": _mixed(EXPERTS, "mmoe", {"experts": 4, "gate": "dselect_k", "chosen": 2}),
        "shared_private": _mixed(EXPERTS, "shared_private", {}),
        "adapters": {"sharing": {**TRUNK, "adapter": "bottleneck", "adapter_options": {"size": 16}}},
        "adapters_soft": {
            "sharing": {**TRUNK, "adapter": "bottleneck", "adapter_options": {"size": 16}},
            "penalties": {"l2": default.penalty(**L2, params="^adapter_").to_dict()},
        },
        "lora": {"sharing": {**TRUNK, "adapter": "lora", "adapter_options": {"rank": 4}}},
        "hierarchy": {"sharing": low_head},
        "cascade": {"sharing": {**low_head, "cascades": {task: (low,) for task in high}}},
    }
    ways["sluice"]["penalties"] = {
        "subspaces": default.penalty(
            kind="subspace_orthogonality",
            strength=0.001,
            params="^layer_.*/input/kernel",
            scope="layer",
            options={"subspaces": 2, "gates": 4},
        ).to_dict()
    }
    if groups:
        ways["tree"] = {"sharing": {**TRUNK, "task_groups": {"layer_00": groups}}}
    return ways


def _mixed(sharing, mixer, options):
    return {"sharing": {**sharing, "mixer": mixer, "mixer_options": options}, "optimizer": {"param_groups": FASTER}}


def get_config(which: str = "cross_stitch"):
    snips, three = _ways("slots", ("intent",)), _ways("pos", ("srl", "genre"), (("pos", "srl"), ("genre",)))
    del snips["shared_private"]  # one data set: there is nothing for the adversary to distinguish
    tables = ("snips", "ewt", "snips_full", "ewt_full")
    if which not in (*three, *tables):
        raise ValueError(f"the argument of this config is one of {', '.join((*three, *tables))}, not {which!r}")
    if which in three:
        config = _small(snips_joint.get_config("lstm") if which in snips else _ewt())
        config.training.eval_every = config.training.checkpoint_every = 150
        return traced_fields.merged(config, (snips if which in snips else three)[which], f"configs/sharing.py:{which}")
    if which.startswith("snips"):
        config, ways = snips_joint.get_config("lstm"), snips
    else:
        config, ways = _ewt(), three
    if not which.endswith("_full"):
        config = _small(config)
    if which == "ewt":
        config.data.rows_per_block, config.data.row_length = 4, 64
        config.training.steps = 1200  # three epochs
    config.training.checkpoint_every = 0
    default.add_choice(config, "sharing", settings=ways)
    lowest = 2e-3 if which == "ewt" else 4e-3  # smaller batches
    rates = tuple(lowest * factor for factor in (1.0, 2.0, 4.0, 8.0, 16.0))
    default.add_sweep(config, "rate", field="optimizer.learning_rate", points=rates)
    config.ablation.baselines.sharing = ("single", "hard")
    return config


def _small(config):
    """A size with which all ways, rates and seeds are trained in about an hour on two cores."""
    config.model.hidden_size = 32
    config.training.steps = 900
    config.training.eval_every = 0
    return config


def _ewt():
    config, base = default.get_config(), ewt.get_config()
    config.datasets, config.tasks = base.datasets, base.tasks
    config.datasets.ewt.options = ConfigDict({"genre": "([a-z]+)-"})
    config.tasks.srl.options = ConfigDict({"scheme": "iob2", "hidden": 64})
    default.add_task(config, "genre", kind="classification", dataset="ewt", label="genre")
    config.tokenizer = ConfigDict({**config.tokenizer.to_dict(), "kind": "words", "lowercase": True, "min_count": 2})
    config.model.layer_type = "bilstm"
    config.model.num_layers = 2
    config.model.dropout = 0.3
    config.data.rows_per_block = 8
    config.optimizer.learning_rate = 4e-3
    config.training.steps = 3000
    config.training.eval_every = 600
    return config
