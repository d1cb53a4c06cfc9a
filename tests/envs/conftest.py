"""Real parts for the tests: small environments, and a local HTTP server that answers as it is told."""

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio
from aiohttp import web

from envs import Environment, Rubric, Task, Taskset, single_turn

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def correct(completion: str, answer: str) -> float:
    return float(completion == answer)


@pytest.fixture
def sums() -> Environment:
    """n + 1, ten tasks in each split."""
    tasks = Taskset.from_function(lambda split: [Task.ask(f"{split}-{i}", f"{i}+1", str(i + 1)) for i in range(10)])
    return Environment(tasks, single_turn(), Rubric({correct: 1.0}), name="sums")


@pytest_asyncio.fixture
async def serve() -> AsyncIterator[Callable[[Handler], Awaitable[str]]]:
    """Starts a local server around a handler of POST /v1/chat/completions and GET /v1/models; gives its base URL."""
    runners: list[web.AppRunner] = []

    async def start(handler: Handler) -> str:
        app = web.Application()
        app.router.add_route("*", "/v1/{path:.*}", handler)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        runners.append(runner)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}/v1"

    yield start
    for runner in runners:
        await runner.cleanup()
