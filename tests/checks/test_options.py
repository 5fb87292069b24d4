"""An option that is set has an effect, or is refused by name: every field of a config, in contexts of every kind.

A context is a small config. In it each field is changed by itself. The change is refused, by a line that names the
field, or something that follows from the config differs: the program of a train step and what goes into it
(hyperparameters that it reads, initial values, batches), what is scored, on what, how it is laid over devices. Fields
that act somewhere else are listed with the file in which they do. A field that is in neither list fails the test.
"""

import hashlib
import itertools
import json
import pathlib
import re

import jax
import numpy as np
import pytest
from jax.interpreters import partial_eval
from ml_collections import ConfigDict
from PIL import Image
from safetensors.numpy import save_file

from mtl_jax import checks
from mtl_jax.analysis.ablation import plan, traced_fields
from mtl_jax.checks.idle_options import RULES
from mtl_jax.checks.idle_options import idle_settings as config_effects
from mtl_jax.config import default
from mtl_jax.errors import UserError
from mtl_jax.evaluation.scores import placement_from_config
from mtl_jax.models import families
from mtl_jax.runs.build import build
from mtl_jax.training.step import train_step

ROOT = pathlib.Path(__file__).parents[2]
SIZES = {"train": 20, "dev": 6, "test": 6}
WORDS = (*(f"w{i}" for i in range(12)), "Red", "red", "blue", "rare", "né")
BERT = {
    "model_type": "bert",
    "vocab_size": 30,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two data sets with labels of every kind, and a tiny BERT with a tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    root = tmp_path_factory.mktemp("options")
    rng = np.random.default_rng(0)
    for name, (split, count) in itertools.product("ab", SIZES.items()):
        records = []
        for number in range(count if name == "a" else 2 * count):  # by size the second is drawn more often
            words = [str(word) for word in rng.choice(WORDS[:-2], rng.integers(3, 7))] + ["red", "blue"][number % 2 :]
            words = ["rare", "né", *words] if number < 2 else ["the", "same", "red"] if number == 2 else words
            color = "red" if "red" in words else "blue"
            records.append(
                {
                    "text": " ".join(words),
                    "words": words,
                    "class": ("yes", "no", "maybe")[number % 3],
                    "value": float(number % 3),
                    "set": ["x", ["y"], ["x", "y"]][number % 3],
                    "tags": ["B-C" if word == "red" else "O" for word in words],
                    "source": f"s{number % 2}",
                    "answer": color,
                    "at": " ".join(words).find(color),
                    "long": " ".join(words * 2),
                    "target": words[:2],
                    "first": [0, 1],
                    "last": [len(words) - 2, len(words) - 1],
                    "picture": f"{number % 2}.png",
                }
            )
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (root / f"{name}.{split}.jsonl").write_text(lines, encoding="utf-8")
    for number in range(2):
        Image.fromarray(np.full((8, 8, 3), 100 * number + 50, np.uint8)).save(root / f"{number}.png")
    encoder = root / "encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text(json.dumps(BERT), encoding="utf-8")
    tensors = families.architecture_from_config(BERT, "tiny").published_tensors()
    weights = {tensor.name: rng.normal(size=tensor.shape).astype(np.float32) for tensor in tensors}
    save_file(weights, encoder / "model.safetensors")
    names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
    for place, size in ((encoder, len(names)), (root, len(names) - 3)):
        backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names[:size])}, unk_token="[UNK]"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        backend.add_special_tokens(list(names[:5]))
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        backend.save(str(place / "tokenizer.json"))
    return root


def base(folder, text=None) -> ConfigDict:
    """Two tasks on a data set each, hard sharing, a small CNN."""
    config = default.get_config()
    for name in "ab":
        splits = {split: f"{name}.{split}.jsonl" for split in SIZES}
        read = {"text": (text,)} if text else {"words": "words"}
        default.add_dataset(config, f"data_{name}", reader="jsonl", path=str(folder), splits=splits, **read)
        default.add_task(config, f"task_{name}", kind="classification", dataset=f"data_{name}", label="class")
    config.tokenizer.kind = "words"
    config.model.layer_type, config.model.num_layers, config.model.hidden_size = "cnn", 1, 4
    config.data.row_length, config.data.rows_per_block, config.training.steps = 16, 8, 20
    config.training.eval_every = 10
    return config


