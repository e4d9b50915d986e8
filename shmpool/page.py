"""A report as one page for a browser: it needs no network, no script and no other file, and allows none.

Every text is put there by `markup.element`. The page's policy lets a browser apply one style sheet, ours by its hash, and nothing
else: were there markup that is not ours, it could still run nothing and ask nobody.
"""

import base64
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.resources import files
from typing import Final, TypeVar

from shmpool.arena import Chunk
from shmpool.facts import (
    PROCESS_COLUMNS,
    STRIPE_COLUMNS,
    TOPIC_COLUMNS,
    Column,
    facts,
    gauges,
    hints,
    probe_classes,
    top_held,
    worth_showing,
)
from shmpool.inspection import TopicCount
from shmpool.layout import Geometry
from shmpool.markup import Child, Element, element, style_sheet, to_html
from shmpool.pictures import arena_map, bar, swatch
from shmpool.report import Report
from shmpool.text import show_size

T = TypeVar("T")
_UNREAD: Final = "This could not be read; see the problems above."
_LONG: Final = 120  # characters of a topic or command line; what is longer is shown when asked for
_HEATS: Final = 10
_RULES: Final = files("shmpool").joinpath("page.css").read_text(encoding="utf-8")
_HASH: Final = base64.b64encode(hashlib.sha256(_RULES.encode()).digest()).decode()
_POLICY: Final = f"default-src 'none'; style-src 'sha256-{_HASH}'; img-src data:; base-uri 'none'; form-action 'none'"


def draw_page(report: Report) -> str:
    """The page, whatever could be read of the pool."""
    name = report.header.name
    sections = list(_sections(report))
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="referrer", content="no-referrer"),
        element("link", rel="icon", href="data:,"),  # else a browser would ask a server for one
        element("title", f"pool {name}: {report.state}"),
        style_sheet(_RULES),
    )
    links = [element("li", element("a", section[0].text, href=f"#{section.get('id')}")) for section in sections]
    body = element(
        "body",
        element("header", element("h1", f"pool {name} ", _chip(report.state)), _notes(report)),
        element("nav", element("ul", *links), aria_label="Sections"),
        element("main", *sections),
        element("footer", element("p", f"By shmpool inspect, on {os.uname().nodename}, {_now()}. The pool as it was then.")),
    )
    return to_html(element("html", head, body, lang="en"))


def _sections(report: Report) -> Iterator[Element]:
    yield _section("Header", element("dl", *_facts(report)))
    yield _section("Fill", *_fill(report))
    yield _section("Arena", *_arena(report))
    yield _section("Probe lengths", *_probes(report))
    yield _section("Stripes", *_stripes(report))
    yield _section("Processes", *_processes(report))
    yield _section("Top topics", *_topics(report, report.top))
    if top_held(report):
        yield _section("Top topics by holds", *_topics(report, top_held(report)))
    if report.topics is not None:
        yield _section("Topics", *_topics(report, report.topics))


def _section(title: str, *parts: Child) -> Element:
    name = title.lower().replace(" ", "-")
    return element("section", element("h2", title, id=f"{name}-title"), *parts, id=name, aria_labelledby=f"{name}-title")


def _notes(report: Report) -> Element | None:
    problems = [element("li", problem) for problem in report.problems]
    advice = [element("li", hint) for hint in hints(report)]
    if not problems and not advice:
        return None
    return element(
        "div",
        element("ul", *problems, class_="problems", aria_label="Problems") if problems else None,
        element("ul", *advice, class_="hints", aria_label="Hints") if advice else None,
    )


# ---- sections


def _facts(report: Report) -> Iterator[Element]:
    for name, text in facts(report):
        yield element("dt", name)
        yield element("dd", text)


def _fill(report: Report) -> Iterator[Element]:
    rows: list[tuple[Child, ...]] = []
    for title, text, share in gauges(report):
        shown = ("", "") if share is None else (f"{share:.1%}", bar(share, is_part_of_limit=True))
        rows.append((title, text, *shown))
    yield _table("Fill", ("what", "used", ">%", "share"), rows, class_="scroll bars") if rows else _note(_UNREAD)


def _arena(report: Report) -> Iterator[Element]:
    constants = report.header.constants
    if not report.fill or not constants:
        yield _note(_UNREAD)
        return
    geometry, chunks = constants.geometry, report.chunks
    yield _note(f"{len(chunks):,} of {geometry.chunk_count:,} chunks of {show_size(geometry.chunk_size)} are taken.")
    if not chunks:
        return
    caption = "Chunks in order. The colour is the stripe that owns the chunk, the filled height how much of it is used."
    drawn = arena_map(chunks, geometry.chunk_size, geometry.stripe_count)
    owned = _table("Chunks of each stripe", (">stripe", ">chunks", ">used", ">full"), _owned(chunks, geometry))
    yield element("div", element("figure", drawn, element("figcaption", caption)), owned, class_="beside")


