"""Writes encoder_goldens.json: hidden states and gradients of tiny published encoders (transformers on torch).

Run by hand in an environment with torch and transformers; the tests read only the JSON:

    python tests/helpers/make_encoder_goldens.py

For each family a model in float64 whose weights come from `hashed_weights`. "tensors": its published names and shapes.
Of decoders also "logits", of the first tokens of the vocabulary at each place of the first text, and "greedy", how
`generate` continues `PROMPTS`; a head that is not the table of words is `hashed_head`.
"hidden": the first features of the embeddings and of every layer, for each text. "gradients": of Σ `direction` · top
layer, summed over the texts: for each tensor its norm, and its values at a few places.
"""

from __future__ import annotations

import inspect
import json
import pathlib

import numpy as np

GOLDENS = pathlib.Path(__file__).with_name("encoder_goldens.json")
FEATURES = 4  # of each token that are written
PLACES = 3  # of each gradient that are written

SMALL = {"vocab_size": 40, "num_hidden_layers": 3, "hidden_size": 12, "num_attention_heads": 3, "intermediate_size": 20}
TINY: dict[str, dict[str, object]] = {
    "distilbert": dict(
        vocab_size=40, n_layers=3, dim=12, n_heads=3, hidden_dim=20, max_position_embeddings=32, activation="gelu"
    ),
    "electra": dict(**SMALL, embedding_size=8, max_position_embeddings=32, hidden_act="gelu"),
    "modernbert": dict(
        **SMALL | {"num_hidden_layers": 4},
        max_position_embeddings=64,
        pad_token_id=0,
        local_attention=8,
        layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"],
        norm_bias=True,
        mlp_bias=True,
    ),
    "eurobert": dict(
        **SMALL | {"num_attention_heads": 4, "hidden_size": 16},
        num_key_value_heads=2,
        head_dim=6,
        max_position_embeddings=64,
        pad_token_id=0,
        rope_parameters={"rope_type": "default", "rope_theta": 250.0},
    ),
    "albert": dict(**SMALL, embedding_size=8, max_position_embeddings=32),
    "mpnet": dict(**SMALL, max_position_embeddings=34, layer_norm_eps=1e-5),
    "t5": dict(
        vocab_size=40,
        num_layers=3,
        d_model=12,
        num_heads=3,
        d_kv=6,
        d_ff=20,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        is_encoder_decoder=False,
    ),
    "t5 gated": dict(
        vocab_size=40,
        num_layers=2,
        d_model=12,
        num_heads=3,
        d_kv=4,
        d_ff=20,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
    ),
    "deberta-v2": dict(
        **SMALL,
        max_position_embeddings=32,
        relative_attention=True,
        position_buckets=8,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
    ),
    "deberta-v2 separate": dict(
        **SMALL | {"num_hidden_layers": 2},
        max_position_embeddings=32,
        max_relative_positions=10,
        relative_attention=True,
        pos_att_type=["c2p", "p2c"],
        type_vocab_size=2,
    ),
}
GROUPED = SMALL | {"num_attention_heads": 4, "hidden_size": 16, "num_key_value_heads": 2, "head_dim": 6}
LOCAL, GLOBAL = "sliding_attention", "full_attention"
DECODERS: dict[str, dict[str, object]] = {
    "gpt2": dict(vocab_size=40, n_layer=3, n_embd=12, n_head=3, n_inner=20, n_positions=40),
    "llama": dict(
        **GROUPED,
        max_position_embeddings=64,
        attention_bias=True,
        mlp_bias=True,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 100.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "llama tied": dict(
        **SMALL,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "linear", "rope_theta": 250.0, "factor": 2.0},
    ),
    "mistral": dict(**GROUPED, max_position_embeddings=64, sliding_window=5),
    "qwen2": dict(
        **{field: value for field, value in GROUPED.items() if field != "head_dim"},
        max_position_embeddings=64,
        use_sliding_window=True,
        sliding_window=4,
        max_window_layers=1,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 50.0,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "qwen3": dict(**GROUPED, max_position_embeddings=64, tie_word_embeddings=True),
    "gemma": dict(**GROUPED, max_position_embeddings=64),
    "gemma2": dict(**GROUPED, max_position_embeddings=64, sliding_window=4, query_pre_attn_scalar=8),
    "gemma3_text": dict(
        **GROUPED,
        max_position_embeddings=64,
        sliding_window=4,
        query_pre_attn_scalar=10,
        final_logit_softcapping=2.0,
        layer_types=[LOCAL, GLOBAL, LOCAL],
        rope_parameters={
            GLOBAL: {"rope_type": "linear", "rope_theta": 1000.0, "factor": 8.0},
            LOCAL: {"rope_type": "default", "rope_theta": 100.0},
        },
    ),
}
TINY |= DECODERS
PROMPTS = [[2, 17, 39, 5], [2, 11, 3, 30, 31, 32, 33, 8, 9]]  # that greedy search continues
NEW_TOKENS = 8
PUBLISHED = {
    "t5": "T5EncoderModel",
    "t5 gated": "T5EncoderModel",
}  # class of transformers where `AutoModel` builds more than an encoder
# no id is 0 or 1, paddings from which the published models would compute other positions
TEXTS = [[2, 17, 39, 5, 8, 3], [2, 11, 3], [2, *range(10, 36), 3]]
TYPES = [[0, 0, 0, 1, 1, 1], [0] * 3, [0] * 28]


def config_of(family: str) -> dict[str, object]:
    return {"model_type": family.partition(" ")[0], **TINY[family]}


def hashed_values(number: int, shape: tuple[int, ...]) -> np.ndarray:
    """Values within ±0.4 from integer arithmetic alone, the same on every machine: float32."""
    index = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(1000 * number + 1)
    mixed = (index * np.uint64(2654435761)) % np.uint64(2**32)
    mixed = ((mixed ^ (mixed >> np.uint64(15))) * np.uint64(2246822519)) % np.uint64(2**32)
    return ((mixed.astype(np.float64) / 2**32 - 0.5) * 0.8).reshape(shape).astype(np.float32)


def hashed_weights(shapes: dict[str, tuple[int, ...]], family: str = "") -> dict[str, np.ndarray]:
    """Weights of all tensors; scales of normalisations are around 1, of Gemma, which adds 1 to them, around 0."""
    around = np.float32(not family.startswith("gemma"))
    return {
        name: hashed_values(number, shapes[name]) + around * ("norm" in name.lower() and name.endswith("weight"))
        for number, name in enumerate(sorted(shapes))
    }


def direction(text: int, width: int) -> np.ndarray:
    """float32 [T, D], by which the top layer is multiplied."""
    return hashed_values(100 + text, (len(TEXTS[text]), width))


def places(name: str, size: int) -> list[int]:
    """A few indices of a flat tensor."""
    return [(len(name) * 7919 + 104729 * k) % size for k in range(PLACES)]


def published_class(family: str) -> type:
    """The class of transformers that is the encoder alone."""
    import transformers

    if family in PUBLISHED:
        return getattr(transformers, PUBLISHED[family])
    return type(transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**config_of(family))))