def with_(**changes):
    """A context: `base` with some fields changed, "__" between the parts of their names."""

    def context(folder):
        return traced_fields.merged(base(folder), nested(changes), "context")

    return context


def nested(changes):
    tree = {}
    for field, value in changes.items():
        *parents, last = field.split("__")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def task(kind, label, **rest):
    def context(folder):
        config = base(folder)
        config.tasks.task_a = default.task(kind=kind, label=label, dataset="data_a", **rest)
        return config

    return context


def columns(folder):
    config = base(folder)
    config.sharing.trunk = "none"
    default.add_penalty(config, "p", kind="l2_to_mean", strength=0.1, scope="layer", by_layer={"layer_00": 2.0})
    return config


def pretrained(folder):
    config = base(folder)
    config.model.layer_type, config.model.num_layers, config.model.pretrained = (
        "transformer",
        -1,
        str(folder / "encoder"),
    )
    config.model.hidden_size, config.tokenizer.kind = default.get_config().model.hidden_size, "pretrained"
    config.optimizer.freeze = ("^embed/",)
    return config


def span(folder):
    config = base(folder, "long")
    config.tasks.task_a = default.task(kind="span", label="answer+at", dataset="data_a")
    return config


def marked(folder):
    config = task("relation", "class")(folder)
    config.datasets.data_a.marked = ("first", "last")
    return config


def pictures(folder):
    config = base(folder)
    config.datasets.data_a.image, config.images.patch_size = "picture", 4
    return config


def writer(folder):
    options = {"decoder": "lstm", "layers": 1, "max_length": 4}
    return task("generation", "target", options=options)(folder)


CONTEXTS = {
    "hard": base,
    "columns": columns,
    "lstm": with_(model__layer_type="lstm"),
    "pretrained": pretrained,
    "span": span,
    "transformer": with_(model__layer_type="transformer"),
    "groups": with_(sharing__task_groups={"layer_00": (("task_a",), ("task_b",))}),
    "temperature": with_(data__mixing="temperature", data__mixing_temperature=2.0),
    "weights": with_(
        data__mixing="weights", data__blocks_per_batch=2, data__mixing_weights={"data_a": 1.0, "data_b": 1.0}
    ),
    "sgd": with_(optimizer__name="sgd"),
    "maml": with_(meta__method="maml"),
    "reptile": with_(meta__method="reptile"),
    "mgda": with_(aggregation__method="mgda"),
    "pullbacks": with_(aggregation__method="mgda", aggregation__jacobian="vjp"),
    "experts": with_(sharing__trunk="embed", sharing__mixer="mmoe", model__num_layers=2),
    "adapters": with_(sharing__adapter="bottleneck", model__num_layers=2),
    "low_head": with_(sharing__head_layers={"task_a": "embed"}),
    "tags": task("tagging", "tags"),
    "numbers": task("regression", "value"),
    "sets": task("multilabel", "set"),
    "masked": task("masked_lm", ""),
    "writer": writer,
    "bag": with_(model__num_layers=0),
    "pmap": with_(training__placement="pmap"),
    "marked": marked,
    "pictures": pictures,
    "carved": with_(datasets__data_a__max_examples={"train": 8}, tasks__task_b__max_labels=6),
    "dwa": with_(loss_weights__method="dwa"),
    "private": with_(sharing__trunk="embed", sharing__mixer="shared_private"),
}


def digest(tree) -> str:
    """Of the arrays of a pytree."""
    whole = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        whole.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode() + array.tobytes())
    return whole.hexdigest()


def program(function, *arguments):
    """The text of a function's program, and the arguments and constants that it reads."""
    closed = jax.make_jaxpr(function)(*arguments)
    jaxpr, used = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    read = [leaf for leaf, is_read in zip(jax.tree.leaves(arguments), used, strict=True) if is_read]
    return str(jaxpr), digest([x for x in read if not isinstance(x, jax.ShapeDtypeStruct)]), digest(closed.consts)


