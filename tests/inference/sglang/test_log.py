"""What is read out of a server's log."""

import pytest

from rl.inference.sglang.log import explanation, last_line

NOISE = """\
--- start 1 of server 0, 2026-11-24T17:51:19+00:00: python -m sglang.launch_server
[2026-11-24 17:51:37] Ignore import error when loading sglang.srt.models.inkling: No module named 'cutlass'
[2026-11-24 17:51:37] Load weight begin. avail mem=20.46 GB
/site-packages/awq.py:53: UserWarning: Only CUDA, HIP and XPU support AWQ currently.
  warnings.warn(f"Only CUDA, HIP and XPU support AWQ currently.")
\x1b[0m
"""


def test_the_last_line_that_says_something() -> None:
    assert last_line(NOISE) == "Load weight begin. avail mem=20.46 GB"
    assert last_line("[2026-11-24 17:51:37 TP0] WARNING it is slow\n\n") == "it is slow"
    assert last_line("") == ""


def test_noise_explains_nothing() -> None:
    assert explanation(1, NOISE) == (
        "ended with code 1; its last lines:\n  [2026-11-24 17:51:37] Load weight begin. avail mem=20.46 GB"
    )
    assert explanation(3, "") == "ended with code 3; it said nothing"


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "it ran out of memory: lower memory_f"),
        ("RuntimeError: Not enough memory. Please try to increase", "it ran out of memory: lower memory_fraction"),
        ("[Errno 98] error while attempting to bind: address already in use", "its port is taken: name another one"),
        ("ValueError: Model architectures ['Foo'] are not supported for now.", "this SGLang has no such model"),
        (
            "OSError: /m does not appear to have a file named config.json.",
            "the model's folder is none that it can load",
        ),
        ("safetensors_rust.SafetensorError: Error while deserializing header", "the weights are missing or cut off"),
        ("launch_server.py: error: unrecognized arguments: --foo", "it does not know one of its arguments"),
        ("ModuleNotFoundError: No module named 'sglang'", "its environment lacks a package: make sglang"),
    ],
)
def test_causes_are_recognised(line: str, cause: str) -> None:
    said = explanation(1, f"{NOISE}Traceback (most recent call last):\n{line}\n")
    assert said.startswith(f"ended with code 1: {cause}")
    assert said.endswith(f"\n  {line}")


def test_a_kill_from_outside() -> None:
    assert explanation(137, NOISE).startswith(
        "was ended by SIGKILL: that is what the system does to a program when memory runs out; or somebody did it"
    )
    assert explanation(131, NOISE).startswith("was ended by SIGQUIT; its last lines:")