def golden(family: str) -> dict[str, object]:
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(**config_of(family))
    config._attn_implementation = "eager"
    cls = published_class(family)
    model = cls(config).eval()
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters() if "pooler" not in name}
    weights = {name: torch.tensor(value) for name, value in hashed_weights(shapes, family).items()}
    missing = model.load_state_dict(weights, strict=False).missing_keys
    tied = {"encoder.embed_tokens.weight"}
    assert all("pooler" in name or name in tied for name in missing), missing
    model.double()
    # GPT-2 adds the vectors of words to those of types, which nobody uses
    takes_types = "token_type_ids" in inspect.signature(cls.forward).parameters and family != "gpt2"
    hidden, total = [], 0.0
    for number, text in enumerate(TEXTS):
        types = {"token_type_ids": torch.tensor([TYPES[number]])} if takes_types else {}
        out = model(torch.tensor([text]), attention_mask=torch.ones(1, len(text)), **types, output_hidden_states=True)
        states = [*out.hidden_states[:-1], out.last_hidden_state]
        hidden.append([np.round(h[0, :, :FEATURES].detach().numpy(), 7).tolist() for h in states])
        top = out.last_hidden_state[0]
        total = total + (top * torch.tensor(direction(number, top.shape[1])).double()).sum()
    total.backward()
    gradients = {}
    for name, value in model.named_parameters():
        if name in shapes:
            flat = (torch.zeros_like(value) if value.grad is None else value.grad).flatten().numpy()
            picked = [float(np.round(flat[at], 6)) for at in places(name, flat.size)]
            gradients[name] = [float(np.round(np.linalg.norm(flat), 6)), *picked]
    head = head_golden(family) if family in DECODERS else {}
    return {"tensors": shapes, "hidden": hidden, "gradients": gradients, **head}


def hashed_head(family: str, width: int) -> np.ndarray:
    """float32 [V, D], the LM head of a decoder where it is not the table of words."""
    return hashed_values(99, (int(str(TINY[family]["vocab_size"])), width))


def head_golden(family: str) -> dict[str, object]:
    """Of the LM head of a decoder."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(**config_of(family))
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    base = model.base_model
    shapes = {name: tuple(value.shape) for name, value in base.named_parameters()}
    base.load_state_dict({name: torch.tensor(value) for name, value in hashed_weights(shapes, family).items()})
    if not config.tie_word_embeddings:
        model.lm_head.weight.data = torch.tensor(hashed_head(family, config.hidden_size))
    model.double()
    logits = model(torch.tensor(TEXTS[:1])).logits[0, :, :FEATURES].detach().numpy()
    options = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "eos_token_id": None, "pad_token_id": 0}
    continued = [model.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist() for prompt in PROMPTS]
    return {"logits": np.round(logits, 6).tolist(), "greedy": continued}


def published_buckets() -> dict[str, list[int]]:
    """Of distances −600 … 600, as T5 counts them (32 buckets up to 128; 8 up to 16) and DeBERTa-v3 (256 up to 512)."""
    import torch
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(-600, 601)
    t5 = T5Attention._relative_position_bucket
    return {
        "t5 32 128": t5(distance, True, 32, 128).tolist(),
        "t5 8 16": t5(distance, True, 8, 16).tolist(),
        "deberta 256 512": make_log_bucket_position(distance, 256, 512).long().tolist(),
    }


def main() -> None:
    import torch
    import transformers

    made_with = f"torch {torch.__version__}, transformers {transformers.__version__}"
    goldens = {"made_with": made_with, "buckets": published_buckets(), **{family: golden(family) for family in TINY}}
    lines = [f"{json.dumps(name)}: {json.dumps(value, separators=(',', ':'))}" for name, value in goldens.items()]
    GOLDENS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
