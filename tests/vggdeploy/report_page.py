"""A report's page, taken apart by the standard library's parser, for tests."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "hr", "img", "input"}
FOREIGN = {"svg", "title", "desc", "line", "text", "rect", "circle", "path", "g"}


@dataclass
class Element:
    """An element with what is in it."""

    tag: str
    attributes: dict[str, str]
    parent: Element | None = None
    children: list[Element | str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(c if isinstance(c, str) else c.text for c in self.children)

    def all(self, *tags: str) -> list[Element]:
        """Every element of these tags below, in the page's order."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                if not tags or child.tag in tags:
                    found.append(child)
                found += child.all(*tags)
        return found

    def within(self, tag: str) -> bool:
        """Whether an element of this tag holds it."""
        return self.parent is not None and (self.parent.tag == tag or self.parent.within(tag))


class _Parser(HTMLParser):
    """Builds the tree, and fails where a tag is not closed by its own end."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]], own: bool = False):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} has an attribute twice"
        assert all(value is not None for _, value in attrs), f"{tag} has an attribute with no value"
        element = Element(tag, {n: v or "" for n, v in attrs}, self.open[-1])
        self.open[-1].children.append(element)
        if tag not in VOID and not own:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]):
        assert tag in FOREIGN, f"{tag} cannot close itself in HTML"
        self.handle_starttag(tag, attrs, own=True)

    def handle_endtag(self, tag: str):
        assert self.open[-1].tag == tag, f"</{tag}> closes {self.open[-1].tag}"
        self.open.pop()

    def handle_data(self, data: str):
        self.open[-1].children.append(data)


def parse(page: str) -> Element:
    """The page as a tree.

    Raises:
        AssertionError: when it is not well-formed.
    """
    parser = _Parser()
    parser.feed(page)
    parser.close()
    assert parser.open == [parser.root], f"{parser.open[-1].tag} is never closed"
    return parser.root
