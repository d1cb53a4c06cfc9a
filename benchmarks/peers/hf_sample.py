"""Hugging Face transformers samples: `generate` with the settings of plain sampling, dynamic cache, as it comes.

It returns no log-probabilities (`output_scores` would cost more); Upswing's engine does.
"""

import torch
from llama import llama
from protocol import Job, Play, answer, prompts


def begin(job: Job) -> Play:
    torch.manual_seed(0)
    model = llama(job["shape"]).eval()

    def play(number: int) -> int:
        ids = torch.tensor(prompts(job, number))
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=job["new"],
                num_return_sequences=job["group"],
                pad_token_id=0,
            )
        return out[:, job["prompt"] :].numel()

    return play


if __name__ == "__main__":
    answer(begin, ["torch", "transformers"])
