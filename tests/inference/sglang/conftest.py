import sys
from pathlib import Path

import pytest
from server_processes import Make

from rl.inference.sglang.command import Command
from rl.inference.sglang.ports import take_ports
from rl.inference.sglang.server import Launched, Patience

PROGRAM = Path(__file__).with_name("program.py")
QUICK = Patience(ready=120.0, answer=20.0, every=0.1, grace=1.0)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Servers that run `program.py`."""

    def launched(name: str = "server 0", *flags: str, patience: Patience = QUICK, port: int | None = None) -> Launched:
        port = port or take_ports(1, 0, "127.0.0.1")[0]
        command = Command((sys.executable, str(PROGRAM), str(port), *flags), {})
        return Launched(name, f"http://127.0.0.1:{port}", command, tmp_path / "logs" / f"{name}.log", patience)

    return launched
