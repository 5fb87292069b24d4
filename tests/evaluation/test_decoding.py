"""Answers that decoders write with kept keys: against `generate` of transformers, and without kept keys."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from make_encoder_goldens import (
    DECODERS,
    FEATURES,
    GOLDENS,
    NEW_TOKENS,
    PROMPTS,
    TEXTS,
    config_of,
    hashed_head,
    hashed_weights,
)
from safetensors.numpy import save_file

from mtl_jax import checks
from mtl_jax.config import default
from mtl_jax.errors import UserError
from mtl_jax.evaluation.evaluator import evaluation_program
from mtl_jax.models import pretrained
from mtl_jax.models.encoder_parts import layer_params
from mtl_jax.models.export import save_folder
from mtl_jax.models.export_heads import exported_head
from mtl_jax.models.ownership import layer_path
from mtl_jax.runs.build import build
from mtl_jax.tasks import beam_search

pytestmark = pytest.mark.usefixtures("standard_promotion")


@functools.cache
def goldens():
    return json.loads(GOLDENS.read_text(encoding="utf-8"))


def folder_of(folder, family):
    folder.mkdir()
    shapes = {name: tuple(shape) for name, shape in goldens()[family]["tensors"].items()}
    tensors = hashed_weights(shapes, family)
    width = next(shape[1] for name, shape in shapes.items() if name in ("wte.weight", "embed_tokens.weight"))
    if family != "gpt2" and not config_of(family).get("tie_word_embeddings", family.startswith("gemma")):
        tensors["lm_head.weight"] = hashed_head(family, width)
    (folder / "config.json").write_text(json.dumps(config_of(family)), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors")
    return str(folder)


def completion_config(tmp_path, family, **options):
    """Prompts of words with answers; a second task reads texts of another data set."""
    data, config = tmp_path / "data", default.get_config()
    data.mkdir()
    rows = [{"text": f"w{n % 7} w{n % 5} w{n % 3}", "answer": f"w{n % 3} w{n % 7}", "label": n % 2} for n in range(12)]
    for split in ("train", "dev", "test"):
        (data / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    splits = {split: f"{split}.jsonl" for split in ("train", "dev", "test")}
    for name in ("prompts", "texts"):
        default.add_dataset(config, name, reader="jsonl", path=str(data), splits=splits, text=("text",))
    options = {"before": "w1", "max_length": NEW_TOKENS, **options}
    default.add_task(config, "answer", kind="completion", dataset="prompts", label="answer", options=options)
    default.add_task(config, "label", kind="classification", dataset="texts", label="label")
    config.tokenizer.kind, config.tokenizer.max_vocab_size = "words", 36
    config.model.pretrained, config.model.dropout = folder_of(tmp_path / "model", family), 0.0
    config.data.row_length, config.data.rows_per_block, config.evaluation.rows_per_batch = 40, 2, 2
    return config


NAMES = tuple(map(str, range(40)))


def with_prompts(experiment):
    """(objective whose answers end at no token, batch whose rows hold `PROMPTS` and other tokens after each)."""
    objective, batch = experiment.objective_for(experiment.corpus.layout), experiment.batches(0).batch(0)
    arrays = {
        name: np.zeros_like(getattr(batch, name))
        for name in batch._fields
        if name not in ("labels", "dataset") and getattr(batch, name) is not None
    }
    prompt = np.zeros_like(batch.start)
    for row, order in enumerate(([0, 1], [1])):
        at = 0
        for slot, number in enumerate(order):
            text = [*PROMPTS[number], 7, 8, 9]  # what follows is an answer, which decoding does not see
            span = (slice(None), row, slice(at, at + len(text)))
            arrays["tokens"][span], arrays["segment"][span] = text, slot + 1
            arrays["position"][span] = range(len(text))
            arrays["start"][:, row, slot], arrays["length"][:, row, slot] = at, len(text)
            prompt[:, row, slot] = len(PROMPTS[number])
            at += len(text)
    labels = dict(batch.labels)
    labels["answer"] = {**labels["answer"], "prompt": prompt[:1]}
    groups = tuple(
        group._replace(form=group.form.with_attributes(end=99, names=NAMES)) if group.form.continues else group
        for group in objective.groups
    )
    return objective._replace(groups=groups), batch._replace(labels=labels, **arrays)


def table_of(params):
    return params["embed"]["word"]["embedding"][0]


@functools.partial(jax.jit, static_argnums=0)
def top_layer(architecture, params, tokens):
    """float32 [T, D] of one text."""
    row, place = tokens[None], jnp.arange(len(tokens))[None]
    segment = jnp.ones_like(row)
    x = architecture.embeddings().apply({"params": params["embed"]}, row, place, 0 * row, segment)
    for number in range(architecture.layers):
        layer = architecture.layer(number)
        x = layer.apply({"params": layer_params(layer, params, layer_path(number))}, x, segment)
    return x[0]


@pytest.mark.parametrize("family", DECODERS)
def test_greedy_answers_are_those_of_transformers(tmp_path, family, differs):
    config = completion_config(tmp_path, family)
    checks.check(config)
    experiment = build(config)
    params = experiment.init_params(0)
    objective, batch = with_prompts(experiment)
    if "output" in params["heads"]["answer"]:
        kernel, whole = (
            params["heads"]["answer"]["output"]["kernel"][0],
            hashed_head(family, table_of(params).shape[1]).T,
        )
        np.testing.assert_array_equal(kernel, whole[:, : kernel.shape[1]])
        params["heads"]["answer"] = {"output": {"kernel": jnp.asarray(whole)[None]}}
    outputs, _ = jax.jit(evaluation_program(objective, ["answer"]))(params, batch)
    value = np.asarray(outputs["answer"]["value"])[0]
    first, second = goldens()[family]["greedy"]
    assert value[0, 0].tolist() == first and value[0, 1].tolist() == second and value[1, 0].tolist() == second
    assert (value[1, 1] == -1).all()
    task = next(group.form for group in objective.groups if group.form.continues)
    head = {**jax.tree.map(lambda leaf: leaf[0], params["heads"]["answer"]), "table": table_of(params)}
    own = {path: jax.tree.map(lambda leaf: leaf[0], params[path]) for path in experiment.owners}
    scores = task.scores(head, top_layer(experiment.model.architecture, own, jnp.asarray(TEXTS[0])))
    differs(f"scores of the LM head of {family}", scores[:, :FEATURES], goldens()[family]["logits"], 2e-5)


@pytest.mark.parametrize(("family", "sharing"), [("gemma3_text", {}), ("llama", {"trunk": "none"})])
def test_beams_with_kept_keys_equal_those_without(tmp_path, family, sharing):
    config = completion_config(tmp_path, family, beam=3)
    for field, value in sharing.items():
        config.sharing[field] = value
    experiment = build(config)
    params = experiment.init_params(0)
    objective, batch = with_prompts(experiment)
    outputs, _ = jax.jit(evaluation_program(objective, ["answer"]))(params, batch)
    task = next(group.form for group in objective.groups if group.form.continues)
    own = {path: jax.tree.map(lambda leaf: leaf[0], params[path]) for path in experiment.owners}
    head = {"table": own["embed"]["word"]["embedding"]}
    if task.lm_head:
        head = jax.tree.map(lambda leaf: leaf[0], params["heads"]["answer"])
    for slot, prompt in enumerate(PROMPTS):
        known = len(prompt) - 1

        def step(texts, tokens, number, begin=known):
            texts = texts.at[0, :, begin + number].set(tokens[0])
            hidden = jax.vmap(functools.partial(top_layer, experiment.model.architecture, own))(texts[0])
            return jax.nn.log_softmax(task.scores(head, hidden[:, begin + number]))[None], texts

        texts = jnp.zeros((1, 3, known + NEW_TOKENS), jnp.int32).at[:, :, :known].set(jnp.asarray(prompt[:-1]))
        options = {"begin": prompt[-1], "end": 99, "max_length": NEW_TOKENS, "width": 3, "alpha": 0.6}
        wanted = jax.jit(functools.partial(beam_search.beam_search, step, **options))(texts, jnp.ones(1, bool))
        np.testing.assert_array_equal(outputs["answer"]["value"][0, 0, slot], wanted.tokens[0, 0])
        np.testing.assert_allclose(outputs["answer"]["score"][0, 0, slot], wanted.score[0, 0], atol=1e-4)


def test_answers_follow_their_prompts_in_the_rows(tmp_path):
    corpus = build(completion_config(tmp_path, "llama")).corpus
    rows, tokenizer = corpus.rows["prompts"]["train"], corpus.tokenizer
    split = corpus.splits["prompts"]["train"]
    labels = rows.labels["answer"]
    seen = 0
    for row, slot in zip(*np.nonzero(rows.example >= 0), strict=True):
        record = split.records[split.encoded.record[rows.example[row, slot]]]
        start, length, prompt = (a[row, slot] for a in (rows.start, rows.length, labels["prompt"]))
        text = rows.tokens[row, start : start + length].tolist()
        answer = [*tokenizer.encode_texts([record.fields["answer"]])[0], tokenizer.end_id]
        assert text == [*tokenizer.encode_texts([record.fields["text"] + " w1"])[0], *answer]
        assert prompt == length - len(answer)
        at = (labels["segment"][row] > 0) & (labels["slot"][row] == slot)
        assert labels["value"][row, at].tolist() == answer and labels["mask"][row, at].all()
        assert labels["token"][row, at].tolist() == list(range(start + prompt - 1, start + length - 1))
        seen += 1
    assert seen == 12


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_exported_decoder_has_its_lm_head(tmp_path, family):
    experiment = build(completion_config(tmp_path, family))
    params = jax.tree.map(lambda leaf: np.asarray(leaf)[0], experiment.init_params(0))
    head = exported_head(experiment.tasks["answer"], params["heads"]["answer"], experiment.model.architecture)
    save_folder(tmp_path / "out", experiment.model.architecture, params, head=head)
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == [{"llama": "LlamaForCausalLM", "gpt2": "GPT2LMHeadModel"}[family]]
    written, first = (pretrained.load(tmp_path / name) for name in ("out", "model"))
    assert written.architecture == first.architecture and written.params.keys() == first.params.keys()
    if family == "llama":
        known = experiment.corpus.tokenizer.size
        kernel = written.params["lm_head"]["kernel"]
        np.testing.assert_array_equal(kernel[:, :known], first.params["lm_head"]["kernel"][:, :known])
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError:
        return
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["unexpected_keys"] and not info["missing_keys"] and isinstance(model.lm_head.weight, torch.Tensor)


def test_what_cannot_be_continued(tmp_path):
    config = completion_config(tmp_path, "llama")
    config.tasks.label.dataset = "prompts"
    with pytest.raises(UserError, match=r"tasks\.answer\.dataset: the answers follow .* 'label' would read them"):
        checks.check(config)
    config.tasks.label.dataset = "texts"
    config.tasks.answer.options.max_length = 60
    with pytest.raises(UserError, match=r"answer\.options\.max_length: 61 tokens of a row are free"):
        build(config)
    config.tasks.answer.options.max_length = 8
    config.model.pretrained = ""
    with pytest.raises(UserError, match=r"tasks\.answer\.kind: 'completion' continues .* has to name a decoder"):
        build(config)
