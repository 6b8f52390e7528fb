"""A page read by Python's parser: whether it is well-formed, what it would load, and the words that a reader sees."""

from html.parser import HTMLParser
from pathlib import Path

VOID = ("meta", "img", "br", "link", "input")
"""Elements that have no end."""


class Page(HTMLParser):
    """`loads`: every address; `words`: all text but styles and scripts; `ids` and what refers to one; `open`: tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.words = ""
        self.ids: list[str] = []
        self.refers: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert len(found) == len(attrs), (tag, attrs)
        self.loads += [str(found[name]) for name in ("src", "href", "srcset", "data", "action") if name in found]
        self.ids += [str(found["id"])] if "id" in found else []
        self.refers += [str(found[name]) for name in ("data-for", "data-of") if name in found]
        if tag == "img":
            self.images.append(found)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass  # of drawings

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words += data


def read_page(path: Path) -> Page:
    """The page at `path`; AssertionError where a tag is closed that is not the one left open."""
    return Page(path.read_text(encoding="utf-8"))
