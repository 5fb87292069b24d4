"""The predictions of one task as a StableHLO program (`jax.export`) that runs without this project.

A folder `jax/`: program.bin, parameters.npz, program.json and load.py, which needs jax, flatbuffers and numpy alone.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from mtl_jax.data.batch import Batch
from mtl_jax.experiment.assemble import Experiment
from mtl_jax.storage.workdir import write_json
from mtl_jax.tasks.base import Features, Labels, Task
from mtl_jax.training.group_batch import group_batch
from mtl_jax.training.objective import Params
from mtl_jax.training.parameter_paths import flatten, with_leaves

PLATFORMS = ("cpu", "cuda", "tpu")
SYMBOLS = ("b, t, q, c", "b")  # of the sizes that may vary: all of them; the texts alone
LOADER = '''"""The model of this folder, without the code that trained it: needs jax, flatbuffers and numpy.

predict = load("FOLDER"); predict(tokens=int32[b, t], mask=1 at tokens and 0 in the padding, ...)
The inputs and outputs, with their shapes and meanings, are in program.json.
"""

import json
import pathlib

import jax
import numpy as np


def load(folder=pathlib.Path(__file__).parent):
    folder = pathlib.Path(folder)
    program = jax.export.deserialize(bytearray((folder / "program.bin").read_bytes()))
    inputs = json.loads((folder / "program.json").read_text(encoding="utf-8"))["inputs"]
    call, parameters = jax.jit(program.call), dict(np.load(folder / "parameters.npz"))
    return lambda **given: call(parameters, {n: np.asarray(given[n], inputs[n]["dtype"]) for n in inputs})
'''

_MEANINGS = {
    "tokens": "ids of the tokens, special ones included",
    "mask": "1 at tokens, 0 in the padding, which comes last",
    "token_type": "1 in the second text of a pair, else 0",
    "position": "place of each token in the text without patches; of a patch row * 256 + column in its picture",
    "patch": "true at patches of pictures",
    "pixels": "uint8, of the patches; 0 elsewhere",
    "token": "index of each word's first sub-word, of each [MASK], or of each token that may begin an answer; -1: none",
    "predicate": "index of the first sub-word of the predicate that the word is tagged for",
    "sequence": "1, 2, ... a number for the words of each predicate; 0: none",
    "word": "number of each token or word of the text that is searched; -1 at the token that stands for no answer",
    "mark": "indices of the markers before and after both spans",
}
_BY_LEVEL = {
    "text": (),
    "choice": (),
    "sequence": (),
    "pair": ("mark",),
    "word": ("token",),
    "token": ("token",),
    "predicate": ("token", "predicate", "sequence"),
    "span": ("token", "word"),
}


class Program(NamedTuple):
    """A task and the experiment whose parameters its program reads.

    experiment  of the task alone, or of all tasks of the run
    params      of the experiment, numpy
    task        name
    """

    experiment: Experiment
    params: Params
    task: str


def save_program(folder: pathlib.Path, program: Program) -> str:
    """Writes the folder; returns a line that says which sizes may vary, or that a package is missing."""
    try:
        import flatbuffers  # noqa: F401
    except ImportError:
        return "no program of the predictions, which jax.export writes by a package: pip install flatbuffers"
    forward, leaves = _forward(program), flatten(program.params)
    exported, shapes = _exported(program, forward, leaves)
    kept = _read_leaves(exported, leaves)
    if len(kept) < len(leaves):  # the columns and heads of other tasks

        def forward_kept(parameters, inputs):
            rest = {path: jnp.zeros(leaf.shape, leaf.dtype) for path, leaf in leaves.items() if path not in kept}
            return forward({**rest, **parameters}, inputs)

        leaves = {path: leaves[path] for path in leaves if path in kept}
        exported, shapes = _exported(program, forward_kept, leaves)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "program.bin").write_bytes(exported.serialize())
    np.savez(folder / "parameters.npz", **{path: np.asarray(leaf) for path, leaf in leaves.items()})
    write_json(folder / "program.json", _description(program, exported, shapes))
    (folder / "load.py").write_text(LOADER, encoding="utf-8")
    varying = sorted({str(size) for shape in shapes.values() for size in shape.shape if not isinstance(size, int)})
    return (
        f"{folder}: a program for {', '.join(PLATFORMS)}, any {', '.join(varying) or 'shape that is in program.json'}"
    )


def _read_leaves(exported: export.Exported, leaves: Mapping[str, Any]) -> set[str]:
    """The parameters that the program reads; the arguments are flattened by sorted names."""
    kept = set(exported.module_kept_var_idx)
    return {path for number, path in enumerate(sorted(leaves)) if number in kept}


def _exported(
    program: Program, forward: Callable[..., Any], leaves: Mapping[str, Any]
) -> tuple[export.Exported, dict[str, jax.ShapeDtypeStruct]]:
    """The program with as many varying sizes as its operations permit."""
    parameters = {path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in leaves.items()}
    attempt = jax.jit(forward)
    for symbols in SYMBOLS:
        inputs = _inputs(program, symbols)
        try:
            return export.export(attempt, platforms=PLATFORMS)(parameters, inputs), inputs
        except Exception as error:  # sizes that an operation has to know are of many types of errors
            failure = error
    inputs = _inputs(program, "")
    try:
        return export.export(attempt, platforms=PLATFORMS)(parameters, inputs), inputs
    except Exception:
        raise failure from None


def _inputs(program: Program, symbols: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the inputs; sizes that have no symbol are those of a batch of evaluation."""
    experiment = program.experiment
    config, level = experiment.config, experiment.tasks[program.task].level
    length = config.data.row_length
    sizes: dict[str, Any] = {"b": config.evaluation.rows_per_batch, "t": length, "q": length, "c": 4}
    if symbols:
        sizes |= dict(zip(symbols.split(", "), export.symbolic_shape(symbols), strict=True))
    text = (sizes["b"], sizes["c"], sizes["t"]) if level == "choice" else (sizes["b"], sizes["t"])
    shapes = {name: (text, np.int32) for name in ("tokens", "mask", "token_type")}
    last = {"mark": 4}
    shapes |= {name: ((sizes["b"], last.get(name, sizes["q"])), np.int32) for name in _BY_LEVEL[level]}
    pictures = experiment.corpus.pictures
    if pictures is not None and _dataset(experiment, program.task) in experiment.corpus.layout.pictured:
        shapes |= {"position": (text, np.int32), "patch": (text, np.bool_)}
        shapes["pixels"] = ((*text, pictures.features), np.uint8)
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in shapes.items()}


