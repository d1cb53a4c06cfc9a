"""What is asked of SGLang for a `TokenSampling`, and what its log-probabilities then mean."""

import math
from collections.abc import Sequence
from typing import Any

from rl.inference.engine import TokenSampling

_SEEDS = 2**63


def native(sampling: TokenSampling, left: int, drawn: int) -> dict[str, Any]:
    """SGLang's `sampling_params`.

    Texts to stop at are no part of them: a server that knows token ids only has no texts.

    Args:
        sampling: how to draw.
        left: tokens still to be drawn at most.
        drawn: tokens of the completion that there are already, and stand at the end of the prompt.
    """
    params: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "min_p": sampling.min_p,
        "max_new_tokens": left,
        "stop_token_ids": list(sampling.stop_ids),
        # To SGLang this means "stop at no token whatever", so the model's own end may come where it is not asked for.
        "ignore_eos": not sampling.stop_ids,
        "sampling_seed": sampling.seed % _SEEDS,
    }
    if sampling.min_tokens > drawn:
        params["min_new_tokens"] = sampling.min_tokens - drawn
    if sampling.logit_bias:
        params["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    return params


def logprobs(
    reported: Sequence[float], plain: Sequence[float] | None, sampling: TokenSampling
) -> tuple[list[float], list[float]]:
    """`Generation.logprobs` and `Generation.plain_logprobs` from what a server reports.

    SGLang's are of the logits, biases included, at the temperature that was drawn with, and at 1 where the draw is
    greedy; that it leaves tokens out (top-p, top-k, min-p) is no part of them. So whoever draws from the whole
    vocabulary gets exactly the distribution that was drawn from, at any temperature; whoever truncates does not, and
    gets NaN rather than numbers of another distribution. Our own server reports the distribution drawn from, and the
    model's own (`plain`) beside it.
    """
    found, unknown = list(reported), [math.nan] * len(reported)
    shifted = bool(sampling.logit_bias or sampling.min_tokens)
    truncated = sampling.top_p < 1 or sampling.top_k > 0 or sampling.min_p > 0
    if sampling.temperature == 0:  # certain
        own = list(plain) if plain is not None else unknown if shifted else found
        return [0.0] * len(found), own
    if plain is not None:
        return found, list(plain)
    return unknown if truncated else found, found if sampling.temperature == 1 and not shifted else unknown
