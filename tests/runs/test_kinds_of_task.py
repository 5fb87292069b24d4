"""Spans, relations, choices and hidden tokens in one run: steps, scores, lanes, predictions, and wrong configs."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from configs import task_kinds
from mtl_jax import checks
from mtl_jax.analysis import inspection
from mtl_jax.analysis.ablation import lanes, scores
from mtl_jax.analysis.adaptation import adapt
from mtl_jax.config import default
from mtl_jax.config.plain import from_plain
from mtl_jax.data.sampler import evaluation_batches, evaluation_layout
from mtl_jax.errors import UserError
from mtl_jax.evaluation.scores import make_evaluator, placement_from_config
from mtl_jax.runs import predict, train
from mtl_jax.runs.build import build
from mtl_jax.storage import artifacts, checkpoint
from mtl_jax.storage import workdir as folders
from mtl_jax.tasks.metrics import evaluate
from mtl_jax.tasks.multiple_choice import MultipleChoice
from mtl_jax.tasks.span import Span
from mtl_jax.training import token_corruption
from mtl_jax.training.step import train_step

pytestmark = pytest.mark.usefixtures("standard_promotion")
COLORS = ("red", "blue", "green")


def records(rng, name):
    """Twenty-four records of one data set."""
    for n in range(24):
        words = [f"w{i}" for i in rng.integers(0, 12, rng.integers(3, 7))]
        place = int(rng.integers(len(words)))
        color = str(rng.choice(COLORS))
        if name == "questions":
            words[place] = color
            start = len(" ".join(words[:place])) + (place > 0)
            actual = (
                [] if n % 4 == 3 else [{"text": color, "answer_start": start}, {"text": f"{color}!", "answer_start": 0}]
            )
            yield {"question": "which color ?", "context": " ".join(words), "answers": actual}
        elif name == "pairs":
            words[0] = color
            yield {"words": words, "a": [0, 0], "b": [place, len(words) - 1], "color": color if n != 5 else None}
        elif name == "choices":
            offered = list(rng.permutation(COLORS))[: 2 + n % 2]
            yield {"text": " ".join([*words, offered[n % 2]]), "choices": offered, "right": n % 2 if n != 5 else None}
        else:
            yield {"words": [*words, color]}


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Makes configs with a task of each kind on a data set of its own."""
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for name in ("questions", "pairs", "choices", "texts"):
        for split in ("train", "dev"):
            lines = [json.dumps(record) for record in records(rng, name)]
            (tmp_path / f"{name}.{split}.jsonl").write_text("\n".join(lines) + "\n")

    def make(**changes):
        config = default.get_config()
        fields = {
            "questions": {"text": ("question", "context")},
            "pairs": {"words": "words", "marked": ("a", "b")},
            "choices": {"text": ("text",), "choices": ("choices",)},
            "texts": {"words": "words"},
        }
        for name, own in fields.items():
            splits = {split: f"{name}.{split}.jsonl" for split in ("train", "dev")}
            default.add_dataset(config, name, reader="jsonl", path=str(tmp_path), splits=splits, **own)
        default.add_task(config, "answer", kind="span", dataset="questions", label="answers")
        default.add_task(config, "color", kind="relation", dataset="pairs", label="color")
        default.add_task(config, "right", kind="multiple_choice", dataset="choices", label="right")
        default.add_task(config, "hidden", kind="masked_lm", dataset="texts", options={"tied": True})
        config.tokenizer.kind = "words"
        config.model.layer_type = "cnn"
        config.model.num_layers = 1
        config.model.hidden_size = 8
        config.data.row_length = 32
        config.data.rows_per_block = 8
        config.evaluation.rows_per_batch = 8
        config.evaluation.splits = ("dev",)
        config.optimizer.learning_rate = 1e-2
        config.training.steps = 4
        for field, value in changes.items():
            node = config
            *path, last = field.split("__")
            for key in path:
                node = node[key]
            node[last] = value
        checks.check(config)
        return config

    return make