class Parts:
    """What follows from a config, each part computed when it is asked for: cheap ones come first."""

    ORDER = ("data", "layout", "start", "step")

    def __init__(self, config):
        self.config, self.experiment, self.known = config, build(config), {}

    def __getitem__(self, name):
        if name not in self.known:
            self.known[name] = getattr(self, name)()
        return self.known[name]

    def data(self):
        """What is read: rows of every split, and the first batches."""
        corpus = self.experiment.corpus
        rows = {name: {s: rows._asdict() for s, rows in by.items()} for name, by in corpus.rows.items()}
        return digest(rows), digest([batch._asdict() for batch in self.batches()])

    def batches(self):
        batches = self.experiment.batches(self.config.seed)
        return [batches.batch(number) for number in range(16)]

    def layout(self):
        """What is predicted and scored, and where it lies."""
        experiment, state = self.experiment, self.state()
        placement = placement_from_config(experiment)
        places = jax.tree.map(str, placement.shardings(state))
        return repr(experiment.tasks), repr(experiment.corpus.vocabularies), placement.row_shards, str(places)

    def state(self):
        return jax.eval_shape(lambda: self.experiment.init(0))

    def start(self):
        """The initial values, as a program and what it reads; the seed is one of its constants."""
        return self.config.seed, program(lambda: self.experiment.init_params(self.config.seed))

    def step(self):
        """The train step, as a program and the hyperparameters that it reads."""
        experiment, count = self.experiment, self.config.training.grad_accum_steps
        batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape), x.dtype), self.batches()[0])
        return program(lambda s, b, h: train_step(experiment.spec, s, b, h), self.state(), batch, experiment.hyper)


def differs(one: Parts, other: Parts) -> bool:
    return any(one[name] != other[name] for name in Parts.ORDER)


