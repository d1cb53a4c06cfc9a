"""Sampling as the two protocols put it, as the engine's `TokenSampling`."""

import secrets
from typing import Any

from rl.inference.engine import TokenSampling
from rl.inference.server.validation import Fields, Refused, logit_bias, texts, token_ids

MOST_SAMPLES = 1024
"""Completions of one prompt that one request may ask for."""


def native_sampling(data: Any, stop_ids: tuple[int, ...], vocab_size: int) -> tuple[TokenSampling, int]:
    """SGLang's `sampling_params`: how to draw, and how many completions.

    Args:
        data: the object as it came; None means all defaults.
        stop_ids: the model's own end tokens.
        vocab_size: token ids are below it.

    Raises:
        Refused: for a field that is unknown, does not fit, or asks for what this server cannot do.
    """
    if data is not None and not isinstance(data, dict):
        raise Fields({}).unfit("sampling_params", data, "an object")
    fields = Fields(data or {}, "sampling_params")
    own = () if fields.flag("ignore_eos") else stop_ids
    sampling = TokenSampling(
        temperature=fields.number("temperature", 1.0, low=0),
        top_p=fields.number("top_p", 1.0, low=0, high=1, above=True),
        top_k=_top_k(fields),
        min_p=fields.number("min_p", 0.0, low=0, high=1),
        max_tokens=fields.integer("max_new_tokens", 128, low=0),
        min_tokens=fields.integer("min_new_tokens", 0, low=0),
        stop_ids=_stop_ids(fields, own, vocab_size),
        stop=texts(fields.take("stop"), fields.name("stop")),
        logit_bias=logit_bias(fields.take("logit_bias"), fields.name("logit_bias"), vocab_size),
        seed=_seed(fields, "sampling_seed"),
    )
    n = fields.integer("n", 1, low=1, high=MOST_SAMPLES)
    for name, neutral in (("frequency_penalty", 0), ("presence_penalty", 0), ("repetition_penalty", 1)):
        fields.only(name, (neutral,), "penalties are not supported")
    for name in ("json_schema", "regex", "ebnf", "structural_tag", "stop_regex", "custom_params"):
        fields.only(name, (), "constrained decoding is not supported")
    fields.only("skip_special_tokens", (True,), "output_ids has every token")
    fields.ignore("spaces_between_special_tokens", "stream_interval")
    fields.only("no_stop_trim", (False,), "output_ids has every token")
    fields.done()
    return _checked(sampling, fields.name("min_new_tokens")), n


def openai_sampling(fields: Fields, stop_ids: tuple[int, ...], vocab_size: int, room: int) -> tuple[TokenSampling, int]:
    """The sampling fields of OpenAI's requests, and those that SGLang and vLLM add to them.

    Args:
        fields: of the request; the sampling fields are taken from it.
        stop_ids: the model's own end tokens.
        vocab_size: token ids are below it.
        room: tokens that are left for a completion, where the request names no limit.
    """
    limit = fields.integer("max_completion_tokens", low=1)
    older = fields.integer("max_tokens", low=1)
    own = () if fields.flag("ignore_eos") else stop_ids
    sampling = TokenSampling(
        temperature=fields.number("temperature", 1.0, low=0),
        top_p=fields.number("top_p", 1.0, low=0, high=1, above=True),
        top_k=_top_k(fields),
        min_p=fields.number("min_p", 0.0, low=0, high=1),
        max_tokens=limit or older or max(room, 1),
        min_tokens=fields.integer("min_tokens", 0, low=0),
        stop_ids=_stop_ids(fields, own, vocab_size),
        stop=texts(fields.take("stop"), fields.name("stop")),
        logit_bias=logit_bias(fields.take("logit_bias"), fields.name("logit_bias"), vocab_size),
        seed=_seed(fields, "seed"),
    )
    n = fields.integer("n", 1, low=1, high=MOST_SAMPLES)
    for name, neutral in (("frequency_penalty", 0), ("presence_penalty", 0), ("repetition_penalty", 1)):
        fields.only(name, (neutral,), "penalties are not supported")
    fields.only("best_of", (n,), "best_of is not supported")
    fields.only("skip_special_tokens", (True,), "return_token_ids gives every token")
    fields.ignore("user", "store", "metadata", "safety_identifier", "prompt_cache_key", "service_tier")
    return _checked(sampling, fields.name("min_tokens")), n


def _top_k(fields: Fields) -> int:
    top_k: int = fields.integer("top_k", -1, low=-1)
    return max(top_k, 0)


def _stop_ids(fields: Fields, own: tuple[int, ...], vocab_size: int) -> tuple[int, ...]:
    given = fields.take("stop_token_ids")
    more = token_ids(given, fields.name("stop_token_ids"), vocab_size) if given else ()
    return tuple(dict.fromkeys((*own, *more)))


def _seed(fields: Fields, name: str) -> int:
    seed: int | None = fields.integer(name, low=-(2**63), high=2**63 - 1)
    return secrets.randbits(31) if seed is None else seed


def _checked(sampling: TokenSampling, name: str) -> TokenSampling:
    if sampling.min_tokens > sampling.max_tokens:
        raise Refused(
            f"{name} is {sampling.min_tokens}; expected at most the {sampling.max_tokens} tokens of the completion",
            field=name,
        )
    return sampling
