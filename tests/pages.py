"""Pages read back: what a browser would make of them, without one."""

from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

_VOID = {"meta", "link", "img", "br", "hr"}


class Tag(NamedTuple):
    """One start tag."""

    name: str
    attributes: dict[str, str | None]


class Parsed(HTMLParser):
    """Tags, texts and tables of a page; tags must be closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[Tag] = []
        self.tables: list[list[list[str]]] = []
        self.texts: list[str] = []
        self.headings: list[str] = []
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(Tag(tag, dict(attributes)))
        if tag not in _VOID:
            self._open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "h2":
            self.headings.append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, text):
        self.texts.append(text)
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += text
        if "h2" in self._open:
            self.headings[-1] += text

    def all(self, name: str) -> list[dict[str, str | None]]:
        """Attributes of all tags of a name."""
        return [tag.attributes for tag in self.tags if tag.name == name]

    @property
    def text(self) -> str:
        """All text."""
        return " ".join(self.texts)


def check(path: Path) -> Parsed:
    """Read a page, and check what holds for every page."""
    page = Parsed(path)
    for tag in page.tags:
        for name in ("src", "href", "action", "srcset", "data", "poster"):
            target = tag.attributes.get(name)
            assert target is None or target.startswith(("#", "data:")), tag
        assert not [name for name in tag.attributes if name.startswith("on")], tag
    assert len(page.all("script")) == 1
    assert "url(" not in path.read_text(encoding="utf-8").partition("<body>")[0]
    assert "@import" not in path.read_text(encoding="utf-8").partition("<body>")[0]
    assert all((image["alt"] or "").strip() for image in page.all("img"))
    policy = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert len(policy) == 1
    assert policy[0].startswith("default-src 'none'")
    anchors = {tag.attributes.get("id") for tag in page.tags}
    assert {link["href"][1:] for link in page.all("a")} <= anchors
    for rows in page.tables:
        assert len({len(row) for row in rows}) == 1
    return page
