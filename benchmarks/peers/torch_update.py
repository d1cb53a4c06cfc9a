"""The same GRPO update in PyTorch: transformers' Llama, autograd, fused AdamW, micro-batches of padded rows.

Two ways of laying out sequences, both usual: `padded` (all rows as long as the longest of the batch) and `sorted` (by
length, each micro-batch as long as its own longest). The head is applied to completions only, and no entropy is
computed, which Upswing's update reports; both are in torch's favour.
"""

from typing import Any

import numpy as np
import torch
from llama import llama
from protocol import Job, Play, answer, rollouts

LR, CLIP, MAX_NORM = 3e-4, 0.2, 1.0


def begin(job: Job) -> Play:
    torch.manual_seed(0)
    model = llama(job["shape"]).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    norms = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed}, {"params": norms}], lr=LR, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=True
    )

    def play(number: int) -> int:
        sequences = rollouts(job, number)
        useful = sum(len(s["tokens"]) for s in sequences)
        sampled = sum(len(s["tokens"]) - s["prompt"] for s in sequences)
        longest = max(len(s["tokens"]) for s in sequences)
        if job["layout"] == "sorted":
            sequences = sorted(sequences, key=lambda s: -len(s["tokens"]))
        rows = job["microbatch"]
        for start in range(0, len(sequences), rows):
            part = sequences[start : start + rows]
            length = longest if job["layout"] == "padded" else max(len(s["tokens"]) for s in part)
            (loss_of(model, part, length) / sampled).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        assert torch.isfinite(norm)
        return useful

    return play


def loss_of(model: Any, part: list[dict[str, Any]], length: int) -> torch.Tensor:
    """The clipped surrogate, summed over the sampled tokens of some sequences (padded on the right)."""
    tokens = np.zeros((len(part), length), np.int64)
    present = np.zeros((len(part), length), np.int64)
    mask = np.zeros((len(part), length), bool)
    old = np.zeros((len(part), length), np.float32)
    advantages = np.zeros((len(part), length), np.float32)
    for row, sequence in enumerate(part):
        size, prompt = len(sequence["tokens"]), sequence["prompt"]
        tokens[row, :size], present[row, :size] = sequence["tokens"], 1
        mask[row, prompt:size], old[row, prompt:size] = True, sequence["logprobs"]
        advantages[row] = sequence["advantage"]
    chosen = torch.from_numpy(mask[:, 1:])
    ids = torch.from_numpy(tokens)
    hidden = model.model(input_ids=ids, attention_mask=torch.from_numpy(present)).last_hidden_state
    logits = model.lm_head(hidden[:, :-1][chosen])
    logprobs = torch.log_softmax(logits, dim=-1)
    now = logprobs.gather(1, ids[:, 1:][chosen][:, None])[:, 0]
    ratio = torch.exp(now - torch.from_numpy(old[:, 1:])[chosen])
    advantage = torch.from_numpy(advantages[:, 1:])[chosen]
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - CLIP, 1 + CLIP)).sum()


if __name__ == "__main__":
    answer(begin, ["torch", "transformers"])