A, B = "task_a", "task_b"
# what a field is changed to: the first that it is not yet. "@" stands for the folder of the data
CHANGES = {
    "seed": (1,),
    "train_tasks": ((A,),),
    "auxiliary_loss_weights": ({"adversarial": 0.3},),
    "data.seed": (1,),
    "data.row_length": (24,),
    "data.rows_per_block": (16,),
    "data.packing": (False,),
    "data.mixing": ("size",),
    "data.blocks_per_batch": (3,),
    "data.mixing_temperature": (3.0,),
    "data.mixing_weights": ({"data_a": 1.0, "data_b": 3.0},),
    "data.window_stride": (3,),
    "tokenizer.kind": ("words", "pretrained"),
    "tokenizer.path": ("@",),
    "tokenizer.lowercase": (True,),
    "tokenizer.min_count": (9,),
    "tokenizer.max_vocab_size": (3,),
    "images.patch_size": (2,),
    "images.num_channels": (1,),
    "images.blank": (True,),
    "model.pretrained": ("@/encoder", ""),
    "model.layer_type": ("bilstm",),
    "model.layer_options": ({"residual": False},),
    "model.num_layers": (3, 1),
    "model.hidden_size": (8,),
    "model.num_heads": (2,),
    "model.intermediate_size": (16,),
    "model.activation": ("relu",),
    "model.initializer_range": (0.5,),
    "model.kernel_size": (5,),
    "model.column_init": ("independent",),
    "model.column_execution": ("unroll",),
    "model.dtype": ("bfloat16",),
    "model.dropout": (0.3,),
    "model.attention_dropout": (0.3,),
    "model.remat_policy": ("dots_saveable",),
    "sharing.trunk": ("embed", "none"),
    "sharing.task_groups": ({"embed": ((A,), (B,))}, {}),
    "sharing.mixer": ("cross_stitch",),
    "sharing.mixer_options": ({"experts": 3},),
    "sharing.mixer_layers": (("layer_00", "layer_01"),),
    "sharing.adapter": ("lora", "bottleneck"),
    "sharing.adapter_options": ({"size": 3},),
    "sharing.adapter_layers": (("layer_00",),),
    "sharing.adapter_owner": ("all",),
    "sharing.adapter_groups": ({"layer_00": ((A, B),)},),
    "sharing.readout": ("mixture",),
    "sharing.readout_options": ({"hidden": 3},),
    "sharing.head_layers": ({B: "embed"},),
    "sharing.cascades": ({B: (A,)},),
    "sharing.tied": (True,),
    "loss_weights.method": ("uncertainty",),
    "loss_weights.options": ({"temperature": 3.0},),
    "aggregation.method": ("pcgrad",),
    "aggregation.options": ({"c": 0.3},),
    "aggregation.smoothing": (0.5,),
    "aggregation.level": ("representation",),
    "aggregation.gradient_storage": ("layers",),
    "aggregation.jacobian": ("vjp", "auto"),
    "aggregation.pullbacks_at_once": (2,),
    "meta.method": ("fomaml",),
    "meta.inner_steps": (1,),
    "meta.inner_learning_rate": (0.5,),
    "meta.support_fraction": (0.3,),
    "meta.inner_params": ("^heads/",),
    "meta.head_init": ("zero",),
    "meta.tasks_per_step": (1,),
    "optimizer.name": ("sgd", "adamw"),
    "optimizer.learning_rate": (1e-3,),
    "optimizer.weight_decay": (0.1,),
    "optimizer.options": ({"b1": 0.8}, {"momentum": 0.5}),
    "optimizer.warmup_ratio": (0.5,),
    "optimizer.schedule": ("cosine", "polynomial_schedule"),
    "optimizer.schedule_options": ({"decay_steps": 5}, {"end_value": 0.1, "power": 2}),
    "optimizer.clip_norm": (2.0,),
    "optimizer.param_groups": ({"x": {"params": "^embed/", "lr_multiplier": 2.0}},),
    "optimizer.freeze": (("^layer_",),),
    "optimizer.cache_frozen": (True,),
    "optimizer.skip_absent_tasks": (True,),
    "training.steps": (40,),
    "training.grad_accum_steps": (2,),
    "training.max_nonfinite_steps": (3,),
    "training.placement": ("pmap", "jit"),
    "training.mesh.data": (4,),
    "training.mesh.fsdp": (2,),
    "training.mesh.task": (2,),
    "training.mesh.sequence": (2,),
    "training.offload_optimizer": (True,),
    "training.mesh.model": (2,),
    "datasets.data_a.splits": ({"train": "b.train.jsonl", "dev": "a.dev.jsonl", "test": "a.test.jsonl"},),
    "datasets.data_a.text": (("target",), ("text",)),
    "datasets.data_a.words": ("target",),
    "datasets.data_a.choices": (("text",),),
    "datasets.data_a.marked": (("last", "first"),),
    "datasets.data_a.marked_ends": ("excluded",),
    "datasets.data_a.markers": (("red", "red", "blue", "blue"),),
    "datasets.data_a.image": ("picture", ""),
    "datasets.data_a.image_size": ((16, 16),),
    "datasets.data_a.filter": ({"source": "s1"},),
    "datasets.data_a.encoding": ("latin-1",),
    "datasets.data_a.dev_fraction": (0.2,),
    "datasets.data_a.test_fraction": (0.2,),
    "datasets.data_a.group_by": ("source",),
    "datasets.data_a.max_examples": ({"train": 6},),
    "datasets.data_a.drop_duplicates": ("train",),
    "tasks.task_a.kind": ("multilabel", "classification"),
    "tasks.task_a.dataset": ("data_b",),
    "tasks.task_a.label": ("source",),
    "tasks.task_a.level": ("predicate",),
    "tasks.task_a.weight": (2.0,),
    "tasks.task_a.metrics": (("f1",),),
    "tasks.task_a.classes": (("yes", "no", "maybe"),),
    "tasks.task_a.missing": (("no", "red", "O", "1", "x"),),
    "tasks.task_a.max_labels": (5,),
    "tasks.task_a.options": ({"hidden": 3},),
    "penalties.p.kind": ("trace_norm",),
    "penalties.p.strength": (0.5,),
    "penalties.p.params": ("kernel",),
    "penalties.p.on": ("product",),
    "penalties.p.scope": ("leaf",),
    "penalties.p.by_layer": ({"layer_00": 3.0},),
    "penalties.p.schedule": ("rise",),
    "penalties.p.proximal": (True,),
    "penalties.p.options": ({"center": "mean"},),
}
# fields that act beside the train step: the file in which they do
ELSEWHERE = {
    "data.max_unseen_labels": "data/preparation.py",
    "data.overflow": "experiment/inputs.py",
    "images.pretrained": "experiment/inputs.py",
    "model.word_vectors": "experiment/initial_values.py",
    "model.pretrained_wheel": "experiment/inputs.py",
    "training.max_to_keep": "runs/train.py",
    "training.log_every": "runs/training_loop.py",
    "training.epochs": "experiment/budget.py",
    "training.tokens": "experiment/budget.py",
    "training.minutes": "runs/training_loop.py",
    "training.trackers": "storage/tracking.py",
    "training.tracker_options": "storage/tracking.py",
    "training.eval_every": "runs/training_loop.py",
    "training.checkpoint_every": "runs/training_loop.py",
    "training.early_stopping_patience": "runs/training_loop.py",
    "training.platform": "runs/train.py",
    "evaluation.rows_per_batch": "evaluation/scores.py",
    "evaluation.splits": "evaluation/scores.py",
    "evaluation.checkpoint": "runs/run_summary.py",
    "datasets.data_a.reader": "data/datasets/entry.py",
    "datasets.data_a.path": "data/datasets/split_locations.py",
    "datasets.data_a.origin": "data/datasets/split_locations.py",
    "datasets.data_a.wheel": "data/datasets/split_locations.py",
    "datasets.data_a.options": "data/datasets/__init__.py",
    **{f"distillation.{A}.{field}": "runs/teachers.py" for field in ("teachers", "weights", "task", "weight")},
    **{f"distillation.{A}.{field}": "experiment/assemble.py" for field in ("temperature", "annealing")},
    **{f"ablation.sweeps.x.{field}": "analysis/ablation/sweeps.py" for field in default.sweep()},
    **{f"ablation.choices.x.{field}": "analysis/ablation/plan.py" for field in default.choice()},
    **{
        f"ablation.{field}": "analysis/ablation/plan.py" for field in ("baselines", "num_seeds", "limits", "lr_factors")
    },
    **{
        f"ablation.{field}": "analysis/ablation/program_training.py"
        for field in ("method", "options", "lane_execution", "max_lanes", "memory_fraction", "exact_optimum")
    },
    "ablation.intervals": "checks/analyses.py",
    "ablation.keep": "analysis/ablation/kept_runs.py",
    "ablation.preferences": "analysis/ablation/preferences.py",
    **{
        f"evaluation.{field}": "evaluation/scores.py"
        for field in ("selection", "selection_weights", "single_task_scores")
    },
    "model.pretrained_adapter": "experiment/inputs.py",
    "ablation.data_placement": "analysis/ablation/engine.py",
    "penalties.p.shared": "experiment/penalties.py",
    **{f"init_from.{field}": "runs/init_from.py" for field in default.get_config().init_from},
    **{f"adaptation.{field}": "analysis/adaptation/adapt.py" for field in default.get_config().adaptation},
    **{f"adaptation.{field}": "analysis/adaptation/lanes.py" for field in ("optimizer", "params", "steps")},
    **{f"adaptation.{field}": "analysis/adaptation/sources.py" for field in ("column", "baseline")},
    **{f"relatedness.{field}": "analysis/relatedness/relate.py" for field in default.get_config().relatedness},
    **{
        f"relatedness.{field}": "analysis/relatedness/seed_measures.py"
        for field in ("measure_every", "lookahead", "lookahead_steps", "num_inputs")
    },
    **{f"relatedness.linearised_{of}": "analysis/relatedness/seed_measures.py" for of in ("dimensions", "examples")},
    **{f"relatedness.{field}": "analysis/relatedness/transfer.py" for field in ("num_seeds", "num_pairs")},
    **{f"merging.{field}": "runs/merge.py" for field in default.get_config().merging},
}


