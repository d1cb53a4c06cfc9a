"""A teacher behind a server: what a model that is served somewhere thinks of tokens that the policy sampled."""

import asyncio
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from envs.concurrency import together
from envs.errors import ConfigError
from envs.render import Renderer
from rl.inference.engine import EngineError
from rl.inference.sglang.http import Http, Rejected, Unreachable

Heard = Mapping[tuple[int, ...], np.ndarray]
"""Tokens -> the log-probability of each, given those before it; the first has 0."""

TRIES = 4
WAIT_S = 0.5
"""Before a text is sent again; twice as long each time."""

UNKNOWN = "out-of-vocabulary"
"""What SGLang says of a token that it has not; `rl serve` says that it cannot be asked so."""

BUSY = (429, 503)

PROBE = "The quick brown fox jumps over 13 lazy dogs, doesn't it?"


class ServedTeacher:
    """Asks an SGLang server, or `rl serve`, for the log-probabilities of prompts: nothing is sampled there.

    They are those of temperature 1, as both servers report prompts.

    Args:
        url: of the server, without a path.
        vocab_size: of the policy: how many tokens there are to be asked about.
        concurrency: texts under way at once.
        timeout: seconds that a server may be silent about a text.
    """

    def __init__(self, url: str, vocab_size: int, *, concurrency: int = 16, timeout: float = 600.0) -> None:
        self.url = url.rstrip("/")
        self._last = vocab_size - 1
        self._concurrency, self._timeout = concurrency, timeout

    async def check(self, renderer: Renderer) -> bool:
        """Sees that the server answers, scores prompts, and means by each token what the policy does.

        Args:
            renderer: of the policy.

        Returns:
            Whether the server said how tokens read; one without a tokenizer cannot (SGLang's `--skip-tokenizer-init`),
            and only how many tokens it knows was seen.

        Raises:
            ConfigError: when a token of the policy's is another text there, or none.
            EngineError: when it does not answer, or does not score prompts.
        """
        ids = renderer.prompt([{"role": "user", "content": PROBE}])
        first = {"input_ids": [0, 1], "sampling_params": {"max_new_tokens": 0}, "return_logprob": True}
        async with _pool(self._timeout) as http:
            try:
                # Not in a prompt: SGLang ends with an IndexError at a token there that it does not know.
                await self._answered(http, {**first, "token_ids_logprob": [self._last]})
            except Rejected as error:
                if UNKNOWN in error.said:
                    raise self._unfit(error) from error
                try:
                    await self._asked(http, [0, self._last])  # `rl serve` refuses what it does not know
                except Rejected as unknown:
                    raise self._unfit(unknown) from unknown
            return self._compare(renderer, ids, await self._asked(http, ids, texts=True))

    def _unfit(self, error: Rejected) -> ConfigError:
        return ConfigError(
            f"teacher={self.url} cannot be asked about the policy's tokens, of which the last is {self._last}: {error}"
            "; expected an SGLang server, or `rl serve`, of a model with the policy's tokenizer"
        )

    def _compare(self, renderer: Renderer, ids: list[int], entries: list[Any]) -> bool:
        for token, (_, _, theirs) in zip(ids, entries, strict=True):
            ours = renderer.text([token])
            # Servers decode a token alone as its library does: spaces before it may be lost, and half a character is.
            if isinstance(theirs, str) and "\ufffd" not in ours + theirs and ours.strip() != theirs.strip():
                raise ConfigError(
                    f"teacher={self.url} reads other tokens than the policy: token {token} is {theirs!r} there and "
                    f"{ours!r} here; tokens are what it is asked about: serve a model with the policy's tokenizer"
                )
        return any(isinstance(entry[2], str) for entry in entries)

    async def hear(self, texts: Sequence[Sequence[int]]) -> Heard:
        """What the teacher thinks of texts, each asked about once.

        Raises:
            EngineError: when the server does not answer, refuses, or answers about other tokens.
        """
        room = asyncio.Semaphore(self._concurrency)

        async def scored(http: Http, ids: tuple[int, ...]) -> np.ndarray:
            async with room:
                entries = await self._asked(http, list(ids))
            return np.array([0.0, *(entry[0] for entry in entries[1:])], np.float32)

        different = list(dict.fromkeys(tuple(text) for text in texts))
        async with _pool(self._timeout) as http:
            found = await together(scored(http, ids) for ids in different)
        return dict(zip(different, found, strict=True))

    async def _asked(self, http: Http, ids: list[int], *, texts: bool = False) -> list[Any]:
        """`[log-probability, id, text]` of each token; of the first there is no log-probability."""
        body = {
            "input_ids": ids,
            "sampling_params": {"max_new_tokens": 0, "temperature": 1.0},
            "return_logprob": True,
            "logprob_start_len": 0,
            **({"return_text_in_logprobs": True} if texts else {}),
        }
        answer = await self._answered(http, body)
        meta = answer.get("meta_info") if isinstance(answer, dict) else None
        entries = meta.get("input_token_logprobs") if isinstance(meta, dict) else None
        told = [entry[1] for entry in entries] if isinstance(entries, list) else None
        if told is not None:  # SGLang scores the last token of a vocabulary as what it is, and calls it 0
            told = [t or (i if i == self._last else 0) for t, i in zip(told, ids, strict=False)] + told[len(ids) :]
        if told != ids or entries is None:
            found = "none" if told is None else f"{len(told)}, {str(told)[:60]} …"
            raise EngineError(
                f"{self.url}/generate was asked what it thinks of {len(ids)} tokens, {str(ids)[:60]} …, and answered "
                f"about {found}; expected meta_info.input_token_logprobs: is it an SGLang server, or `rl serve`?"
            )
        for place, entry in enumerate(entries[1:], start=1):
            if not isinstance(entry[0], int | float) or not math.isfinite(entry[0]):
                raise EngineError(f"{self.url}/generate answered {entry[0]} for token {place} of {len(ids)}")
        return entries

    async def _answered(self, http: Http, body: Mapping[str, Any]) -> Any:
        """Asked again where the server is busy or the connection broke: scoring changes nothing there."""
        for number in range(TRIES):
            try:
                return await http.post(self.url, "/generate", body)
            except Unreachable:
                if number == TRIES - 1:
                    raise
            except Rejected as error:
                if error.status not in BUSY or number == TRIES - 1:
                    raise
            await asyncio.sleep(WAIT_S * 2**number)
        raise AssertionError("unreachable")


@asynccontextmanager
async def _pool(timeout: float) -> AsyncIterator[Http]:
    """Connections for a step's questions: servers close those that are idle in between."""
    http = Http(timeout=timeout)
    try:
        yield http
    finally:
        await http.close()
