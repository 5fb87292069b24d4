"""Sharing × adapters × balancing × scheme × placement × mode: every pair of choices occurs in some run.

A run trains two steps and then does what its mode does. What cannot be is refused with a `UserError` that is one of
`REFUSALS`, each of which docs/composition.md explains. A few rows always run; all are marked `slow`.
"""

import itertools
import json
import pathlib
import re
import shutil
from typing import NamedTuple

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from mtl_jax import checks, modes
from mtl_jax.config import default
from mtl_jax.errors import UserError
from mtl_jax.runs.train import train
from mtl_jax.storage import workdir as folders

pytestmark = pytest.mark.usefixtures("standard_promotion")
DOCS = pathlib.Path(__file__).parents[1] / "docs" / "composition.md"
EMBED = {"trunk": "embed"}
TASKS = ("color", "tags", "long")
SHARING = {
    "hard": {},
    "tree": {"task_groups": {"layer_00": (("color", "tags"), ("long",)), "layer_01": tuple((task,) for task in TASKS)}},
    "soft": EMBED,
    "cross_stitch": {**EMBED, "mixer": "cross_stitch"},
    "sluice": {**EMBED, "mixer": "sluice"},
    "attention": {**EMBED, "mixer": "attention"},
    "mmoe": {**EMBED, "mixer": "mmoe", "mixer_options": {"experts": 2}},
    "cgc": {**EMBED, "mixer": "cgc", "mixer_options": {"shared": 1, "private": 1}},
    "ple": {**EMBED, "mixer": "ple", "mixer_options": {"shared": 1, "private": 1}},
    "shared_private": {**EMBED, "mixer": "shared_private"},
    "cascade": {"cascades": {"color": ("tags",)}},
    "depths": {"head_layers": {"tags": "layer_00"}},
}  # fmt: skip
ADAPTERS = {
    "none": {},
    "bottleneck": {"adapter": "bottleneck", "adapter_options": {"size": 2}},
    "lora_own": {"adapter": "lora", "adapter_options": {"rank": 2}},
    "lora_shared": {"adapter": "lora", "adapter_options": {"rank": 2}, "adapter_owner": "all"},
    "lora_experts": {"adapter": "lora_experts"},
}
BALANCING = {
    "sum": {},
    "gram": {"aggregation.method": "cagrad"},
    "elementwise": {"aggregation.method": "graddrop"},
    "gradnorm": {"loss_weights.method": "gradnorm"},
    "representation": {"aggregation.method": "mgda", "aggregation.level": "representation"},
}
SCHEMES = ("none", "distillation", "maml", "masked_lm", "gan")
PLACEMENTS = ("jit", "pmap", "lanes")
MODES = ("evaluate", "predict", "export", "merge", "adapt", "relate", "attribute", "resume")


class Row(NamedTuple):
    """One run."""

    sharing: str
    adapter: str
    balancing: str
    scheme: str
    placement: str
    mode: str

    def __str__(self):
        return "-".join(self)


class Refusal(NamedTuple):
    """What is refused: its heading in the docs, the rows where it may be, what the message says."""

    name: str
    acts: object
    message: str


REFUSALS = (
    Refusal(
        "Representations below the heads of some tasks",
        lambda row: row.balancing == "representation" and row.sharing == "depths",
        "config.aggregation.level: 'representation' needs heads that read only the last layer",
    ),
    Refusal(
        "Representations after adaptation",
        lambda row: row.balancing == "representation" and row.scheme == "maml",
        "after adaptation the tasks have no common representation",
    ),
    Refusal(
        "Merging a model without columns",
        lambda row: row.mode == "merge" and row.sharing in ("hard", "cascade", "depths"),
        "nothing to merge|without a mixer between them",
    ),
    Refusal(
        "Adapting a shared column that hides the data set",
        lambda row: row.mode == "adapt" and SHARING[row.sharing].get("mixer") == "shared_private",
        "there is only one data set",
    ),
    Refusal(
        "Devices of lanes",
        lambda row: row.mode == "relate" and row.placement == "pmap",
        "config.training.placement: 'pmap' has no effect here",
    ),
    # what is not built
    Refusal(
        "Merging under mixers",
        lambda row: row.mode == "merge" and "mixer" in SHARING[row.sharing],
        "without a mixer between them",
    ),
)