def stepper(config):
    """What takes a state over the steps begin ... end - 1, built anew, and the experiment."""
    experiment = build(config)
    step = jax.jit(lambda state, batch: train_step(experiment.spec, state, batch, experiment.hyper))
    batches = experiment.batches(config.seed)

    def advance(state, begin, end):
        for number in range(begin, end):
            state, metrics = step(state, jax.tree.map(lambda leaf: leaf[None], batches.batch(number)))
        return jax.device_get(state), jax.device_get(metrics)

    return advance, experiment


def test_relations_as_published_sets_have_them(make, tmp_path):
    """SemEval-2010 task 8: records of several lines, spans marked in the text. TACRED: four numbers for two spans."""
    tacred, semeval = [], ""
    for n, label in enumerate(("per:title", "no_relation") * 6):
        words = ["He", "is", "the", "chief", "of", "it"]
        spans = {"subj_start": 0, "subj_end": 0, "obj_start": 3 - n % 2, "obj_end": 3}
        tacred.append({"id": str(n), "token": words, **spans, "subj_type": "PERSON", "relation": label})
        semeval += f'{n}\t"The <e1>{"old " * (n % 2)}cat</e1> sat on the <e2>mat</e2>."\n'
        semeval += f"{('Other', 'Cause-Effect(e2,e1)')[n % 2]}\nComment:\n\n"
    (tmp_path / "tacred.json").write_text(json.dumps(tacred, indent=1))
    (tmp_path / "semeval.txt").write_text(semeval)
    config = make()
    for name in list(config.datasets):
        del config.datasets[name]
    for name in list(config.tasks):
        del config.tasks[name]
    default.add_dataset(
        config,
        "tacred",
        reader="jsonl",
        path=str(tmp_path / "tacred.json"),
        words="token",
        marked=("subj_start+subj_end", "obj_start+obj_end"),
        marked_ends="included",
    )
    default.add_dataset(
        config,
        "semeval",
        reader="lines",
        path=str(tmp_path / "semeval.txt"),
        text=("text",),
        marked=("<e1>", "</e1>", "<e2>", "</e2>"),
        options={"lines_per_record": 0, "pattern": r'(?P<id>\d+)\t"(?P<text>.+)"\n(?P<relation>.+)\nComment:(?s:.*)'},
    )
    for name in ("tacred", "semeval"):
        default.add_task(config, name, kind="relation", dataset=name, label="relation")
    checks.check(config)
    advance, experiment = stepper(config)
    _, metrics = advance(experiment.init(config.seed), 0, 1)
    assert metrics["present"].all() and np.isfinite(metrics["losses"]).all()
    names = {task: vocabulary.names for task, vocabulary in experiment.corpus.vocabularies.items()}
    assert names == {"tacred": ("no_relation", "per:title"), "semeval": ("Cause-Effect(e2,e1)", "Other")}
    token, shown = experiment.corpus.tokenizer.id_to_token, {}
    for name, splits in experiment.corpus.splits.items():
        encoded = splits["train"].encoded
        cut = np.split(encoded.tokens, encoded.token_offsets[1:-1])
        shown[name] = {" ".join(map(token, piece)) for piece in cut}
    assert shown == {
        "tacred": {"[E1] He [/E1] is the [E2] chief [/E2] of it", "[E1] He [/E1] is [E2] the chief [/E2] of it"},
        "semeval": {
            "The [E1] cat [/E1] sat on the [E2] mat [/E2] .",
            "The [E1] old cat [/E1] sat on the [E2] mat [/E2] .",
        },
    }


