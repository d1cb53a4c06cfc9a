"""Logits of a Hugging Face model with an adapter beside it, as `peft` computes them. Runs where torch is.

python peft_reference.py BASE ADAPTER TOKENS.json LOGITS.npz
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def main(base: str, adapter: str, tokens: str, out: str) -> None:
    """Writes `beside`, with the adapter as a module of its own; `added`, merged by peft; and `base`, without it."""
    rows = torch.tensor(json.loads(Path(tokens).read_text()))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        found = {"base": model(rows).logits}
        model = PeftModel.from_pretrained(model, adapter)
        found["beside"] = model(rows).logits
        found["added"] = model.merge_and_unload()(rows).logits
    np.savez(out, **{name: logits.numpy() for name, logits in found.items()})


if __name__ == "__main__":
    main(*sys.argv[1:])
