"""Writes published_goldens.json: hidden states of the published BERT and RoBERTa (transformers on torch).

Run by hand in an environment with torch and transformers, once; the tests read only the JSON:

    python tests/helpers/make_published_goldens.py MINILM_FOLDER DATA_FOLDER

"tiny": two small models in float64 whose weights come from `hashed_weights`, all hidden states. "minilm": the real
all-MiniLM-L6-v2 in float32 on real sentences: of each the first, middle and last token, first 4 features, all layers.
"""

import json
import pathlib
import sys

import numpy as np

GOLDENS = pathlib.Path(__file__).with_name("published_goldens.json")

TINY = {
    "bert": dict(
        model_type="bert",
        vocab_size=40,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=20,
        max_position_embeddings=16,
        type_vocab_size=2,
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        pad_token_id=0,
    ),
    "roberta": dict(
        model_type="roberta",
        vocab_size=40,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=20,
        max_position_embeddings=16,
        type_vocab_size=1,
        hidden_act="gelu_new",
        layer_norm_eps=1e-5,
        pad_token_id=1,
    ),
}
# (tokens, token types): no id is RoBERTa's padding id 1, from which it would compute other positions.
TEXTS = [([2, 17, 39, 5, 8, 3], [0, 0, 0, 1, 1, 1]), ([2, 11, 3], [0, 0, 0]), ([2, 30, 31, 32, 9, 9, 24, 3], [0] * 8)]


def hashed_weights(names_and_shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Weights from integer arithmetic alone, the same on every machine: float32, about ±0.4, LayerNorm around 1."""
    weights = {}
    for number, name in enumerate(sorted(names_and_shapes)):
        shape = names_and_shapes[name]
        index = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(1000 * number + 1)
        mixed = (index * np.uint64(2654435761)) % np.uint64(2**32)
        mixed = ((mixed ^ (mixed >> np.uint64(15))) * np.uint64(2246822519)) % np.uint64(2**32)
        values = (mixed.astype(np.float64) / 2**32 - 0.5) * 0.8 + (1.0 if name.endswith("LayerNorm.weight") else 0.0)
        weights[name] = values.reshape(shape).astype(np.float32)
    return weights


def main(minilm: pathlib.Path, data: pathlib.Path) -> None:
    import torch
    import transformers
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    goldens = {"made_with": f"torch {torch.__version__}, transformers {transformers.__version__}", "tiny": {}}
    for family, config in TINY.items():
        config = AutoConfig.for_model(**config)
        model = AutoModel.from_config(config, attn_implementation="eager", add_pooling_layer=False).eval()
        shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
        model.load_state_dict({n: torch.tensor(w) for n, w in hashed_weights(shapes).items()}, strict=True)
        model.double()
        goldens["tiny"][family] = []
        for tokens, types in TEXTS:
            types = types if family == "bert" else [0] * len(tokens)
            with torch.no_grad():
                out = model(torch.tensor([tokens]), token_type_ids=torch.tensor([types]), output_hidden_states=True)
            goldens["tiny"][family].append([np.round(h[0].numpy(), 7).tolist() for h in out.hidden_states])

    tokenizer = AutoTokenizer.from_pretrained(minilm)
    model = AutoModel.from_pretrained(minilm, attn_implementation="eager").eval()
    snips = (data / "snips/test/seq.in").read_text(encoding="utf-8").splitlines()[:8]
    ewt = (data / "ewt/en_ewt-ud-test.conllu").read_text(encoding="utf-8").splitlines()
    ewt = [line.removeprefix("# text = ") for line in ewt if line.startswith("# text = ")][:8]
    goldens["minilm"] = []
    for text in [(s,) for s in snips + ewt] + [(snips[0], ewt[0])]:
        encoded = tokenizer(*text, return_tensors="pt", truncation=True, max_length=128)
        with torch.no_grad():
            out = model(**encoded, output_hidden_states=True)
        tokens = encoded["input_ids"][0].tolist()
        at = [0, len(tokens) // 2, len(tokens) - 1]
        hidden = np.stack([h[0].numpy() for h in out.hidden_states])
        goldens["minilm"].append(
            {
                "tokens": tokens,
                "token_type": encoded["token_type_ids"][0].tolist(),
                "at": at,
                "hidden": np.round(hidden[:, at, :4].astype(np.float64), 6).tolist(),
            }
        )
    GOLDENS.write_text(json.dumps(goldens, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