def test_steps_scores_lanes_and_predictions(make, tmp_path, differs):
    config = make()
    advance, experiment = stepper(config)
    half, _ = advance(experiment.init(config.seed), 0, 2)
    whole, metrics = advance(half, 2, 4)
    assert metrics["present"].all() and np.isfinite(metrics["losses"]).all() and not metrics["skipped"].any()
    again, _ = stepper(config)[0](half, 2, 4)
    jax.tree.map(np.testing.assert_array_equal, again, whole)

    # scores: packed as alone, lanes as solo, the same hidden tokens whoever asks
    evaluator = make_evaluator(experiment, placement_from_config(experiment))
    actual = evaluator.score(whole.params, "dev")
    assert {task: list(by_metric) for task, by_metric in actual.items()} == {
        "answer": ["answer_f1", "answer_exact", "loss"],
        "color": ["accuracy", "macro_f1", "loss"],
        "right": ["accuracy", "loss"],
        "hidden": ["masked_accuracy", "masked_perplexity", "loss"],
    }
    assert actual["hidden"]["masked_perplexity"] == pytest.approx(np.exp(actual["hidden"]["loss"]), rel=1e-4)
    stacked = jax.tree.map(lambda leaf: leaf[None, None], whole.params)
    lane = scores.LaneScores(experiment, lanes.shape_of(1, 1, "map")).score(
        jax.tree.map(lambda leaf: np.repeat(leaf, 8, 1), stacked), "dev", lambda: None
    )[0][0]
    alone = build(make(data__packing=False))
    one_by_one = make_evaluator(alone, placement_from_config(alone)).score(whole.params, "dev")
    for task, values in actual.items():
        differs(f"scores of lanes, {task}", list(lane[task].values()), list(values.values()), 1e-4)
        if task != "hidden":
            differs(f"scores one by one, {task}", list(one_by_one[task].values()), list(values.values()), 1e-4)

    # prediction says what evaluation scored
    workdir = folders.prepare(tmp_path / "run")
    folders.claim(workdir, config)
    artifacts.save(workdir, experiment.corpus, None)
    with checkpoint.Checkpoints(workdir, 1, experiment.spec.objective.groups) as checkpoints:
        checkpoints.save(jax.tree.map(np.asarray, whole), {})

    read = {
        name: (tmp_path / f"{name}.dev.jsonl").read_text().splitlines() for name in ("questions", "pairs", "choices")
    }
    gold = {name: [json.loads(line) for line in lines] for name, lines in read.items()}
    lines = [*(line for lines in read.values() for line in lines), "w1 [MASK] w2 [MASK]", '{"words": ["red", "w1"]}']
    (tmp_path / "input").write_text("\n".join(lines) + "\n")
    predict.predict(config, workdir, ["last"], str(tmp_path / "input"), str(tmp_path / "output"))
    output = [json.loads(line) for line in (tmp_path / "output").read_text().splitlines()]
    message = {name: output[24 * n : 24 * n + 24] for n, name in enumerate(read)}
    answers = [line["answer"] for line in message["questions"]]
    right = [[a["text"] for a in record["answers"]] for record in gold["questions"]]
    matched = evaluate("answer_exact", right, [answer["answer"] for answer in answers], ())
    assert matched == pytest.approx(actual["answer"]["answer_exact"])
    for answer, record in zip(answers, gold["questions"], strict=True):
        assert 0 <= answer["probability"] <= 1.00001
        assert answer["answer"] == (record["context"][answer["start"] : answer["end"]] if answer["answer"] else "")
    choices = [line["right"] for line in message["choices"]]
    assert all(len(c["probabilities"]) == len(r["choices"]) for c, r in zip(choices, gold["choices"], strict=True))
    pairs = [(c["choice"], r["right"]) for c, r in zip(choices, gold["choices"], strict=True) if r["right"] is not None]
    assert np.mean([c == r for c, r in pairs]) == pytest.approx(actual["right"]["accuracy"])
    colors = [(line["color"]["label"], r["color"]) for line, r in zip(message["pairs"], gold["pairs"], strict=True)]
    assert np.mean([c == r for c, r in colors if r]) == pytest.approx(actual["color"]["accuracy"])
    one, two = output[-2:]
    assert [set(fill) for fill in one["hidden"]] == [{"token", "probabilities"}] * 2 and two["hidden"] == []
    assert not {"answer", "color", "right"} & set(one)


