"""Text generation by a decoder with copying over a BiLSTM, on sentences of UD English-EWT of 5 to 25 words.

    python launch.py --config=configs/generation.py:abridge --workdir=runs/abridge

    :abridge   a sentence -> without its modifiers, by its dependency tree
    :lstm      the same with an LSTM with attention as decoder
    :shared    the same with parts of speech of the same sentences as a second task; embeddings and BiLSTM are shared
    :roles     a sentence -> without the adjuncts of its predicates, by their roles (PropBank), where it has some; LSTM
    :reorder   the words of a sentence, shuffled -> the sentence
    :infill    a sentence with a gap of up to three words -> these words; masked words of the same sentences as a
               second task

Data: ewt (UD English-EWT); for `:roles` ewt_srl.
Scores on test: one seed, greedy search, 1,000 steps, three to five minutes of CPU time each; --mode=inspect gives those
of the input:

               the input itself                         generated
    :lstm      BLEU 0.419, ROUGE-L 0.728, exact 0.162   BLEU 0.588, ROUGE-L 0.774, exact 0.292
    :abridge   the same                                 BLEU 0.610, ROUGE-L 0.779, exact 0.285
    :roles     BLEU 0.560, ROUGE-L 0.795, exact 0       BLEU 0.589, ROUGE-L 0.814, exact 0.221
    :infill    (".", the most frequent: exact 0.024)    exact 0.044, ROUGE-L 0.054, token accuracy 0.434
    measured with a decoder without dropout:
    :shared    as :lstm                                 BLEU 0.570, ROUGE-L 0.770, exact 0.303; POS accuracy 0.897
    :reorder   BLEU 0.124, ROUGE-L 0.464, exact 0.001   BLEU 0.167, ROUGE-L 0.524, exact 0.028

`:infill` without the second task: exact 0.031, ROUGE-L 0.043, token accuracy 0.396. Counting is better after so few
steps: the most frequent word of train between the two neighbours has exact 0.050, ROUGE-L 0.059.
`:roles` leaves out unchanged sentences and uses an LSTM because a transformer on all sentences stayed below the input:
BLEU 0.712 against 0.723, exact 0.369 against 0.452. Where all sentences change, exact is 0 for the input by definition.
"""

from mtl_jax.config import default

WHICH = ("abridge", "lstm", "shared", "roles", "reorder", "infill")


def get_config(which: str = "abridge"):
    if which not in WHICH:
        raise ValueError(f"the argument of this config is one of {', '.join(WHICH)}, not {which!r}")
    config = default.get_config()
    way = "abridge" if which in ("lstm", "shared") else which
    lstm = which in ("lstm", "roles")
    folder, reader, form = ("ewt_srl", "srl", "{}.conll") if way == "roles" else ("ewt", "conllu", "*{}*.conllu")
    default.add_dataset(
        config,
        "ewt",
        reader="derived",
        origin=folder,
        words="source",
        splits={split: form.format(split) for split in ("train", "dev", "test")},
        options={"reader": reader, "way": way, "shortest": 5, "longest": 25, "unchanged": way != "roles"},
        max_examples={"dev": 500},
        drop_duplicates="train",
    )
    default.add_task(
        config,
        way,
        kind="generation",
        dataset="ewt",
        label="target",
        options={
            "decoder": "lstm" if lstm else "transformer",
            "layers": 1 if lstm else 2,
            "copy": True,
            "min_count": 2,
            "max_length": 8 if way == "infill" else 32,
        },
    )
    if which == "infill":  # the gap of the other task is a masked word too
        default.add_dataset(
            config,
            "sentences",
            reader="conllu",
            origin="ewt",
            words="words",
            splits={split: f"*{split}*.conllu" for split in ("train", "dev")},
        )
        default.add_task(config, "hidden", kind="masked_lm", dataset="sentences", options={"tied": True})
        config.datasets.ewt.options.blank = "[MASK]"
        config.tasks.infill.metrics = ("exact_match", "rougeL", "bleu", "token_accuracy", "perplexity")
    if which == "shared":
        default.add_task(config, "pos", kind="tagging", dataset="ewt", label="upos", metrics=("accuracy",))
    config.tokenizer.kind = "words"
    config.tokenizer.min_count = 2
    config.model.layer_type = "bilstm"
    config.model.num_layers = 2
    config.model.hidden_size = 64
    config.model.dropout = 0.2
    config.data.row_length = 64
    config.optimizer.learning_rate = 3e-3
    config.training.eval_every = 250
    config.training.checkpoint_every = 250
    return config