def every_field():
    """Dotted names of all fields, those of entries too."""
    config = default.get_config()
    default.add_dataset(config, "data_a")
    default.add_task(config, A)
    default.add_penalty(config, "p")
    default.add_distillation(config, A)
    default.add_sweep(config, "x")
    default.add_choice(config, "x")

    def walk(node, prefix):
        for name, value in node.items():
            is_section = hasattr(value, "items") and len(value) and name != "pretrained_wheel"
            yield from walk(value, f"{prefix}{name}.") if is_section else (prefix + name,)

    return set(walk(config, ""))


def test_every_field_is_in_one_of_the_lists():
    assert every_field() == set(CHANGES) | set(ELSEWHERE)
    assert not set(CHANGES) & set(ELSEWHERE)


@pytest.mark.parametrize("field", sorted(ELSEWHERE))
def test_what_acts_elsewhere_is_read_there(field):
    source = (ROOT / "mtl_jax" / ELSEWHERE[field]).read_text(encoding="utf-8")
    assert re.search(rf"\b{field.rpartition('.')[2]}\b", source)


def changed(config, field, folder):
    """The config with one field changed; None where the context has no such entry."""
    *parents, last = field.split(".")
    node = config
    for name in parents:
        if name not in node:
            return None
        node = node[name]
    usual = node[last].to_dict() if hasattr(node[last], "items") else node[last]
    offered = [str(folder) + v[1:] if isinstance(v, str) and v[:1] == "@" else v for v in CHANGES[field]]
    value = next(v for v in offered if v != usual)
    return traced_fields.with_values(config, {field: ConfigDict(value) if isinstance(value, dict) else value})


