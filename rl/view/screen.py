"""The browser: a list and one rollout, moved through with the keyboard. Knows POSIX terminals and nothing else."""

import os
import re
import select as system_select
import shutil
import sys
import termios
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, RenderableType

from envs.errors import ConfigError
from rl.view.page import rollout, table
from rl.view.rows import Row, select

KEYS = {
    "\x1b[A": "up",
    "\x1bOA": "up",
    "k": "up",
    "\x1b[B": "down",
    "\x1bOB": "down",
    "j": "down",
    "\x1b[5~": "page up",
    "b": "page up",
    "\x1b[6~": "page down",
    " ": "page down",
    "\x1b[H": "first",
    "g": "first",
    "\x1b[F": "last",
    "G": "last",
    "\r": "open",
    "\n": "open",
    "\x1b[C": "open",
    "q": "back",
    "\x1b": "back",
    "\x1b[D": "back",
    "/": "search",
    "f": "filter",
    "t": "tokens",
    "n": "next",
    "p": "previous",
}
LIST_HELP = "↑↓ move  Enter open  / search  f filter  q quit"
PAGE_HELP = "↑↓ scroll  n p next, previous  t tokens  q back"


class Browser:
    """What is looked at. Keys change it, `lines` draws it.

    Args:
        rows: all rollouts.
        search: a text they shall hold.
        conditions: that they shall meet.
    """

    def __init__(self, rows: Sequence[Row], search: str = "", conditions: Sequence[str] = ()) -> None:
        self.all, self.search, self.condition = rows, search, " ".join(conditions)
        self.rows = select(rows, search, conditions)
        self.chosen, self.open, self.tokens, self.offset = 0, False, False, 0
        self.problem = ""
        self._height = 20

    def press(self, key: str) -> bool:
        """Does what a key says; False ends."""
        if key == "back":
            if not self.open:
                return False
            self.open = False
        elif key == "open" and self.rows and not self.open:
            self.open, self.offset = True, 0
        elif key == "tokens":
            self.tokens = not self.tokens
        elif key in ("next", "previous") and self.open:
            self._choose(self.chosen + (1 if key == "next" else -1))
            self.offset = 0
        else:
            steps = {"up": -1, "down": 1, "page up": -self._height, "page down": self._height}
            ends = {"first": -(10**9), "last": 10**9}
            step = {**steps, **ends}.get(key, 0)
            if self.open:
                self.offset = max(0, self.offset + step)
            else:
                self._choose(self.chosen + step)
        return True

    def look_for(self, search: str | None = None, condition: str | None = None) -> None:
        """Searches or filters; a condition that cannot be read is said at the bottom, and changes nothing."""
        search = self.search if search is None else search
        condition = self.condition if condition is None else condition
        try:
            self.rows = select(self.all, search, condition.split())
        except ConfigError as error:
            self.problem = str(error)
            return
        self.search, self.condition, self.problem = search, condition, ""
        self.chosen, self.offset = 0, 0

    def lines(self, width: int, height: int) -> list[str]:
        """The screen, `height` lines with colours."""
        self._height = max(1, height - 3)
        if self.open:
            body = _drawn(rollout(self.rows[self.chosen], tokens=self.tokens), width)
            self.offset = min(self.offset, max(0, len(body) - height + 2))
            shown, told = body[self.offset : self.offset + height - 1], PAGE_HELP
            told += f"   {self.chosen + 1} of {len(self.rows)}"
        else:
            first = max(0, min(self.chosen - self._height // 2, len(self.rows) - self._height))
            shown = _drawn(table(self.rows[first : first + self._height], self.chosen - first), width)[: height - 1]
            told = f"{LIST_HELP}   {len(self.rows)} of {len(self.all)}"
            told += f"   /{self.search}" if self.search else ""
            told += f"   f {self.condition}" if self.condition else ""
        told = self.problem or told
        return [*shown, *[""] * (height - 1 - len(shown)), f"\x1b[7m{told[:width]:<{width}}\x1b[0m"]

    def _choose(self, place: int) -> None:
        self.chosen = max(0, min(place, len(self.rows) - 1))


def browse(browser: Browser) -> None:
    """Shows the browser on the terminal until it is left."""
    with _raw_terminal() as keyboard:
        going = True
        while going:
            width, height = shutil.get_terminal_size()
            _draw(browser.lines(width, height))
            key = KEYS.get(_key(keyboard) or "", "")
            if key in ("search", "filter"):
                before = browser.search if key == "search" else browser.condition
                words = _ask(keyboard, "/" if key == "search" else "filter ", before)
                if words is not None:
                    browser.look_for(**{"search" if key == "search" else "condition": words})
            elif key:
                browser.problem = ""
                going = browser.press(key)


def _ask(keyboard: int, prompt: str, text: str) -> str | None:
    """A line of text at the bottom of the screen; None if Escape was pressed."""
    while True:
        height = shutil.get_terminal_size().lines
        sys.stdout.write(f"\x1b[{height};1H\x1b[K{prompt}{text}\x1b[?25h")
        sys.stdout.flush()
        key = _key(keyboard)
        if key in ("\r", "\n", "\x1b"):
            sys.stdout.write("\x1b[?25l")
            return None if key == "\x1b" else text
        if key in ("\x7f", "\b"):
            text = text[:-1]
        elif key is not None and key.isprintable():
            text += key


def _key(keyboard: int) -> str | None:
    """The next key, with the whole of an escape sequence; None after half a second (the window may have changed)."""
    if not system_select.select([keyboard], [], [], 0.5)[0]:
        return None
    key = os.read(keyboard, 1)
    if not key:
        return "q"  # the terminal is gone
    if key == b"\x1b":
        while system_select.select([keyboard], [], [], 0.02)[0] and not _ESCAPE.fullmatch(key):
            key += os.read(keyboard, 1)
    elif key[0] >= 0xC0:  # the rest of a character: one to three bytes, told by the first
        key += os.read(keyboard, 1 + (key[0] >= 0xE0) + (key[0] >= 0xF0))
    return key.decode("utf-8", "replace")


_ESCAPE = re.compile(rb"\x1b(O.|\[[0-9;]*[A-Za-z~]|[^O\[].*)")


def _draw(lines: Sequence[str]) -> None:
    sys.stdout.write("\x1b[H" + "\r\n".join(f"{line}\x1b[K" for line in lines))
    sys.stdout.flush()


def _drawn(renderable: RenderableType, width: int) -> list[str]:
    console = Console(width=width, force_terminal=True, color_system="standard", legacy_windows=False)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get().rstrip("\n").split("\n")


@contextmanager
def _raw_terminal() -> Iterator[int]:
    """Keys come one by one, and on leaving, however that happens, the terminal is as it was."""
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    try:
        tty.setcbreak(keyboard)
        sys.stdout.write("\x1b[?1049h\x1b[?25l\x1b[2J")
        yield keyboard
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)
        sys.stdout.write("\x1b[?25h\x1b[?1049l")
        sys.stdout.flush()
