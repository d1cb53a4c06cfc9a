"""google-tunix samples: its vanilla `Sampler` over its Llama 3, the prompts of a group repeated as its learner does.

Asked for no log-probabilities, which is its default and 1.6 times as fast as with them; Upswing's engine returns them.
"""

from flax import nnx
from protocol import Job, Play, answer, prompts
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.llama3.model import Llama3, ModelConfig


class Ids:
    """A tokenizer whose text is token ids; -1 is never sampled, so it pads and ends nothing."""

    def encode(self, text: str, **_: object) -> list[int]:
        return [int(token) for token in text.split()]

    def decode(self, ids: list[int], **_: object) -> str:
        return ""

    def bos_id(self) -> int:
        return 0

    def eos_id(self) -> int:
        return -1

    def pad_id(self) -> int:
        return -1


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
    cache = CacheConfig(job["prompt"] + job["new"], shape["layers"], shape["kv_heads"], shape["head_size"])
    sampler = Sampler(Llama3(config, rngs=nnx.Rngs(0)), Ids(), cache)

    def play(number: int) -> int:
        texts = [" ".join(map(str, prompt)) for prompt in prompts(job, number) for _ in range(job["group"])]
        out = sampler(texts, job["new"], job["prompt"], temperature=1.0, top_p=1.0, seed=number, eos_tokens=[-1])
        return sum(len(tokens) for tokens in out.tokens)

    return play


if __name__ == "__main__":
    answer(begin, ["google-tunix", "jax", "flax"])