def pairwise(*choices):
    """Rows such that each pair of choices of two factors is in one: greedily the row with most new pairs."""
    numbered = [[(factor, choice) for choice in values] for factor, values in enumerate(choices)]
    missing = {frozenset(pair) for a, b in itertools.combinations(numbered, 2) for pair in itertools.product(a, b)}
    rows = []
    while missing:
        first = sorted(tuple(sorted(pair)) for pair in missing)[0]
        row = dict(first)
        for factor in sorted(range(len(choices)), key=lambda f: -len(choices[f])):
            if factor not in row:
                known = list(row.items())
                row[factor] = max(
                    choices[factor],
                    key=lambda choice, f=factor: (
                        sum(frozenset(((f, choice), other)) in missing for other in known),
                        -sum(dict(r)[f] == choice for r in rows),
                    ),
                )
        missing -= {frozenset(pair) for pair in itertools.combinations(row.items(), 2)}
        rows.append(tuple(row.items()))
    return [Row(*(dict(row)[factor] for factor in range(len(choices)))) for row in rows]


ROWS = pairwise(tuple(SHARING), tuple(ADAPTERS), tuple(BALANCING), SCHEMES, PLACEMENTS, MODES)
SAMPLE = ROWS[:: len(ROWS) // 2][:2]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """Files of two data sets, and the run of a teacher."""
    folder, rng = tmp_path_factory.mktemp("texts"), np.random.default_rng(0)

    def record(number):
        words = [f"w{i}" for i in rng.integers(0, 12, rng.integers(3, 8))]
        color = ("red", "blue")[number % 2]
        words.insert(int(rng.integers(0, len(words))), color)
        tags = ["B-C" if word == color else "O" for word in words]
        return json.dumps({"words": words, "tags": tags, "color": color, "long": "yes" if len(words) > 5 else "no"})

    for name in ("train_a", "train_b", "dev", "test"):
        (folder / f"{name}.jsonl").write_text("\n".join(record(number) for number in range(24)) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTL_JAX_CACHE", str(folder / "cache"))
        train(
            config_of(folder, Row("hard", "none", "sum", "none", "jit", "evaluate")),
            folders.prepare(folder / "teacher"),
        )
    return folder


def config_of(texts, row):
    """The config of a row."""
    config = default.get_config()
    for name in ("a", "b"):
        splits = {"train": f"train_{name}.jsonl", "dev": "dev.jsonl", "test": "test.jsonl"}
        default.add_dataset(config, name, reader="jsonl", path=str(texts), words="words", splits=splits)
    options = {"hidden": 4, "noise": 2} if row.scheme == "gan" else {}
    kind = "gan_classification" if row.scheme == "gan" else "classification"
    default.add_task(config, "color", kind=kind, dataset="a", label="color", options=options)
    default.add_task(config, "tags", kind="tagging", dataset="b", label="tags", options={"scheme": "iob2"})
    default.add_task(config, "long", kind="classification", dataset="b", label="long")
    config.tokenizer.kind = "words"
    config.model.layer_type, config.model.num_layers, config.model.hidden_size = "transformer", 2, 8
    config.model.num_heads, config.model.intermediate_size, config.model.dropout = 2, 8, 0.0
    config.data.row_length, config.data.rows_per_block, config.evaluation.rows_per_batch = 16, 8, 8
    config.training.steps, config.training.eval_every, config.training.checkpoint_every = 2, 2, 1
    for field, value in {**SHARING[row.sharing], **ADAPTERS[row.adapter]}.items():
        config.sharing[field] = ConfigDict(value) if isinstance(value, dict) else value
    for field, value in BALANCING[row.balancing].items():
        section, name = field.split(".")
        config[section][name] = value
    if row.sharing == "soft":
        default.add_penalty(config, "soft", kind="l2_to_mean", strength=0.01)
    if row.scheme == "distillation":
        default.add_distillation(config, "color", teachers=(str(texts / "teacher"),))
    elif row.scheme == "maml":
        config.meta.method, config.meta.inner_steps = "maml", 1
    elif row.scheme == "masked_lm":
        splits = {"train": "train_a.jsonl", "dev": "dev.jsonl"}
        default.add_dataset(config, "c", reader="jsonl", path=str(texts), words="words", splits=splits)
        default.add_task(config, "hidden", kind="masked_lm", dataset="c", options={"tied": True})
        if row.sharing == "tree":
            layers = config.sharing.task_groups
            layers.layer_00, layers.layer_01 = (*layers.layer_00, ("hidden",)), (*layers.layer_01, ("hidden",))
    if row.placement == "pmap":
        config.training.placement = "pmap"
    return config


def call(mode, **given):
    """A mode as the command line calls it."""
    usual = dict.fromkeys(modes.Options._fields, "")
    usual |= {"config": None, "checkpoint": None, "tasks": (), "runs": (), "against": (), "shard": None}
    given = {name: str(value) if isinstance(value, pathlib.Path) else value for name, value in given.items()}
    assert modes.MODES[mode](modes.Options(**{**usual, **given, "mode": mode})) in (None, 0)


def walk(texts, folder, row):
    """Trains and does what the mode does; the results are finite and agree."""
    config, run = config_of(texts, row), folder / "run"
    if row.mode == "relate":
        config.train_tasks = ("color", "hidden") if row.scheme == "masked_lm" else ("color", "tags")
        if row.sharing == "cascade" and row.scheme == "masked_lm":
            config.train_tasks = ("color", "tags", "hidden")
        config.relatedness.num_seeds, config.relatedness.measure_every = 1, 1
        config.relatedness.measures = ("gradient_cosine",)
        call("relate", config=config, workdir=folder / "relate")
        assert json.loads((folder / "relate" / "relatedness.json").read_text())
        return
    if row.placement == "lanes":
        run = _lanes(config, folder)
        if run is None:
            return
    else:
        checks.check(config, "train")
        train(config, folders.prepare(run))
    summary = folders.read_summary(run)
    assert np.isfinite([summary["tasks"][task]["test"]["loss"] for task in TASKS]).all()
    FOLLOWING[row.mode](texts, config, run, folder / row.mode)


def _lanes(config, folder):
    """The run of the first of two lanes; None where lanes do not stay."""
    default.add_sweep(config, "rate", field="optimizer.learning_rate", points=(1e-3, 1e-2))
    config.ablation.num_seeds, config.ablation.intervals = 1, False
    if "keep" in config.ablation:
        config.ablation.keep = "all"
    call("ablate", config=config, workdir=folder / "ablation")
    runs = sorted((folder / "ablation").glob("programs/*/runs/*/summary.json"))
    assert list((folder / "ablation").glob("*.json"))
    return runs[0].parent if runs else None


def _evaluate(texts, config, run, out):
    del texts, config, out
    call("evaluate", workdir=run)
    scores, summary = json.loads((run / "evaluation_best.json").read_text()), folders.read_summary(run)
    for task in TASKS:
        assert scores["tasks"][task]["test"] == pytest.approx(summary["tasks"][task]["test"], abs=1e-5, nan_ok=True)


def _predict(texts, config, run, out):
    del config
    call("predict", workdir=run, input=texts / "test.jsonl", output=out)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(lines) == 24 and all(set(TASKS) <= set(line) for line in lines)
    scores = folders.read_summary(run)["tasks"]["long"]["test"]
    gold = [json.loads(line)["long"] for line in (texts / "test.jsonl").read_text().splitlines()]
    correct = np.mean([line["long"]["label"] == label for line, label in zip(lines, gold, strict=True)])
    assert correct == pytest.approx(scores["accuracy"], abs=1e-6)


def _export(texts, config, run, out):
    del texts, config
    call("export", workdir=run, output=out)
    assert {path.name for path in out.iterdir()} & set(TASKS)


def _merge(texts, config, run, out):
    del texts, config
    call("merge", runs=[run], output=out)
    assert json.loads((out / "merging.json").read_text())


def _adapt(texts, config, run, out):
    del config
    new = default.get_config()
    splits = {"train": "train_b.jsonl", "dev": "dev.jsonl", "test": "test.jsonl"}
    default.add_dataset(new, "new", reader="jsonl", path=str(texts), words="words", splits=splits)
    default.add_task(new, "new_color", kind="classification", dataset="new", label="color")
    settings = new.adaptation
    settings.shots, settings.steps, settings.learning_rates = (1,), (1,), (0.1,)
    settings.num_supports, settings.num_tuning_supports = 2, 2
    call("adapt", config=new, runs=[run], output=out)
    assert json.loads((out / "adapt.json").read_text())


def _attribute(texts, config, run, out):
    del config
    file = out.parent / "few.jsonl"
    file.write_text("".join((texts / "test.jsonl").read_text().splitlines(keepends=True)[:2]))
    call("attribute", workdir=run, input=file, output=out)
    for line in (out / "attributions.jsonl").read_text().splitlines():
        assert all(np.isfinite(task["attributions"]).all() for task in json.loads(line)["tasks"].values())


def _resume(texts, config, run, out):
    """The second step again, from the checkpoint of the first one."""
    del texts
    if "ablation" in str(run):
        return  # a lane is whole when it is written
    first = folders.read_summary(run)
    shutil.copytree(run, out)
    (out / "summary.json").unlink()
    newest = sorted(out.glob("checkpoints/*/2"), key=str) or sorted(out.glob("checkpoints/2"))
    for checkpoint in newest:
        shutil.rmtree(checkpoint)
    again = train(config, folders.prepare(out))
    for task in TASKS:
        assert again["tasks"][task]["test"] == first["tasks"][task]["test"]


FOLLOWING = {
    "evaluate": _evaluate,
    "predict": _predict,
    "export": _export,
    "merge": _merge,
    "adapt": _adapt,
    "attribute": _attribute,
    "resume": _resume,
}


def check_row(texts, folder, row):
    """The row runs, or is refused as the docs say."""
    try:
        walk(texts, folder, row)
    except UserError as error:
        refusal = next((r for r in REFUSALS if r.acts(row) and re.search(r.message, str(error))), None)
        assert refusal, f"{row} is refused: {error}"


def test_each_pair_of_choices_occurs():
    for (a, first), (b, second) in itertools.combinations(
        enumerate((SHARING, ADAPTERS, BALANCING, SCHEMES, PLACEMENTS, MODES)), 2
    ):
        assert {(row[a], row[b]) for row in ROWS} == set(itertools.product(first, second))


def test_each_refusal_is_explained():
    text = DOCS.read_text()
    refused, _, unbuilt = text.partition("# What is refused")[2].partition("# What is not built")
    headings = [re.findall(r"^## (.+)$", part, re.MULTILINE) for part in (refused, unbuilt)]
    assert {*headings[0], *headings[1]} >= {refusal.name for refusal in REFUSALS} and len(headings[0]) < 10
    for refusal in REFUSALS:
        assert any(refusal.acts(row) for row in ROWS), refusal.name


@pytest.mark.parametrize("row", SAMPLE, ids=str)
def test_a_sample_composes(texts, tmp_path, row, monkeypatch):
    monkeypatch.setenv("MTL_JAX_CACHE", str(texts / "cache"))
    check_row(texts, tmp_path, row)


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in ROWS if row not in SAMPLE], ids=str)
def test_everything_composes(texts, tmp_path, row, monkeypatch):
    monkeypatch.setenv("MTL_JAX_CACHE", str(texts / "cache"))
    check_row(texts, tmp_path, row)
    jax.clear_caches()
