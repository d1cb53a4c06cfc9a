"""docs/serving.md is held against the application: its routes, and every field that a request may have."""

import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from envs.render import ByteRenderer
from rl.inference.server.app import ROUTES, make_app
from rl.inference.server.service import SERVICE

pytestmark = pytest.mark.asyncio(loop_scope="session")

PAGE = (Path(__file__).parents[3] / "docs" / "serving.md").read_text("utf-8")


def first_column(title: str) -> list[str]:
    """What the table under a heading is about."""
    section = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert section, title
    rows = re.findall(r"^\| (`.*?`) \|", section[1], re.MULTILINE)
    return [name for row in rows for name in re.findall(r"`([^`]+)`", row)]


async def test_every_route_is_described_and_no_other(scripted) -> None:
    script, _ = await scripted("")
    app = make_app(script, ByteRenderer(), model="tiny")
    assert app[SERVICE].model == "tiny"
    served = {
        f"{route.method} {route.resource.canonical}"
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    assert served == set(first_column("Routes")) and len(served) == len(ROUTES)
    await app.cleanup()


FIELDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "/generate": ("/generate", {"input_ids": [1], "zzz": 1}, "zzz"),
    "sampling_params": ("/generate", {"input_ids": [1], "sampling_params": {"zzz": 1}}, "sampling_params.zzz"),
    "/v1/chat/completions": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "a"}], "zzz": 1},
        "zzz",
    ),
    "/v1/completions": ("/v1/completions", {"prompt": "a", "zzz": 1}, "zzz"),
}


@pytest.mark.parametrize("title", FIELDS)
async def test_every_field_is_described_and_no_other(title: str, http: aiohttp.ClientSession) -> None:
    path, fields, unknown = FIELDS[title]
    async with http.post(path, json=fields) as response:
        message = (await response.json())["error"]["message"]
    assert response.status == 400
    assert message.startswith(f"unknown field {unknown}; known: ")
    assert sorted(first_column(title)) == message.partition("known: ")[2].split(", ")


async def test_the_answers_fields_are_described(ask) -> None:
    everything = {"input_ids": [1, 2], "return_logprob": True, "logprob_start_len": 0}
    answer = await ask("/generate", **everything, sampling_params={"max_new_tokens": 1})
    assert sorted(answer["meta_info"]) == sorted(first_column("meta_info"))
