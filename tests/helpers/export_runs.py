"""A tiny run, untrained, with a task of every kind that `transformers` has a head for."""

import json
import pathlib

import numpy as np
from make_encoder_goldens import SMALL, TINY, config_of, hashed_weights
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from mtl_jax.config import default
from mtl_jax.models import families
from mtl_jax.runs.build import build
from mtl_jax.storage import artifacts, checkpoint
from mtl_jax.storage import workdir as folders

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [f"w{n}" for n in range(60)]
FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", *(name for name in TINY if " " not in name))
TASKS = ("topic", "sets", "score", "pos", "answer", "choice", "hidden")


def family_config(family: str) -> dict[str, object]:
    """config.json of a tiny encoder."""
    if family in TINY:
        return config_of(family)
    padding = {} if family == "bert" else {"pad_token_id": 1}
    return {"model_type": family, **SMALL, "max_position_embeddings": 68, **padding}


def tasks_of(family: str) -> tuple[str, ...]:
    """The tasks that have a published head in a family."""
    kinds = dict(zip(TASKS, ("sequence", "sequence", "sequence", "token", "span", "choice", "masked"), strict=True))
    heads = families.architecture_from_config(family_config(family), family).published_heads()
    return tuple(task for task in TASKS if kinds[task] in heads)


def encoder_folder(folder: pathlib.Path, family: str) -> pathlib.Path:
    """config.json, weights and tokenizer of a tiny encoder."""
    config = {**family_config(family), "vocab_size": len(SPECIALS) + len(WORDS) + 3}
    tensors = families.architecture_from_config(config, family).published_tensors()
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(hashed_weights({tensor.name: tensor.shape for tensor in tensors}), folder / "model.safetensors")
    vocabulary = {token: number for number, token in enumerate([*SPECIALS, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.save(str(folder / "tokenizer.json"))
    named = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIALS, strict=True))
    (folder / "special_tokens_map.json").write_text(json.dumps(named), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **named}), encoding="utf-8"
    )
    return folder


def write_data(folder: pathlib.Path, count: int = 12) -> None:
    """A file of records for each data set."""
    draw = np.random.default_rng(0)

    def words(length: int) -> list[str]:
        return [WORDS[n] for n in draw.integers(0, len(WORDS), length)]

    records: dict[str, list] = {"texts": [], "sentences": [], "questions": [], "endings": [], "raw": []}
    for number in range(count):
        text = words(5 + number % 4)
        topic, label = f"t{number % 3}", ",".join(["a", "b"][: 1 + number % 2])
        records["texts"].append({"text": " ".join(text), "topic": topic, "sets": label, "score": number / 4})
        records["sentences"].append({"words": text, "pos": [f"p{(number + n) % 4}" for n in range(len(text))]})
        context = words(8)
        answers = [{"text": context[2], "answer_start": len(" ".join(context[:2])) + 1}]
        records["questions"].append({"question": " ".join(words(3)), "context": " ".join(context), "answers": answers})
        options = [" ".join(words(3)) for _ in range(3)]
        records["endings"].append({"text": " ".join(text), "options": options, "label": number % 3})
        records["raw"].append({"text": " ".join(words(7))})
    for name, lines in records.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def make_config(folder: pathlib.Path, encoder: pathlib.Path | str, tasks=TASKS, **options):
    """The tasks on their data sets; `options` of each task by its name."""
    config, splits = default.get_config(), {"train": "", "dev": "", "test": ""}

    def add(name, dataset, label, kind, metrics=(), **fields):
        if name in tasks:
            if dataset not in config.datasets:
                path = str(folder / f"{dataset}.jsonl")
                default.add_dataset(
                    config, dataset, reader="jsonl", path=path, splits=dict.fromkeys(splits, path), **fields
                )
            default.add_task(config, name, kind=kind, dataset=dataset, label=label, options=options.get(name, {}))

    add("topic", "texts", "topic", "classification", text=("text",))
    add("sets", "texts", "sets", "multilabel", text=("text",))
    add("score", "texts", "score", "regression", text=("text",))
    add("pos", "sentences", "pos", "tagging", words="words")
    add("answer", "questions", "answers", "span", text=("question", "context"))
    add("choice", "endings", "label", "multiple_choice", text=("text",), choices=("options",))
    add("hidden", "raw", "", "masked_lm", text=("text",))
    config.model.pretrained, config.data.row_length = str(encoder), 64
    config.data.rows_per_block = config.evaluation.rows_per_batch = 8
    config.training.steps = 1
    return config


def untrained(workdir: pathlib.Path, config) -> pathlib.Path:
    """The folder of a run that has its initial values."""
    workdir = folders.prepare(workdir)
    experiment = build(config)
    folders.claim(workdir, config)
    artifacts.save(workdir, experiment.corpus, experiment.model.architecture)
    with checkpoint.Checkpoints(workdir, 1, experiment.spec.objective.groups) as checkpoints:
        checkpoints.save(experiment.init(0), {})
    return workdir
