"""Hugging Face transformers' logits for the cases, as npz files. Runs in the environment of `make test-parity`.

reference.py FOLDER           one NAME.npz per case, and NAME/ as a Hugging Face directory
reference.py FOLDER GOLDEN    also what tests without torch compare with, in the folder GOLDEN
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from parity_cases import CASES, LENGTH, sequences, weight
from safetensors.torch import load_file, save_file


def make_model(config: Mapping[str, Any], folder: Path) -> transformers.PreTrainedModel:
    """The model of a case, loaded from a Hugging Face directory with our weights.

    The directory is first written by transformers itself, so that tensors have the names it gives them on disk.
    """
    settings = dict(config)
    made = transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)
    transformers.AutoModelForCausalLM.from_config(made).save_pretrained(folder)
    path = folder / "model.safetensors"
    ours = {name: torch.from_numpy(weight(name, tensor.shape)) for name, tensor in load_file(path).items()}
    save_file(ours, path, metadata={"format": "pt"})
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def logits(model: transformers.PreTrainedModel, tokens: list[int], left: int = 0, right: int = 0) -> np.ndarray:
    """Logits of one sequence, with so much padding on its left and right: `[tokens, vocabulary]`."""
    ids = torch.tensor([[0] * left + tokens + [0] * right])
    mask = torch.tensor([[0] * left + [1] * len(tokens) + [0] * right])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return out[0, left : left + len(tokens)].numpy()


def reference(model: transformers.PreTrainedModel) -> dict[str, np.ndarray]:
    """Logits of all sequences one after the other: `alone`, and with padding up to `LENGTH`: `left`, `right`."""
    found = {"alone": [], "left": [], "right": []}
    for tokens in sequences():
        padding = LENGTH - len(tokens)
        found["alone"].append(logits(model, tokens))
        found["left"].append(logits(model, tokens, left=padding))
        found["right"].append(logits(model, tokens, right=padding))
    return {name: np.concatenate(values) for name, values in found.items()}


def main(folder: Path, golden: Path | None = None) -> None:
    for name, case in CASES.items():
        model = make_model(case.config, folder / name).eval()
        found = reference(model)
        np.savez(folder / f"{name}.npz", **found)
        if golden is not None:
            tensors = load_file(folder / name / "model.safetensors")
            np.savez_compressed(
                golden / f"{name}.npz",
                logits=found["alone"],
                config=(folder / name / "config.json").read_text("utf-8"),
                tensors=json.dumps({tensor: list(value.shape) for tensor, value in tensors.items()}),
            )
        print(name, flush=True)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    transformers.utils.logging.disable_progress_bar()
    main(*map(Path, sys.argv[1:]))
