"""The process that compares mathematical answers: reads a JSON line, writes a JSON line. Run as a script.

`{"gold": text, "answer": text, "seconds": s}` -> `{"equal": bool}`, `{"late": true}`, `{"no_gold": true}`.
The time is CPU time of this process, so that a busy machine does not make answers wrong.
"""

import json
import logging
import resource
import signal
import sys
from typing import Any

MEMORY = 2 * 2**30
"""Bytes of address space: a tower of powers takes an error from here, and not the machine's memory."""


class _LateError(BaseException):
    """Not an Exception: nothing in between shall catch it."""


def compare(gold: str, answer: str) -> dict[str, bool]:
    from math_verify import parse, verify

    expected = parse(_marked(gold), parsing_timeout=None)
    if not expected:
        return {"no_gold": True}
    found = parse(answer, parsing_timeout=None)
    return {"equal": bool(found) and verify(expected, found, timeout_seconds=None)}


def _marked(gold: str) -> str:
    """LaTeX is only looked for between dollars or in a box."""
    return gold if "$" in gold or "\\boxed" in gold else f"${gold}$"


def _ring(*_: Any) -> None:
    raise _LateError


def main() -> None:
    logging.disable(logging.CRITICAL)  # math-verify tells every answer it cannot read
    signal.signal(signal.SIGVTALRM, _ring)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    compare("x^2-1", r"\boxed{(x-1)(x+1)}")  # what it imports on first use shall not count as an answer's time
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    print("{}", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            signal.setitimer(signal.ITIMER_VIRTUAL, job["seconds"])
            result = compare(job["gold"], job["answer"])
        except (_LateError, MemoryError, RecursionError):
            result = {"late": True}
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
