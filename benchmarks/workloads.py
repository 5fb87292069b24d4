"""The models of the ablation benchmark, as configs of mtl_jax: 8 values of λ × 4 seeds in one program.

    python launch.py --config=benchmarks/workloads.py:bilstm --mode=ablate --workdir=runs/lanes
    python launch.py --config=benchmarks/workloads.py:bilstm --workdir=runs/one_lane --config.seed=2

`small`: polarity of generated sentences, 8 tasks, a CNN for each (experiment 1, `configs/ablate_synthetic.py:text`).
`bilstm`: parts of speech in 5 genres of UD English-EWT (experiment 2, `configs/ablate_lambda.py`). `transformer`: the
same with 2 layers of width 128 on rows of 128 tokens. `transformer4`: 4 layers of width 256, for a GPU;
`transformer4_text`: on the generated sentences.
"""

from ml_collections import ConfigDict

from configs import ablate_lambda, ablate_synthetic
from mtl_jax.config import default

MODELS = ("small", "bilstm", "transformer", "transformer4", "transformer4_text")


def get_config(model: str = "bilstm"):
    if model not in MODELS:
        raise ValueError(f"the argument of this config is one of {', '.join(MODELS)}, not {model!r}")
    config = (
        ablate_synthetic.get_config("text") if model in ("small", "transformer4_text") else ablate_lambda.get_config()
    )
    config.ablation.choices = ConfigDict(sort_keys=False)
    config.ablation.sweeps = ConfigDict(sort_keys=False)
    default.add_sweep(config, "strength", field="penalties.p.strength", low=0.1, high=100.0, count=8)
    config.ablation.num_seeds = 4
    config.ablation.limits = False
    if model.startswith("transformer"):
        config.model.layer_type = "transformer"
        config.model.num_layers, config.model.hidden_size = (2, 128) if model == "transformer" else (4, 256)
        config.model.num_heads, config.model.intermediate_size = 4, 4 * config.model.hidden_size
        config.data.row_length, config.data.rows_per_block = 128, 8
        config.optimizer.learning_rate = 1e-3
    return config
