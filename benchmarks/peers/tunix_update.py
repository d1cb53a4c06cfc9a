"""google-tunix's GRPO train step: its trainer's compiled step over its Llama 3 with its GRPO loss.

Prompts are padded on the left and completions on the right, to the most there may be, as its learner does. The whole
batch goes through in one step or, with "microbatch", in accumulated ones.
"""

from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from protocol import Job, Play, answer, rollouts
from tunix.models.llama3.model import Llama3, ModelConfig
from tunix.rl import function_registry, trainer
from tunix.rl.grpo.grpo_learner import GRPOConfig, TrainExample
from tunix.sft.peft_trainer import TrainingConfig

LR, CLIP, MAX_NORM, PAD = 3e-4, 0.2, 1.0, -1


def begin(job: Job) -> Play:
    shape = job["shape"]
    config = ModelConfig(
        num_layers=shape["layers"],
        vocab_size=shape["vocab_size"],
        embed_dim=shape["width"],
        hidden_dim=shape["ffn"],
        num_heads=shape["heads"],
        head_dim=shape["head_size"],
        num_kv_heads=shape["kv_heads"],
        rope_theta=shape["rope_theta"],
        norm_eps=shape["norm_eps"],
        weight_tying=shape["tie_embeddings"],
    )
    rows = job["microbatch"]
    parts = job["rollouts"] // rows
    algorithm = GRPOConfig(beta=0.0, epsilon=CLIP, loss_agg_mode="token-mean", num_generations=2)
    algorithm.temperature = 1.0
    policy_loss = function_registry.get_policy_loss_fn("grpo")
    optimizer = optax.chain(optax.clip_by_global_norm(MAX_NORM), optax.adamw(LR, b1=0.9, b2=0.95, weight_decay=0.0))
    training = TrainingConfig(eval_every_n_steps=1000, gradient_accumulation_steps=parts if parts > 1 else None)
    learner = trainer.Trainer(Llama3(config, rngs=nnx.Rngs(0)), optimizer, training, dict)
    learner.with_loss_fn(
        lambda model, train_example, algo_config: policy_loss(
            model, train_example, algo_config=algorithm, pad_id=PAD, eos_id=PAD
        ),
        has_aux=True,
    )
    learner.with_gen_model_input_fn(lambda example: {"train_example": example, "algo_config": algorithm})
    step, _ = learner.jit_train_and_eval_step(cache_nnx_graph=True)

    def play(number: int) -> int:
        sequences = rollouts(job, number)
        for start in range(0, len(sequences), rows):
            loss, _, norm = step(example(job, sequences[start : start + rows]))
        loss, norm = jax.device_get((loss, norm))
        assert np.isfinite(loss) and np.isfinite(norm)
        return sum(len(s["tokens"]) for s in sequences)

    return play


def example(job: Job, sequences: list[dict[str, Any]]) -> TrainExample:
    """Padded arrays, as the learner makes them."""
    prompts = np.full((len(sequences), job["prompt"]), PAD, np.int32)
    completions = np.full((len(sequences), job["new"]), PAD, np.int32)
    old = np.zeros(completions.shape, np.float32)
    for row, sequence in enumerate(sequences):
        prompt, new = sequence["tokens"][: sequence["prompt"]], sequence["tokens"][sequence["prompt"] :]
        prompts[row, -len(prompt) :], completions[row, : len(new)] = prompt, new
        old[row, : len(new)] = sequence["logprobs"]
    return TrainExample(
        prompt_ids=prompts,
        prompt_mask=prompts != PAD,
        completion_ids=completions,
        completion_mask=completions != PAD,
        advantages=np.array([s["advantage"] for s in sequences], np.float32),
        ref_per_token_logps=None,
        old_per_token_logps=old,
    )


if __name__ == "__main__":
    answer(begin, ["google-tunix", "jax", "flax", "optax"])
