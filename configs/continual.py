"""A third task for a finished run of two: what it costs the old ones, and how they are kept as they were.

    python launch.py --config=configs/continual.py:two --workdir=runs/continual/two
    for way in frozen drawn ewc free; do
        python launch.py --config=configs/continual.py:$way --workdir=runs/continual/$way
    done
    python launch.py --mode=adapt --config=configs/continual.py:few --runs=runs/continual/two --output=runs/few

    :two     parts of speech (EWT) and slots (SNIPS) on one BiLSTM
    :frozen  intents of BANKING77 with a layer of their own above frozen embeddings: the others predict as before, to
             the last bit
    :drawn   the new task alone learns; L2 draws what is shared to the values of the run
    :ewc     likewise, by the Fisher information of the old tasks (elastic weight consolidation)
    :free    the new task alone learns: how much is forgotten
    :few     slots with a new head from 10 and 50 sentences: from layers of the run, which have learned them, and from
             its initial values; it ends in runs that predict

The old tasks are read for their scores only, no batch has them; the tokens are those of the old run. Learning rates and
λ were tuned for none of them.

Data: ewt, snips, banking77.
Scores: test accuracy of POS, F1 of slots, accuracy of intents.

    two      0.857  0.710
    frozen   0.857  0.710  0.506
    drawn    0.812  0.560  0.398
    ewc      0.784  0.487  0.639
    free     0.349  0.147  0.808

F1 of slots over three draws, by :few, from 10 sentences: 0.293 ± 0.156, from the initial values 0.108 ± 0.040; from 50:
0.488 ± 0.034 and 0.265 ± 0.028.
"""

from mtl_jax.config import default

OLD = ("pos", "slots")
WAYS = ("two", "frozen", "drawn", "ewc", "free", "few")


def get_config(way: str = "two"):
    if way not in WAYS:
        raise ValueError(f"the argument of this config is one of {', '.join(WAYS)}, not {way!r}")
    config = default.get_config()
    files = {split: f"*{split}*.conllu" for split in ("train", "dev", "test")}
    if way != "few":
        default.add_dataset(config, "ewt", reader="conllu", origin="ewt", words="words", splits=files)
    splits = {"train": "train", "dev": "valid", "test": "test"}
    default.add_dataset(config, "snips", reader="parallel", origin="snips", words="words", splits=splits)
    if way != "few":
        default.add_task(config, "pos", kind="tagging", dataset="ewt", label="upos", metrics=("accuracy",))
    default.add_task(
        config,
        "slots",
        kind="tagging",
        dataset="snips",
        label="slots",
        metrics=("entity_f1",),
        options={"scheme": "iob2"},
    )
    config.tokenizer.kind = "words"
    config.tokenizer.lowercase = True
    config.model.layer_type = "bilstm"
    config.model.num_layers = 1
    config.model.hidden_size = 64
    config.data.row_length = 64
    config.data.rows_per_block = 8
    config.optimizer.learning_rate = 4e-3
    config.training.steps = 400
    config.training.eval_every = 0
    config.training.checkpoint_every = 200
    config.evaluation.checkpoint = "last"
    if way == "few":
        config.adaptation.shots = (10, 50)
        config.adaptation.num_supports, config.adaptation.num_tuning_supports = 3, 2
        config.adaptation.optimizer = "adam"
        config.adaptation.learning_rates = (0.003, 0.03)
        config.adaptation.steps = (10, 50)
    elif way != "two":
        _third_task(config, way)
    return config


def _third_task(config, way: str) -> None:
    """Adds the intents of BANKING77 to the run of `two`."""
    splits = {"train": "train.csv", "test": "test.csv"}
    default.add_dataset(
        config, "banking", reader="csv", origin="banking77", text=("text",), splits=splits, dev_fraction=0.1
    )
    default.add_task(
        config, "intent", kind="classification", dataset="banking", label="category", metrics=("accuracy",)
    )
    config.training.steps = 1500
    config.init_from.run = "runs/continual/two"
    config.init_from.untrained = OLD
    if way == "frozen":
        config.init_from.freeze = OLD
        config.sharing.task_groups = {"layer_00": (OLD, ("intent",))}
    elif way == "drawn":
        default.add_penalty(config, "stay", kind="l2_to_anchor", strength=0.01, shared=True)
    elif way == "ewc":
        options = {"importance": "fisher"}
        default.add_penalty(config, "stay", kind="l2_to_anchor", strength=1000.0, shared=True, options=options)
