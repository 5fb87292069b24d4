"""Writes smollm_goldens.json: what transformers computes with SmolLM2-135M-Instruct, from the same GGUF file.

Run by hand in an environment with torch, transformers and gguf:

    python tests/helpers/make_smollm_goldens.py SmolLM2-135M-Instruct.Q4_1.gguf tokens.json

tokens.json: ids of the sentences, as `sentences` of tests/models/test_gguf.py makes them. "nll": Σ −log p of the
tokens of each sentence after its first. "greedy": how `generate` continues the first one.
"""

from __future__ import annotations

import json
import pathlib
import sys

GOLDENS = pathlib.Path(__file__).with_name("smollm_goldens.json")
NEW_TOKENS = 12


def main(file: str, tokens: str) -> None:
    import torch
    import transformers

    path = pathlib.Path(file)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    sentences = json.loads(pathlib.Path(tokens).read_text(encoding="utf-8"))
    nll = []
    with torch.no_grad():
        for begin in range(0, len(sentences), 25):
            some = sentences[begin : begin + 25]
            longest = max(map(len, some))
            padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in some])  # what follows is not seen
            log_p = model(padded).logits[:, :-1].log_softmax(-1).gather(2, padded[:, 1:, None])[:, :, 0].double()
            nll += [round(float(-log_p[row, : len(ids) - 1].sum()), 4) for row, ids in enumerate(some)]
        options = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "eos_token_id": None, "pad_token_id": 2}
        greedy = model.generate(torch.tensor(sentences[:1]), **options)[0, len(sentences[0]) :].tolist()
    made_with = f"torch {torch.__version__}, transformers {transformers.__version__}"
    goldens = {"made_with": made_with, "tokens": sum(len(ids) - 1 for ids in sentences), "nll": nll, "greedy": greedy}
    GOLDENS.write_text(json.dumps(goldens) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
