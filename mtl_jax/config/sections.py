"""Every field of a config, section by section.

Each class is a section: a field, its type, its default, and above it what it means, in which unit and with which
choices. A mapping without a default is empty. `default.get_config()` makes a ConfigDict of them; functions that take a
config or a section name its class as the type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

from mtl_jax.config.entries import Choice, Dataset, Distillation, Penalty, Sweep, Task


class Data(Protocol):
    """How examples become batches."""

    # Draws carved-out splits and limited subsets: the same data whatever config.seed.
    seed: int = 0
    # T, tokens in a row; a longer text is cut, see overflow.
    row_length: int = 128
    # R, rows in a block, over all devices; tokens in a step = blocks × rows × row_length.
    rows_per_block: int = 16
    # Several examples in a row; False: one example in a row.
    packing: bool = True
    # "all": a block of every data set in every batch. Otherwise the data set of each block is drawn: "size" |
    # "temperature" (∝ size^(1/temperature)) | "weights" | "round_robin".
    mixing: Literal["all", "size", "temperature", "weights", "round_robin"] = "all"
    # B, blocks in a batch where they are drawn (mixing other than "all").
    blocks_per_batch: int = 1
    # For mixing = "temperature".
    mixing_temperature: float = 1.0
    # For mixing = "weights": data set -> relative weight.
    mixing_weights: Mapping[str, float]
    # "truncate" | "split" (between words) | "error". "": split where a task labels words, overlapping windows where a
    # task looks for answers (kind "span"), else truncate.
    overflow: Literal["", "truncate", "split", "error"] = ""
    # Tokens from the beginning of one window to that of the next; 0 = half of the tokens that a window holds.
    window_stride: int = 0
    # Largest fraction of dev or test labels that train lacks; more is an error.
    max_unseen_labels: float = 0.05


class Tokenizer(Protocol):
    """How text becomes tokens."""

    # A name in mtl_jax.data.tokenizers.TOKENIZERS. "pretrained": of model.pretrained, or tokenizer.path; "words": from
    # training data, in any script, see mtl_jax/unicode.py.
    kind: str = "pretrained"
    # Hub name or folder; "": that of model.pretrained.
    path: str = ""
    # "words": lower-case.
    lowercase: bool = False
    # "words": rarer words become [UNK].
    min_count: int = 1
    # "words": keep the most frequent ones up to this number; 0 = all.
    max_vocab_size: int = 0


class Images(Protocol):
    """Data sets with `image`: pictures as patches among the tokens of a row."""

    # Side of a patch in pixels; a picture takes (height / patch) · (width / patch) tokens.
    patch_size: int = 16
    # 3 = RGB | 1 = grey; values 0 … 255 are scaled to −1 … 1.
    num_channels: int = 3
    # Hub name or local folder of a ViT, whose patch projection and positions are copied.
    pretrained: str = ""
    # Control: every pixel is grey, the same model without what it could see.
    blank: bool = False


class Wheel(Protocol):
    """A published wheel, installed nowhere: its files are read."""

    # Name of the project.
    name: str = ""
    # Its version.
    version: str = ""
    # SHA-256 of the file.
    sha256: str = ""


class Model(Protocol):
    """The encoder."""

    # Hub name, local folder with safetensors, GGUF file, or the folder or file inside pretrained_wheel; "": random
    # initial values.
    pretrained: str = ""
    # Wheel that holds the folder.
    pretrained_wheel: Wheel
    # Folder of a PEFT LoRA on `pretrained`, which is added to its kernels.
    pretrained_adapter: str = ""
    # A name in mtl_jax.models.layers.LAYERS; with `pretrained`: "transformer", layers of the family that it brings.
    layer_type: str = "transformer"
    # Options of the layer besides the fields below, e.g. {"residual": False} for "cnn".
    layer_options: Mapping[str, Any]
    # Number above the embeddings; -1: all of `pretrained`, 2 without. With `pretrained` a number keeps the first
    # layers (0 = all); without, 0 is a bag of words.
    num_layers: int = -1
    # D, features of the embedding and of each direction of a layer.
    hidden_size: int = 128
    # Attention heads; of layers that have them.
    num_heads: int = 4
    # Width of the feed-forward layer; of layers that have one.
    intermediate_size: int = 512
    # Of layers that have one; published names, such as "gelu", "relu", "tanh".
    activation: str = "gelu"
    # Standard deviation of the initial values, of layers that have it; about hidden_size^-0.5 where that is small.
    initializer_range: float = 0.02
    # Words under the kernel, odd; of layers that have one.
    kernel_size: int = 3
    # Word vectors (GloVe / word2vec / fastText text format) for tokenizer.kind = "words".
    word_vectors: str = ""
    # Start of the tasks' columns: "same" values | "independent".
    column_init: Literal["same", "independent"] = "same"
    # Columns are computed by "vmap" | "map" (sequentially) | "unroll" (written out) | "auto".
    column_execution: Literal["auto", "vmap", "map", "unroll"] = "auto"
    # Of the computation; parameters stay float32.
    dtype: Literal["float32", "bfloat16"] = "float32"
    # On embeddings, and in and between layers.
    dropout: float = 0.1
    # On attention probabilities.
    attention_dropout: float = 0.0
    # Activations of a layer that are kept for the backward pass, the others are computed again: "nothing_saveable"
    # takes the least memory and about a third more time. Names of jax.checkpoint_policies; "offload_dots" keeps matrix
    # products, "offload_inputs" what enters each layer, in host memory.
    remat_policy: Literal[
        "everything_saveable",
        "nothing_saveable",
        "dots_saveable",
        "dots_with_no_batch_dims_saveable",
        "offload_dots",
        "offload_inputs",
    ] = "everything_saveable"


class Sharing(Protocol):
    """Which parameters the tasks share."""

    # The last layer that all tasks share: "all" (hard sharing) | "none" (a model for each task; with a penalty: soft
    # sharing) | "embed" | "layer_03" (shared trunk, then columns).
    trunk: str = "all"
    # Trees: layer -> tuple of tuples of task names that share it, from that layer up to the next one named, e.g.
    # {"layer_02": (("pos", "srl"), ("topic",))}.
    task_groups: Mapping[str, Any]
    # Between columns of the tasks, or over experts above the trunk: a name in mtl_jax.models.mixers.MIXERS; "": none.
    mixer: str = ""
    # Options of the mixer, e.g. {"blocks": 4}; for its learning rate see optimizer.param_groups, "^mixer_".
    mixer_options: Mapping[str, Any]
    # Layers that a mixer follows; (): the mixer's default, each layer with columns or the top one.
    mixer_layers: tuple[str, ...] = ()
    # In layers, shared or not: a name in mtl_jax.models.adapters.ADAPTERS; "": none.
    adapter: str = ""
    # Options of the adapter, e.g. {"rank": 4}.
    adapter_options: Mapping[str, Any]
    # Whose the adapters are: one for each task ("none") | one for "all" | up to a layer, e.g. "layer_03", one for all,
    # above it one for each. What a kind shares between its owners is shared by all whoever they are. On experts: one
    # for each expert, or for "all".
    adapter_owner: str = "none"
    # Layer -> tuple of tuples of task names that share an adapter, as in task_groups.
    adapter_groups: Mapping[str, Any]
    # Layers that have it; (): all above the embeddings.
    adapter_layers: tuple[str, ...] = ()
    # How heads read the layers: a name in mtl_jax.models.readouts.READOUTS. "top": the top layer.
    readout: str = "top"
    # Options of the readout, e.g. {"hidden": 64}.
    readout_options: Mapping[str, Any]
    # Task -> the layer that its head reads, or the last of those; others read the top.
    head_layers: Mapping[str, str]
    # Cascades: task -> tuple of tasks whose label distributions are added to its features after the layer that their
    # heads read.
    cascades: Mapping[str, tuple[str, ...]]
    # λ → ∞: the columns are replaced by their mean after each update.
    tied: bool = False


class LossWeights(Protocol):
    """How the losses of the tasks are weighted: α_k, times tasks.*.weight."""

    # A name in mtl_jax.balancing.LOSS_WEIGHTS.
    method: str = "equal"
    # Options of the method, e.g. {"temperature": 2.0}.
    options: Mapping[str, Any]


class Aggregation(Protocol):
    """How gradients over shared parameters are combined; λ·∇Ω is added afterwards."""

    # "sum" (one joint pass) or another name in mtl_jax.balancing.AGGREGATION, e.g. "pcgrad".
    method: str = "sum"
    # Options of the method, e.g. {"c": 0.4}.
    options: Mapping[str, Any]
    # α of CR-MOGM: weights are averaged over the steps, 0 = off.
    smoothing: float = 0.0
    # Gradients that are compared: of "parameters" | "representation" (the output of the last layer that all tasks
    # share; only tasks on one text can conflict there).
    level: Literal["parameters", "representation"] = "parameters"
    # "copies": K gradients are stored | "layers": only their products, layer by layer, at the price of a second
    # backward pass.
    gradient_storage: Literal["copies", "layers"] = "copies"
    # How the K gradients are computed: "taps": in one backward pass, where each weight is reached by a task in one way
    # only | "vjp": one backward pass for each task, whatever is shared | "auto": the faster one that is possible.
    jacobian: Literal["auto", "taps", "vjp"] = "auto"
    # Backward passes of "vjp" that run at once; more of them need more memory.
    pullbacks_at_once: int = 1


class Meta(Protocol):
    """Meta-learning: towards parameters from which each task adapts in a few steps."""

    # "" | "maml" (second order) | "fomaml" (first order) | "reptile"; see training/gradients/meta_learning.py. Scores
    # on dev and test are of parameters without adaptation; --mode=adapt scores adaptation to new tasks.
    method: Literal["", "maml", "fomaml", "reptile"] = ""
    # Steps of plain gradient descent of each task; reptile: each on its part of the examples.
    inner_steps: int = 3
    # Their learning rate.
    inner_learning_rate: float = 0.1
    # Maml, fomaml: fraction of the examples in the inner steps, the rest are query; drawn by a key of step and example.
    support_fraction: float = 0.5
    # Regex on paths of the parameters that the inner steps change; "^heads/": ANIL.
    inner_params: str = ".*"
    # Inner steps start from each task's "own" head | from an output layer of "zero", as a new task does.
    head_init: Literal["own", "zero"] = "own"
    # Tasks in a step, drawn anew each time; 0 = all. Gradients are α_k-weighted sums over them.
    tasks_per_step: int = 0


class Optimizer(Protocol):
    """The update of the parameters."""

    # One of optax, e.g. "adamw" | "sgd" | "lion" | "adafactor" | "lamb" | "muon", or of
    # `mtl_jax.training.optimizer.OPTIMIZERS`.
    name: str = "adamw"
    # Of the optimizer, as optax names them, e.g. {"b2": 0.98} or {"momentum": 0.9}.
    options: Mapping[str, Any]
    # The highest, after the warm-up.
    learning_rate: float = 3e-4
    # As the optimizer defines it, decoupled where it has none; not on biases and layer norms.
    weight_decay: float = 0.01
    # Fraction of the steps in which the learning rate rises.
    warmup_ratio: float = 0.1
    # After the warm-up: "linear" | "cosine" (to zero) | "constant", or one of optax, e.g. "exponential_decay", whose
    # values are factors on the learning rate. One that warms up itself ("warmup_cosine_decay_schedule") does that.
    schedule: str = "linear"
    # Of the schedule, as optax names them, e.g. {"decay_rate": 0.5}; what is left out is that of the run.
    schedule_options: Mapping[str, Any]
    # Largest gradient norm: of each task's own parameters, and of the shared ones; 0 = off.
    clip_norm: float = 1.0
    # Name -> {"params": regex on paths, "lr_multiplier": factor on the learning rate}.
    param_groups: Mapping[str, Any]
    # Regexes on paths of parameters that stay as they are, e.g. ("^embed/",).
    freeze: tuple[str, ...] = ()
    # With `pretrained`: the output of the layers below the first one that is trained or has an adapter is computed once
    # for each row, without dropout, and stored in memory.
    cache_frozen: bool = False
    # Where blocks are drawn: heads and columns of tasks that have no block in a step keep their values, and their state
    # of the optimizer; with False the moments of Adam decay and weight decay acts in every step.
    skip_absent_tasks: bool = False


class Mesh(Protocol):
    """Devices on each axis; -1 = all that are left. In an ablation: of each lane, where -1 is 1."""

    # Rows of a batch; parameters are on every device.
    data: int = -1
    # Rows of a batch too; parameters and optimizer state are split, and gathered where a layer needs them.
    fsdp: int = 1
    # Columns of the tasks.
    task: int = 1
    # Tokens of a row between the layers; keys and values are gathered.
    sequence: int = 1
    # Attention heads and intermediate features (tensor parallelism); the largest parameters of other layers.
    model: int = 1


class Training(Protocol):
    """The loop, and where it runs."""

    # Optimizer steps. The length of the run, which schedules are about, is one of steps, epochs and tokens.
    steps: int = 1000
    # In place of steps: passes through the data, until the data set with the most batches (--mode=inspect shows them)
    # has been drawn so often; 0 = steps.
    epochs: float = 0.0
    # In place of steps: tokens read, padding left out; 0 = steps.
    tokens: float = 0.0
    # Stop after so many minutes over all starts of the run, compilation and evaluation included, wherever the schedules
    # are then; 0 = no limit. How many steps that are differs from machine to machine.
    minutes: float = 0.0
    # Micro-batches in a step.
    grad_accum_steps: int = 1
    # Steps; 0 = only at the end.
    eval_every: int = 200
    # Steps; 0 = only at the end.
    checkpoint_every: int = 200
    # Newest checkpoints to keep; the best by dev score is kept as well.
    max_to_keep: int = 2
    # Steps between lines of metrics.jsonl.
    log_every: int = 10
    # Where these numbers are shown as well: names in mtl_jax.storage.trackers.TRACKERS, "tensorboard", "wandb" (Weights
    # & Biases), "mlflow".
    trackers: tuple[str, ...] = ("tensorboard",)
    # Tracker -> its options, e.g. {"wandb": {"project": "senses"}}.
    tracker_options: Mapping[str, Any]
    # Stop after this number of evaluations without a better dev score; 0 = off.
    early_stopping_patience: int = 0
    # Stop after this number of non-finite steps in a row.
    max_nonfinite_steps: int = 20
    # "jit" on a mesh | "pmap" over rows.
    placement: Literal["jit", "pmap"] = "jit"
    # Devices on each axis, for "jit".
    mesh: Mesh
    # Keep the large arrays of the optimizer's state in host memory between updates; for "jit".
    offload_optimizer: bool = False
    # An error where it is absent; "": what there is.
    platform: Literal["", "cpu", "gpu", "tpu"] = ""


class Evaluation(Protocol):
    """What is scored."""

    # Rows in a batch of evaluation.
    rows_per_batch: int = 32
    # Scored at the end; "dev" also at every evaluation.
    splits: tuple[str, ...] = ("dev", "test")
    # Parameters scored at the end and saved for prediction: "best" by dev score | "last".
    checkpoint: Literal["best", "last"] = "best"
    # The dev score by which steps, settings of an ablation and merged models are chosen, of the tasks' first metrics:
    # their "mean" | "min" | "geometric_mean" | "weighted" mean | "delta_m", the mean relative change against single
    # tasks (Maninis et al. 2019) | that of one task, by its name.
    selection: str = "mean"
    # Task -> its weight, for selection = "weighted"; others have 1.
    selection_weights: Mapping[str, float]
    # Task -> first metric on dev of a model of this task alone, for selection = "delta_m".
    single_task_scores: Mapping[str, float]


class InitFrom(Protocol):
    """A finished run whose parameters this one begins from, compared by name; see docs/runs.md."""

    # Folder of the run; "": initial values as `model` says.
    run: str = ""
    # "best" | "last" | the number of a step; "": evaluation.checkpoint of that run.
    checkpoint: str = ""
    # Regex on paths of this run: what is taken. "^(?!heads/)": all but the heads.
    params: str = ".*"
    # Task of this config -> task of the run that it continues: its head, columns and adapters. A task of the same name
    # needs no entry.
    tasks: Mapping[str, str]
    # Tokens of words are those of the "run" | of the training "data" of this config; word vectors are then taken by
    # word.
    vocabulary: Literal["run", "data"] = "run"
    # Tasks whose predictions stay those of the run, to the last bit: all that they read is frozen, shared or not.
    freeze: tuple[str, ...] = ()
    # Tasks of the run that are not trained here: nothing of their data sets is in the batches, and what they alone own
    # stays. They are scored where their data can be read; data sets without path, origin, wheel and splits are not.
    untrained: tuple[str, ...] = ()


class Ablation(Protocol):
    """--mode=ablate: many settings trained as lanes of one compiled program."""

    # Name -> sweep, see `add_sweep`. Lanes: their product, × seeds.
    sweeps: Mapping[str, Sweep]
    # Name -> choice, see `add_choice`. One program for each combination.
    choices: Mapping[str, Choice]
    # Number of preference vectors over the tasks, 0 = none: settings whose task weights are K times a point of the
    # simplex (even for two tasks, else drawn by config.seed), swept together; with a Pareto front.
    preferences: int = 0
    # Choice -> its alternatives that the others are compared with, each at its best setting on dev, e.g.
    # {"method": ("single", "sum")}.
    baselines: Mapping[str, tuple[str, ...]]
    # S: config.seed, config.seed + 1, ... determine initial values, dropout and the order of the batches.
    num_seeds: int = 3
    # 95 % intervals and tests over seeds; False: one seed may do.
    intervals: bool = True
    # With a swept λ: add single-task training (λ = 0), tied columns (λ → ∞) and hard sharing.
    limits: bool = True
    # Factors on the learning rate, over which the ends are tuned on dev.
    lr_factors: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    # "grid" | "halving" (successive halving of the lanes) | "hypergradient" (λ by ∇ dev loss).
    method: Literal["grid", "halving", "hypergradient"] = "grid"
    # Options of the method, see mtl_jax/analysis/ablation/.
    options: Mapping[str, Any]
    # Lanes by "vmap" | "map" (sequentially); "auto": map on CPU. The results are the same.
    lane_execution: Literal["auto", "vmap", "map"] = "auto"
    # Lanes in a program at once, the rest follow sequentially; 0 = as many as fit into memory.
    max_lanes: int = 0
    # Fraction of the device's memory that a program may take.
    memory_fraction: float = 0.8
    # Packed rows are stored on the "device" | come from the "host"; "auto": device where they fit.
    data_placement: Literal["auto", "device", "host"] = "auto"
    # Parameters that stay, as the folder of a run each, in programs/*/runs/: "" none | "chosen" those of the settings
    # chosen on dev; the others are deleted at the end | "all".
    keep: Literal["", "chosen", "all"] = ""
    # Exact optimum drawn next to the curve; names: mtl_jax/analysis/ablation/exact_optima.py.
    exact_optimum: str = ""


class Adaptation(Protocol):
    """--mode=adapt: the tasks of this config, learned from few examples by finished runs.

    Adapters are those of the run; `sharing.adapter` of this config puts new ones in their place.
    """

    # k, examples of each class; of tasks whose examples are of no class (tags, answers, numbers, sets, strings, ...) k
    # examples.
    shots: tuple[int, ...] = (1, 5)
    # Random supports of k examples a class from train, drawn by config.seed; scored on test.
    num_supports: int = 20
    # Tasks on whose dev splits learning rate and steps are chosen, for each run and k; they are not reported. (): on
    # the dev splits of the reported tasks.
    tuning_tasks: tuple[str, ...] = ()
    # Supports for that, other than the reported ones.
    num_tuning_supports: int = 5
    # Learning rates to choose from.
    learning_rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0, 3.0)
    # Numbers of steps to choose from, each on the whole support.
    steps: tuple[int, ...] = (1, 2, 5, 10, 20, 50)
    # As `optimizer.name`, without weight decay, at a constant learning rate and without dropout.
    optimizer: str = "sgd"
    # Regex on paths of the parameters that are adapted; "^heads/": the head alone, whose output layer starts from zero;
    # "^(heads/|adapter_)": head and adapters.
    params: str = ".*"
    # Task of the runs whose column is used; "": the mean of their columns. Shared layers are shared.
    column: str = ""
    # Name of the run that the others are compared with; "": "initial values".
    baseline: str = ""
    # Adapted models that stay, as the folder of a run each, in runs/ of the output: "" none | "chosen" those from the
    # first support, at the rate and steps that dev chose | "all" those from every support.
    keep: Literal["", "chosen", "all"] = "chosen"


class Relatedness(Protocol):
    """--mode=relate: which tasks help which, and what predicts it."""

    # Names in mtl_jax/analysis/relatedness/registry.py; (): all that the config allows.
    measures: tuple[str, ...] = ()
    # Number of seeds: config.seed, config.seed + 1, ...
    num_seeds: int = 3
    # Steps between two measurements of the gradients of the joint run.
    measure_every: int = 20
    # Length of TAG's steps, relative to that of the shared parameters.
    lookahead: float = 1e-2
    # Their number, each on the gradient of one task.
    lookahead_steps: int = 1
    # Grad-TAG: dimensions to which the gradients of examples are projected.
    linearised_dimensions: int = 512
    # Grad-TAG: maximal number of examples of each data set, in train and in dev.
    linearised_examples: int = 500
    # Pairs of tasks that are trained: -1 = all; fewer are drawn by config.seed; 0: none, and no task alone.
    num_pairs: int = -1
    # Measure whose values take the place of measured gains in groups and auxiliary tasks: "grad_tag" | ...; "": none.
    predictor: str = ""
    # Split on which transfer is measured.
    transfer_split: str = "dev"
    # Number of texts on which the tasks' columns are compared.
    num_inputs: int = 500
    # Budget: maximal number of groups of tasks to be trained together.
    max_groups: int = 2
    # Maximal number of tasks to be trained with one target.
    max_auxiliary_tasks: int = 2


class Merging(Protocol):
    """--mode=merge: the columns of a run, or several runs, as one encoder."""

    # Names in MERGING of mtl_jax/sharing/merging.py; (): all. Their options are chosen on dev.
    methods: tuple[str, ...] = ()
    # Folders of finished runs whose scores are listed in the table too, e.g. ("runs/tied",).
    reference_runs: tuple[str, ...] = ()
    # Of runs with adapters: "products" (kernels with what adapters add, W + α / r · A B; the merged run has none) |
    # "factors" (A and B each, and other adapters as they are; the merged run has one for all) | "": products where
    # adapters change fixed kernels, else factors.
    adapters: Literal["", "products", "factors"] = ""
    # Hugging Face folders or Hub names of one architecture, merged in place of runs by one method; --output is such a
    # folder.
    folders: tuple[str, ...] = ()
    # Of `folders`: the one that they began from; methods on task vectors need it.
    base: str = ""
    # Of `folders`: options of the method, e.g. {"scale": 0.3}; what is left out has its published value.
    options: Mapping[str, Any]


class Config(Protocol):
    """A config."""

    # Initial values, order of the batches, dropout.
    seed: int = 0
    # Name -> data set, see `add_dataset`.
    datasets: Mapping[str, Dataset]
    # Name -> task, see `add_task`. Their order is that of [K] axes.
    tasks: Mapping[str, Task]
    # Names of the tasks to train; () = all. The vocabulary is that of all data sets.
    train_tasks: tuple[str, ...] = ()
    # Name -> penalty, see `add_penalty`. The soft-sharing terms λ·Ω.
    penalties: Mapping[str, Penalty]
    data: Data
    tokenizer: Tokenizer
    images: Images
    model: Model
    sharing: Sharing
    # Factors on losses that mixers and kinds of tasks add, e.g. {"adversarial": 0.1}; the others have their default.
    auxiliary_loss_weights: Mapping[str, float]
    loss_weights: LossWeights
    aggregation: Aggregation
    # Task -> finished runs that teach it, see `add_distillation`.
    distillation: Mapping[str, Distillation]
    meta: Meta
    optimizer: Optimizer
    training: Training
    evaluation: Evaluation
    init_from: InitFrom
    ablation: Ablation
    adaptation: Adaptation
    relatedness: Relatedness
    merging: Merging
