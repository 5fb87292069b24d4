"""Topics of 20 Newsgroups and entities (CRF) of CoNLL-2003, soft sharing with an L2 penalty, in minutes on 2 cores.

    make quickstart        or   python launch.py --config=configs/quickstart.py --workdir=runs/quickstart

Each task has a MiniLM encoder of its own, with the penalty λ·Σ_k‖Θ_k − Θ̄‖². A fixed subset of dev and test is scored.
Arguments as in `configs/newsgroups_conll.py`: `soft` (default), `single`, `hard`; `make quickstart-compare` runs all.

Data: newsgroups, conll2003; MiniLM from its wheel.
Scores: accuracy 0.746, entity F1 0.826, on 1,000 documents and 1,000 sentences of test.
"""

from mtl_jax.config import default

from .newsgroups_conll import add_conll, add_newsgroups, set_sharing


def get_config(sharing: str = "soft"):
    config = default.get_config()
    default.use_minilm(config)
    add_newsgroups(config)
    add_conll(config)
    set_sharing(config, sharing)
    config.datasets.newsgroups.max_examples = {"dev": 300, "test": 1000}
    config.datasets.conll.max_examples = {"dev": 300, "test": 1000}
    config.data.rows_per_block = 8
    config.data.overflow = "truncate"
    config.model.dropout = 0.0
    config.optimizer.param_groups = {"heads": {"params": "^heads/", "lr_multiplier": 10.0}}
    config.training.steps = 110
    config.training.eval_every = 55
    config.training.checkpoint_every = 55
    config.training.max_to_keep = 1
    config.training.log_every = 5
    return config
