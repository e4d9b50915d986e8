"""Documents as trees of elements: the one place where text becomes part of a page.

Guarantees: a text or an attribute's value can never become markup, because nobody writes markup: they build a tree, which one
serializer writes. And every one of them comes through `printable`, so what a terminal would act on, a browser does not get
either. Names of elements and attributes are ours. This module alone knows xml.etree.
"""

from xml.etree import ElementTree as ET  # it only writes here, so what it does to hostile input does not matter

from shmpool.text import printable

Element = ET.Element
Child = Element | str | bytes | None


def element(tag: str, *children: Child, **attributes: str | float | None) -> Element:
    """An element. Children and attributes that are None are left out; `aria_label` is written aria-label and `class_` class."""
    made = Element(tag)
    for name, value in attributes.items():
        if value is not None:
            made.set(name.rstrip("_").replace("_", "-"), printable(f"{value:g}" if isinstance(value, float) else str(value)))
    last: Element | None = None
    for child in children:
        if isinstance(child, Element):
            made.append(child)
            last = child
        elif child is not None:
            text = printable(child)
            if last is None:
                made.text = (made.text or "") + text
            else:
                last.tail = (last.tail or "") + text
    return made


def style_sheet(rules: str) -> Element:
    """A style element with our own rules, which are not text: they are written as they are."""
    made = Element("style")
    made.text = rules
    return made


def to_html(root: Element) -> str:
    """The document."""
    return f"<!DOCTYPE html>\n{ET.tostring(root, encoding='unicode', method='html')}\n"
