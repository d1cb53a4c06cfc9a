"""The engine as a web application: SGLang's native routes and OpenAI's, over any `Engine`."""

from collections.abc import Callable

from aiohttp import web

from envs.render import Renderer
from rl.inference.engine import Engine
from rl.inference.server import chat, completions, control, middleware, native, openai
from rl.inference.server.service import SERVICE, LoadWeights, Score, Service
from rl.metrics import CompileCounter

ROUTES: tuple[tuple[str, str, middleware.Handler], ...] = (
    ("POST", "/generate", native.generate),
    ("POST", "/abort_request", control.abort_request),
    ("POST", "/pause_generation", control.pause_generation),
    ("POST", "/continue_generation", control.continue_generation),
    ("POST", "/flush_cache", control.flush_cache),
    ("GET", "/flush_cache", control.flush_cache),
    ("POST", "/update_weights_from_disk", control.update_weights_from_disk),
    ("POST", "/update_weight_version", control.update_weight_version),
    ("GET", "/model_info", control.model_info),
    ("GET", "/get_model_info", control.model_info),
    ("GET", "/server_info", control.server_info),
    ("GET", "/get_server_info", control.server_info),
    ("GET", "/get_load", control.get_load),
    ("GET", "/health", control.health),
    ("GET", "/health_generate", control.health_generate),
    ("GET", "/metrics", control.metrics),
    ("POST", "/v1/chat/completions", chat.chat_completions),
    ("POST", "/v1/completions", completions.completions),
    ("GET", "/v1/models", openai.models),
    ("GET", "/v1/models/{name:.+}", openai.model),
)
"""Method, path and what answers. docs/serving.md describes each; a test compares."""


def make_app(
    engine: Engine,
    renderer: Renderer,
    *,
    model: str,
    vocab_size: int | None = None,
    encode: Callable[[str], list[int]] | None = None,
    load_weights: LoadWeights | None = None,
    score: Score | None = None,
    max_requests: int = 1024,
    max_body: int = 64 * 2**20,
    api_key: str | None = None,
) -> web.Application:
    """An application that serves `engine`, which stays the caller's to close.

    A client that leaves frees its slots where the application runs with `handler_cancellation`, as `lifecycle.Server`
    and aiohttp's test server do.

    Args:
        engine: what samples.
        renderer: the model's chat format.
        model: the name that requests call the model by.
        vocab_size: the model's; by default its chat format's, which a model may exceed.
        encode: text to tokens, with nothing added; without it only tokens and conversations are taken.
        load_weights: reads the weights in a folder, for `/update_weights_from_disk`.
        score: scores prompts, for `logprob_start_len`.
        max_requests: completions under way at once, waiting ones included; more are refused with 503.
        max_body: bytes of a request's body, at most.
        api_key: what clients must send as bearer token.
    """
    around = [middleware.recorded, *([middleware.keyed(api_key)] if api_key else [])]
    app = web.Application(middlewares=around, client_max_size=max_body)
    compilations = CompileCounter()
    app[SERVICE] = Service(
        engine,
        renderer,
        model,
        vocab_size=renderer.vocab_size if vocab_size is None else vocab_size,
        encode=encode,
        load_weights=load_weights,
        score=score,
        max_requests=max_requests,
        compiled=lambda: compilations.count,
    )

    async def forget(_: web.Application) -> None:
        compilations.close()

    app.on_cleanup.append(forget)
    app.add_routes([web.route(method, path, handler) for method, path, handler in ROUTES])
    return app
