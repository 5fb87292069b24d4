"""Kinds of task other than tagging, each together with parts of speech of UD English-EWT in one BiLSTM.

    python launch.py --config=configs/task_kinds.py:span --workdir=runs/span
    python launch.py --config=configs/task_kinds.py:windows --workdir=runs/windows
    python launch.py --config=configs/task_kinds.py:relation --workdir=runs/relation
    python launch.py --config=configs/task_kinds.py:choice --workdir=runs/choice
    python launch.py --config=configs/task_kinds.py:mlm --workdir=runs/mlm

    :span      the span of a role in its sentence: "Who or what does gave?" (PropBank; one in six has no answer)
    :windows   the same, asked of three sentences at a time, which are read through windows of 48 tokens
    :relation  the role of a marked argument of a marked predicate (PropBank, 57 roles)
    :choice    the second half of a sentence among three with its words in another order (UD EWT)
    :mlm       masked words of the utterances of SNIPS, with the scores tied to the word vectors

Data: ewt; for `:span`, `:windows` and `:relation` ewt_srl, for `:mlm` snips.
Scores on test, after 600 steps (two and a half minutes of CPU time each):

    :span      F1 0.512, exact match 0.393. Trivial: always "no answer" 0.168 and 0.168; the word before the predicate
               for ARG0, all words after it for ARG1, otherwise none 0.401 and 0.317
    :windows   F1 0.256, exact match 0.209 (no answer: 0.173). With contexts truncated instead (data.overflow =
               "truncate", the threshold of "no answer" chosen on dev in both) 0.258 and 0.196: 600 steps see a small
               part of the questions, no significant difference
    :relation  accuracy 0.711. Trivial: the most frequent role 0.340, that of the argument's side 0.369
    :choice    accuracy 0.813. Trivial: the first 0.244; the most bigrams seen in train 0.743
    :mlm       accuracy 0.475, perplexity 23.9. Trivial: the most frequent word 0.063, perplexity of counts 321

Accuracy of the parts of speech, in this order: 0.892, 0.894, 0.895, 0.871, 0.903.
"""

from ml_collections import ConfigDict

from mtl_jax.config import default


def get_config(kind: str = "span"):
    if kind not in KINDS:
        raise ValueError(f"the argument of this config is one of {', '.join(KINDS)}, not {kind!r}")
    config = default.get_config()
    default.add_dataset(
        config,
        "ewt",
        reader="conllu",
        origin="ewt",
        words="words",
        splits={"train": "*train*.conllu", "dev": "*dev*.conllu", "test": "*test*.conllu"},
    )
    default.add_task(config, "pos", kind="tagging", dataset="ewt", label="upos", metrics=("accuracy",))
    config.tokenizer = ConfigDict({**config.tokenizer.to_dict(), "kind": "words", "lowercase": True, "min_count": 2})
    config.model.layer_type = "bilstm"
    config.model.num_layers = 2
    config.model.dropout = 0.3
    config.data.rows_per_block = 8
    config.optimizer.learning_rate = 4e-3
    config.training.steps = 600
    config.training.eval_every = 300
    config.training.checkpoint_every = 300
    KINDS[kind](config)
    return config


def _span(config):
    default.add_dataset(
        config,
        "questions",
        reader="srl_questions",
        origin="ewt_srl",
        text=("question", "context"),
        splits={"train": "train.conll", "dev": "dev.conll", "test": "test.conll"},
        options={"unanswerable": 12},
        max_examples={"dev": 1500},
    )
    default.add_task(config, "answer", kind="span", dataset="questions", label="answers", options={"max_span": 40})


def _windows(config):
    _span(config)
    config.datasets.questions.options.sentences = 3
    config.datasets.questions.max_examples = {"dev": 500, "test": 2000}
    config.tasks.answer.options.none_threshold = 4.0  # chosen on dev: most windows have no answer
    config.data.row_length = 48
    config.data.rows_per_block = 24


def _relation(config):
    default.add_dataset(
        config,
        "roles",
        reader="srl_pairs",
        origin="ewt_srl",
        words="words",
        splits={"train": "train.conll", "dev": "dev.conll", "test": "test.conll"},
        marked=("predicate", "argument"),
        max_examples={"dev": 1500},
    )
    default.add_task(config, "role", kind="relation", dataset="roles", label="role")


def _choice(config):
    default.add_dataset(
        config,
        "endings",
        reader="conllu_endings",
        origin="ewt",
        text=("beginning",),
        choices=("endings",),
        splits={"train": "*train*.conllu", "dev": "*dev*.conllu", "test": "*test*.conllu"},
        options={"wrong": "reordered"},
    )
    default.add_task(config, "ending", kind="multiple_choice", dataset="endings", label="label")
    config.data.row_length = 256  # the four choices of a record share it
    config.data.rows_per_block = 4


def _mlm(config):
    default.add_dataset(
        config,
        "snips",
        reader="parallel",
        origin="snips",
        words="words",
        splits={"train": "train", "dev": "valid", "test": "test"},
    )
    default.add_task(config, "masked", kind="masked_lm", dataset="snips", options={"tied": True})


KINDS = {"span": _span, "windows": _windows, "relation": _relation, "choice": _choice, "mlm": _mlm}