def refusal(config) -> str:
    """What a config is refused with, "" where it is not."""
    try:
        checks.check(config)
        return ""
    except UserError as error:
        return str(error)


# what is the same by another name there: the only layer is the top one; texts of answers and targets may be anything
UNSEEN = {
    ("span", f"tasks.{A}.missing"),
    ("writer", f"tasks.{A}.missing"),
    ("bag", "model.layer_type"),
    ("bag", "sharing.trunk"),
    ("bag", "sharing.head_layers"),
}
# what names a field too
ALSO = {
    "train_tasks": "tasks",
    "datasets.data_a.marked": "markers",
    f"tasks.{A}.dataset": "data set",
    f"tasks.{A}.kind": A,
    f"tasks.{A}.label": A,
    f"tasks.{A}.missing": A,
}


def verdict(base_parts, config, field) -> str:
    """ "effect", "refused", or what is wrong."""
    try:
        checks.check(config)
        other = Parts(config)
        return "effect" if differs(base_parts, other) else f"{field} is taken and has no effect"
    except UserError as error:
        value = config
        for name in field.split("."):
            value = value[name]
        values = [value] if isinstance(value, str) else list(value) if hasattr(value, "__iter__") else []
        names = (field.rpartition(".")[2], ALSO.get(field, "no other name"), *map(str, values))
        known = any(name in str(error) for name in names if name)
        return "refused" if known else f"{field}: the refusal does not name it: {error}"


@pytest.mark.parametrize("context", CONTEXTS)
def test_contexts_are_accepted(context, folder):
    assert refusal(CONTEXTS[context](folder)) == ""


GOVERNED = sorted(
    {
        field
        for rule in RULES
        if "train" in rule.modes
        for pattern in rule.fields
        for field in CHANGES
        if re.fullmatch(pattern.replace(".", r"\.").replace("*", r"\w+"), field)
    }
)


