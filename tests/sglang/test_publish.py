"""A real server samples from what is published, by every way, and keeps or regains good weights on bad days."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import pytest_asyncio
from real_servers import kill, program, scheduler
from server_processes import LONG_S

from envs.errors import ConfigError, UpswingError
from rl.cli.build import Policy, make_policy
from rl.cli.export import write_directory
from rl.config import HardwareConfig, ModelConfig
from rl.inference.engine import EngineError
from rl.inference.score import Scorer
from rl.inference.sglang.command import find_python, server_command
from rl.inference.sglang.http import Http
from rl.inference.sglang.ports import take_ports
from rl.inference.sglang.publish.disk import Disk
from rl.inference.sglang.publish.distributed import Distributed
from rl.inference.sglang.publish.names import checksums
from rl.inference.sglang.publish.publisher import Publisher, PublishError
from rl.inference.sglang.publish.tensor import Tensor
from rl.inference.sglang.publish.way import Exporter
from rl.inference.sglang.server import Launched
from rl.models.base import Params
from rl.weights.layout import flat

pytestmark = pytest.mark.asyncio(loop_scope="module")

SIZES = {"layers": 2, "width": 64, "heads": 4, "kv_heads": 2, "ffn": 96, "context": 512}
PROMPT = [72, 101, 108, 108, 111]


class Watched(Http):
    """Calls `before` with the path of whatever it posts, before it does."""

    before: Callable[[str], None] = staticmethod(lambda path: None)

    async def post(self, url: str, path: str, *arguments: Any, **named: Any) -> Any:
        self.before(path)
        return await super().post(url, path, *arguments, **named)


class Bench(NamedTuple):
    """A server, what it was started with, and how to ask it."""

    server: Launched
    http: Watched
    policy: Policy
    exporter: Exporter
    score: Scorer

    @property
    def url(self) -> str:
        return self.server.url

    def params(self, seed: int) -> Params:
        fresh = jax.jit(self.policy.model.init)(jax.random.key(seed))
        return jax.tree.map(lambda x: x * (1 + seed / 100), fresh)  # norms too differ from one to the next

    def publisher(self, way: Any, **policy: Any) -> Publisher[Any]:
        return Publisher(way, self.http, names=self.exporter.names(), **policy)

    async def sample(self, tokens: int = 16) -> dict[str, Any]:
        sampling = {"temperature": 1.0, "max_new_tokens": tokens, "ignore_eos": True}
        return await self.http.post(
            self.url, "/generate", {"input_ids": PROMPT, "sampling_params": sampling, "return_logprob": True}
        )

    @asynccontextmanager
    async def drawing(self) -> AsyncIterator[list[dict[str, Any]]]:
        """Answers in four places, one after another as long as the block runs, from when they are drawn: some are under
        way in it, however fast the machine is. Each place has a length of its own, so not all end at once."""
        answers, over = list[dict[str, Any]](), asyncio.Event()

        async def one_after_another(tokens: int) -> None:
            while not over.is_set():
                answers.append(await self.sample(tokens))

        async with asyncio.TaskGroup() as group:
            for tokens in (300, 330, 360, 390):
                group.create_task(one_after_another(tokens))
            async with asyncio.timeout(LONG_S):
                while not (await self.http.get(self.url, "/v1/loads"))["loads"][0]["num_running_reqs"]:
                    await asyncio.sleep(0.02)
            yield answers
            over.set()

    async def checksums(self) -> dict[str, str]:
        return (await self.http.post(self.url, "/weights_checker", {"action": "checksum"}))["ranks"][0]["checksums"]

    def expected(self, params: Params) -> dict[str, str]:
        """The checksums of a server that has these parameters: every bit of every one of them."""
        leaves = flat(params)
        named = {tensor.name: np.asarray(tensor.of(leaves)) for tensor in self.exporter.tensors()}
        return checksums(sorted(named.items(), key=lambda item: _order(item[0])))

    async def follows(self, params: Params) -> None:
        """Holds what it samples against our own forward pass."""
        answer = await self.sample()
        logprobs, ids, _ = zip(*answer["meta_info"]["output_token_logprobs"], strict=True)
        await self.scored(params, ids, logprobs, 0, len(ids))

    async def scored(self, params: Params, ids: Sequence[int], logprobs: Sequence[float], start: int, end: int) -> None:
        """Holds the log-probabilities of some of the tokens against those of our own forward pass."""
        self.score.load(params)
        ours = (await self.score([*PROMPT, *ids]))[len(PROMPT) - 1 :]
        np.testing.assert_allclose(logprobs[start:end], ours[start:end], atol=1e-4, rtol=0)


def _order(name: str) -> tuple[str, int]:
    """q, k, v and gate, up, as servers lay them beside one another."""
    order = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"]
    last = name.split(".")[-2]
    return name.replace(last, ""), order.index(last) if last in order else 0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bench]:
    folder = tmp_path_factory.mktemp("model")
    config = ModelConfig(name="qwen3", options={"head_dim": 16}, **SIZES)  # type: ignore[arg-type]
    policy = make_policy(config, HardwareConfig(), 0)
    write_directory(folder, policy, None)
    [port] = take_ports(1, 0, "127.0.0.1")
    server = Launched(
        "the server", f"http://127.0.0.1:{port}", server_command(find_python(), folder, port=port), folder / "log"
    )
    http = Watched(timeout=LONG_S)
    await server.start(print)
    exporter = Exporter(policy.origin.family, policy.model, "float32")
    yield Bench(server, http, policy, exporter, Scorer(policy.model, policy.params))
    await http.close()
    await server.stop()


def way(name: str, bench: Bench, folder: Path | None = None) -> Any:
    if name == "disk":
        return Disk(bench.exporter, bench.http, folder=folder)
    if name == "tensor":
        return Tensor(bench.exporter, bench.http)
    return Distributed(bench.exporter, bench.http, python=find_python())


@pytest.mark.parametrize("name", ["disk", "tensor", "distributed"])
async def test_every_bit_of_what_is_published_is_what_the_server_samples_from(bench: Bench, name: str) -> None:
    publisher = bench.publisher(way(name, bench))
    before = await bench.checksums()
    for version, seed in ((1, 11), (2, 12)):
        params = bench.params(seed)
        taken = await publisher.publish(params, version, [bench.url])
        assert taken.bytes >= sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        after = await bench.checksums()
        assert after == bench.expected(params) and after != before
        before = after
        await bench.follows(params)
        assert (await bench.sample(4))["meta_info"]["weight_version"] == str(version)
    await publisher.close()


@pytest.mark.parametrize(
    ("name", "pause", "flush"),
    [("disk", "retract", True), ("tensor", "in_place", False), ("distributed", "retract", True)],
)
async def test_tokens_under_way_carry_the_version_they_were_drawn_with(
    bench: Bench, name: str, pause: str, flush: bool
) -> None:
    by = way(name, bench)
    first, publisher = bench.publisher(by), bench.publisher(by, pause=pause, flush=flush)
    await first.publish(bench.params(1), 21, [bench.url])
    async with bench.drawing() as answers:
        await publisher.publish(bench.params(2), 22, [bench.url])
    both = 0
    for answer in answers:
        logprobs, ids, _ = zip(*answer["meta_info"]["output_token_logprobs"], strict=True)
        spans = answer["meta_info"]["weight_versions"]
        assert [span["start"] for span in spans] == [0, *(span["end"] for span in spans[:-1])]
        assert spans[-1]["end"] == len(ids) and all(span["start"] < span["end"] for span in spans)
        assert [span["version"] for span in spans] in (["21"], ["21", "22"], ["22"])
        both += len(spans) == 2
        for span in spans:
            if span["version"] == "21":
                await bench.scored(bench.params(1), ids, logprobs, span["start"], span["end"])
            elif pause == "retract":  # what it had read with the first weights is read with the second
                await bench.scored(bench.params(2), ids, logprobs, span["start"], span["end"])
    assert both, "the publication came while some were drawn"
    await publisher.close()
    await first.close()


async def test_a_model_that_is_not_the_servers_is_one_error_and_changes_nothing(bench: Bench) -> None:
    before = await bench.checksums()
    config = ModelConfig(name="qwen3", options={"head_dim": 16}, **{**SIZES, "layers": 3})  # type: ignore[arg-type]
    deeper = make_policy(config, HardwareConfig(), 0)
    exporter = Exporter(deeper.origin.family, deeper.model, "float32")
    publisher = Publisher(Tensor(exporter, bench.http), bench.http, names=exporter.names())
    with pytest.raises(
        ConfigError, match=r"it has no model\.layers\.2\.input_layernorm\.weight, .*, which would be sent"
    ):
        await publisher.publish(deeper.params, 30, [bench.url])
    assert await bench.checksums() == before
    await publisher.close()


async def test_a_file_cut_short_changes_nothing(bench: Bench, tmp_path: Path) -> None:
    disk = way("disk", bench, tmp_path / "weights")
    publisher = bench.publisher(disk)
    params = bench.params(3)
    await publisher.publish(params, 31, [bench.url])
    snapshot = await disk.prepare(bench.params(4), 32)
    file = snapshot.folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(UpswingError, match=r"model\.safetensors is damaged or cut short"):
        await disk.commit(snapshot, [bench.url], 32, flush=False)
    assert await bench.checksums() == bench.expected(params)
    await bench.follows(params)
    await publisher.close()


async def test_a_version_does_not_go_backwards(bench: Bench) -> None:
    publisher = bench.publisher(way("tensor", bench))
    await publisher.publish(bench.params(5), 41, [bench.url])
    with pytest.raises(UpswingError, match="version 40 is published after 41"):
        await publisher.publish(bench.params(6), 40, [bench.url])
    await bench.follows(bench.params(5))
    await publisher.close()


@pytest.mark.parametrize("name", ["disk", "distributed"])
async def test_killed_while_it_loads_it_gets_the_version_when_it_is_back(bench: Bench, name: str) -> None:
    publisher = bench.publisher(way(name, bench))
    await publisher.publish(bench.params(7), 51, [bench.url])
    params = bench.params(8)
    main = program(bench.server.pid)
    loading, holder = asyncio.Event(), scheduler(main)

    def freeze(path: str) -> None:
        """Has the server never get as far as to answer what orders it to load."""
        if path.startswith("/update_weights_from_"):
            holder.suspend()
            loading.set()

    bench.http.before = freeze
    publishing = asyncio.ensure_future(publisher.publish(params, 52, [bench.url]))
    async with asyncio.timeout(LONG_S):
        await loading.wait()
    kill(main)
    with pytest.raises(EngineError) as error:
        await publishing
    assert isinstance(error.value, PublishError) is (publisher.version == 52)
    bench.http.before = lambda path: None
    await bench.server.start(print)
    await publisher.restore(bench.url)
    await bench.follows(bench.params(7) if publisher.version == 51 else params)
    await publisher.publish(params, 53, [bench.url])
    assert await bench.checksums() == bench.expected(params)
    await publisher.close()
