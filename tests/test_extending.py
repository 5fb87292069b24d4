"""What docs/extending.md registers from outside of the package is a choice, its options are checked, and it trains."""

import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtl_jax.analysis.ablation.exact_optima import REFERENCES
from mtl_jax.analysis.ablation.runner import ablate
from mtl_jax.analysis.relatedness.measure_inputs import Evidence
from mtl_jax.analysis.relatedness.registry import MEASURES
from mtl_jax.balancing.aggregation import AGGREGATION, GRADIENT_TRANSFORMS
from mtl_jax.balancing.loss_weights import LOSS_WEIGHTS
from mtl_jax.balancing.weightings import WEIGHTINGS
from mtl_jax.checks import check
from mtl_jax.config import default
from mtl_jax.data import tokenizers
from mtl_jax.data.readers import READERS
from mtl_jax.data.tokenizers import TOKENIZERS
from mtl_jax.errors import UserError
from mtl_jax.models.adapters import ADAPTERS
from mtl_jax.models.export import save_folder
from mtl_jax.models.families import FAMILIES
from mtl_jax.models.layers import LAYERS
from mtl_jax.models.mixers import MIXERS
from mtl_jax.models.readouts import READOUTS
from mtl_jax.runs.build import build
from mtl_jax.runs.train import train
from mtl_jax.sharing import PENALTIES, PROXIMAL
from mtl_jax.sharing.merging import MERGING
from mtl_jax.tasks import TASK_KINDS, Task
from mtl_jax.tasks.metrics import METRICS
from mtl_jax.training.optimizer import OPTIMIZERS
from mtl_jax.training.schedules import PENALTY_SCHEDULES, SCHEDULES
from mtl_jax.training.step import train_step

pytestmark = pytest.mark.usefixtures("standard_promotion")
PAGE = pathlib.Path(__file__).parents[1] / "docs" / "extending.md"
REGISTRIES = (
    PENALTIES,
    PROXIMAL,
    WEIGHTINGS,
    GRADIENT_TRANSFORMS,
    LOSS_WEIGHTS,
    OPTIMIZERS,
    PENALTY_SCHEDULES,
    MIXERS,
    ADAPTERS,
    READOUTS,
    LAYERS,
    FAMILIES,
    READERS,
    TOKENIZERS,
    TASK_KINDS,
    METRICS,
    MEASURES,
    SCHEDULES,
    MERGING,
    REFERENCES,
)
TOYS = "ridge ridge inverse_norm sign_vote focus sign_descent late mean offset last_two gated tiny pairs capped hinge"
TOYS = (*TOYS.split(), "errors", "same_classes", "halvings", "middle", "majority")  # in the order of REGISTRIES


