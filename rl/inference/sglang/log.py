"""What a server's log file says: where it stands, and why it ended."""

import re
import signal
from pathlib import Path

_NOISE = re.compile(r"^\s*(\x1b\[[0-9;]*m)?$|^--- start \d+ |Ignore import error|UserWarning|^\s*warnings\.warn\(")
_STAMP = re.compile(r"^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d( [A-Z0-9 ]+)?\] (WARNING |INFO:? +|ERROR )?|\x1b\[[0-9;]*m")
_SHOWN, _SEARCHED, _WIDTH = 15, 80, 300

CAUSES = (
    (r"address already in use|Errno 98", "its port is taken: name another one, or port 0 for any free one"),
    (
        r"OutOfMemory|out of memory|Not enough memory|Cannot allocate memory|MemoryError",
        "it ran out of memory: lower memory_fraction, or the number of tokens and of running requests "
        "(max-total-tokens, max-running-requests)",
    ),
    (
        r"Unsupported architectures|model type `\w+` but Transformers does not|architectures .* are not supported",
        "this SGLang has no such model",
    ),
    (
        r"does not appear to have a file named config\.json|Unrecognized model in|Repo id must|LocalEntryNotFoundError"
        r"|OfflineModeIsEnabled|Can't load the configuration",
        "the model's folder is none that it can load; expected a Hugging Face directory, as rl export writes",
    ),
    (
        r"Cannot find any model weights|safetensors_rust\.SafetensorError|HeaderTooLarge|MetadataIncompleteBuffer"
        r"|InvalidHeader",
        "the weights are missing or cut off",
    ),
    (r"unrecognized arguments|invalid choice|error: argument", "it does not know one of its arguments"),
    (r"No module named", "its environment lacks a package: make sglang builds it anew when .venv-sglang is removed"),
)
"""What in a log tells the cause, and what to do about it; the first that is found counts."""


def read(path: Path, start: int) -> str:
    """The log from byte `start` on."""
    with path.open("rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace")


def last_line(text: str) -> str:
    """The last line that says something, without time and colour."""
    for line in reversed(text.splitlines()):
        if not _NOISE.search(line):
            return _STAMP.sub("", line).strip()[:_WIDTH]
    return ""


def explanation(code: int, text: str) -> str:
    """Why a server ended: its code, the cause if the log shows one, and the last lines.

    Args:
        code: the exit code, 128 + n for signal n.
        text: its log since it started.
    """
    ended = f"ended with code {code}"
    if code > 128:
        name = signal.Signals(code - 128).name if code - 128 in set(signal.Signals) else f"signal {code - 128}"
        ended = f"was ended by {name}"
    said = [line for line in text.splitlines() if not _NOISE.search(line)]
    end = "\n".join(said[-_SEARCHED:])
    cause = next((hint for pattern, hint in CAUSES if re.search(pattern, end)), None)
    if cause is None and code == 128 + signal.SIGKILL:
        cause = "that is what the system does to a program when memory runs out; or somebody did it"
    lines = "".join(f"\n  {line[:_WIDTH]}" for line in said[-_SHOWN:])
    return ended + (f": {cause}" if cause else "") + (f"; its last lines:{lines}" if lines else "; it said nothing")
