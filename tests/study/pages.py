"""A reader of HTML pages."""

import html.parser


class Page(html.parser.HTMLParser):
    """The resources that a page loads, counts of its elements, and the elements that are open at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.open: list[str] = []
        self.cells = 0
        self.tags = {"script": 0, "b": 0, "img": 0, "i": 0}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name == "src" or (name == "href" and tag != "a")]
        self.cells += tag == "td"
        if tag in self.tags:
            self.tags[tag] += 1
        if tag not in ("meta", "input", "link", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}>"
