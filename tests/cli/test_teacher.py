"""Learning from others: a teacher, and pairs of answers; and what is not to be learnt from."""

import asyncio
import json
import math
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import pytest
from orbax.checkpoint import v1 as ocp

from rl.cli.build import make_policy
from rl.cli.engine import make_jax_engine
from rl.cli.main import main
from rl.cli.model import model_of_run
from rl.config import HardwareConfig, JaxInference
from rl.inference.score import Scorer
from rl.inference.server.app import make_app
from rl.inference.server.lifecycle import Server

SMALL = ["env=reverse_text", "model.layers=1", "model.width=16", "model.heads=1", "model.kv_heads=1", "model.ffn=16"]
RUN = [*SMALL, "model.context=32", "sampling.max_tokens=8", "pack.row_length=32", "prompts=2", "group_size=2"]
RUN += ["steps=1", "eval.tasks=2", "pack.rows_per_microbatch=4", "inference.slots=4"]


@contextmanager
def served(run: str) -> Iterator[str]:
    """The model of a run behind a server in a thread of its own; gives its URL."""
    policy = make_policy(model_of_run(Path(run)), HardwareConfig(), 0)
    ready: Future[str] = Future()
    loop, done = asyncio.new_event_loop(), asyncio.Event()

    async def serve() -> None:
        engine = make_jax_engine(JaxInference(slots=1), policy)
        app = make_app(engine, policy.renderer, model=run, score=Scorer(policy.model, policy.params), max_requests=16)
        server = await Server.start(app)
        ready.set_result(server.url)
        await done.wait()
        await server.stop()
        await engine.close()

    thread = threading.Thread(target=loop.run_until_complete, args=[serve()])
    thread.start()
    try:
        yield ready.result(60)
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join()
        loop.close()


def test_a_teacher_in_the_mesh_and_one_behind_a_server_say_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sft", *SMALL, "model.context=64", "steps=1", "batch=2", "run_dir=wise", "seed=5"]) == 0
    assert main(["train", *RUN, "algorithm=opd", "teacher=wise", "run_dir=mesh"]) == 0
    with served("wise") as url:
        learn = ["train", *RUN, f"teacher={url}"]
        assert main([*learn, "algorithm=gkd"]) == 2
        assert "a teacher behind a server is asked about the sampled ones alone" in capsys.readouterr().err
        assert main([*learn, "algorithm=opd", "sampling.temperature=0.5"]) == 2
        assert "sampling.temperature is 0.5, and a teacher behind a server" in capsys.readouterr().err
        assert main([*learn, "algorithm=opd", "run_dir=server"]) == 0
    assert main([*learn, "algorithm=opd", "run_dir=gone"]) == 1
    assert f"nobody answers at {url}/generate" in capsys.readouterr().err
    near, far = (json.loads((tmp_path / run / "metrics.jsonl").read_text()) for run in ("mesh", "server"))
    assert abs(near["kl_teacher"]) > 1e-4
    for metric in ("kl_teacher", "loss", "grad_norm"):
        assert far[metric] == pytest.approx(near[metric], rel=1e-4), metric


def test_a_student_learns_from_another_run_and_from_pairs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *RUN, "algorithm=opd"]) != 0
    assert "algorithm=opd learns from a teacher, and there is none; name one with teacher=" in capsys.readouterr().err
    assert main(["sft", *SMALL, "model.context=64", "steps=1", "batch=2", "run_dir=wise", "seed=5"]) == 0
    assert main(["train", *RUN, "algorithm=opd", "teacher=wise", "run_dir=run"]) == 0
    rows = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert '"kl_teacher": ' in rows and '"nonfinite": 0.0' in rows
    assert main(["train", *RUN, "algorithm=gkd", "teacher=wise", "run_dir=whole", "algorithm.top=300"]) != 0
    assert "algorithm.top=300, but the model has 264 tokens" in capsys.readouterr().err
    assert main(["train", *RUN, "algorithm=gkd", "teacher=wise", "run_dir=dense"]) == 0
    row = json.loads((tmp_path / "dense" / "metrics.jsonl").read_text())
    assert row["divergence_teacher"] > 0 and row["grad_norm"] > 1e-4 and 0 < row["teacher_top"] < 1
    assert main(["train", *RUN, "algorithm=sdft", "run_dir=by_itself", "steps=2"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "by_itself" / "metrics.jsonl").read_text().splitlines()]
    assert all(abs(row["kl_teacher"]) > 1e-4 and row["grad_norm"] > 1e-4 for row in rows)
    average = ["algorithm.teacher_weights=average", "algorithm.teacher_rate=0.5", "optimizer.lr=1e-2"]
    assert main(["train", *RUN, "algorithm=sdft", *average, "run_dir=by_its_past", "steps=2"]) == 0
    checkpoint = ocp.metadata(tmp_path / "by_its_past" / "checkpoints" / "train" / "00000002").metadata
    assert checkpoint["average"].keys() == checkpoint["params"].keys()
    pairs = ({"prompt": text, "chosen": text[::-1], "rejected": text} for text in ("ab", "cd"))
    lines = [json.dumps(pair) + "\n" for pair in pairs]
    (tmp_path / "pairs.jsonl").write_text("".join(lines))
    learn = ["sft", *SMALL, "model.context=64", "batch=2", "steps=2", "preference=dpo", "optimizer.lr=1e-2"]
    assert main([*learn, "run_dir=unfit"]) != 0 and "preference=dpo pairs=FILE.jsonl" in capsys.readouterr().err
    assert main([*learn, "pairs=pairs.jsonl", "run_dir=preferring"]) == 0
    first, second = map(json.loads, (tmp_path / "preferring" / "metrics.jsonl").read_text().splitlines())
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-5), "the policy is its own reference at first"
    assert second["loss"] < first["loss"] and second["pairs/margin"] > 0


KEPT = """\
from envs import Environment, Rubric, Task, Taskset, single_turn

def load_environment() -> Environment:
    tasks = Taskset.from_function(lambda split: [Task.ask(split, "?", "!")]).evaluation_only("train")
    return Environment(tasks, single_turn(), Rubric({}), demonstrate=lambda task, sample: "!")
"""


@pytest.mark.parametrize("verb", ["train", "sft"])
def test_what_is_for_evaluation_only_is_refused_before_a_run_begins(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("kept").mkdir()
    Path("kept/kept.py").write_text(KEPT)
    assert main([verb, "env=./kept"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: environment 'kept' has no tasks to train on: its split 'train' is for evaluation")
    assert not Path("runs").exists()
