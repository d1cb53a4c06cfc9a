"""What a corpus is made of: pages with sections, and folders of documents read as such."""

import re
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

from envs import ConfigError


class Section(NamedTuple):
    title: str
    text: str


class Page(NamedTuple):
    """One page. Titles are unique in a corpus, section titles on their page."""

    title: str
    sections: tuple[Section, ...]


def page_of(title: str, sections: Iterable[Section], most_chars: int) -> Page:
    """A page whose sections have at most `most_chars` characters: longer ones go on in a section of their own, and of
    two with one title the second is numbered."""
    parts: dict[str, str] = {}
    for section in sections:
        for text in _cut(section.text.strip(), most_chars):
            name, number = section.title, 2
            while name in parts:
                name, number = f"{section.title} ({number})", number + 1
            parts[name] = text
    return Page(title, tuple(Section(*part) for part in parts.items()))


def _cut(text: str, most: int) -> Iterator[str]:
    """`text` in pieces, cut at the end of a line, or else of a word, in the second half of what fits."""
    while len(text) > most:
        end = next((at for at in (text.rfind(c, most // 2, most) for c in "\n ") if at > 0), most)
        yield text[:end].rstrip()
        text = text[end:].lstrip("\n")
    if text:
        yield text


def pages_in(folder: Path, most_chars: int) -> list[Page]:
    """A page for each text, Markdown, HTML or RST file below `folder`, called by its path, a section per heading.

    Raises:
        ConfigError: no such folder, or no such file in it.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"corpus={str(folder)!r} is no folder; expected 'python', or a folder of {', '.join(_READERS)}"
        )
    pages = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in _READERS and p.is_file()):
        sections = _READERS[path.suffix.lower()](path.read_text("utf-8", errors="replace"))
        page = page_of(path.relative_to(folder).as_posix(), (s for s in sections if s.text.strip()), most_chars)
        if page.sections:
            pages.append(page)
    if not pages:
        raise ConfigError(f"corpus={str(folder)!r} holds no text; expected files named {', '.join(_READERS)}")
    return pages


def _text(text: str) -> list[Section]:
    return [Section("Text", text)]


def _markdown(text: str) -> list[Section]:
    """Headings begin with # (ATX); those inside fenced code are code."""
    sections, title, lines, fenced = list[Section](), "Introduction", list[str](), False
    for line in text.splitlines():
        fenced ^= line.lstrip().startswith(("```", "~~~"))
        heading = None if fenced else re.match(r"#{1,6}\s+(.*?)\s*#*$", line)
        if heading:
            sections.append(Section(title, "\n".join(lines)))
            title, lines = heading[1], []
        else:
            lines.append(line)
    return [*sections, Section(title, "\n".join(lines))]


_RST_LINE = re.compile(r"([!-/:-@\[-`{-~])\1{2,}")


def rst_sections(text: str, first: str = "Introduction") -> list[Section]:
    """A heading is a line at the margin with a line of punctuation below it, at least as long."""
    sections, title, lines = [], first, list[str]()
    for line in text.splitlines():
        above = lines[-1].strip() if lines else ""
        if above and lines[-1][0] != " " and _RST_LINE.fullmatch(line.rstrip()) and len(line.rstrip()) >= len(above):
            lines.pop()
            while lines and _RST_LINE.fullmatch(lines[-1].strip()):
                lines.pop()  # the line above the heading
            sections.append(Section(title, "\n".join(lines)))
            title, lines = above, []
        else:
            lines.append(line)
    return [*sections, Section(title, "\n".join(lines))]


def _html(text: str) -> list[Section]:
    reader = _HTMLReader()
    reader.feed(text)
    reader.close()
    return [Section(" ".join(title.split()), re.sub(r"\n\s*\n+", "\n\n", body)) for title, body in reader.sections]


class _HTMLReader(HTMLParser):
    """The text of a document between its headings, without scripts and styles."""

    _HEADINGS = frozenset(f"h{n}" for n in range(1, 7))
    _BLOCKS = frozenset(("p", "div", "li", "tr", "br", "dt", "dd", "pre", "table", "ul", "ol", "section"))
    _UNSEEN = frozenset(("script", "style", "head"))

    def __init__(self) -> None:
        super().__init__()
        self.sections: list[list[str]] = [["Introduction", ""]]
        self._heading = False
        self._unseen = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in self._HEADINGS:
            self.sections.append(["", ""])
            self._heading = True
        self._unseen += tag in self._UNSEEN
        if tag in self._BLOCKS:
            self.sections[-1][1] += "\n"

    def handle_endtag(self, tag: str) -> None:
        self._heading &= tag not in self._HEADINGS
        self._unseen = max(0, self._unseen - (tag in self._UNSEEN))

    def handle_data(self, data: str) -> None:
        if not self._unseen:
            self.sections[-1][0 if self._heading else 1] += data


_READERS = {".txt": _text, ".md": _markdown, ".rst": rst_sections, ".html": _html, ".htm": _html}
