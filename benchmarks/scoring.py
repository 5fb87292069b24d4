"""Scoring and predicting beside training: rows a second of each, and texts a second of --mode=predict.

    python benchmarks/scoring.py
    python benchmarks/scoring.py --layer=transformer --tasks=4 --texts=200

K data sets of one classification each, texts of 20 to 100 words, hard sharing; rows of 128 tokens, 16 of each data set
in a step, evaluation as a config that names nothing has it. The first evaluation of dev with its compilation: by one
program for data sets of like size, and by one for each. Then the sides take turns: `--steps` train steps, an evaluation
in either way, predictions of texts that all K tasks read, in one pass and in a pass for each data set. Shown are
medians of the ratios within a round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import random
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import jax
from record import Claim, save

from mtl_jax import checks
from mtl_jax.config import default
from mtl_jax.data.files.location import local_path
from mtl_jax.data.records import Record
from mtl_jax.evaluation import evaluator, inference, input_records, scores
from mtl_jax.evaluation.input_files import TEXT, OpenInput
from mtl_jax.runs import predict
from mtl_jax.runs.build import build
from mtl_jax.storage import artifacts
from mtl_jax.storage import workdir as folders
from mtl_jax.storage.checkpoint import Checkpoints
from mtl_jax.training.step import train_step


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layer", default="bilstm")
    parser.add_argument("--tasks", type=int, default=16, help="K")
    parser.add_argument("--texts", type=int, default=400, help="of dev, of each data set; and texts to predict")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="train steps of a round")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measured(options, pathlib.Path(folder))
    rows = [("what", "median", "lowest to highest")]
    rows += [
        (name, f"{statistics.median(values):.1f}", f"{min(values):.1f} to {max(values):.1f}")
        for name, values in results.items()
    ]
    rates = zip(results["rows scored a second, together"], results["rows trained a second"], strict=True)
    scored = [one / other for one, other in rates]
    (first,), (each,) = (results[f"seconds of the first evaluation, {how}"] for how in ("together", "each by itself"))
    passes = [
        o / a for o, a in zip(results["texts a second, one pass"], results["texts a second, K passes"], strict=True)
    ]
    what = f"{options.layer}, K = {options.tasks}"
    claims = [
        Claim(
            f"{what}: rows scored / rows trained a second",
            "≥ 1.5×",
            statistics.median(scored),
            min(scored),
            max(scored),
            statistics.median(scored) >= 1.5,
        ),
        Claim(
            f"{what}: first evaluation, a program for each data set / one for all",
            "≥ 2×",
            each / first,
            each / first,
            each / first,
            each / first >= 2,
        ),
        Claim(
            f"{what}: texts a second, one pass / K passes",
            "≥ 2×",
            statistics.median(passes),
            min(passes),
            max(passes),
            statistics.median(passes) >= 2,
        ),
    ]
    save("scoring", claims, {f"{what}, {options.texts} texts": rows}, results)


def measured(options, folder: pathlib.Path) -> dict[str, list[float]]:
    """{what: of each round}."""
    config = _config(options, folder)
    workdir = folders.prepare(folder / "run")
    experiment = build(config)
    folders.claim(workdir, config)
    artifacts.save(workdir, experiment.corpus, experiment.model.architecture)
    placement = scores.placement_from_config(experiment)
    step = placement.train(lambda state, batch, hyper, axis: train_step(experiment.spec, state, batch, hyper, axis))
    state = placement.put_state(experiment.init(0))
    with Checkpoints(workdir, 1) as checkpoints:
        checkpoints.save(placement.replicated(state), {})
    batches = experiment.batches(0)
    results: dict[str, list[float]] = {}

    def note(what, value):
        results.setdefault(what, []).append(value)

    def train(state, first, count):
        for number in range(first, first + count):
            batch = jax.tree.map(lambda leaf: leaf[None], batches.batch(number))
            state, metrics = step(state, placement.put_batch(batch), experiment.hyper)
        jax.block_until_ready((state, metrics))
        return state

    state = train(state, 0, 1)
    evaluators = {how: scores.make_evaluator(experiment, placement) for how in ("together", "each by itself")}
    rows = evaluators["together"].rows("dev")

    def score(how, what):
        began = time.perf_counter()
        with _each_by_itself() if how == "each by itself" else contextlib.nullcontext():
            evaluators[how].score(placement.replicated(state).params, "dev")
        seconds = time.perf_counter() - began
        note(f"{what}, {how}", seconds if "seconds" in what else rows / seconds)

    for how in evaluators:
        score(how, "seconds of the first evaluation")
    models = {}
    for what, context in (("one pass", contextlib.nullcontext()), ("K passes", _apart())):
        with context:
            models[what] = inference.Predictor(config, workdir, ["last"])
            _predict(models[what], _texts(predict.CHUNK, 7))
    for number in range(options.rounds):
        began = time.perf_counter()
        state = train(state, 1 + number * options.steps, options.steps)
        note(
            "rows trained a second",
            options.steps * options.tasks * config.data.rows_per_block / (time.perf_counter() - began),
        )
        for how in evaluators:
            score(how, "rows scored a second")
        for what, model in models.items():
            began = time.perf_counter()
            _predict(model, _texts(options.texts, number))
            note(f"texts a second, {what}", options.texts / (time.perf_counter() - began))
    return results


def _predict(model, texts):
    given = OpenInput(iter(()), local_path("."))
    for begin in range(0, len(texts), predict.CHUNK):
        json.dumps(model.predict(texts[begin : begin + predict.CHUNK], given))


@contextlib.contextmanager
def _each_by_itself():
    """No data sets are of like size."""
    before = evaluator.SIZE_RATIO, evaluator.SMALL_BATCHES
    evaluator.SIZE_RATIO = evaluator.SMALL_BATCHES = 0
    try:
        yield
    finally:
        evaluator.SIZE_RATIO, evaluator.SMALL_BATCHES = before


@contextlib.contextmanager
def _apart():
    """Every data set is read by itself, as if each had fields of its own."""
    together = input_records._groups
    input_records._groups = lambda config, by_dataset: [
        group for name, specs in by_dataset.items() for group in together(config, {name: specs})
    ]
    try:
        yield
    finally:
        input_records._groups = together


def _texts(count, seed):
    return [Record({TEXT: text}, "texts", n) for n, (text, _) in enumerate(_drawn(count, seed), start=1)]


def _drawn(count, seed):
    rng = random.Random(seed)
    for _ in range(count):
        label = rng.choice(("good", "bad", "fair"))
        words = [f"w{rng.randrange(2000)}" for _ in range(rng.randrange(20, 100))]
        yield " ".join([*words, label]), label


def _config(options, folder):
    config = default.get_config()
    for number in range(options.tasks):
        name = f"data_{number}"
        for split, count in (("train", 400), ("dev", options.texts)):
            lines = [json.dumps({"text": text, "label": label}) for text, label in _drawn(count, f"{name}{split}")]
            (folder / f"{name}.{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        splits = {split: f"{name}.{split}.jsonl" for split in ("train", "dev")}
        default.add_dataset(config, name, reader="jsonl", path=str(folder), splits=splits, text=("text",))
        default.add_task(config, f"task_{number}", kind="classification", dataset=name, label="label")
    config.tokenizer.kind = "words"
    config.model.layer_type, config.model.num_layers = options.layer, 2
    config.sharing.trunk = "all"
    checks.check(config)
    return config


if __name__ == "__main__":
    main()
