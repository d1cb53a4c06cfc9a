"""Rollouts by `verifiers`, as its users run them: `Environment.evaluate` on a SingleTurnEnv and on a ToolEnv.

Results are written to disk as they come (`save_results`), tokens and log-probabilities are read; a "token" of the
protocol is a rollout.
"""

import asyncio
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import verifiers as vf
from datasets import Dataset, disable_progress_bars
from protocol import Job, Play, answer


def correct(completion: Any, answer: str) -> float:
    return float(completion[-1]["content"].strip() == answer)


def length(completion: Any) -> float:
    return float(len(completion[-1]["content"]))


async def lookup(word: str) -> str:
    """Look a word up.

    Args:
        word: the word.
    """
    return f"{word}: an animal"


def begin(job: Job) -> Play:
    os.environ["INSTANT_KEY"] = "none"
    disable_progress_bars()
    rows = [{"question": job["question"], "answer": job["answer"]} for _ in range(job["rollouts"])]
    dataset = Dataset.from_list(rows)
    rubric = vf.Rubric(funcs=[correct, length], weights=[1.0, 0.0])
    if job["scenario"] == "tool":
        environment: Any = vf.ToolEnv(tools=[lookup], max_turns=4, eval_dataset=dataset, rubric=rubric)
    else:
        environment = vf.SingleTurnEnv(eval_dataset=dataset, rubric=rubric)
    client = vf.ClientConfig(api_key_var="INSTANT_KEY", api_base_url=job["url"], connect_timeout=60.0)
    sampling = {"max_tokens": 64, "temperature": 1.0, "logprobs": True, "extra_body": {"return_token_ids": True}}

    def play(number: int) -> int:
        folder = Path(tempfile.mkdtemp())
        try:
            found = asyncio.run(
                environment.evaluate(
                    client,
                    "instant",
                    sampling_args=sampling,
                    num_examples=job["rollouts"],
                    max_concurrent=job["concurrency"],
                    results_path=folder,
                    save_results=True,
                )
            )
        finally:
            shutil.rmtree(folder)
        rewards = [output["reward"] for output in found["outputs"]]
        assert rewards == [1.0] * job["rollouts"], f"a rollout failed: {found['outputs'][0]}"
        return len(rewards)

    return play


if __name__ == "__main__":
    answer(begin, ["verifiers", "openai"])