def _owned(chunks: list[Chunk], geometry: Geometry) -> Iterator[tuple[Child, ...]]:
    for owner in sorted({chunk.owner for chunk in chunks}):
        used = [chunk.used for chunk in chunks if chunk.owner == owner]
        share = sum(used) / (len(used) * geometry.chunk_size)
        name = element("span", swatch(owner), f" {owner}") if 0 <= owner < geometry.stripe_count else "nobody's"
        yield name, f"{len(used):,}", show_size(sum(used)), f"{share:.0%}"


def _probes(report: Report) -> Iterator[Element]:
    if not report.stripes:
        yield _note(_UNREAD)
    elif not report.probe_lengths:
        yield _note("No topic yet.")
    else:
        rows = [
            (each.slots, f"{each.topics:,}", f"{each.share:.1%}", bar(each.share)) for each in probe_classes(report.probe_lengths)
        ]
        yield _note("How many slots are read to find a topic: 1 is its home, many are a table that is crowded or attacked.")
        yield _table("Probe lengths", (">slots read", ">topics", ">%", "share"), rows, class_="scroll bars")


def _stripes(report: Report) -> Iterator[Element]:
    if not report.stripes:
        yield _note(_UNREAD)
        return
    locked = [name for name, is_locked in (("the gate", report.gate_locked), ("growth", report.grow_locked)) if is_locked]
    heat = "Tinted is what is crowded, slow or more than a stripe's share."
    yield _note(f"{heat} Other locks that are held: {' and '.join(locked) or 'none'}.")
    yield from _columns("Stripes", STRIPE_COLUMNS, report.stripes)


def _processes(report: Report) -> Iterator[Element]:
    if report.total is None:
        yield _note(_UNREAD)
        return
    live, dead = report.live_count, len(report.processes) - report.live_count
    stopped = sum(process.state == "stopped" for process in report.processes)
    yield _note(f"{live} attached, {stopped} of them stopped; {dead} killed.")
    yield from _columns("Processes", PROCESS_COLUMNS, report.processes, report)


def _topics(report: Report, topics: list[TopicCount]) -> Iterator[Element]:
    if not report.stripes:
        yield _note(_UNREAD)
    elif not topics:
        yield _note("No topic yet." if report.fill and not report.fill.topics else "None.")
    else:
        yield from _columns("Topics", TOPIC_COLUMNS, topics)


# ---- parts


def _columns(caption: str, columns: Sequence[Column[T]], rows: Sequence[T], report: Report | None = None) -> Iterator[Element]:
    """A table, with a line of totals if there is a report to take them from, and what its columns mean."""
    columns = worth_showing(columns, rows)
    heats = [_heats(column, rows) for column in columns]
    body = [
        element("tr", *(_cell(column, row, heat[number]) for column, heat in zip(columns, heats, strict=True)))
        for number, row in enumerate(rows)
    ]
    if report:
        totals = (element("td", column.total(report) if column.total else "", class_=column.kind) for column in columns)
        body.append(element("tr", *totals, class_="total"))
    titles = [element("th", column.title, scope="col", class_=column.kind, title=column.meaning) for column in columns]
    yield _scrolling(caption, titles, body)
    meanings = [each for column in columns for each in (element("dt", column.title), element("dd", column.meaning))]
    yield element("details", element("summary", "What the columns mean"), element("dl", *meanings))


def _heats(column: Column[T], rows: Sequence[T]) -> list[int]:
    """How hot each cell is: 0 to 10."""
    if column.heat is None or not rows:
        return [0] * len(rows)
    measured = [column.heat.measure(row) for row in rows]
    cold, hot = column.heat.scale(measured)
    return [min(max(round(_HEATS * (each - cold) / (hot - cold)), 0), _HEATS) if hot > cold else 0 for each in measured]


def _cell(column: Column[T], row: T, heat: int) -> Element:
    told = column.text(row)
    text = told if isinstance(told, str) else told.decode(errors="surrogateescape")
    child: Child = text
    if column.kind == "state":
        child = _chip(text)
    elif len(text) > _LONG:
        child = element("details", element("summary", text[:_LONG], "… (all of it)"), text)
    return element("td", child, class_=f"{column.kind} heat-{heat}" if heat else column.kind)


def _table(caption: str, titles: Sequence[str], rows: Iterable[tuple[Child, ...]], class_: str = "scroll") -> Element:
    """A small table; ">" before a title sets its column to the right."""
    classes = ["number" if title.startswith(">") else "word" for title in titles]
    head = [element("th", title.removeprefix(">"), scope="col", class_=each) for title, each in zip(titles, classes, strict=True)]
    body = [element("tr", *(element("td", cell, class_=each) for cell, each in zip(row, classes, strict=True))) for row in rows]
    return _scrolling(caption, head, body, class_)


def _scrolling(caption: str, head: list[Element], body: list[Element], class_: str = "scroll") -> Element:
    """A table in a box that scrolls where it is too small, by keys too."""
    table = element("table", element("thead", element("tr", *head)), element("tbody", *body), aria_label=caption)
    return element("div", table, class_=class_, role="region", aria_label=f"{caption}, table", tabindex=0)


def _note(sentence: str) -> Element:
    return element("p", sentence, class_="note")


def _chip(state: str) -> Element:
    return element("span", state, class_=f"chip {state.replace(' ', '-')}")


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
