"""What `rl chat` does: a question and its answer, or a conversation until Ctrl-D."""

import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TextIO

from envs.errors import unknown_name
from envs.types import Sampling
from rl.config import ChatConfig
from rl.rollout.conversation import Conversation, EngineConversation, ServerConversation

_YOU, _DIM, _PLAIN = "\x1b[1;36m", "\x1b[2m", "\x1b[0m"
Close = Callable[[], Awaitable[None]]


def chat(config: ChatConfig) -> None:
    """Answers `config.prompt`, or whatever is typed. Answers go to standard output, all else to standard error."""
    with asyncio.Runner() as runner:
        conversation, close = _open(config, runner)
        try:
            if config.prompt is not None:
                runner.run(answer(conversation, config.prompt))
            else:
                converse(lambda text: runner.run(answer(conversation, text)))
        finally:
            runner.run(_finish(close))


def converse(reply: Callable[[str], None]) -> None:
    """Reads a line, replies to it, and so on until the input ends. Ctrl-C stops a reply, not the conversation."""
    prompt = ""
    if sys.stdin.isatty():
        import readline  # noqa: F401 - arrow keys and history for `input`

        prompt = "\x01" + _YOU + "\x02> \x01" + _PLAIN + "\x02" if _colours(sys.stdout) else "> "
        _note("Ctrl-C stops an answer, Ctrl-D leaves.")
    while True:
        try:
            text = input(prompt)
        except EOFError:
            if prompt:
                print()
            return
        except KeyboardInterrupt:
            _note("\nCtrl-D leaves.")
            continue
        if not text.strip():
            continue
        try:
            reply(text)
        except KeyboardInterrupt:
            print(flush=True)
            _note("stopped; the conversation goes on from here")


async def answer(conversation: Conversation, text: str) -> None:
    """Says `text` and prints the answer as it comes."""
    started = time.perf_counter()
    async for piece in conversation.say(text):
        print(piece, end="", flush=True)
    print(flush=True)
    seconds = time.perf_counter() - started
    if conversation.cut:
        _note("cut off: sampling.max_tokens=NUMBER lets it say more")
    elif sys.stderr.isatty():
        _note(f"{conversation.tokens} tokens, {conversation.tokens / seconds:.1f} per second")


def _open(config: ChatConfig, runner: asyncio.Runner) -> tuple[Conversation, Close]:
    """The conversation that the config asks for, and how to end it."""
    from rl.cli import build
    from rl.cli.engine import engine_config, open_engine
    from rl.cli.model import model_of_run

    sampling = Sampling(
        temperature=config.sampling.temperature,
        top_p=config.sampling.top_p,
        top_k=config.sampling.top_k,
        max_tokens=config.sampling.max_tokens,
        seed=config.seed,
    )
    if config.client.name not in build.CLIENTS:
        raise unknown_name("client.name", config.client.name, build.CLIENTS)
    if config.client.name == "openai":
        client, _ = runner.run(build.make_openai_client(config.client))
        return ServerConversation(client, sampling, config.system), client.close
    inference = engine_config(config.inference)
    if sys.stderr.isatty():
        _note("loading …")
    model = model_of_run(Path(config.run)) if config.run is not None else config.model
    policy = build.make_policy(model, config.hardware, config.seed)
    opened = contextlib.AsyncExitStack()
    folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="upswing-chat-")))
    opening = open_engine(inference, policy, folder / "sglang", _note, tokens_per_dispatch=1)  # shown token by token
    engine = runner.run(opened.enter_async_context(opening))
    return EngineConversation(engine, policy.renderer, sampling, config.system), opened.aclose


async def _finish(close: Close) -> None:
    await close()


def _note(text: str) -> None:
    print(f"{_DIM}{text}{_PLAIN}" if _colours(sys.stderr) else text, file=sys.stderr, flush=True)


def _colours(stream: TextIO) -> bool:
    return stream.isatty() and "NO_COLOR" not in os.environ