def _dataset(experiment: Experiment, task: str) -> int:
    layout = experiment.corpus.layout
    return layout.dataset_of[layout.tasks.index(task)]


def _forward(program: Program) -> Callable[..., dict[str, jax.Array]]:
    """(parameters by path, inputs) -> the arrays of `Task.predict` or `generate`, and the scores."""
    experiment, name = program.experiment, program.task
    task, dataset = experiment.tasks[name], _dataset(experiment, name)
    layout = dataclasses.replace(experiment.corpus.layout, candidates=((dataset,),))
    objective, by_choice = experiment.objective_for(layout), task.level == "choice"
    group = next(group for group in objective.groups if name in group.tasks)
    fixed = objective.layout.entries[group.name].fixed
    entry, template = fixed.tolist().index(list(group.tasks).index(name)), jax.tree.map(np.shape, program.params)

    def forward(parameters, inputs):
        params = with_leaves(template, parameters)
        rows = {key: x.reshape(-1, *x.shape[2:]) for key, x in inputs.items()} if by_choice else inputs
        labels = {
            key: jnp.broadcast_to(x[None], (len(fixed), *x.shape)) for key, x in _labels(rows, task.level).items()
        }
        batch = _batch(rows, dataset)._replace(labels={group.name: labels})
        part = group_batch(objective.layout, group, batch)
        features = part.features(objective.network.apply(params, batch, None, None).features)
        predicted = jax.tree.map(part.split, part.apply(_predict, part.heads(params), params, features, part.labels))
        outputs = task.unpadded({key: x[entry] for key, x in predicted.items()})
        if "logits" in outputs and task.label_type in ("class", "set"):
            outputs["logits"] = outputs["logits"][..., : len(task.names)]
        if by_choice:
            return _choices(outputs["logits"].reshape(inputs["mask"].shape[:2]), inputs["mask"])
        return {key: x[:, 0] if task.level in ("text", "pair", "sequence") else x for key, x in outputs.items()}

    return forward


