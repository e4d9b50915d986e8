"""Claims about the page of `inspect --html` in a real browser: it shows the pool, and no text of strangers does anything."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shmpool import Pool, report
from shmpool import segment as segments
from shmpool.layout import PAGE_SIZE
from shmpool.report import Report
from shmpool.text import printable
from tests.unit.browser import Browser, browser
from tests.unit.command import HOSTILE, environment, run_outside
from tests.unit.looks import VALUES, damage, field, flip

pytestmark = pytest.mark.xdist_group("browser")  # one of them, rather than one for each worker

CANARY = "canary.invalid"
SCRIPT = f"owned=1;fetch('http://{CANARY}/fetched')"
STRANGERS = [
    f"<script>{SCRIPT}</script>".encode(),
    f'"><img src=http://{CANARY}/image onerror="{SCRIPT}">'.encode(),
    f"</td></tr></table><svg onload=\"{SCRIPT}\"><style>@import 'http://{CANARY}/style';body{{display:none}}</style>".encode(),
    f"<link rel=stylesheet href=http://{CANARY}/sheet><meta http-equiv=refresh content='0;url=http://{CANARY}/away'>".encode(),
    f"<iframe src=http://{CANARY}/frame></iframe><base href=http://{CANARY}/>".encode(),
    *HOSTILE,
]
LURE = b"<a id=lure href='javascript:lured=1'>x</a>"
STRANGERS.append(LURE)


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as opened:
        yield opened


@dataclass(frozen=True)
class Shown:
    """A page, and what it was made of."""

    path: Path
    seen: Report


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, testrun_uid: str, worker_id: str) -> Shown:
    """The page of a pool that strangers named, one of whose processes has a hostile command line too."""
    name, path = f"test-{testrun_uid[:12]}-{worker_id}-page", tmp_path_factory.mktemp("page") / "page.html"
    code = f"import sys; from shmpool import Pool; p = Pool.attach({name!r}); print('on', flush=True); sys.stdin.read()"
    hostile = [value.decode(errors="replace").replace("\0", "") for value in STRANGERS]
    count = len(STRANGERS) + 1
    with strangers_pool(name), subprocess.Popen(
        [sys.executable, "-c", code, *hostile], env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"on\n"
        ran = run_outside("inspect", name, "--html", str(path), "--top", str(count))
        seen = report.inspect(name, top=count)
        process.kill()
        process.wait()
    assert ran.code == 0
    return Shown(path, seen)


def strangers_pool(name: str) -> Pool:
    made = Pool.create(name, capacity=1000, stripe_count=4, process_count=8)
    made.intern_many(VALUES)
    for _ in range(9):
        made.intern_many(STRANGERS)
    made.flush()
    return made


def rows(window: Browser, section: str) -> list[list[str]]:
    """What the cells of a section's table say, titles first, what is folded included."""
    script = f"[...document.querySelectorAll('#{section} tr')].map(row => [...row.cells].map(cell => cell.textContent))"
    found: list[list[str]] = window.ask(script)
    return found


def test_it_shows_the_pools_facts_and_every_text_as_it_is(window: Browser, shown: Shown) -> None:
    window.open(shown.path)

    seen = shown.seen
    topics = {topic.ref: printable(topic.value) for topic in seen.top}
    told = {int(row[1]): row[2] for row in rows(window, "top-topics")[1:]}
    assert window.driver.title == f"pool {seen.header.name}: in use"
    assert set(map(printable, STRANGERS)) < set(topics.values())
    # What is long is there twice: its beginning, and folded the whole.
    assert {ref: text.rpartition("(all of it)")[2] for ref, text in told.items()} == topics
    assert rows(window, "fill")[1][:2] == ["topics", f"{len(VALUES) + len(STRANGERS)} of 1,000"]
    assert [row[1] for row in rows(window, "stripes")[1:]] == [str(each.topics) for each in seen.stripes]
    assert rows(window, "processes")[1][2] == "running"
    assert printable(f"<script>{SCRIPT}</script>") in rows(window, "processes")[2][-1]
    assert window.ask("document.querySelectorAll('svg.map g').length") == len(seen.chunks)


def test_nothing_runs_nothing_is_asked_for_and_the_console_is_silent(window: Browser, shown: Shown) -> None:
    window.open(shown.path)

    assert window.ask("typeof owned") == "undefined"
    assert window.ask("document.querySelectorAll('script, img, iframe, base, #lure').length") == 0
    assert window.told() == []
    assert window.requests() == [shown.path.as_uri()]
    assert window.asked_for(CANARY) == []


def test_the_harness_notices_what_a_careless_page_does(window: Browser, tmp_path: Path) -> None:
    """The control: the same topics, as they are, on a page without a policy."""
    careless = tmp_path / "careless.html"
    careless.write_bytes(b"<!DOCTYPE html><title>x</title><body>" + b"\n".join([LURE, *STRANGERS[:3]]))

    window.open(careless)
    window.follow("lure")

    assert window.ask("[owned, lured]") == [1, 1]
    assert {f"http://{CANARY}/{what}" for what in ("fetched", "image", "style")} <= set(window.requests())
    assert len(window.asked_for(CANARY)) >= 3
    assert window.told()


