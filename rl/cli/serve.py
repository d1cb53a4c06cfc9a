"""`rl serve`."""

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs.errors import ConfigError
from rl.cli.launch import composed_or_shown, parse
from rl.config import JaxInference, ServeConfig

if TYPE_CHECKING:
    from rl.cli.build import Policy


def run(arguments: Sequence[str]) -> int:
    """Run the verb with what follows it on the command line; returns the exit code."""
    flags = parse("serve", arguments)
    if flags.multirun:
        raise ConfigError("rl serve is one server; it takes no -m: start several with different ports")
    composed = composed_or_shown("serve", flags)
    if composed is not None:
        serve(composed.config)
    return 0


def serve(config: ServeConfig) -> None:
    """Serves a model until SIGTERM or Ctrl-C."""
    from rl.cli.engine import engine_config, make_jax_engine
    from rl.inference.server import lifecycle

    inference = engine_config(config.inference)
    if not isinstance(inference, JaxInference):
        raise ConfigError(
            f"rl serve serves the engine in this process (inference=jax), but inference.name is "
            f"{inference.name}; SGLang is a server itself: rl export writes a model for it"
        )
    key = _api_key(config.api_key_env)
    listener = lifecycle.bound(config.host, config.port)  # first of all: to load a model may take minutes
    from rl.cli.build import make_policy
    from rl.cli.model import model_of_run
    from rl.cli.reload import weights_reader
    from rl.inference.score import Scorer
    from rl.inference.server.app import make_app
    from rl.models.lora import dense

    if config.log_requests:
        _log_requests()
    model = config.model if config.run is None else model_of_run(Path(config.run))
    policy = make_policy(model, config.hardware, config.seed)
    name = config.name or _name(config)
    read = weights_reader(policy, config.hardware, model.dtype)

    async def load_weights(path: str) -> Any:
        return await asyncio.to_thread(read, path)

    async def main() -> None:
        engine = make_jax_engine(inference, policy)
        app = make_app(
            engine,
            policy.renderer,
            model=name,
            vocab_size=policy.model.config.vocab_size,
            encode=_encoder(policy),
            load_weights=load_weights,
            score=Scorer(policy.model, dense(policy.params)) if config.score else None,
            api_key=key,
            max_requests=config.max_requests,
        )
        try:
            await lifecycle.serve(
                app,
                listener,
                drain=config.drain,
                ready=lambda server: print(_greeting(server.url, name, engine.context, key), flush=True),
            )
        finally:
            await engine.close()
        print("stopped", flush=True)

    asyncio.run(main())


def _log_requests() -> None:
    """Shows what the server logs, and nobody else's."""
    log, shown = logging.getLogger("rl.serve"), logging.StreamHandler()
    shown.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log.addHandler(shown)
    log.propagate = False
    log.setLevel(logging.INFO)


def _greeting(url: str, name: str, context: int, key: str | None) -> str:
    auth = ' -H "Authorization: Bearer $KEY"' if key else ""
    body = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    return (
        f"serving '{name}' at {url} (context {context} tokens); Ctrl-C stops it\n"
        f"try: curl {url}/v1/chat/completions{auth} -H 'Content-Type: application/json' -d '{body}'"
    )


def _name(config: ServeConfig) -> str:
    named = config.run or config.model.checkpoint
    if named is not None:
        return Path(named).resolve().name
    return Path(config.model.source or config.model.name or "model").name.removesuffix(".gguf")


def _encoder(policy: "Policy") -> Callable[[str], list[int]]:
    """Text to tokens, with nothing added."""
    from envs.render import ByteRenderer
    from envs.tokenizer import load_tokenizer

    if isinstance(policy.renderer, ByteRenderer):
        return policy.renderer.encode
    assert policy.origin.source is not None  # only a checkpoint comes with another renderer
    return load_tokenizer(policy.origin.source.path).encode


def _api_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise ConfigError(f"api_key_env names {variable}, but that variable is not set")
    return key


if __name__ == "__main__":
    from rl.cli.main import main

    sys.exit(main(["serve", *sys.argv[1:]]))
