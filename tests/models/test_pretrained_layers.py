"""How many layers of a pretrained encoder are taken: all, unless a config says fewer, which is told."""

import json

import pytest
from make_published_goldens import TINY, hashed_weights
from safetensors.numpy import save_file

from configs import quickstart
from mtl_jax import checks
from mtl_jax.analysis import inspection
from mtl_jax.analysis.ablation import lane_program, plan
from mtl_jax.config import default
from mtl_jax.errors import UserError
from mtl_jax.experiment import model
from mtl_jax.models import families
from mtl_jax.runs.build import build

LAYERS = 4


@pytest.fixture
def encoder(tmp_path):
    """A folder with a tiny BERT of four layers."""
    folder = tmp_path / "encoder"
    folder.mkdir()
    published = {**TINY["bert"], "vocab_size": 80, "num_hidden_layers": LAYERS}
    (folder / "config.json").write_text(json.dumps(published), encoding="utf-8")
    tensors = families.architecture_from_config(published, "tiny").published_tensors()
    save_file(hashed_weights({tensor.name: tensor.shape for tensor in tensors}), folder / "model.safetensors")
    return str(folder)


def config_of(tiny, encoder, **changes):
    """As the README says: nothing but the name of the encoder."""
    config = tiny(train_tasks=("color",), **changes)
    config.model = default.get_config().model
    config.model.pretrained = encoder
    return config


def layers(experiment):
    return sum(path.startswith("layer_") for path in experiment.owners)


def test_all_layers_are_the_default(tiny, encoder):
    config = config_of(tiny, encoder)
    checks.check(config)
    experiment = build(config)
    assert layers(experiment) == experiment.model.architecture.layers == LAYERS
    assert not any("layers are used" in note for note in experiment.corpus.notes)


def test_fewer_are_a_choice_that_is_told(tiny, encoder):
    config = config_of(tiny, encoder)
    config.model.num_layers = 3
    experiment = build(config)
    assert layers(experiment) == experiment.model.architecture.layers == 3
    message = f"{encoder}: the first 3 of its 4 layers are used"
    assert any(message in note for note in experiment.corpus.notes)  # printed at the start of a run
    assert message in inspection.describe_experiment(config)


def test_an_ablation_tells_it_too(tiny, encoder):
    config = config_of(tiny, encoder)
    default.add_choice(config, "depth", field="model.num_layers", alternatives=(-1, 1))
    planned = plan.make_plan(config, lambda c: checks.check(c, "ablate"))
    sources = lane_program.Sources()
    whole, cut = (lane_program.build(one, sources) for one in planned.programs)
    assert (layers(whole.experiment), layers(cut.experiment)) == (LAYERS, 1)
    assert not any("of its 4 layers" in note for note in whole.notes)
    assert any("the first 1 of its 4 layers" in note for note in cut.notes)


def test_more_than_there_are_is_an_error(tiny, encoder):
    config = config_of(tiny, encoder)
    config.model.num_layers = 5
    with pytest.raises(UserError, match=r"config\.model\.num_layers: 5, but .*encoder has 4"):
        build(config)


@pytest.mark.parametrize(
    ("asked", "published", "count"),
    [(-1, None, 2), (0, None, 0), (3, None, 3), (-1, 6, 6), (0, 6, 6), (2, 6, 2), (6, 6, 6)],
)
def test_numbers(asked, published, count):
    config = default.get_config()
    config.model.num_layers = asked
    assert model.layer_count(config, published) == count


def test_the_quickstart_has_all_six():
    assert model.layer_count(quickstart.get_config(), 6) == 6
