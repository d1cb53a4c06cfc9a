"""Everything here needs a real SGLang server: `make test` leaves it out, `make test-sglang` runs it."""

from pathlib import Path

import pytest

from rl.inference.sglang.command import find_python

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before pytest looks at marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.sglang)


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
