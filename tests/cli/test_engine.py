"""Which engine a config names, and whose keys it may have."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from envs import ConfigError
from rl.cli.build import make_policy
from rl.cli.compose import compose
from rl.cli.conf import meanings
from rl.cli.engine import ENGINES, engine_config, open_engine
from rl.config import HardwareConfig, JaxInference, ModelConfig, SglangInference
from rl.inference.engine import EngineError, TokenSampling

MODEL = ModelConfig(name="qwen3", layers=1, width=16, heads=2, kv_heads=1, ffn=16, context=32)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "vllm"}, "unknown inference.name 'vllm'; known: jax, sglang"),
        ({"name": "jax", "servers": 2}, "inference.servers is a key of inference=sglang, but the engine is jax"),
        ({"name": "sglang", "exact": True}, "inference.exact is a key of inference=jax, but the engine is sglang"),
        ({"name": "jax", "slotz": 2}, "engine 'jax' has no argument 'slotz'; did you mean 'slots'"),
        ({"name": "jax", "slots": "many"}, "engine 'jax': argument 'slots' is 'many' .*expected int or None"),
    ],
)
def test_keys_of_another_engine_and_of_none_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine_config(settings)


@pytest.mark.parametrize("verb", ["train", "eval", "chat"])
@pytest.mark.parametrize("name", list(ENGINES))
def test_every_verb_takes_every_engine(verb: str, name: str) -> None:
    assert engine_config(compose(verb, [f"inference={name}"]).config.inference).name == name


@pytest.mark.parametrize("name", list(ENGINES))
def test_a_file_lists_all_keys_of_its_engine_with_their_defaults_and_meanings(name: str) -> None:
    settings = compose("train", [f"inference={name}"]).config.inference
    assert asdict(engine_config({"name": name})) == settings
    assert set(meanings("inference", name)) == set(settings) - {"name"}


async def test_the_engine_in_the_process_is_closed(tmp_path: Path) -> None:
    options = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    policy = make_policy(replace(MODEL, name="qwen3_moe", options=options), HardwareConfig(), seed=0)
    async with open_engine(JaxInference(slots=1, routing_replay=True), policy, tmp_path, print) as engine:
        found = await engine.generate([1, 2], TokenSampling(max_tokens=3))
        assert len(found.ids) == 3 and found.routing is not None and found.routing.shape == (4, 1, 2)
    with pytest.raises(EngineError, match="closed"):
        await engine.health()


async def test_no_routing_is_replayed_where_there_are_no_experts(tmp_path: Path) -> None:
    dense = make_policy(MODEL, HardwareConfig(), seed=0)
    with pytest.raises(ConfigError, match=r"inference\.routing_replay is true, but the model \(qwen3\) has no experts"):
        async with open_engine(JaxInference(slots=1, routing_replay=True), dense, tmp_path, print):
            pass


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"publish": "carrier_pigeon"}, "unknown inference.publish 'carrier_pigeon'"),
        ({"publish": "lora"}, r"all weights are trained \(model.lora.rank=0\); choose inference.publish=disk"),
        (
            {"publish": "lora", "data_parallel": 2},
            "adapters to one copy of a model per server; set inference.servers=2",
        ),
        ({"pause": "now"}, "unknown inference.pause 'now'"),
        ({"environment": "nowhere"}, "there is no SGLang in nowhere"),
        ({"urls": ["localhost:1"]}, "'localhost:1' is no URL of a server"),
    ],
)
async def test_what_sglang_cannot_be_told(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    policy = make_policy(MODEL, HardwareConfig(), seed=0)
    with pytest.raises(ConfigError, match=message):
        async with open_engine(SglangInference(**changes), policy, tmp_path, print):  # type: ignore[arg-type]
            pass
    assert not (tmp_path / "model").exists()
