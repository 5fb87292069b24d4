"""LoRA leaves a run merged into the kernels, and as an adapter that PEFT loads."""

import json

import jax
import numpy as np
import pytest
from export_runs import encoder_folder, make_config, write_data
from safetensors.numpy import load_file

from mtl_jax.errors import UserError
from mtl_jax.experiment import inputs
from mtl_jax.models import pretrained
from mtl_jax.runs import export
from mtl_jax.runs.build import build
from mtl_jax.storage import artifacts, checkpoint
from mtl_jax.storage import workdir as folders
from mtl_jax.training.parameter_paths import flatten

pytestmark = pytest.mark.usefixtures("standard_promotion")
RANK, ALPHA = 3, 7.0


def exported(folder, family, monkeypatch, **options):
    """(experiment, its parameters) of a run whose LoRA is not zero, exported to folder/out without programs."""
    write_data(folder)
    tasks = {"topic": {"head_form": "published"}, "pos": {"head_form": "published"}}
    config = make_config(folder, encoder_folder(folder / "encoder", family), tuple(tasks), **tasks)
    config.sharing.adapter, config.sharing.adapter_options = "lora", {"rank": RANK, "alpha": ALPHA, **options}
    experiment = build(config)
    workdir = folders.prepare(folder / "run")
    folders.claim(workdir, config)
    artifacts.save(workdir, experiment.corpus, experiment.model.architecture)
    state = experiment.init(0)
    params = dict(jax.device_get(state.params))
    for path in [path for path in params if path.startswith("adapter_")]:
        leaves, tree = jax.tree.flatten(params[path])
        draw = [np.random.default_rng(n).normal(size=leaf.shape).astype(np.float32) for n, leaf in enumerate(leaves)]
        params[path] = jax.tree.unflatten(tree, draw)
    with checkpoint.Checkpoints(workdir, 1, experiment.spec.objective.groups) as checkpoints:
        checkpoints.save(state._replace(params=params), {})
    monkeypatch.setattr(export, "save_program", lambda place, program: "no program")
    lines = export.export(config, workdir, ["last"], folder / "out")
    assert any("PEFT adapter" in line for line in lines)
    return experiment, params


@pytest.mark.parametrize(("family", "options"), [("bert", {}), ("bert", {"shared": "lora"}), ("modernbert", {})])
def test_merged_kernels_and_the_adapter(tmp_path, monkeypatch, family, options):
    experiment, params = exported(tmp_path, family, monkeypatch, **options)
    flat = flatten(params)
    for k, task in enumerate(experiment.tasks):
        folder = tmp_path / "out" / task
        merged, base = (flatten(pretrained.load(place).params) for place in (folder, folder / "base"))
        adapted = [path for path in merged if f"{path.replace('layer_', 'adapter_', 1)}/a" in flat]
        assert adapted
        for path, value in merged.items():
            expected, name = base[path], path.replace("layer_", "adapter_", 1)
            if path in adapted:
                expected = expected + ALPHA / RANK * flat[f"{name}/a"][k] @ flat[f"{name}/b"][k]
                if options:
                    shared = name.replace("adapter_", "adapter_shared_", 1)
                    expected = expected + ALPHA / RANK * flat[f"{shared}/shared_a"][0] @ flat[f"{shared}/shared_b"][0]
            np.testing.assert_allclose(value, expected, atol=2e-5, err_msg=path)

        # W + scaling B A of the adapter's files is the merged weight
        fields = json.loads((folder / "peft" / "adapter_config.json").read_text())
        factors = load_file(folder / "peft" / "adapter_model.safetensors")
        whole, before = (load_file(place / "model.safetensors") for place in (folder, folder / "base"))
        for module in fields["target_modules"]:
            a, b = (factors[f"base_model.model.{module}.lora_{x}.weight"] for x in "AB")
            change = fields["lora_alpha"] / fields["r"] * b @ a
            np.testing.assert_allclose(before[f"{module}.weight"] + change, whole[f"{module}.weight"], atol=2e-5)


def test_an_adapter_of_peft_is_added_to_the_encoder(tmp_path, monkeypatch):
    experiment, _ = exported(tmp_path, "modernbert", monkeypatch)
    config, folder = experiment.config, tmp_path / "out" / "topic"
    config.model.pretrained, config.model.pretrained_adapter = str(folder / "base"), str(folder / "peft")
    added = inputs.load_encoder(config)
    whole = flatten(pretrained.load(folder).params)
    for path, value in flatten(added.params).items():
        np.testing.assert_allclose(value, whole[path], atol=2e-5, err_msg=path)
    assert any("head.dense" in name for name in added.unused)
    file = folder / "peft" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_dora": True}))
    with pytest.raises(UserError, match="use_dora = True is not supported"):
        inputs.load_encoder(config)


def test_peft_gives_the_logits_of_the_merged_model(tmp_path, monkeypatch):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    exported(tmp_path, "modernbert", monkeypatch)
    tokens = torch.tensor([[2, 17, 39, 5, 8, 3]])
    for task in ("topic", "pos"):
        folder = tmp_path / "out" / task
        architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
        kind = getattr(transformers, architecture)
        base = kind.from_pretrained(folder / "base")
        model = peft.PeftModel.from_pretrained(base, folder / "peft").eval()
        with torch.no_grad():
            ours, theirs = kind.from_pretrained(folder).eval()(tokens).logits, model(tokens).logits
            plain = kind.from_pretrained(folder / "base").eval()(tokens).logits
        np.testing.assert_allclose(theirs, ours, atol=1e-5)
        assert float((plain - ours).abs().max()) > 1e-3
