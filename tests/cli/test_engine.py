"""Which engine a config names, and whose keys it may have."""

from pathlib import Path

import pytest

from envs import ConfigError
from rl.cli.build import check_engine, make_policy, open_engine
from rl.cli.compose import compose
from rl.config import HardwareConfig, InferenceConfig, ModelConfig
from rl.inference.engine import EngineError, TokenSampling

MODEL = ModelConfig(name="qwen3", layers=1, width=16, heads=2, kv_heads=1, ffn=16, context=32)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (InferenceConfig(name="vllm"), "unknown inference.name 'vllm'; known: jax, sglang"),
        (InferenceConfig(servers=2), "inference.servers is a key of inference=sglang, but the engine is jax"),
    ],
)
def test_keys_of_another_engine_are_refused(config: InferenceConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_engine(config)


@pytest.mark.parametrize("verb", ["train", "eval", "chat"])
@pytest.mark.parametrize("name", ["jax", "sglang"])
def test_every_verb_takes_every_engine(verb: str, name: str) -> None:
    config = compose(verb, [f"inference={name}"]).config.inference
    check_engine(config)
    assert config.name == name


async def test_the_engine_in_the_process_is_closed(tmp_path: Path) -> None:
    policy = make_policy(MODEL, HardwareConfig(), seed=0)
    async with open_engine(InferenceConfig(slots=1), policy, tmp_path, print) as engine:
        assert len((await engine.generate([1, 2], TokenSampling(max_tokens=3))).ids) == 3
    with pytest.raises(EngineError, match="closed"):
        await engine.health()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"publish": "carrier_pigeon"}, "unknown inference.publish 'carrier_pigeon'"),
        ({"pause": "now"}, "unknown inference.pause 'now'"),
        ({"environment": "nowhere"}, "there is no SGLang in nowhere"),
        ({"urls": ["localhost:1"]}, "'localhost:1' is no URL of a server"),
    ],
)
async def test_what_sglang_cannot_be_told(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    policy = make_policy(MODEL, HardwareConfig(), seed=0)
    with pytest.raises(ConfigError, match=message):
        async with open_engine(InferenceConfig(name="sglang", **changes), policy, tmp_path, print):  # type: ignore[arg-type]
            pass
    assert not (tmp_path / "model").exists()
