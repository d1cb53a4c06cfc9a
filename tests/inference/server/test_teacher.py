"""A teacher that is served: asked about the policy's tokens, over HTTP."""

from collections.abc import AsyncIterator

import jax
import numpy as np
import pytest
import pytest_asyncio

from envs.errors import ConfigError
from envs.render import ByteRenderer
from rl.data.pack import Segment, pack
from rl.inference.engine import EngineError
from rl.inference.server.lifecycle import Server
from rl.inference.sglang.http import Rejected, Unreachable
from rl.inference.teacher import ServedTeacher
from rl.models.base import Model, Params
from rl.trainer.update import make_score

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(loop_scope="session")
async def teacher(server: Server) -> AsyncIterator[ServedTeacher]:
    yield ServedTeacher(server.url + "/", 264, concurrency=3)


async def test_it_says_what_the_trainer_would(
    teacher: ServedTeacher, served_model: Model, served_params: Params
) -> None:
    """The server takes on 40 texts at a time, and refuses more: fewer are under way."""
    texts = [[3 + n, 200, 7, n] for n in range(60)] + [[5, 6], [3, 200, 7, 0]]
    heard = await teacher.hear(texts)
    assert len(heard) == 61, "a text that comes twice is asked about once"
    batch = pack([Segment(text, [True] * len(text), [0.0] * len(text)) for text in texts[:2]], 4, 2)
    expected = jax.jit(make_score(served_model))(served_params, batch, 1.0).logprobs
    for text, exact in zip(texts[:2], np.asarray(expected), strict=True):
        np.testing.assert_allclose(heard[tuple(text)], exact, atol=1e-5)
    assert heard[(5, 6)][0] == 0.0 and heard[(5, 6)].shape == (2,)
    assert await teacher.hear([]) == {}


async def test_both_have_to_mean_the_same_by_a_token(teacher: ServedTeacher, server: Server) -> None:
    assert await teacher.check(ByteRenderer())
    with pytest.raises(ConfigError, match=r"of which the last is 264: .*refused with status 400.*policy's tokenizer"):
        await ServedTeacher(server.url, 265).check(ByteRenderer())


class Shifted(ByteRenderer):
    """A tokenizer of which every letter is the next one."""

    def text(self, ids: object) -> str:
        return super().text([token + 1 if token < 255 else token for token in ids])  # type: ignore[attr-defined]


async def test_another_tokenizer_of_the_same_size_is_found_out(teacher: ServedTeacher) -> None:
    with pytest.raises(ConfigError, match=r"reads other tokens than the policy: token 84 is 'T' there and 'U' here"):
        await teacher.check(Shifted())


async def test_who_cannot_answer_is_named(scripted, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rl.inference.teacher.WAIT_S", 0.0)
    nobody = ServedTeacher(f"http://127.0.0.1:{unused_tcp_port}", 264)
    with pytest.raises(Unreachable, match=f"nobody answers at http://127.0.0.1:{unused_tcp_port}/generate"):
        await nobody.hear([[1, 2]])
    _, url = await scripted("hello")
    with pytest.raises(Rejected, match="this server cannot score prompts"):
        await ServedTeacher(url, 264).hear([[1, 2]])
    with pytest.raises(EngineError, match="refused with status 404"):
        await ServedTeacher(f"{url}/v1", 264).hear([[1, 2]])
