"""Reads a page as a browser does, as far as tests ask: which elements it has, which are left open, what it loads."""

from html.parser import HTMLParser

VOID = {"meta", "link", "img", "input", "br", "hr"}
LOADS = {"src", "href", "srcset", "poster", "data", "action", "background"}


class Page(HTMLParser):
    """A page, parsed. `problems` is empty where every element is closed in its order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: list[tuple[str, str]] = []  # (element that holds it, text)
        self.problems: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        self.problems += [f"<{tag}> is not closed" for tag in self.open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.problems.append(f"</{tag}> closes {self.open[-1:]}")
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.append((self.open[-1] if self.open else "", data.strip()))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def loads(self) -> set[str]:
        """What a browser would fetch from anywhere but the page itself."""
        named = {value for _, attributes in self.elements for key, value in attributes.items() if key in LOADS}
        return {value for value in named if not value.startswith(("data:", "#"))}
