"""Hugging Face transformers' logits for the cases. Runs in the environment of `make test-parity`."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from parity_cases import CASES, LENGTH, ROPES, RopeCase, sequences, weight
from safetensors.torch import load_file, save_file
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

TEXTS = (
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n",
    "Ein Wort auf Deutsch, ein mot en français, одно слово по-русски, 一个中文词: \U0001f30d",
    "Once upon a time there was a small model that lived on a laptop. Every morning it read a book, and every "
    "evening it wrote down what it had learned, so that the next morning it could read that, too. " * 3,
)

PROMPTS = [
    start.format(subject)
    for start in (
        "The most important thing about {} is",
        "Question: what is {}?\nAnswer:",
        "def describe():\n    # {}\n    return",
        "Once upon a time, {}",
        "Three facts about {}:\n1.",
        "In the year 1920, {}",
        "Dear reader, {} and",
        "{}: a short definition.",
    )
    for subject in ("the sea", "a prime number", "Paris", "bread", "gravity", "an honest friend", "rain", "the piano")
]
"""64, of several kinds."""

NEW_TOKENS = 16


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


def rope(case: RopeCase) -> dict[str, np.ndarray]:
    """Radians per position of each pair, and what cosine and sine are multiplied by."""
    keys, length = dict(case.config), case.config["max_position_embeddings"]
    scaling = dict(keys.pop("rope_scaling", {}))
    if scaling.get("rope_type") == "dynamic":  # which takes what it was first trained on from the context
        keys["max_position_embeddings"] = scaling.pop("original_max_position_embeddings", length)
    config = transformers.LlamaConfig(hidden_size=case.head_size, num_attention_heads=1, **keys, rope_scaling=scaling)
    embedding = LlamaRotaryEmbedding(config)
    embedding(torch.zeros(1), torch.tensor([[length - 1]]))  # "dynamic" looks at the longest position
    return {"frequencies": embedding.inv_freq.numpy(), "scale": np.float64(embedding.attention_scaling)}


def make_golden(folder: Path, golden: Path) -> None:
    """What tests without torch compare with."""
    for name in CASES:
        tensors = load_file(folder / name / "model.safetensors")
        np.savez_compressed(
            golden / f"{name}.npz",
            logits=np.load(folder / f"{name}.npz")["alone"],
            config=(folder / name / "config.json").read_text("utf-8"),
            tensors=json.dumps({tensor: list(value.shape) for tensor, value in tensors.items()}),
        )
    ropes = {name: rope(case) for name, case in ROPES.items()}
    np.savez_compressed(
        golden.parent / "ropes.npz",
        **{f"{name}/{part}": value for name, found in ropes.items() for part, value in found.items()},
    )


def smollm2(path: Path, folder: Path) -> None:
    """Logits of a GGUF file for texts of several lengths, `smollm2.npz`, and greedy continuations, `greedy.npz`."""
    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    model = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, attn_implementation="eager")
    found = {}
    for number, text in enumerate(TEXTS):
        tokens = tokenizer(text).input_ids
        found |= {f"tokens{number}": np.array(tokens), f"logits{number}": logits(model.eval(), tokens)}
    np.savez(folder / "smollm2.npz", **found)
    greedy = {}
    for number, text in enumerate(PROMPTS):
        ids = tokenizer(text, return_tensors="pt").input_ids
        made = model.generate(ids, do_sample=False, max_new_tokens=NEW_TOKENS)[0]
        greedy |= {f"prompt{number}": ids[0].numpy(), f"tokens{number}": made[ids.shape[1] :].numpy()}
    np.savez(folder / "greedy.npz", **greedy)


def main(arguments: argparse.Namespace) -> None:
    for name, case in CASES.items():
        model = make_model(case.config, arguments.folder / name).eval()
        np.savez(arguments.folder / f"{name}.npz", **reference(model))
    if arguments.golden:
        make_golden(arguments.folder, arguments.golden)
    if arguments.gguf:
        smollm2(arguments.gguf, arguments.folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="gets one NAME.npz per case, and NAME/, a Hugging Face directory")
    parser.add_argument("--golden", type=Path, help="tests/golden/models, which gets what tests without torch need")
    parser.add_argument("--gguf", type=Path, help="SmolLM2, to be compared too")
    transformers.utils.logging.disable_progress_bar()
    main(parser.parse_args())