def test_were_a_text_not_escaped_the_pages_policy_would_still_stop_it(window: Browser, shown: Shown, tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt.html"
    spoilt.write_bytes(shown.path.read_bytes().replace(b"<main>", b"<main>" + b"\n".join([LURE, *STRANGERS[:3], STRANGERS[4]])))

    window.open(spoilt)
    window.follow("lure")

    assert window.ask("[typeof owned, typeof lured]") == ["undefined", "undefined"]
    assert window.ask("getComputedStyle(document.body).display") != "none"
    assert window.asked_for(CANARY) == []
    assert any("Content Security Policy" in said for said in window.told())


@pytest.mark.parametrize("kind", ["damaged", "other version", "no pool", "empty"])
def test_pages_of_other_pools_are_sound_too(window: Browser, pool_name: str, tmp_path: Path, kind: str) -> None:
    page = tmp_path / "page.html"
    with strangers_pool(pool_name) as pool:
        before = Path(segments.path_of(pool_name)).read_bytes()[:PAGE_SIZE]
        match kind:
            case "damaged":
                flip(pool_name, pool.constants.geometry.arena_offset + 20)
            case "other version":
                damage(pool_name, field("version"), (99).to_bytes(8, "little"))
            case "no pool":
                damage(pool_name, 0, bytes(PAGE_SIZE))
            case "empty":
                pool.reset()
        run_outside("inspect", pool_name, "--html", str(page), "--topics")
        if kind != "empty":
            damage(pool_name, 0, before)

    window.open(page, width=400)

    assert window.driver.title == f"pool {pool_name}: {'in use' if kind == 'empty' else kind}"
    assert bool(window.ask("document.querySelectorAll('.problems li').length")) == (kind != "empty")
    assert (window.told(), window.requests()) == ([], [page.as_uri()])
    assert window.ask("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.parametrize("width", [320, 400, 1280])
def test_no_page_is_wider_than_its_window(window: Browser, shown: Shown, width: int) -> None:
    window.open(shown.path, width=width)
    window.ask("document.querySelectorAll('details').forEach(each => each.open = true)")

    assert window.ask("window.innerWidth") == width
    assert window.ask("document.documentElement.scrollWidth") <= width
    assert window.ask("document.querySelector('#processes .scroll').clientWidth") < width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_in_light_and_dark(window: Browser, shown: Shown, scheme: str) -> None:
    window.open(shown.path, scheme=scheme)

    for selector in ("h1", "dd", ".note", "th", "td.topic", "td[class*=heat-]", ".chip.running", "nav a", "summary"):
        assert contrast(window, selector) >= 4.5, selector
    assert (brightness(window.ask("getComputedStyle(document.body).backgroundColor")) > 0.5) == (scheme == "light")


def contrast(window: Browser, selector: str) -> float:
    """WCAG's contrast of the first such element's text with what is behind it."""
    colours = window.ask(f"""(() => {{
        const canvas = new OffscreenCanvas(1, 1).getContext('2d', {{willReadFrequently: true}});
        const layers = [];
        const start = document.querySelector({selector!r});
        for (let each = start; each; each = each.parentElement) layers.unshift(getComputedStyle(each).backgroundColor);
        const paint = colour => {{ canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }};
        const read = () => 'rgb(' + [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).join(', ') + ')';
        layers.forEach(paint);
        const behind = read();
        paint(getComputedStyle(start).color);
        return [behind, read()];
    }})()""")
    low, high = sorted(map(brightness, colours))
    return (high + 0.05) / (low + 0.05)


def brightness(colour: str) -> float:
    """WCAG's relative luminance of "rgb(r, g, b)"."""
    parts = [int(part) / 255 for part in colour[4:-1].split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_screen_reader_is_told_names_of_tables_pictures_and_places(window: Browser, shown: Shown) -> None:
    window.open(shown.path)

    nodes: list[dict[str, Any]] = window.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    named = {(node["role"]["value"], node["name"]["value"]) for node in nodes if not node["ignored"] and node.get("name")}
    roles = [node["role"]["value"] for node in nodes if not node["ignored"]]
    assert {("navigation", "Sections"), ("table", "Stripes"), ("table", "Processes"), ("region", "Arena")} <= named
    assert roles.count("table") == 6
    assert {name for role, name in named if role == "columnheader"} >= {"pid", "takeovers", "probes", "topic", "uses"}
    pictures = [name for role, name in named if role == "image"]
    assert [name.partition(". ")[0] for name in pictures] == ["Map of 4 chunks"]


def test_keys_alone_reach_every_link_table_and_fold(window: Browser, shown: Shown) -> None:
    window.open(shown.path)
    reached = []

    for _ in range(60):
        key(window, "Tab")
        reached.append(window.ask("document.activeElement.tagName + ' ' + (document.activeElement.ariaLabel || "
                                  "document.activeElement.textContent)"))
        if reached[-1] == "SUMMARY What the columns mean":
            key(window, "Enter")
        if reached[-1].startswith("BODY"):
            break

    wanted = window.ask("document.querySelectorAll('nav a, .scroll, summary').length")
    assert len(reached) == wanted + 1
    assert reached[0] == "A Header"
    assert "DIV Stripes, table" in reached
    assert window.ask("document.querySelectorAll('section > details[open]').length") == 3


def key(window: Browser, name: str) -> None:
    code = {"Tab": 9, "Enter": 13}[name]
    text = {"text": "\r"} if name == "Enter" else {}
    for kind in ("keyDown", "keyUp"):
        window.driver.execute_cdp_cmd(
            "Input.dispatchKeyEvent", {"type": kind, "key": name, "code": name, "windowsVirtualKeyCode": code} | text
        )
