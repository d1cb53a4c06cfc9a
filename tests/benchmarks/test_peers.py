"""Peers run in a process and environment of their own; ratios are of rounds that were played in turns."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.common import write_block
from benchmarks.peers import SCRIPTS, Peer, Round, cpu_ratio, environments, interleave, ratio, tokens_per_s
from benchmarks.peers.protocol import prompts, rollouts
from envs.errors import ConfigError, InfrastructureError

ROOT = SCRIPTS.parents[1]
PEER = f"""
import sys
sys.path.insert(0, {str(SCRIPTS)!r})
from protocol import answer

def begin(job):
    print("libraries print")

    def play(number):
        if number == 3:
            raise ValueError("round three is too much")
        return job["size"] * number

    return play

answer(begin, ["numpy"])
"""


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return tmp_path


def test_a_peer_plays_rounds_and_says_why_it_ended(environment: Path) -> None:
    script = environment / "peer.py"
    script.write_text(PEER)
    peer = Peer("other", script, {"size": 10}, environment)
    assert set(peer.versions) == {"numpy"} and peer.ready_s >= 0
    played = interleave({"it": peer.play}, 2)["it"]
    assert [r.tokens for r in played] == [10, 20]
    assert all(r.wall_s > 0 and r.cpu_s >= 0 for r in played)
    with pytest.raises(InfrastructureError, match=r"peer 'other' ended with code 1; (?s:.*)round three is too much"):
        peer.play(3)
    peer.close()


def test_a_peer_without_environment_names_the_target() -> None:
    with pytest.raises(ConfigError, match=r"peer 'none' has no environment in .*; build it: make peer-none"):
        Peer("none", SCRIPTS / "hf_sample.py", {})


def test_an_unknown_peer_is_named_without_a_traceback() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "engine.py"), "--peer", "tunix,vllm"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        1,
        "error: peer vllm is not known; expected some of tunix, hf, sglang\n",
    )


def test_ratios_are_medians_of_rounds() -> None:
    ours = [Round(1.0, 2.0, 100), Round(2.0, 2.0, 100), Round(1.0, 4.0, 100)]
    theirs = [Round(3.0, 4.0, 100), Round(4.0, 2.0, 100), Round(5.0, 2.0, 100)]
    assert ratio(ours, theirs) == 3.0
    assert cpu_ratio(ours, theirs) == 1.0
    assert tokens_per_s(ours) == 100.0


def test_environments_are_read() -> None:
    assert environments("tunix,torch=/some/where") == {"tunix": None, "torch": Path("/some/where")}


def test_both_sides_get_the_same_work() -> None:
    job = {"shape": {"vocab_size": 9}, "prompts": 2, "prompt": 3, "new": 8, "rollouts": 50}
    assert prompts(job, 1) == prompts(job, 1) == [[4, 4, 6], [8, 0, 1]]
    full = rollouts({**job, "lengths": "full"}, 1)
    assert {(len(r["tokens"]), r["prompt"]) for r in full} == {(11, 3)}
    uneven = rollouts({**job, "lengths": "uneven"}, 1)
    assert {r["prompt"] for r in uneven} == {1, 2, 3}
    lengths = [len(r["tokens"]) - r["prompt"] for r in uneven]
    assert min(lengths) == 4 and max(lengths) == 8
    assert all(len(r["logprobs"]) == length for r, length in zip(uneven, lengths, strict=True))


def test_a_block_is_replaced_and_the_rest_stays(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("a\n<!-- x:begin -->\nold\n<!-- x:end -->\nb\n")
    write_block(page, "x", "new")
    assert page.read_text() == "a\n<!-- x:begin -->\nnew\n<!-- x:end -->\nb\n"
