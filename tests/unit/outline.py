"""A page taken apart as a browser would do it."""

from __future__ import annotations

from html.parser import HTMLParser


class Outline(HTMLParser):
    """Its tags with their attributes, its texts, and what each cell of each section says."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, tuple[tuple[str, str | None], ...]]] = []
        self.texts: list[str] = []
        self.rows: dict[str, list[list[str]]] = {}
        self.style = ""
        self._section = ""
        self._is_cell = False
        self._is_fresh = True
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(attrs)))
        self._is_fresh = True
        if tag == "section":
            self._section = dict(attrs)["id"] or ""
            self.rows[self._section] = []
        elif tag == "tr":
            self.rows[self._section].append([])
        elif tag in ("td", "th"):
            self.rows[self._section][-1].append("")
            self._is_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._is_fresh = True
        self._is_cell &= tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "style" and not self.style:
            self.style = data
            return
        if self._is_fresh:
            self.texts.append("")
        self._is_fresh = False
        self.texts[-1] += data
        if self._is_cell:
            self.rows[self._section][-1][-1] += data

    def values_of(self, attribute: str) -> list[str]:
        return [value or "" for _, attributes in self.tags for name, value in attributes if name == attribute]