def test_answers_in_windows_are_scored_by_question_and_predicted_as_scored(make, tmp_path):
    """A row holds the question, [SEP] and three words of the text at a time."""
    config = make(train_tasks=("answer",), data__row_length=7, data__window_stride=1)
    config.tasks.answer.options = {"none_threshold": 3.0}  # else so short a training ends in no answer to all
    experiment = build(config)
    encoded = experiment.corpus.splits["questions"]["dev"].encoded
    assert len(encoded.record) > 1.5 * len(encoded.words)
    advance, _ = stepper(config)
    state, metrics = advance(experiment.init(0), 0, 4)
    assert np.isfinite(metrics["losses"]).all()
    evaluator = make_evaluator(experiment, placement_from_config(experiment))
    actual = evaluator.score(state.params, "dev")["answer"]
    stacked = jax.tree.map(lambda leaf: np.repeat(leaf[None, None], 8, 1), state.params)
    lane_scores = scores.LaneScores(experiment, lanes.shape_of(1, 1, "map"))
    lane = lane_scores.score(stacked, "dev", lambda: None)[0][0]["answer"]
    assert lane == pytest.approx(actual, rel=1e-4)

    workdir = folders.prepare(tmp_path / "run")
    folders.claim(workdir, config)
    artifacts.save(workdir, experiment.corpus, None)
    with checkpoint.Checkpoints(workdir, 1, experiment.spec.objective.groups) as checkpoints:
        checkpoints.save(jax.tree.map(np.asarray, state), {})
    source = tmp_path / "questions.dev.jsonl"
    predict.predict(config, workdir, ["last"], str(source), str(tmp_path / "output"))
    message = [json.loads(line)["answer"] for line in (tmp_path / "output").read_text().splitlines()]
    gold = [json.loads(line) for line in source.read_text().splitlines()]
    right = [[a["text"] for a in record["answers"]] for record in gold]
    for metric in ("answer_f1", "answer_exact"):
        assert evaluate(metric, right, [s["answer"] for s in message], ()) == pytest.approx(actual[metric])
    for answer, record in zip(message, gold, strict=True):
        assert answer["answer"] == (record["context"][answer["start"] : answer["end"]] if answer["answer"] else "")
    assert any(answer["start"] and answer["start"] > 9 for answer in message)  # behind the first window

    # windows without the answer, but no question without one
    for split in ("train", "dev"):
        file = tmp_path / f"questions.{split}.jsonl"
        file.write_text("".join(line for line in file.open() if '"answers": []' not in line))
    task = build(config).tasks["answer"]
    assert task.names == ("answer", "elsewhere") and task.has_windows_without_answer and not task.may_lack_answer


def test_hidden_tokens_are_keyed_by_seed_step_data_set_and_row(make):
    experiment = build(make(data__rows_per_block=2))
    alone = build(make(train_tasks=("hidden",), data__rows_per_block=3))
    seen = {}
    for built in (experiment, alone):
        objective = built.objective_for(built.corpus.layout)
        batch = built.batches(0).batch(0)
        block = built.corpus.layout.datasets.index("texts")
        changed = jax.jit(lambda b, k, o=objective: token_corruption.corrupt_batch(o, b, k))(batch, jax.random.key(7))
        others = [b for b in range(len(batch.dataset)) if b != block]
        np.testing.assert_array_equal(changed.tokens[np.asarray(others, int)], batch.tokens[np.asarray(others, int)])
        assert (np.asarray(changed.tokens) != batch.tokens).any()
        assert built.corpus.tokenizer.id_to_token(4) == "[MASK]"
        for row, tokens in zip(batch.row[block], np.asarray(changed.tokens[block]), strict=True):
            seen.setdefault(int(row), []).append(tokens)
    assert any(len(actual) == 2 for actual in seen.values())
    for actual in seen.values():
        np.testing.assert_array_equal(actual[0], actual[-1])

    # evaluation hides the same tokens whatever the seed, and at every time
    hidden = []
    for seed in (0, 1):
        built = build(make(seed=seed))
        layout = evaluation_layout(built.corpus.layout, "texts")
        batch = next(evaluation_batches(built.corpus.rows["texts"]["dev"], layout, 4))
        objective = built.objective_for(layout)
        hidden.append(
            jax.device_get(jax.jit(lambda b, o=objective: token_corruption.corrupt_for_evaluation(o, b))(batch))
        )
    jax.tree.map(np.testing.assert_array_equal, *hidden)


def test_a_drawn_block_of_another_data_set_is_left_alone(make):
    config = make(data__mixing="round_robin", train_tasks=("hidden", "color"))
    built = build(config)
    objective = built.objective_for(built.corpus.layout)
    changed = jax.jit(lambda b, k: token_corruption.corrupt_batch(objective, b, k))
    for step in range(4):
        batch = built.batches(0).batch(step)
        after = changed(batch, jax.random.key(0))
        of_texts = built.corpus.layout.datasets[batch.dataset[0]] == "texts"
        assert (np.asarray(after.tokens) != batch.tokens).any() == of_texts
        assert np.asarray(after.labels["hidden"]["mask"]).any() == of_texts


