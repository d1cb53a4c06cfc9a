"""Logits of Hugging Face models with adapters beside them, as `peft` computes them. Runs where torch is.

python peft_reference.py FOLDER …     each with base/, adapter/ and tokens.json
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, PreTrainedModel


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32, attn_implementation="eager")


def compute(folder: Path) -> None:
    """Writes logits.npz: `base`; with adapter/ `beside` it and `added` to it; and with `theirs`, an adapter that peft
    makes and writes to theirs/."""
    rows = torch.tensor(json.loads((folder / "tokens.json").read_text()))
    ours = PeftModel.from_pretrained(load(folder), folder / "adapter")
    settings = LoraConfig(
        r=3, lora_alpha=5, use_rslora=True, target_modules=["q_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM"
    )
    theirs = get_peft_model(load(folder), settings)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        theirs.save_pretrained(folder / "theirs")
        logits = {
            "base": load(folder)(rows).logits,
            "beside": ours(rows).logits,
            "theirs": theirs(rows).logits,
            "added": ours.merge_and_unload()(rows).logits,
        }
    np.savez(folder / "logits.npz", **{name: values.numpy() for name, values in logits.items()})


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        compute(Path(argument))
