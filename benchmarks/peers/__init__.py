"""Other libraries, each in a process and a Python environment of its own, measured beside Upswing in one run.

Rounds alternate (A B A B …), so that a machine that gets slower or busier does so for all; a ratio is the median of the
rounds' ratios. Peers that wait hold their memory and use no CPU.
"""

import json
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from envs.errors import ConfigError, InfrastructureError

SCRIPTS = Path(__file__).parent
ROOT = SCRIPTS.parents[1]


class Round(NamedTuple):
    """What one round took, and the tokens it was for."""

    wall_s: float
    cpu_s: float
    tokens: int


class Peer:
    """A script that runs in another environment and waits for rounds; see `protocol.py`.

    Args:
        name: of the environment: `make peer-NAME` builds `.venv-peer-NAME`, and `make sglang` `.venv-sglang`.
        script: the file; this folder has one per peer and question.
        job: what the script is told.
        environment: the environment's folder, where it is another.

    Raises:
        ConfigError: when the environment is not there.
        InfrastructureError: when the script ends, with the end of what it said.
    """

    def __init__(self, name: str, script: Path, job: Mapping[str, Any], environment: Path | None = None) -> None:
        target = "sglang" if name == "sglang" else f"peer-{name}"  # its server is no mere peer: training uses it, too
        folder = environment or ROOT / f".venv-{target}"
        python = folder / "bin" / "python"
        if not python.exists():
            raise ConfigError(f"peer '{name}' has no environment in {folder}; build it: make {target}")
        self.name = name
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed by `close`
        self._process = subprocess.Popen(
            [python, script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        ready = self._ask(job)
        self.ready_s: float = ready["ready_s"]
        self.versions: dict[str, str] = ready["versions"]

    def play(self, number: int) -> Round:
        """One round."""
        return Round(**self._ask({"round": number}))

    def close(self) -> None:
        assert self._process.stdin is not None
        with self._process:  # closes the pipes and waits
            self._process.stdin.close()
        self._log.close()

    def _ask(self, message: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(message), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            said = self._log.read().decode(errors="replace")[-3000:]
            raise InfrastructureError(f"peer '{self.name}' ended with code {self._process.wait()}; it said:\n{said}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def environments(text: str) -> dict[str, Path | None]:
    """Reads `--peer NAME,NAME=FOLDER`: which peers, and where their environments are if not in the usual place."""
    named = (part.partition("=") for part in text.split(",") if part)
    return {name: Path(folder) if folder else None for name, _, folder in named}


def interleave(contestants: Mapping[str, Callable[[int], Round]], rounds: int) -> dict[str, list[Round]]:
    """All contestants, one after the other, `rounds` times."""
    played: dict[str, list[Round]] = {name: [] for name in contestants}
    for number in range(1, rounds + 1):
        for name, play in contestants.items():
            played[name].append(play(number))
    return played


def tokens_per_s(rounds: list[Round]) -> float:
    return statistics.median(r.tokens / r.wall_s for r in rounds)


def tokens_per_cpu_s(rounds: list[Round]) -> float:
    return statistics.median(r.tokens / r.cpu_s for r in rounds)


def ratio(ours: list[Round], theirs: list[Round]) -> float:
    """How many times as fast ours were, by the clock: the median over the rounds."""
    return statistics.median((a.tokens / a.wall_s) / (b.tokens / b.wall_s) for a, b in zip(ours, theirs, strict=True))


def cpu_ratio(ours: list[Round], theirs: list[Round]) -> float:
    """The same in CPU seconds, which other programs on the machine disturb less."""
    return statistics.median((a.tokens / a.cpu_s) / (b.tokens / b.cpu_s) for a, b in zip(ours, theirs, strict=True))
