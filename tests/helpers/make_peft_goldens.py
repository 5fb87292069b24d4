"""Makes peft_goldens.json: LoRA, DoRA and (IA)³ of PEFT in PyTorch, step by step; needs torch, transformers, peft.

python tests/helpers/make_peft_goldens.py

One BERT layer with PEFT's LoRA, DoRA or (IA)³; the layer is frozen; SGD on the mean square of the difference to a
target. All values are made by `numbers`. Written are the loss before each step, what is trained after the last, and the
kernel of the values with it merged.
"""

import json
import pathlib

import numpy as np
import peft
import torch
import transformers
from transformers.models.bert.modeling_bert import BertLayer

WIDTH, HEADS, INNER, RANK, ALPHA, RATE, STEPS = 8, 2, 12, 2, 6.0, 0.5, 5


def numbers(name: str, *shape: int) -> np.ndarray:
    """float64 values that both sides make from a name: no generator has to be the same."""
    start = sum(name.encode())
    return np.sin(start + 1.7 * np.arange(np.prod(shape))).reshape(shape) * 0.5


def main() -> None:
    torch.set_default_dtype(torch.float64)
    config = transformers.BertConfig(
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        intermediate_size=INNER,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )
    layer = BertLayer(config).double()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "LayerNorm" not in name:
                parameter.copy_(torch.from_numpy(numbers(name, *parameter.shape)))
    result = {method: trained(method, layer_copy(layer, config)) for method in ("lora", "dora", "ia3")}
    path = pathlib.Path(__file__).with_name("peft_goldens.json")
    path.write_text(json.dumps(result) + "\n")


def layer_copy(layer, config):
    other = BertLayer(config).double()
    other.load_state_dict(layer.state_dict())
    return other


def trained(method: str, layer) -> dict:
    targets = ["query", "value", "intermediate.dense", "output.dense"]
    if method == "ia3":
        modules = {"target_modules": ["key", "value", "output.dense"], "feedforward_modules": ["output.dense"]}
        settings = peft.IA3Config(**modules)
    else:
        settings = peft.LoraConfig(
            r=RANK, lora_alpha=ALPHA, target_modules=targets, lora_dropout=0.0, bias="none", use_dora=method == "dora"
        )
    model = peft.inject_adapter_in_model(settings, layer)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.copy_(torch.from_numpy(numbers(name.removesuffix(".default.weight"), *parameter.shape)))
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trainable.values(), lr=RATE)
    x, target = (torch.from_numpy(numbers(name, 2, 5, WIDTH)) for name in ("x", "target"))
    losses = []
    for _ in range(STEPS):
        output = model(x)
        output = output[0] if isinstance(output, tuple) else output
        loss = torch.square(output - target).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = {name: p.detach().numpy().tolist() for name, p in trainable.items()}
    model.attention.self.value.merge()
    return {"losses": losses, "after": after, "merged": model.attention.self.value.weight.detach().numpy().tolist()}


if __name__ == "__main__":
    main()
