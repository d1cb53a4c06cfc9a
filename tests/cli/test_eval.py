"""`rl eval` against a real server: resumed, retried, priced, side by side, in suites, and with a bar to clear."""

import asyncio
import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from envs.record import read
from rl.cli import conf
from rl.cli.compose import compose
from rl.cli.main import main
from rl.cli.suite import evaluations, read_suite


class Server:
    """Model `good` reverses the text, `bad` repeats it, `down` answers 500; every other answer of `half` is right."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.url = ""

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": name} for name in ("good", "bad", "down", "half")]})

    async def complete(self, request: web.Request) -> web.Response:
        body = await request.json()
        model, text = body["model"], body["messages"][-1]["content"]
        self.asked[model] += 1
        if model == "down":
            return web.Response(status=500, text="broken")
        right = model == "good" or (model == "half" and self.asked["half"] % 2 == 0)
        message = {"role": "assistant", "content": text[::-1] if right else text}
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        return web.json_response({"choices": [{"message": message, "finish_reason": "stop"}], "usage": usage})


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """In a thread of its own, since `rl eval` has a loop of its own."""
    served, ready, ending = Server(), threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        app = web.Application()
        app.router.add_get("/v1/models", served.models)
        app.router.add_post("/v1/chat/completions", served.complete)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        served.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        ready.set()
        await ending.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(30)
    yield served
    loop.call_soon_threadsafe(ending.set)
    thread.join()
    loop.close()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")


def arguments(server: Server, model: str, *more: str) -> list[str]:
    client = ["client=openai", f"client.base_url={server.url}", f"client.model={model}", "client.retries=0"]
    return ["eval", "env=reverse_text", "env.min_length=4", "tasks=4", *client, *more]


def summary(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(run, "summary.json").read_text())
    return found


def test_pass_k_tokens_and_cost_are_told(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    prices = ["client.prompt_price=1", "client.completion_price=20"]
    settings = ["samples=4", "success=exact_match", "client.concurrency=1", "run_dir=half"]
    assert main(arguments(server, "half", *settings, *prices)) == 0
    found = summary("half")
    any_of, all_of = ([share["mean"] for share in found[key].values()] for key in ("pass_at", "pass_all"))
    assert any_of == [0.5, pytest.approx(5 / 6), 1.0] and all_of == [0.5, pytest.approx(1 / 6), 0.0]
    assert found["usage"]["prompt_tokens"] == 1600 and found["cost"] == pytest.approx(16 * (100 + 200) / 1e6)
    out = capsys.readouterr().out
    assert re.search(r"pass@4\W+1\.000", out) and re.search(r"pass\^2\W+0\.167", out) and "pass^1" not in out
    assert "1,600 prompt tokens, 160 completion tokens, $0.0048" in out


@pytest.mark.parametrize(("bar", "code"), [("0.9", 0), ("1.1", 1)])
def test_a_bar_to_clear(server: Server, bar: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(server, "good", "--fail-under", bar)) == code
    assert ("the mean reward 1.000 is under 1.1" in capsys.readouterr().err) == (code == 1)


def test_a_server_that_is_down_is_no_reward_of_zero(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    asked = server.asked["down"]
    assert main(arguments(server, "down", "retries=1", "run_dir=down")) == 1
    assert "none of the 4 rollouts was scored; failures: {'infrastructure': 4}" in capsys.readouterr().err
    assert summary("down")["reward"] is None and server.asked["down"] - asked == 8  # once, and a retry, each


def test_an_interrupted_evaluation_goes_on_where_it_stopped(server: Server) -> None:
    assert main(arguments(server, "good", "run_dir=again")) == 0
    journal = Path("again", "evals", "eval.jsonl")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0] + lines[1] + lines[2][:50])  # as a kill leaves it
    info = json.loads(Path("again", "run.json").read_text())
    Path("again", "run.json").write_text(json.dumps({**info, "status": "running"}))
    asked = server.asked["good"]
    assert main(arguments(server, "good", "run_dir=again", "resume=true")) == 0
    assert server.asked["good"] - asked == 2
    assert len({t.task.id for _, t in read(journal)}) == 4 and summary("again")["reward"]["mean"] == 1.0


def test_models_stand_side_by_side_and_a_run_goes_on(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["env.unit=word,phrase", "run_dir=both", "fail_under=0.9"]
    assert main(arguments(server, "good,bad,down", *settings)) == 1
    captured = capsys.readouterr()
    table = captured.out[captured.out.rindex("┏") :]
    assert all(word in table for word in ("good", "bad", "down", "none scored")) and re.search(r"1\.000", table)
    assert captured.err.count("is under 0.9") == 2 and captured.err.count("none of the 4 rollouts") == 2
    assert sorted(path.name for path in Path("both").iterdir()) == list("012345")
    asked = Counter(server.asked)
    assert main(arguments(server, "good,bad,down", *settings, "resume=true")) == 1
    assert server.asked == asked  # all were finished


def test_a_suite_is_a_list_of_settings(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    Path("suite").mkdir()
    Path("suite", "mine.yaml").write_text(
        "evals:\n- env=reverse_text tasks=2\n- env=reverse_text env.unit=phrase tasks=3\n"
    )
    client = ["client=openai", f"client.base_url={server.url}", "client.model=good", "run_dir=runs/suite"]
    assert main(["eval", "suite=mine", "--config-dir", ".", *client]) == 0
    assert [summary(f"runs/suite/{i}")["tasks"] for i in range(2)] == [2, 3]
    assert main(["eval", "suite=mien", "--config-dir", "."]) == 2
    assert "unknown suite 'mien'; did you mean 'mine'" in capsys.readouterr().err
    Path("suite", "odd.yaml").write_text("evals: 3\n")
    assert main(["eval", "suite=odd", "--config-dir", "."]) == 2
    assert "expected `evals:` with a list of settings" in capsys.readouterr().err


def test_combinations_come_in_the_order_they_are_written() -> None:
    assert evaluations(["env=a,b", "seed=1", "client.model=x,y"]) == [
        ["env=a", "seed=1", "client.model=x"],
        ["env=a", "seed=1", "client.model=y"],
        ["env=b", "seed=1", "client.model=x"],
        ["env=b", "seed=1", "client.model=y"],
    ]


@pytest.mark.parametrize("suite", sorted(path.stem for path in (conf.CONF / "suite").glob("*.yaml")))
def test_every_suite_composes(suite: str) -> None:
    members = read_suite(suite)
    assert len(members) > 1
    for member in members:
        compose("eval", member)
    assert 10 < len(conf.headline("suite", suite)) <= 95
