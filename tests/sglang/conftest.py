"""Everything here needs a real SGLang server: `make test` leaves it out, `make test-sglang` runs it.

All tests share one event loop, so that they can share one server, which takes half a minute to start.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from rl.inference.sglang.command import find_python, server_command
from rl.inference.sglang.ports import take_ports
from rl.inference.sglang.server import Launched

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before pytest looks at marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.sglang)
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest.fixture(scope="session")
def python() -> Path:
    """The Python that has SGLang."""
    return find_python()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh Qwen3 of two small layers, as `rl export` writes it: bytes for tokens, 256 tokens of context."""
    from rl.cli.build import make_policy
    from rl.cli.export import write_directory
    from rl.config import HardwareConfig, ModelConfig

    folder = tmp_path_factory.mktemp("model")
    config = ModelConfig(
        name="qwen3", layers=2, width=32, heads=2, kv_heads=1, ffn=64, context=256, options={"head_dim": 16}
    )
    write_directory(folder, make_policy(config, HardwareConfig(), seed=0), "float32")
    return folder


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server(python: Path, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Launched]:
    """One server for all tests that leave it as they found it."""
    (port,) = take_ports(1, 0, "127.0.0.1")
    command = server_command(python, model_folder, port=port)
    log = tmp_path_factory.mktemp("sglang") / "server.log"
    launched = Launched("server 0", f"http://127.0.0.1:{port}", command, log)
    await launched.start(print)
    yield launched
    await launched.stop()
