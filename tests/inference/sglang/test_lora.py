"""Adapters alone: what is written for a server, whether one computes with it what it should, and when it goes again."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from safetensors.numpy import load_file

from envs.errors import ConfigError, UpswingError
from rl.inference.score import Scorer
from rl.inference.sglang.http import Http
from rl.inference.sglang.publish.adapters import Adapters
from rl.inference.sglang.publish.lora import Lora, check_server
from rl.inference.sglang.publish.peft_files import Shape, shape_of, tensors_for_server, write_for_server
from rl.inference.sglang.publish.publisher import Publisher, PublishError
from rl.inference.sglang.publish.rehearsal import rehearse
from rl.models import FAMILIES
from rl.models.base import DecoderConfig, Params
from rl.models.llama import FAMILY
from rl.models.lora import adapt, bare, lora, split
from rl.weights.peft import load_adapter, read_settings

MODEL = FAMILY.build(DecoderConfig(vocab_size=64, layers=2, width=32, heads=4, kv_heads=2, ffn=48, context=64))
BASE = jax.jit(MODEL.init)(jax.random.key(0))
SCORER = Scorer(MODEL, BASE)
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


def policy(seed: int, targets: str = "attention/(q|v)|ffn/gate", *, root: bool = False) -> Params:
    """A policy with an adapter of its own beside the same weights."""
    made = lora(MODEL, 4, 6.0, targets, root=root)
    rng = np.random.default_rng(seed)
    fresh = jax.eval_shape(made.init, jax.random.key(0))
    numbers = jax.tree.map(lambda like: jax.numpy.asarray(0.1 * rng.normal(size=like.shape), like.dtype), fresh)
    return adapt(BASE, numbers, made.scale)


async def score(params: Params, ids: list[int]) -> list[float]:
    """With one program for all of them."""
    SCORER.load(params)
    return await SCORER(ids)


def adapter_of(params: Params) -> Params:
    adapter, _ = split(params)
    assert adapter is not None
    return adapter


@pytest.mark.parametrize(
    ("targets", "modules"),
    [
        ("attention/q", ("q_proj", "k_proj", "v_proj")),
        ("attention/(k|o)", ("q_proj", "k_proj", "v_proj", "o_proj")),
        ("ffn/(up|down)", ("gate_proj", "up_proj", "down_proj")),
    ],
)
def test_what_a_server_keeps_together_is_sent_together(targets: str, modules: tuple[str, ...]) -> None:
    params = policy(1, targets)
    assert shape_of(FAMILY, MODEL, params) == Shape(4, modules, 1.5)
    own = tensors_for_server(FAMILY, MODEL, adapter_of(params))
    shapes = {"q_proj": (32, 32), "k_proj": (32, 16), "v_proj": (32, 16), "o_proj": (32, 32)}
    shapes |= {"gate_proj": (32, 48), "up_proj": (32, 48), "down_proj": (48, 32)}
    assert len(own) == 2 * 2 * len(modules)
    for name, tensor in own.items():
        module, part = name.removesuffix(".weight").split(".")[-2:]
        inputs, outputs = shapes[module]
        assert tensor.shape == ((4, inputs) if part == "lora_A" else (outputs, 4))
        path = f"{'attention' if module[0] in 'qkvo' else 'ffn'}/{module.removesuffix('_proj')}"
        assert bool(tensor.any()) is bool(re.fullmatch(targets, path))


def test_the_scale_is_written_as_sglang_computes_it(tmp_path: Path) -> None:
    params = policy(1, "attention/q", root=True)  # 6 / sqrt(4)
    shape = shape_of(FAMILY, MODEL, params)
    assert write_for_server(tmp_path, tensors_for_server(FAMILY, MODEL, adapter_of(params)), shape) == 2 * 4 * (
        3 * 4 * 32 + 4 * (32 + 16 + 16)
    )
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["lora_alpha"], config["r"], config["use_rslora"]) == (12, 4, False)  # alpha / r is 3
    assert config["target_modules"] == ["q_proj", "k_proj", "v_proj"]
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    a = np.asarray(adapter_of(params)["layers"]["attention"]["q"]["a"])
    np.testing.assert_array_equal(tensors[f"{Q0}.lora_A.weight"], a[0].T)


def test_flags_are_those_of_the_adapter() -> None:
    shape = Shape(4, ("q_proj", "o_proj"), 1.5)
    expected = {"enable-lora": True, "max-lora-rank": 4, "lora-target-modules": ["q_proj", "o_proj"]}
    assert shape.arguments("cuda") == expected
    assert shape.arguments("cpu") == {**expected, "lora-backend": "torch_native"}


def test_a_policy_whose_weights_are_all_trained_has_none() -> None:
    with pytest.raises(
        ConfigError, match=r"all weights are trained \(model\.lora\.rank=0\); choose inference\.publish"
    ):
        shape_of(FAMILY, MODEL, BASE)


def test_adapters_of_experts_are_refused() -> None:
    family = FAMILIES["qwen3_moe"]
    sizes = {"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 4}
    sizes |= {"num_key_value_heads": 1, "intermediate_size": 8, "max_position_embeddings": 16, "rms_norm_eps": 1e-5}
    sizes |= {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 4, "rope_theta": 1e4}
    model = family.build(family.read_config({"model_type": "qwen3_moe", "norm_topk_prob": True, **sizes}))
    made = lora(model, 2, 2.0, ".*experts.*")
    params = adapt(jax.jit(model.init)(jax.random.key(0)), made.init(jax.random.key(1)), made.scale)
    with pytest.raises(ConfigError, match=r"publish=lora cannot send this adapter: PEFT has no module for .*experts"):
        shape_of(family, model, params)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"enable_lora": False},
            r"it holds no adapters \(--enable-lora\)\. Start it with --enable-lora --max-lora-rank 4",
        ),
        ({"max_lora_rank": 2}, r"its adapters have rank 2 at most, and this one has 4"),
        ({"dp_size": 2}, r"it has 2 copies of the model"),
        ({"lora_target_modules": ["q_proj"]}, r"its adapters are not beside o_proj"),
    ],
)
def test_a_server_that_cannot_hold_it_is_told_how_to_be_started(changed: dict[str, Any], said: str) -> None:
    info = {"enable_lora": True, "max_lora_rank": 4, "lora_target_modules": ["o_proj", "q_proj"], "dp_size": 1}
    shape = Shape(4, ("q_proj", "o_proj"), 1.5)
    check_server(info, shape, "http://a:1")
    check_server({**info, "lora_target_modules": ["all"]}, shape, "http://a:1")
    with pytest.raises(ConfigError, match=said):
        check_server({**info, **changed}, shape, "http://a:1")


async def test_a_rehearsal_tells_an_adapter_from_one_half_as_strong_and_from_none() -> None:
    params = policy(1)
    trial = await rehearse(MODEL, params)
    assert trial.effect >= 1.0 and len(trial.ids) == 16
    for strength, passes in ((1.0, True), (0.5, False), (0.0, False)):
        found = await score(adapt(bare(params), trial.adapter, strength * 1.5), trial.ids)
        assert trial.passes(found) is passes
    assert not trial.passes([])


class StandIn:
    """Answers the routes that adapters need as SGLang 0.5.23 does, and computes with the files it is given."""

    def __init__(self) -> None:
        self.label, self.adapters, self.base = "default", dict[str, str](), BASE
        self.refuse = False

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/server_info", self.info)
        app.router.add_get("/model_info", self.model)
        app.router.add_get("/v1/models", self.models)
        app.router.add_post("/update_weight_version", self.relabel)
        app.router.add_post("/load_lora_adapter", self.load)
        app.router.add_post("/unload_lora_adapter", self.unload)
        app.router.add_post("/generate", self.generate)
        return app

    async def info(self, request: web.Request) -> web.Response:
        modules = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"]
        return web.json_response(
            {"enable_lora": True, "max_lora_rank": 8, "lora_target_modules": modules, "dp_size": 1}
        )

    async def model(self, request: web.Request) -> web.Response:
        return web.json_response({"weight_version": self.label})

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": name} for name in ("tiny", *self.adapters)]})

    async def relabel(self, request: web.Request) -> web.Response:
        self.label = (await request.json())["new_version"]
        return web.json_response({"success": True})

    async def load(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if self.refuse:
            return web.json_response({"success": False, "error_message": "there is a reason"}, status=400)
        self.adapters[asked["lora_name"]] = asked["lora_path"]
        return web.json_response({"success": True, "loaded_adapters": self.adapters})

    async def unload(self, request: web.Request) -> web.Response:
        del self.adapters[(await request.json())["lora_name"]]
        return web.json_response({"success": True, "loaded_adapters": self.adapters})

    async def generate(self, request: web.Request) -> web.Response:
        asked = await request.json()
        logprobs = await score(self.policy(asked["lora_path"]), asked["input_ids"])
        entries = [[None, asked["input_ids"][0], None], *([value, 0, None] for value in logprobs)]
        return web.json_response({"output_ids": [1], "meta_info": {"input_token_logprobs": entries}})

    def policy(self, name: str) -> Params:
        """The policy of an adapter that it has, as its files say."""
        folder = Path(self.adapters[name])
        settings = read_settings(folder, FAMILY, MODEL)
        made = lora(MODEL, settings.rank, settings.alpha, settings.targets, root=settings.root)
        return adapt(self.base, load_adapter(folder, FAMILY, MODEL, made.init(jax.random.key(0))), made.scale)


@pytest_asyncio.fixture
async def standing() -> AsyncIterator[tuple[StandIn, str, Http]]:
    stand_in, http = StandIn(), Http(timeout=30.0)
    server = TestServer(stand_in.app())
    await server.start_server()
    yield stand_in, str(server.make_url("")).rstrip("/"), http
    await http.close()
    await server.close()


def publishing(http: Http, folder: Path, owner: str = "") -> tuple[Publisher[Any], Adapters]:
    adapters, shape = Adapters(), shape_of(FAMILY, MODEL, policy(0))
    way = Lora(FAMILY, MODEL, shape, http, adapters, folder=folder, owner=owner)
    return Publisher(way, http, names=None, pause=None, owner=owner), adapters


async def test_an_adapter_stays_until_nobody_uses_it(standing: tuple[StandIn, str, Http], tmp_path: Path) -> None:
    server, url, http = standing
    publisher, adapters = publishing(http, tmp_path, "here/mine")
    taken = await publisher.publish(policy(1), 1, [url])
    assert taken.bytes == sum(t.nbytes for t in tensors_for_server(FAMILY, MODEL, adapter_of(policy(1))).values())
    assert (taken.pause, server.label) == (0.0, "1@here/mine")
    with adapters.use() as first:
        expected = await score(policy(1), [1, 2, 3, 4])
        np.testing.assert_allclose(await score(server.policy(first.name), [1, 2, 3, 4]), expected, atol=1e-6)
        await publisher.publish(policy(2), 2, [url])
        with adapters.use() as second:
            assert (first.version, second.version) == (1, 2)
            assert list(server.adapters) == [first.name, second.name]
    await publisher.publish(policy(3), 3, [url])
    with adapters.use() as third:
        assert list(server.adapters) == [third.name]
    assert [path.name[:8] for path in tmp_path.iterdir()] == ["00000003"]
    await publisher.close()
    assert (server.adapters, server.label, list(tmp_path.iterdir())) == ({}, "3", [])


async def test_a_server_that_refuses_goes_on_with_what_it_had(
    standing: tuple[StandIn, str, Http], tmp_path: Path
) -> None:
    server, url, http = standing
    publisher, adapters = publishing(http, tmp_path)
    await publisher.publish(policy(1), 1, [url])
    server.refuse = True
    with pytest.raises(PublishError, match=r"version 2 was not taken by 1 servers: .*there is a reason"):
        await publisher.publish(policy(2), 2, [url])
    with adapters.use() as still:
        assert (still.version, list(server.adapters), server.label) == (1, [still.name], "1")
    await publisher.close()


async def test_a_server_of_other_weights_is_noticed_and_left_as_it_was(
    standing: tuple[StandIn, str, Http], tmp_path: Path
) -> None:
    server, url, http = standing
    server.base = jax.jit(MODEL.init)(jax.random.key(1))
    publisher, _ = publishing(http, tmp_path)
    with pytest.raises(ConfigError, match=r"does not compute what the trainer does with an adapter.* of 15 tokens"):
        await publisher.publish(policy(1), 1, [url])
    assert (server.adapters, server.label, list(tmp_path.iterdir())) == ({}, "default", [])
    await publisher.close()


async def test_a_server_started_anew_gets_the_newest_and_a_run_resumed_takes_away_what_it_left(
    standing: tuple[StandIn, str, Http], tmp_path: Path
) -> None:
    server, url, http = standing
    killed, _ = publishing(http, tmp_path / "killed", "here/mine")
    await killed.publish(policy(1), 7, [url])
    left = dict(server.adapters)
    server.adapters["7@there/other#abc0"] = "elsewhere"
    publisher, adapters = publishing(http, tmp_path / "resumed", "here/mine")
    await publisher.publish(policy(2), 2, [url])
    with adapters.use() as newest:
        assert list(server.adapters) == ["7@there/other#abc0", newest.name] and newest.name not in left
        server.adapters, server.label = {}, "default"
        await publisher.restore(url)
        assert (list(server.adapters), server.label) == ([newest.name], "2@here/mine")
        await publisher.restore(url)  # it was only out of reach
        assert list(server.adapters) == [newest.name]
    other, _ = publishing(http, tmp_path / "other", "here/other")
    with pytest.raises(UpswingError, match=r"weights of another run, version 2 of here/mine\. Give each run"):
        await other.publish(policy(1), 1, [url])
    await asyncio.gather(other.close(), publisher.close())


async def test_memory_does_not_reach_another_host() -> None:
    http = Http()
    way = Lora(FAMILY, MODEL, shape_of(FAMILY, MODEL, policy(0)), http, Adapters())
    snapshot = await way.prepare(policy(1), 1)
    with pytest.raises(ConfigError, match=r"http://10\.0\.0\.7:30000 is on another host.*inference\.publish_folder"):
        await way.transfer(snapshot, ["http://10.0.0.7:30000"])
    await way.discard(snapshot)
    await way.close()
    await http.close()
    assert not snapshot.folder.exists()
