"""What a report page says, shows and links to."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """The text of each section of a page, and the pictures in it by what they are called."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.open, self.section, self.text, self.figures, self.strips, self.links = [], "top", {}, {}, [], []
        self.feed(text)
        assert self.open == [], "a tag was not closed"

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = attributes["id"]
        if attributes.get("class") == "strip":
            self.strips.append((self.section, []))
        if tag == "figure":
            self.strips[-1][1].append((attributes["title"], attributes["class"]))
        if tag == "a" and not attributes["href"].startswith("#"):
            self.links.append(attributes["href"])
        if tag == "img":
            assert attributes["src"].startswith("data:image/"), "the page must hold all it shows"
            self.figures.setdefault(self.section, []).append(attributes.get("title") or attributes["alt"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text[self.section] = " ".join(f"{self.text.get(self.section, '')} {data}".split())

    def strips_of(self, section):
        return [figures for name, figures in self.strips if name == section]
