"""Heads as those of `transformers`: the exported layers give the scores of the task, or there is a reason."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from export_runs import family_config

from mtl_jax.models import families
from mtl_jax.models.export_heads import NotPublished, exported_head
from mtl_jax.tasks import make_task
from mtl_jax.tasks.heads import ACTIVATIONS

pytestmark = pytest.mark.usefixtures("standard_promotion")
X = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)


def architecture(family):
    return families.architecture_from_config(
        {**family_config(family), "hidden_size": 12, "num_attention_heads": 3}, family
    )


def random_head(task, width=12):
    params = task.init(jax.random.key(1), width)
    leaves, tree = jax.tree.flatten(params)
    noise = [0.3 * jax.random.normal(jax.random.key(n), leaf.shape) for n, leaf in enumerate(leaves)]
    return jax.tree.map(np.asarray, jax.tree.unflatten(tree, [a + b for a, b in zip(leaves, noise, strict=True)]))


def plain_scores(params):
    """The layers of a plain head, written out."""
    x = X
    if "pooler" in params:
        x = np.tanh(x @ params["pooler"]["kernel"] + params["pooler"]["bias"])
    if "hidden" in params:
        x = np.asarray(jax.nn.gelu(jnp.asarray(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])))
    return x @ params["output"]["kernel"] + params["output"]["bias"]


def exported_scores(head):
    """What `transformers` computes of these tensors, whose kernels are [out, in]."""
    names, tensors, x = head.published.tensors, head.tensors, X
    act = head.config.get(head.published.activation_field, head.published.form.activation)
    if "transform" in names:
        inner = x @ tensors[f"{names['transform']}.weight"].T + tensors[f"{names['transform']}.bias"]
        x = np.asarray(ACTIVATIONS[act](jnp.asarray(inner)))
    return x @ tensors[f"{names['output']}.weight"].T + tensors[f"{names['output']}.bias"]


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("bert", {"pooler": True}),
        ("roberta", {"pooler": True}),
        ("distilbert", {}),
        ("electra", {}),
        ("deberta-v2", {}),
        ("deberta-v2", {"pooler": True}),
        ("deberta-v2", {"hidden": 7}),
    ],
)
def test_plain_heads_by_the_layers_of_the_family(family, options):
    task = make_task("t", {"kind": "classification", "pool": "first", **options}, "text", ("a", "b", "c"))
    params = random_head(task)
    head = exported_head(task, params, architecture(family))
    np.testing.assert_allclose(exported_scores(head), plain_scores(params), rtol=1e-5, atol=1e-5)
    assert head.config["id2label"] == {"0": "a", "1": "b", "2": "c"}


def test_numbers_are_exported_on_their_own_scale():
    options = {"kind": "regression", "pool": "first", "pooler": True, "low": 1.0, "high": 5.0}
    task = make_task("t", options, "text")
    params = random_head(task)
    head = exported_head(task, params, architecture("bert"))
    np.testing.assert_allclose(exported_scores(head), 1.0 + 4.0 * plain_scores(params), rtol=1e-5, atol=1e-5)
    assert head.config["problem_type"] == "regression"


@pytest.mark.parametrize(
    ("family", "options", "reason"),
    [
        ("bert", {"pool": "mean"}, "pools tokens by 'mean', and BertForSequenceClassification by 'first'"),
        ("bert", {"pool": "first"}, "linear, and BertForSequenceClassification has a layer with 'tanh'"),
        ("bert", {"pool": "first", "hidden": 5}, "has the activation 'gelu_new'"),
        ("bert", {"pool": "first", "pooler": True, "hidden": 5}, "two layers before the scores"),
        (
            "deberta-v2",
            {"pool": "first", "hidden": 13},
            "13 features, and that of DebertaV2ForSequenceClassification 12",
        ),
        ("modernbert", {"pool": "mean"}, "layers before the scores are not those of ModernBert"),
        ("t5", {"pool": "first"}, "no head of this kind on T5EncoderModel"),
    ],
)
def test_reasons(family, options, reason):
    task = make_task("t", {"kind": "classification", **options}, "text", ("a", "b"))
    with pytest.raises(NotPublished, match=reason):
        exported_head(task, random_head(task), architecture(family))


def test_reasons_of_tags_and_answers():
    tags = {"kind": "tagging"}
    for options, level, reason in (
        ({"crf": True}, "word", "has a CRF"),
        ({}, "predicate", "a predicate and a word"),
        ({"hidden": 4}, "word", "BertForTokenClassification has none"),
    ):
        task = make_task("t", tags | options, level, ("B-x", "O"))
        with pytest.raises(NotPublished, match=reason):
            exported_head(task, random_head(task), architecture("bert"))
    task = make_task("t", {"kind": "span"}, "span", ("answer", "no answer"))
    with pytest.raises(NotPublished, match="no answer"):
        exported_head(task, random_head(task), architecture("bert"))
