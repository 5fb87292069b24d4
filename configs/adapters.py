"""Adapters on a frozen MiniLM: of each task, of all, with shared parts, and as experts; few-shot intents of CLINC150.

    python launch.py --config=configs/adapters.py --workdir=runs/adapters --mode=ablate
    python launch.py --config=configs/adapters.py:small --workdir=runs/adapters_small --mode=ablate
    python launch.py --config=configs/adapters.py:mtl_lora --workdir=runs/mtl_lora

    :full   all ten domains, LoRA on all layers, three seeds, five learning rates; for a GPU
    :small  three domains, LoRA on the last two layers, one seed and one learning rate; for 2 CPU cores

One way by its name, on the three domains, with LoRA of rank 4 on queries and values (Hu et al. 2022):

    :own, :all        one of each task; one of all tasks
    :hydra            A of all tasks, B of each (Tian et al. 2024)
    :low_rank         the mirror image: kernels W + U_k Vᵀ, U of each task and V of all
    :mtl_lora         A and three B of all, a map between them and weights of the B of each task (Yang et al. 2024)
    :experts, :top_k  four LoRA of all, for each token a gate of each task over all of them or two (Dou et al. 2024; Li
                      et al. 2024)
    :soft             :own, with a trace norm of the products A_k B_k

Data: clinc150; MiniLM from its wheel.
Scores: not measured.
"""

from mtl_jax.analysis.ablation import traced_fields
from mtl_jax.config import default

from . import ablate_pretrained

LORA = {"rank": 4, "alpha": 8.0, "params": "attention/(query|value)/kernel$"}
TRACE_NORM = default.penalty(
    kind="trace_norm", strength=0.01, params="^adapter_", on="product", scope="leaf", options={"center": "mean"}
)


def _with(kind: str, owner: str = "none", **options) -> dict:
    return {"sharing": {"adapter": kind, "adapter_owner": owner, "adapter_options": {**LORA, **options}}}


WAYS = {
    "own": _with("lora"),
    "all": _with("lora", "all"),
    "hydra": _with("hydra_lora"),
    "low_rank": _with("lora", shared="b"),
    "mtl_lora": _with("mtl_lora", ups=3),
    "experts": _with("lora_experts", experts=4),
    "top_k": _with("lora_experts", experts=4, top_k=2),
    "soft": {**_with("lora"), "penalties": {"products": TRACE_NORM.to_dict()}},
}


def get_config(which: str = "full"):
    if which not in (*WAYS, "full", "small"):
        raise ValueError(f"the argument of this config is one of {', '.join((*WAYS, 'full', 'small'))}, not {which!r}")
    config = default.get_config()
    few = which != "full"
    chosen = ablate_pretrained.SMALL if few else ()
    ablate_pretrained.add_domains(config, {"train": 75, "dev": 75, "test": 150} if few else {"train": 150}, chosen)
    config.data.row_length = 64
    config.data.rows_per_block = 2 if few else 8
    config.sharing.adapter, config.sharing.adapter_options = "lora", LORA
    config.sharing.adapter_layers = ("layer_04", "layer_05") if few else ()
    config.optimizer.freeze = ("^embed/", "^layer_")
    config.optimizer.learning_rate = 3e-3
    config.training.steps = 100 if few else 500
    config.training.eval_every = config.training.checkpoint_every = 0
    if which in WAYS:
        return traced_fields.merged(config, WAYS[which], f"configs/adapters.py:{which}")
    default.add_choice(config, "adapters", settings=WAYS)
    rates = (3e-3,) if few else (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    default.add_sweep(config, "rate", field="optimizer.learning_rate", points=rates)
    config.ablation.baselines.adapters = ("own", "all")
    config.ablation.limits = False
    if few:
        config.ablation.num_seeds, config.ablation.intervals = 1, False
    return config