SINGLE = [  # field, its value, mode, what makes it act (None: nothing does there)
    ("training.early_stopping_patience", 2, "train", {"training.eval_every": 5}),
    ("training.epochs", 2.0, "ablate", None),
    ("training.tokens", 2.0, "relate", None),
    ("training.minutes", 2.0, "ablate", None),
    ("training.placement", "pmap", "ablate", None),
    ("training.placement", "pmap", "relate", None),
    ("training.placement", "pmap", "ablate", None),
    ("ablation.options", {"eta": 2}, "ablate", {"ablation.method": "halving"}),
    ("ablation.lr_factors", (1.0,), "ablate", {"ablation.sweeps.rate.field": "penalties.p.strength"}),
    ("ablation.intervals", False, "ablate", {"ablation.num_seeds": 1}),
    ("ablation.sweeps.rate.low", 0.1, "ablate", {"ablation.sweeps.rate.points": ()}),
    ("relatedness.measure_every", 3, "relate", {"relatedness.measures": ("cka", "tag")}),
    ("relatedness.lookahead", 0.1, "relate", {"relatedness.measures": ("cka", "tag")}),
    ("relatedness.num_inputs", 30, "relate", {"relatedness.measures": ("rsa", "mtrl")}),
    ("datasets.data_a.encoding", "latin-1", "train", {"datasets.data_a.reader": "jsonl"}),
    (
        "datasets.data_a.group_by",
        "source",
        "train",
        {"datasets.data_a.splits": {"train": "a"}, "datasets.data_a.dev_fraction": 0.2},
    ),
    ("datasets.data_a.dev_fraction", 0.2, "train", {"datasets.data_a.splits": {"train": "a"}}),
    ("datasets.data_a.test_fraction", 0.2, "train", {"datasets.data_a.splits": {"train": "a"}}),
    ("data.seed", 1, "train", {"datasets.data_a.max_examples": {"train": 3}}),
    ("data.seed", 1, "train", {"tasks.task_a.max_labels": 3}),
    ("tasks.task_a.classes", ("a", "b"), "train", {"tasks.task_a.kind": "multilabel"}),
    ("model.pretrained_wheel.version", "1.0", "train", {"model.pretrained_wheel.name": "x"}),
    ("tasks.task_a.options.length_penalty", 0.3, "train", {"tasks.task_a.options.beam": 3}),
    ("sharing.mixer_options.gamma", 0.3, "train", {"sharing.mixer_options.gate": "dselect_k"}),
    ("distillation.task_a.weights", (1.0,), "train", {"distillation.task_a.teachers": ("a", "b")}),
]


@pytest.fixture(scope="module")
def found(folder):
    """{field: {context: "" where it acts there, else the line that refuses it}}."""
    table, configs = {}, {context: make(folder) for context, make in CONTEXTS.items()}
    for context, field in itertools.product(CONTEXTS, GOVERNED):
        other = changed(configs[context], field, folder)
        if other is not None and field in (effects := config_effects(other, "train")):
            table.setdefault(field, {})[context] = effects[field]
    return table


@pytest.mark.parametrize("field", [field for field in GOVERNED if field not in {entry[0] for entry in SINGLE}])
def test_every_rule_refuses_somewhere_and_accepts_somewhere(found, field):
    lines = {line for line in found[field].values() if line}
    assert "" in found[field].values() and len(lines) == 1
    assert re.match(rf"config\.{re.escape(field)}: .* has no effect here\. It acts with ", lines.pop())


def swept(config, **changes):
    """With a sweep of the learning rate, as it is in an ablation without λ."""
    default.add_sweep(config, "rate", field="optimizer.learning_rate", **{"points": (0.1, 0.2), **changes})


@pytest.mark.parametrize(("field", "value", "mode", "makes_it_act"), SINGLE)
def test_rules_of_other_modes_and_entries(folder, field, value, mode, makes_it_act):
    config = columns(folder)
    config.training.eval_every, config.datasets.data_a.reader, config.tasks.task_a.kind = 0, "parquet", "regression"
    config.relatedness.measures = ("parameter_cosine",)
    if "length_penalty" in field:
        config.tasks.task_a.kind = "generation"
    config.sharing.mixer = "mmoe"
    swept(config)
    default.add_distillation(config, A, teachers=("a",))

    def set_to(config, changes):
        plain = {f: ConfigDict(v) if isinstance(v, dict) else v for f, v in changes.items()}
        return config_effects(traced_fields.with_values(config, plain), mode).get(field)

    assert set_to(config, {}) is None
    assert set_to(config, {field: value}).startswith(f"config.{field}: ")
    if makes_it_act is not None:
        assert set_to(config, {field: value, **makes_it_act}) == ""