def test_inspection_shows_what_each_kind_reads(make):
    text = inspection.describe_experiment(make())
    assert "[E1]" in text and "tokens are masked at random" in text and "no answer" in text
    assert "pairs/train" not in text  # nothing is cut off


def test_wrong_configs(make, tmp_path):
    def choices_of(config):
        default.add_task(config, "topic", kind="classification", dataset="choices", label="right")

    def hidden_of(config):
        default.add_task(config, "pos", kind="tagging", dataset="texts", label="words")

    def named(field, value):
        def change(config):
            node = config
            *path, last = field.split(".")
            for key in path:
                node = node[key]
            node[last] = value

        return change

    for change, message in (
        (choices_of, "config.tasks.topic.dataset: 'choices' has choices"),
        (hidden_of, "config.tasks.hidden.dataset: tokens of 'texts' are hidden, which 'pos' has to see"),
        (named("datasets.choices.choices", ()), "config.datasets.choices.choices is empty"),
        (named("datasets.pairs.marked", ()), "config.datasets.pairs.marked is empty"),
        (named("datasets.pairs.marked", ("a", "b", "c")), "marked has two fields"),
        (named("datasets.pairs.marked_ends", "exclusive"), "marked_ends: 'exclusive' is none of '', 'included'"),
        (named("datasets.texts.marked_ends", "included"), "texts.marked_ends: is about spans in two fields"),
        (named("datasets.questions.marked", ("a", "b")), "marked in one text"),
        (named("datasets.texts.marked", ("a", "b")), "has marked spans"),
        (named("tasks.hidden.dataset", "questions"), "are hidden, which 'answer' has to see"),
        (named("optimizer.cache_frozen", True), "hidden tokens differ from step to step"),
        (named("tasks.answer.label", ""), "config.tasks.answer.label: name the field"),
        (named("tasks.answer.level", "word"), "'word' is none of 'span'"),
    ):
        config = make()
        change(config)
        with pytest.raises(UserError, match=re.escape(message)):
            checks.check(config)
    (tmp_path / "choices.train.jsonl").write_text('{"text": "a", "choices": ["x", "y"], "right": 2}\n')
    with pytest.raises(UserError, match=r"choices\.train\.jsonl:1: task right: label 2 is none of the 2 choices"):
        build(make())


@pytest.mark.parametrize("kind", task_kinds.KINDS)
def test_the_configs_of_the_project_are_right(kind):
    checks.check(task_kinds.get_config(kind))


def test_teachers_of_choices_and_answers(make, tmp_path, differs):
    """The student's rows hold, at each choice and position, what prediction says of it by the teacher."""
    workdir = folders.prepare(tmp_path / "teacher")
    tasks = ("answer", "right")
    train.train(make(train_tasks=tasks, training__eval_every=0), workdir)
    config = make(train_tasks=tasks, data__row_length=40, model__hidden_size=4)  # other rows
    for task in tasks:
        default.add_distillation(config, task, teachers=(str(workdir),), annealing=False)
    checks.check(config)
    experiment = build(config)
    own = from_plain(folders.read_config(workdir))
    says = {}
    for name in ("questions", "choices"):
        source = tmp_path / f"{name}.train.jsonl"
        predict.predict(own, workdir, ["best"], str(source), str(tmp_path / "out.jsonl"), dataset=name)
        says[name] = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    rows, encoded = (
        {name: of[name]["train"] for name in says} for of in (experiment.corpus.rows, experiment.corpus.splits)
    )
    labels = rows["choices"].labels["right"]
    for row, slot in zip(*np.nonzero(rows["choices"].example >= 0), strict=True):
        record = encoded["choices"].encoded.record[rows["choices"].example[row, slot]]
        wanted = says["choices"][record]["right"]["probabilities"][labels["choice"][row, slot]]
        differs("soft label of a choice", labels["teacher"][row, slot], wanted, 1e-5)
        assert labels["teacher_mask"][row, slot]
    labels = rows["questions"].labels["answer"]
    windows = {(row, labels["segment"][row, at]) for row, at in zip(*np.nonzero(labels["segment"]), strict=True)}
    for row, number in windows:
        at = labels["segment"][row] == number
        slot = labels["slot"][row][at][0]
        record = encoded["questions"].encoded.record[rows["questions"].example[row, slot]]
        begin, end = labels["teacher"][row][at].T
        differs("ends of an answer", [begin.sum(), end.sum()], [1.0, 1.0], 1e-5)
        best = max(begin[i] * end[j] for i in range(1, len(begin)) for j in range(i, min(i + 30, len(begin))))
        predicted = says["questions"][record]["answer"]["probability"]
        differs("the best answer", max(best, begin[0] * end[0]), predicted, 1e-5)
    advance, _ = stepper(config)
    _, metrics = advance(experiment.init(0), 0, 2)
    assert np.isfinite(metrics["losses"]).all()