@pytest.fixture(scope="module", autouse=True)
def page():
    """The page executed; afterwards the registries are as before."""
    before = [dict(registry) for registry in REGISTRIES]
    scope: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S):
        exec(compile(block, str(PAGE), "exec"), scope)
    yield scope
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(entries)


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A config of two tasks on a data set each."""
    monkeypatch.setenv("MTL_JAX_CACHE", str(tmp_path / "cache"))
    rng = np.random.default_rng(0)
    for name in "ab":
        for split, count in (("train", 24), ("dev", 8), ("test", 8)):
            words = rng.choice(["u", "v", "w"], (count, 4))
            lines = [f"{'yes' if n % 2 else 'no'}= {' '.join(row)} {n % 2}" for n, row in enumerate(words)]
            (tmp_path / f"{name}.{split}.txt").write_text("\n".join(lines) + "\n")

    def make(**changes):
        config = default.get_config()
        for name in "ab":
            splits = {split: f"{name}.{split}.txt" for split in ("train", "dev", "test")}
            default.add_dataset(config, f"d{name}", reader="pairs", path=str(tmp_path), splits=splits, text=("text",))
            default.add_task(config, name, kind="classification", dataset=f"d{name}", label="label")
        config.tokenizer.kind, config.model.layer_type, config.sharing.trunk = "words", "gated", "none"
        config.model.num_layers, config.model.hidden_size, config.model.dropout = 1, 4, 0.0
        config.data.row_length, config.data.rows_per_block = 8, 8
        config.training.steps = config.training.eval_every = config.training.checkpoint_every = 2
        for field, value in changes.items():
            *path, last = field.split("__")
            node = config
            for key in path:
                node = node[key]
            node[last] = value
        return config

    return make


def add_penalty(config, **fields):
    default.add_penalty(config, "p", **{"kind": "ridge", "strength": 0.1, **fields})
    return config


def moved(config):
    """Whether two steps change every layer, to finite values."""
    experiment = build(config)
    state = experiment.init(0)
    start = experiment.init(0).params
    step = jax.jit(lambda s, b, h: train_step(experiment.spec, s, b, h)[0])
    for number in range(2):
        batch = jax.tree.map(lambda leaf: np.asarray(leaf)[None], experiment.batches(0).batch(number))
        state = step(state, batch, experiment.hyper)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    return {path for path in start if any(jax.tree.leaves(jax.tree.map(differ, start[path], state.params[path])))}


def differ(one, other):
    return not np.array_equal(one, other)


def test_the_page_has_a_toy_of_each_registry():
    for registry, name in zip(REGISTRIES, TOYS, strict=True):
        assert name in registry
    assert {"inverse_norm", "sign_vote"} <= set(AGGREGATION)


def test_a_run_with_reader_tokenizer_task_metric_layer_readout_adapter_penalty_and_loss_weights(make, tmp_path):
    config = make(
        tokenizer__kind="capped",
        tokenizer__max_vocab_size=20,
        model__layer_options={"slope": 0.2},
        sharing__readout="last_two",
        sharing__readout_options={"factor": 0.25},
        sharing__adapter="offset",
        loss_weights__method="focus",
        loss_weights__options={"power": 0.5},
        optimizer__name="sign_descent",
        optimizer__options={"scale": 0.5},
        optimizer__schedule="halvings",
        optimizer__schedule_options={"times": 2.0},
    )
    add_penalty(config, options={"scale": 2.0}, schedule="late")
    config.tasks.a.kind, config.tasks.a.options = "hinge", {"margin": 0.5}
    config.tasks.b.metrics = ("accuracy", "errors")
    check(config)
    assert build(config).model.layers[0].slope == 0.2
    scores = train(config, tmp_path / "run")["tasks"]["b"]["test"]
    assert scores["errors"] == pytest.approx(1 - scores["accuracy"])
    assert type(tokenizers.load(tmp_path / "run" / "model")) is not tokenizers.WordTokenizer


@pytest.mark.parametrize(
    "changes",
    [
        {"sharing__mixer": "mean", "sharing__mixer_options": {"own": 0.7}},
        {"sharing__trunk": "embed", "aggregation__method": "inverse_norm", "aggregation__options": {"power": 0.5}},
        {"sharing__trunk": "embed", "aggregation__method": "sign_vote", "aggregation__options": {"scale": 0.1}},
    ],
    ids=["mixer", "weighting", "transform"],
)
def test_steps_with(make, changes):
    config = add_penalty(make(**changes), params="^layer_", proximal=True)
    check(config)
    assert {"embed", "layer_00", "heads"} <= moved(config)


def test_a_family_is_written_read_and_trained(make, tmp_path):
    config = make(model__layer_type="transformer", sharing__trunk="all", model__num_heads=2)
    experiment = build(config)
    fields = {**vars(experiment.model.architecture), "model_type": "tiny"}
    params = jax.tree.map(lambda leaf: np.asarray(leaf[0]), {**experiment.init_params(0), "heads": {}})
    folder = tmp_path / "tiny"
    save_folder(folder, FAMILIES["tiny"](**fields), params)
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["TinyBertModel"]
    config.model.pretrained = str(folder)
    del fields
    for field in ("num_heads", "hidden_size"):
        config.model[field] = default.get_config().model[field]  # the encoder has its own
    check(config)
    trained = build(config)
    assert type(trained.model.architecture) is FAMILIES["tiny"]
    assert {"embed", "layer_00"} <= moved(config)


def test_a_measure(make):
    config = make(relatedness__measures=("same_classes",), sharing__trunk="all")
    check(config, "relate")
    matrix = MEASURES["same_classes"].compute(Evidence(None, None, build(config).corpus, (1.0, 1.0)))
    np.testing.assert_array_equal(matrix, np.ones((2, 2)))


def test_a_way_to_merge(make):
    config = make(merging__methods=("middle",))
    check(config, "merge")
    config.merging.methods = ("wrong",)
    with pytest.raises(UserError, match=r"config\.merging\.methods: 'wrong'.*'middle'"):
        check(config, "merge")
    stack, base = {"w": jnp.asarray([[1.0, 5.0], [2.0, 0.0], [9.0, 1.0]])}, {"w": jnp.ones(2)}
    merged = [MERGING["middle"].merge(stack, base, trust=trust)["w"] for trust in MERGING["middle"].options["trust"]]
    np.testing.assert_allclose(merged, [[1.5, 1.0], [2.0, 1.0]])


def test_an_exact_optimum_and_a_schedule_in_an_ablation(make, tmp_path):
    config = add_penalty(make(ablation__exact_optimum="majority", optimizer__schedule="halvings"))
    default.add_sweep(config, "lambda", field="penalties.p.strength", points=(0.1, 1.0))
    config.ablation.exact_optimum = "wrong"
    with pytest.raises(UserError, match=r"config\.ablation\.exact_optimum: 'wrong'.*'majority'"):
        check(config, "ablate")
    config.ablation.exact_optimum = "majority"
    (tmp_path / "ablation").mkdir()
    references = ablate(config, tmp_path / "ablation", lambda c: check(c, "ablate")).references
    assert [r["scores"]["a"]["dev"]["accuracy"] for r in references] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("datasets.da.reader", "pairs"),
        ("tokenizer.kind", "capped"),
        ("tasks.a.kind", "hinge"),
        ("model.layer_type", "gated"),
        ("sharing.mixer", "mean"),
        ("sharing.adapter", "offset"),
        ("sharing.readout", "last_two"),
        ("aggregation.method", "inverse_norm"),
        ("aggregation.method", "sign_vote"),
        ("loss_weights.method", "focus"),
        ("optimizer.name", "sign_descent"),
        ("penalties.p.kind", "ridge"),
        ("penalties.p.schedule", "late"),
        ("optimizer.schedule", "halvings"),
        ("relatedness.measures", "same_classes"),
    ],
)
def test_a_wrong_name_lists_it_among_the_choices(make, field, name):
    config = add_penalty(make())
    node = config
    *path, last = field.split(".")
    for key in path:
        node = node[key]
    node[last] = ("wrong",) if last == "measures" else "wrong"
    with pytest.raises(UserError, match=rf"config\.{re.escape(field)}.*'wrong'.*{name}"):
        check(config, "relate" if last == "measures" else "train")


def test_wrong_metrics_and_families_list_it_too(make, tmp_path):
    config = make()
    config.tasks.a.metrics = ("wrong",)
    with pytest.raises(UserError, match=r"config\.tasks\.a\.metrics: 'wrong'.*'errors'"):
        build(config)
    with pytest.raises(UserError, match=r"no exact operator for 'schatten'.*ridge"):
        build(add_penalty(make(), kind="schatten", proximal=True))
    (tmp_path / "config.json").write_text('{"model_type": "wrong"}')
    with pytest.raises(UserError, match=r"'wrong'; supported are .*tiny"):
        build(make(model__layer_type="transformer", model__num_layers=-1, model__pretrained=str(tmp_path)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__layer_options": {"slop": 0.2}}, r"config\.model\.layer_options: 'gated' has no option 'slop'"),
        ({"sharing__mixer": "mean", "sharing__mixer_options": {"ow": 1}}, r"config\.sharing\.mixer_options: .*'ow'"),
        (
            {"sharing__adapter": "offset", "sharing__adapter_options": {"x": 1}},
            r"config\.sharing\.adapter_options: .*'x'",
        ),
        ({"sharing__readout": "last_two", "sharing__readout_options": {"x": 1}}, r"readout_options: .*'x'"),
        ({"loss_weights__method": "focus", "loss_weights__options": {"x": 1}}, r"config\.loss_weights\.options: .*'x'"),
        (
            {"aggregation__method": "sign_vote", "aggregation__options": {"x": 1}},
            r"config\.aggregation\.options: .*'x'",
        ),
        ({"optimizer__name": "sign_descent", "optimizer__options": {"x": 1}}, r"config\.optimizer\.options.*'?x'?"),
        ({"datasets__da__options": {"x": 1}}, r"options\.x: this reader has no such option"),
        ({"tasks__a__kind": "hinge", "tasks__a__options": {"margn": 1}}, r"tasks\.a\.options\.margn: .*'margin'"),
        ({"penalties__p__options": {"scal": 1}}, r"config\.penalties\.p: ridge has no option scal"),
        (
            {"tokenizer__kind": "capped", "tokenizer__lowercase": True},
            r"config\.tokenizer\.lowercase: True has no effect",
        ),
    ],
)
def test_options_are_checked(make, changes, message):
    config = make()
    config = add_penalty(config)
    for field, value in changes.items():
        *path, last = field.split("__")
        node = config
        for key in path:
            node = node[key]
        node[last] = value
    with pytest.raises(UserError, match=message):
        check(config)
        build(config)


def test_a_task_says_which_of_its_methods_is_missing():
    class Silent(Task):
        name = "a"

    assert not Silent.defines("soft_labels") and TASK_KINDS["hinge"].defines("soft_labels")
    for method in (
        "init",
        "logits",
        "loss",
        "weight",
        "predict",
        "soft_labels",
        "distribution",
        "generate",
        "best_answers",
    ):
        with pytest.raises(UserError, match=rf"config\.tasks\.a\.kind: a task of kind Silent has no .*{method}"):
            count = {"weight": 1, "init": 2, "distribution": 2, "generate": 2}.get(method, 3)
            getattr(Silent(), method)(*[None] * count)