@pytest.mark.parametrize("mode", ["evaluate", "predict", "attribute", "export", "merge"])
def test_what_was_trained_before_is_still_read(folder, mode):
    """Modes that read a finished run leave it to the run what was ignored in it."""
    checks.check(with_(data__mixing_temperature=2.0)(folder), mode)


def test_an_option_of_some_alternatives_is_fine_and_of_none_is_not(folder):
    def planned(config):
        return plan.make_plan(config, lambda c: checks.check(c, "ablate"))

    config = with_(data__mixing_temperature=2.0)(folder)
    default.add_choice(config, "mixing", field="data.mixing", alternatives=("all", "temperature"))
    assert len(planned(config).programs) == 2
    config.ablation.choices.mixing.alternatives = ("all",)
    with pytest.raises(UserError, match=r"config\.data\.mixing_temperature: 2\.0 has no effect here"):
        planned(config)
    config = base(folder)
    default.add_sweep(config, "noise", field="model.attention_dropout", points=(0.0, 0.2), scale="linear")
    with pytest.raises(UserError, match=r"config\.model\.attention_dropout: 0\.2 has no effect here"):
        planned(config)


@pytest.mark.usefixtures("standard_promotion")
def test_low_rank_is_of_factors(folder):
    config = columns(folder)
    config.penalties.p = default.penalty(kind="low_rank", strength=0.1)
    with pytest.raises(UserError, match=r"config\.penalties\.p\.kind: 'low_rank' .* weight decay"):
        build(config)
    config.sharing.trunk, config.sharing.adapter = "all", "lora"
    config.model.layer_type, config.penalties.p.params = "lstm", "^adapter_"
    assert set(build(config).spec.objective.penalties) == {"p"}


@pytest.mark.usefixtures("standard_promotion")
def test_a_rate_of_frozen_parameters_is_refused(folder):
    groups = {"x": ConfigDict({"params": "^embed/", "lr_multiplier": 2.0})}
    config = with_(optimizer__freeze=("^embed/",), optimizer__param_groups=ConfigDict(groups))(folder)
    with pytest.raises(UserError, match=r"config\.optimizer\.param_groups\.x\.params: .* only frozen"):
        build(config)


SOME = (
    "data.mixing",
    "model.hidden_size",
    "optimizer.options",
    "optimizer.schedule_options",
    "optimizer.clip_norm",
    "training.grad_accum_steps",
    "datasets.data_a.filter",
    "tasks.task_a.weight",
    "sharing.tied",
)


@pytest.mark.parametrize("context", ["sgd"])
@pytest.mark.usefixtures("standard_promotion")
def test_some_options_in_one_context(context, folder, monkeypatch, tmp_path):
    """The campaign below, in seconds; and that it would see an option without an effect."""
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    parts = Parts(CONTEXTS[context](folder))
    for field in SOME:
        assert verdict(parts, changed(CONTEXTS[context](folder), field, folder), field) in ("effect", "refused")
    idle = changed(CONTEXTS[context](folder), "data.mixing_temperature", folder)
    assert not differs(parts, Parts(idle)) and "config.data.mixing_temperature" in refusal(idle)


@pytest.mark.slow
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.usefixtures("standard_promotion")
def test_every_option_in_every_context(context, folder, monkeypatch, tmp_path):
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    config = CONTEXTS[context](folder)
    parts, wrong = Parts(config), []
    for field in CHANGES:
        other = changed(config, field, folder)
        if other is None or (context, field) in UNSEEN:
            continue
        if (found := verdict(parts, other, field)) not in ("effect", "refused"):
            wrong.append(found)
    assert not wrong, "\n".join(wrong)


@pytest.mark.usefixtures("standard_promotion")
def test_adapters_on_no_layer_are_refused(folder):
    with pytest.raises(UserError, match=r"config\.sharing\.adapter: 'bottleneck' stands on layers"):
        build(with_(model__num_layers=0, sharing__adapter="bottleneck")(folder))