def _predict(task: Task, head: Params, features: Features, labels: Labels) -> dict[str, jax.Array]:
    if task.defines("generate"):
        return task.generate(head, features)
    logits = task.logits(head, features, labels)
    scores = {"logits": logits} if task.label_type in ("class", "set", "span", "choice") else {}
    return {**task.predict(head, logits, labels), **scores}


def _choices(logits: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Scores [b, c] of the choices of each record; a choice without tokens is none."""
    logits = jnp.where(mask.any(-1), logits, -jnp.inf)
    value = jnp.argmax(logits, -1).astype(jnp.int32)
    return {"value": value, "probability": jax.nn.softmax(logits), "logits": logits}


def _batch(rows: Mapping[str, jax.Array], dataset: int) -> Batch:
    """One block with an example in each row; no labels."""
    mask = rows["mask"]
    rank = jnp.broadcast_to(jnp.arange(mask.shape[1], dtype=jnp.int32)[None], mask.shape) * mask
    single = jnp.zeros((mask.shape[0], 1), jnp.int32)
    block = {
        "tokens": rows["tokens"],
        "segment": mask,
        "position": rows.get("position", rank),
        "token_type": rows["token_type"],
        "start": single,
        "length": mask.sum(1, keepdims=True, dtype=jnp.int32),
        "example": single,
        "row": single[:, 0],
    }
    block |= {name: rows[name] for name in ("patch", "pixels") if name in rows}
    return Batch(dataset=jnp.full((1,), dataset, jnp.int32), labels={}, **{k: x[None] for k, x in block.items()})


def _labels(rows: Mapping[str, jax.Array], level: str) -> dict[str, jax.Array]:
    """What a head reads of the labels: where words, markers and choices are."""
    single = jnp.zeros((rows["mask"].shape[0], 1), jnp.int32)
    if level in ("text", "pair", "choice", "sequence"):
        labels = {"value": single, "mask": single > 0}
        labels |= {"mark": rows["mark"][:, None]} if level == "pair" else {}
        labels |= {"group": single + 1, "choice": single} if level == "choice" else {}
        return labels | ({"segment": single, "slot": single, "position": single} if level == "sequence" else {})
    token = rows["token"]
    zeros, exists = jnp.zeros_like(token), (token >= 0).astype(jnp.int32)
    labels = {"value": zeros, "mask": zeros > 0, "token": jnp.maximum(token, 0), "slot": zeros, "word": zeros}
    labels |= {"word": rows["word"]} if level == "span" else {}
    if level != "predicate":
        return labels | {"segment": exists}
    return labels | {"segment": rows["sequence"] * exists, "predicate": rows["predicate"]}


def _description(
    program: Program, exported: export.Exported, inputs: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, Any]:
    """program.json; a size that may vary is a letter: b texts, t tokens, q words or other places, c choices."""
    task = program.experiment.tasks[program.task]

    def shape(array: Any) -> list[Any]:
        return [size if isinstance(size, int) else str(size) for size in array.shape]

    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    return {
        "task": task.name,
        "kind": type(task).__name__,
        "platforms": list(exported.platforms),
        "inputs": {
            name: {"shape": shape(array), "dtype": str(array.dtype), "meaning": _MEANINGS[name]}
            for name, array in inputs.items()
        },
        "outputs": {name: {"shape": shape(array), "dtype": str(array.dtype)} for name, array in outputs.items()},
        "labels": list(task.names) if task.label_type in ("class", "set") else [],
        "jax": jax.__version__,
    }