def test_of_its_own_soft_labels_the_loss_is_the_entropy(differs):
    key = jax.random.key(0)
    choice = MultipleChoice("c")
    group = jnp.asarray([[1, 1, 3, 3, 3, 0]])
    labels = {"group": group, "choice": jnp.asarray([[0, 1, 0, 1, 2, 0]]), "mask": group > 0, "value": group > 9}
    scores = jax.random.normal(key, (1, 6))
    soft = choice.soft_labels({}, scores, labels)
    loss = choice.loss({}, scores, labels | {"value": soft})
    differs("entropy of choices", loss.sum(), stats.entropy(soft[0, :2]) + stats.entropy(soft[0, 2:5]), 1e-5)
    differs("weight of choices", choice.weight(labels | {"value": soft}).sum(), 2.0, 1e-6)
    span = Span("s", ("answer", "no answer"))
    labels = {
        "segment": jnp.asarray([[1, 1, 1, 2, 2, 0]]),
        "word": jnp.asarray([[-1, 0, 1, -1, 0, 0]]),
        "slot": jnp.asarray([[0, 0, 0, 1, 1, 0]]),
        "mask": jnp.asarray([[True] * 5 + [False]]),
        "value": jnp.zeros((1, 6), jnp.int32),
    }
    scores = jax.random.normal(key, (1, 6, 2))
    soft = span.soft_labels({}, scores, labels)
    loss = span.loss({}, scores, labels | {"value": soft}, 2)
    wanted = [np.mean([stats.entropy(np.asarray(soft[0, s, n])) for n in (0, 1)]) for s in (slice(0, 3), slice(3, 5))]
    differs("entropy of ends", loss[0], wanted, 1e-5)
    differs("weight of ends", span.weight(labels | {"value": soft}, 2)[0], [1.0, 1.0], 1e-6)


def test_each_kind_is_adapted_and_ends_in_a_run(make, tmp_path):
    """From few examples: the scores of the lanes are those of the evaluator on the folders that stay."""
    run, config = folders.prepare(tmp_path / "run"), make(training__steps=2, evaluation__splits=("test",))
    for name, dataset in config.datasets.items():
        dataset.splits.test = f"{name}.dev.jsonl"
    train.train(config, run)
    config.adaptation.shots, config.adaptation.num_supports, config.adaptation.num_tuning_supports = (6,), 2, 1
    config.adaptation.learning_rates, config.adaptation.steps = (0.1,), (3,)
    run_config = from_plain(folders.read_config(run))
    result = adapt.adapt(config, {run: run_config}, None, tmp_path / "out", lambda c: checks.check(c, "adapt"))
    assert result["tasks"] == ["answer", "color", "right", "hidden"] and result["metric"] == "score"
    saved = {task: tmp_path / "out" / folder for task, (folder,) in result["saved"]["run"]["6"].items()}
    scores = {task: folders.read_summary(folder)["tasks"][task]["test"] for task, folder in saved.items()}
    actual = {task: result["scores"]["run"]["6"][task][0] for task in saved}
    expected = {task: next(iter(of_task.values())) for task, of_task in scores.items()}
    assert actual == pytest.approx(expected, abs=1e-6)
