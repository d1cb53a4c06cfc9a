"""A server on localhost for all tests of this folder: two layers of width 32, eight slots, a context of 512."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import jax
import pytest
import pytest_asyncio

from envs.render import ByteRenderer
from rl.inference.engine import EngineError, Generation, PauseMode, TokenSampling
from rl.inference.jax_engine import JaxEngine
from rl.inference.score import Scorer
from rl.inference.server.app import make_app
from rl.inference.server.lifecycle import Server
from rl.models.base import DecoderConfig, Model, Params
from rl.models.llama import build

CONTEXT = 512

Ask = Callable[..., Awaitable[Any]]


def encode(text: str) -> list[int]:
    return list(text.encode("utf-8", "surrogatepass"))


@pytest.fixture(scope="session")
def served_model() -> Model:
    return build(DecoderConfig(vocab_size=264, layers=2, width=32, heads=4, kv_heads=2, ffn=64, context=CONTEXT))


@pytest.fixture(scope="session")
def served_params(served_model: Model) -> Params:
    return jax.jit(served_model.init)(jax.random.key(0))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine(served_model: Model, served_params: Params) -> AsyncIterator[JaxEngine]:
    text_of = ByteRenderer().text
    engine = JaxEngine(served_model, served_params, slots=8, lanes=1, tokens_per_dispatch=4, text_of=text_of)
    yield engine
    await engine.close()


@pytest.fixture(scope="session")
def other_params(served_model: Model) -> Params:
    return jax.jit(served_model.init)(jax.random.key(1))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server(
    engine: JaxEngine, served_model: Model, served_params: Params, other_params: Params
) -> AsyncIterator[Server]:
    """Knows the weights "first" and "second"."""
    known = {"first": served_params, "second": other_params}

    async def load_weights(path: str) -> Params:
        if path not in known:
            raise EngineError(f"there are no weights at {path}")
        return known[path]

    app = make_app(
        engine,
        ByteRenderer(),
        model="tiny",
        encode=encode,
        load_weights=load_weights,
        score=Scorer(served_model, served_params),
        max_requests=40,
        max_body=10_000,
    )
    server = await Server.start(app)
    yield server
    await server.stop()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def http(server: Server) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(server.url) as session:
        yield session


@pytest.fixture(scope="session")
def ask(http: aiohttp.ClientSession) -> Ask:
    """`await ask(path, **fields)`: the JSON of a 200 answer; another status with `status=`."""

    async def ask(path: str, *, status: int = 200, **fields: Any) -> Any:
        async with http.post(path, json=fields) as response:
            answer = await response.json()
            assert response.status == status, answer
            return answer

    return ask


@dataclass
class Script:
    """An engine that says what it is told to, a few tokens at a time.

    Attributes:
        text: what it says.
        failure: raised once it was said.
        step: tokens per piece.
    """

    text: str
    failure: Exception | None = None
    step: int = 3
    context: int = CONTEXT
    version: int = 0
    asked: list[tuple[list[int], TokenSampling]] = field(default_factory=list)

    def _pieces(self, prompt_ids: Sequence[int], sampling: TokenSampling) -> Iterator[Generation]:
        self.asked.append((list(prompt_ids), sampling))
        ids = [*encode(self.text), 256]
        for start in range(0, len(ids), self.step):
            some = ids[start : start + self.step]
            over = start + self.step >= len(ids)
            if over and self.failure is not None:
                raise self.failure
            finish = {"finish_reason": "stop" if over else None, "stopped_by": 256 if over else None}
            yield Generation(some, [-1.0] * len(some), [-2.0] * len(some), [0] * len(some), **finish)  # type: ignore[arg-type]

    async def generate(
        self, prompt_ids: Sequence[int], sampling: TokenSampling, *, request_id: str | None = None
    ) -> Generation:
        pieces = list(self._pieces(prompt_ids, sampling))
        ids = [token for piece in pieces for token in piece.ids]
        return Generation(ids, [-1.0] * len(ids), [-2.0] * len(ids), [0] * len(ids), "stop", 256)

    async def stream(
        self, prompt_ids: Sequence[int], sampling: TokenSampling, *, request_id: str | None = None
    ) -> AsyncIterator[Generation]:
        for piece in self._pieces(prompt_ids, sampling):
            yield piece

    async def abort(self, request_id: str | None = None) -> None: ...
    async def load_weights(self, params: Any, version: int) -> None: ...
    async def relabel(self, version: int) -> None: ...
    async def pause(self, mode: PauseMode = "in_place") -> None: ...
    async def resume(self) -> None: ...
    async def flush_cache(self) -> None: ...
    async def close(self) -> None: ...

    async def health(self) -> None:
        if self.failure is not None:
            raise self.failure


@pytest_asyncio.fixture(loop_scope="session")
async def scripted() -> AsyncIterator[Callable[..., Awaitable[tuple[Script, str]]]]:
    """`script, url = await scripted(text, …)`: a server whose model says that text."""
    servers: list[Server] = []

    async def start(text: str, *, app: dict[str, Any] | None = None, **arguments: Any) -> tuple[Script, str]:
        script = Script(text, **arguments)
        servers.append(await Server.start(make_app(script, ByteRenderer(), model="tiny", encode=encode, **(app or {}))))
        return script, servers[-1].url

    yield start
    for server in servers:
        await server.stop()
