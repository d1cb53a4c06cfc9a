"""A teacher that a real server serves says what the trainer would, and knows how many tokens it has."""

from pathlib import Path

import numpy as np
import pytest
from real_servers import opened

from envs.errors import ConfigError
from envs.render import ByteRenderer
from rl.config import SglangInference
from rl.inference.score import Scorer
from rl.inference.teacher import ServedTeacher


@pytest.mark.asyncio
async def test_a_server_is_asked_about_the_policy_s_tokens(tmp_path: Path) -> None:
    async with opened(SglangInference(), tmp_path) as bench:
        url, entries = next(iter(bench.servers())), bench.policy.model.config.vocab_size
        teacher = ServedTeacher(url, entries, concurrency=4)
        assert not await teacher.check(bench.policy.renderer), "servers of ours have no tokenizer to tell"
        alike = [[72, n % 3, *range(97, 100 + n)] for n in range(12)]  # many begin so, as turns of a rollout do
        texts = [[72, entries - 2, entries - 1, 97], *alike]
        score = Scorer(bench.policy.model, bench.policy.params)
        for _ in range(2):  # the second time, the server has them all in its cache
            heard = await teacher.hear(texts)
            for ids, found in heard.items():
                np.testing.assert_allclose(found[1:], await score(ids), atol=1e-4)
        with pytest.raises(ConfigError, match="of which the last is 4095"):
            await ServedTeacher(url, 4096).check(ByteRenderer())
        assert (await teacher.hear(texts)).keys() == heard.keys(), "and the server lives on"
