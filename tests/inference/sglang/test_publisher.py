"""Versions reach our own server, which answers the routes that publishing by disk needs as SGLang does."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import jax
import pytest
import pytest_asyncio

from envs.errors import ConfigError, UpswingError
from envs.render import ByteRenderer
from rl.inference.jax_engine import JaxEngine
from rl.inference.server.app import make_app
from rl.inference.server.lifecycle import Server
from rl.inference.sglang.http import Http, Rejected, Unreachable
from rl.inference.sglang.publish.disk import Disk, Writers
from rl.inference.sglang.publish.publisher import Publisher, PublishError
from rl.inference.sglang.publish.tensor import Tensor
from rl.inference.sglang.publish.way import Exporter
from rl.models.base import DecoderConfig, Params
from rl.models.llama import FAMILY
from rl.parallel.mesh import make_mesh, parameter_shardings
from rl.weights.load import load
from rl.weights.safetensors_dir import SafetensorsDirectory

MODEL = FAMILY.build(DecoderConfig(vocab_size=264, layers=2, width=32, heads=4, kv_heads=2, ffn=48, context=64))
FIRST, SECOND = (jax.jit(MODEL.init)(jax.random.key(seed)) for seed in (0, 1))
EXPORTER = Exporter(FAMILY, MODEL, "float32")

Said = dict[str, list[int]]


def read(folder: str) -> Params:
    shardings = parameter_shardings(make_mesh({"data": 1}), MODEL.axes, {})
    return load(SafetensorsDirectory(Path(folder)), FAMILY, MODEL, shardings)


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[JaxEngine]:
    engine = JaxEngine(MODEL, FIRST, slots=2, text_of=ByteRenderer().text)
    yield engine
    await engine.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(engine: JaxEngine) -> AsyncIterator[Server]:
    async def load_weights(path: str) -> Params:
        if (Path(path) / "refuse").exists():
            raise UpswingError("there is a reason")
        return await asyncio.to_thread(read, path)

    server = await Server.start(make_app(engine, ByteRenderer(), model="tiny", load_weights=load_weights))
    yield server
    await server.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http() -> AsyncIterator[Http]:
    http = Http(timeout=60.0)
    yield http
    await http.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def said(running: Server, engine: JaxEngine, http: Http) -> Said:
    """What each of the two models says."""
    found = {}
    for name, params in (("first", FIRST), ("second", SECOND)):
        await engine.load_weights(params, 0)
        found[name] = (await drawn(http, running.url))[0]
    assert found["first"] != found["second"]
    return found


@pytest_asyncio.fixture(loop_scope="module")
async def server(running: Server, engine: JaxEngine, said: Said) -> Server:
    """Samples from the first model, as version 0."""
    await engine.load_weights(FIRST, 0)
    return running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "weights"


@pytest.fixture
def way(tmp_path: Path, folder: Path, http: Http) -> Disk:
    base = tmp_path / "base"
    base.mkdir()
    config = FAMILY.write_config(MODEL.config)
    (base / "config.json").write_text(json.dumps(config))
    (base / "model.safetensors").write_bytes(b"not to be copied")
    return Disk(EXPORTER, http, folder=folder, beside=base)


async def drawn(http: Http, url: str) -> tuple[list[int], str]:
    body = {"input_ids": [1, 2, 3], "sampling_params": {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}}
    answer = await http.post(url, "/generate", body)
    return answer["output_ids"], answer["meta_info"]["weight_version"]


async def test_a_published_version_is_sampled_from_and_only_the_newest_is_kept(
    server: Server, http: Http, way: Disk, folder: Path, said: Said
) -> None:
    publisher = Publisher(way, http, names=None)
    taken = await publisher.publish(SECOND, 3, [server.url])
    assert await drawn(http, server.url) == (said["second"], "3")
    assert taken.bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(SECOND))
    await publisher.publish(FIRST, 4, [server.url])
    assert await drawn(http, server.url) == (said["first"], "4")
    assert [path.name for path in folder.iterdir()] == ["00000004-1"]
    await publisher.close()
    assert list(folder.iterdir()) == []


async def test_a_version_does_not_go_backwards(server: Server, http: Http, way: Disk, folder: Path, said: Said) -> None:
    publisher = Publisher(way, http, names=None)
    await publisher.publish(SECOND, 3, [server.url])
    with pytest.raises(UpswingError, match="version 2 is published after 3; versions only grow"):
        await publisher.publish(FIRST, 2, [server.url])
    assert await drawn(http, server.url) == (said["second"], "3")
    assert len(list(folder.iterdir())) == 1


async def test_two_trainers_on_one_server_are_told_so(server: Server, http: Http, way: Disk, tmp_path: Path) -> None:
    mine = Publisher(way, http, names=None)
    await mine.publish(FIRST, 1, [server.url])
    other = Publisher(Disk(EXPORTER, http, folder=tmp_path / "other", beside=tmp_path / "base"), http, names=None)
    await other.publish(SECOND, 7, [server.url])
    with pytest.raises(UpswingError, match="has version 7, but this run gave it 1: another trainer publishes to it"):
        await mine.publish(FIRST, 8, [server.url])


async def test_a_server_has_one_owner_whatever_the_versions(
    server: Server, http: Http, way: Disk, folder: Path, tmp_path: Path, said: Said
) -> None:
    mine = Publisher(way, http, names=None, owner="here/mine")
    await mine.publish(FIRST, 1, [server.url])
    other = Publisher(
        Disk(EXPORTER, http, folder=tmp_path / "other", beside=tmp_path / "base"), http, names=None, owner="here/other"
    )
    for version in (1, 2):
        with pytest.raises(UpswingError, match=r"weights of another run, version 1 of here/mine\. Give each run"):
            await other.publish(SECOND, version, [server.url])
    with pytest.raises(Rejected, match=r"1@here/other, but the server has weights of another run, 1@here/mine"):
        body = {"model_path": str(next(folder.iterdir())), "weight_version": "1@here/other"}
        await http.post(server.url, "/update_weights_from_disk", body)
    await other.close()
    assert await drawn(http, server.url) == (said["first"], "1@here/mine")
    again = Publisher(way, http, names=None, owner="here/mine")  # killed, and resumed at an earlier version
    await again.publish(SECOND, 0, [server.url])
    await again.close()
    assert await drawn(http, server.url) == (said["second"], "0")
    await other.publish(FIRST, 0, [server.url])
    assert await drawn(http, server.url) == (said["first"], "0@here/other")
    await other.close()


async def test_a_file_cut_short_never_reaches_the_server(server: Server, http: Http, way: Disk, said: Said) -> None:
    snapshot = await way.prepare(SECOND, 1)
    file = snapshot.folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UpswingError, match=r"model\.safetensors is damaged or cut short"):
        await way.commit(snapshot, [server.url], 1, flush=False)
    assert await drawn(http, server.url) == (said["first"], "0")


async def test_a_server_that_refuses_goes_on_with_what_it_had(
    server: Server, http: Http, way: Disk, tmp_path: Path, said: Said
) -> None:
    publisher = Publisher(way, http, names=None)
    await publisher.publish(FIRST, 1, [server.url])
    (tmp_path / "base" / "refuse").touch()
    with pytest.raises(PublishError, match=r"version 2 was not taken by 1 servers: .*there is a reason") as error:
        await publisher.publish(SECOND, 2, [server.url])
    assert list(error.value.refused) == [server.url]
    assert publisher.version == 1
    assert await drawn(http, server.url) == (said["first"], "1")


async def test_of_two_servers_one_is_gone_the_other_goes_on_and_the_first_is_restored_later(
    server: Server, http: Http, way: Disk, said: Said
) -> None:
    publisher = Publisher(way, http, names=None)
    gone = "http://127.0.0.1:9"
    with pytest.raises(Unreachable, match=r"nobody answers at http://127\.0\.0\.1:9"):
        await publisher.publish(SECOND, 5, [server.url, gone])  # seen before anything was sent
    assert await drawn(http, server.url) == (said["first"], "0")
    await publisher.publish(SECOND, 5, [server.url])
    await http.post(server.url, "/update_weight_version", {"new_version": "0"})  # as if it had been started anew
    await publisher.restore(server.url)
    assert (await drawn(http, server.url))[1] == "5"


async def test_several_processes_write_one_version(http: Http, folder: Path) -> None:
    words: list[tuple[int, str]] = []
    second = Disk(EXPORTER, http, folder=folder, writers=Writers(1, 2, lambda word: words.append((1, word))))
    first = Disk(EXPORTER, http, folder=folder, writers=Writers(0, 2, lambda word: meet(word)))

    def meet(word: str) -> None:
        """The second process does its part where the first waits for it."""
        words.append((0, word))
        if word.startswith("draft"):
            asyncio.run(second.prepare(SECOND, 1))

    snapshot = await first.prepare(SECOND, 1)
    assert sorted(path.name for path in snapshot.folder.iterdir()) == [
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
    ]
    await first.transfer(snapshot, [])
    assert [word.split()[0] for _, word in words] == ["draft", "draft", "written", "whole", "written", "whole"]


async def test_shared_memory_does_not_reach_another_host(http: Http) -> None:
    way = Tensor(EXPORTER, http)
    snapshot = await way.prepare(FIRST, 1)
    try:
        with pytest.raises(ConfigError, match=r"http://10\.0\.0\.7:30000 is on another host.*publish=disk"):
            await way.transfer(snapshot, ["http://10.0.0.7:30000"])
    finally:
        await way.discard(snapshot)
    assert not snapshot.path.exists()
