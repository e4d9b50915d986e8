"""Claims about the page that `inspect --html` writes: what it tells, and that no text is ever markup."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmpool import Policy, Pool, TopicCount, TopicRef, report
from shmpool import segment as segments
from shmpool.arena import Chunk
from shmpool.facts import PROCESS_COLUMNS, STRIPE_COLUMNS
from shmpool.page import draw_page
from shmpool.pictures import cells_of
from shmpool.report import Report
from shmpool.text import printable
from tests.unit.command import HOSTILE, Run, run_inside
from tests.unit.looks import VALUES, at_rest, damage, field, flip, footprint, sample_pool
from tests.unit.outline import Outline
from tests.unit.processes import Forked
from tests.unit.test_text import is_safe

MARKUP = [
    "<script>owned()</script>", '"><img src=x onerror=owned()>', "' onload='owned()", "</style><style>*{display:none}", "<!--",
    "-->", "]]>", "&lt;script&gt;", "&#60;b&#62;", "javascript:owned()", "</td></tr></table>", "<svg><a href=x>", "\uff1cb", "\\",
]


@pytest.fixture
def pool(pool_name: str) -> Iterator[Pool]:
    with sample_pool(pool_name) as made:
        yield made


@pytest.fixture
def resting(pool: Pool) -> Iterator[str]:
    with at_rest(pool) as name:
        yield name


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return lambda *arguments: run_inside(capsys, *arguments)


@pytest.fixture
def seen(pool: Pool) -> Report:
    return report.inspect(pool.name, with_topics=True)


# ---- what it tells


def test_the_page_tells_what_the_pool_holds(pool: Pool, run: Run) -> None:
    page = Outline(run("inspect", pool.name, "--html", "-", "--topics", "*29?").out)
    seen = report.inspect(pool.name)

    assert [row[:3] for row in page.rows["fill"][1:]] == [
        ["topics", "300 of 1,000", "30.0%"],
        ["arena", page.rows["fill"][2][1], page.rows["fill"][2][2]],
        ["budget", "no bound on a process's inserts", ""],
    ]
    assert page.rows["stripes"][0] == [column.title for column in STRIPE_COLUMNS if not column.if_any]
    assert [row[:2] for row in page.rows["stripes"][1:]] == [[str(each.stripe), str(each.topics)] for each in seen.stripes]
    assert page.rows["processes"][0] == [column.title for column in PROCESS_COLUMNS if not column.if_any]
    assert page.rows["processes"][1][1:3] == [str(os.getpid()), "running"]
    assert page.rows["processes"][-1][4:7] == [f"{seen.total.hits:,}", "300", "300"] if seen.total else False
    assert page.rows["top-topics"][1] == ["2", str(pool.intern(VALUES[7])), "/topic/7"]
    assert sorted(row[2] for row in page.rows["topics"][1:]) == [f"/topic/29{digit}" for digit in range(10)]
    assert int(page.rows["probe-lengths"][1][1]) == seen.probe_lengths[0]


def test_the_arenas_map_has_every_chunk_with_its_stripe_and_how_full_it_is(pool: Pool, seen: Report) -> None:
    page = Outline(draw_page(seen))

    owners = [chunk.owner for chunk in seen.chunks]
    assert sorted(owners) == [0, 1, 2, 3]
    told = [text for text in page.texts if text.startswith("chunk ")]
    assert [text.partition(" used")[0] for text in told] == [
        f"chunk {index}: stripe {chunk.owner}, {chunk.used / 1024:.1f} KiB of 16.0 KiB" for index, chunk in enumerate(seen.chunks)
    ]
    assert [row[:2] for row in page.rows["arena"][1:]] == [[f" {owner}", "1"] for owner in range(4)]
    assert sum(chunk.used for chunk in seen.chunks) == pool.stats().arena_used_size


@pytest.mark.parametrize("count", [1, 1023, 1024, 1025, 100_000])
def test_the_map_of_any_arena_is_bounded_and_leaves_no_chunk_out(count: int) -> None:
    chunks = [Chunk(100 if number % 2 else 0, number % 3) for number in range(count)]

    cells = list(cells_of(chunks, 100))

    assert len(cells) <= 1024
    assert [cell.first for cell in cells] == [0, *(cell.last + 1 for cell in cells[:-1])]
    assert cells[-1].last == count - 1
    assert sum(cell.share * (cell.last - cell.first + 1) for cell in cells) == pytest.approx(count // 2)
    assert all(set(cell.owners) == {chunk.owner for chunk in chunks[cell.first : cell.last + 1]} for cell in cells)


def test_holds_are_told_of_processes_and_topics_where_the_pool_counts_them(pool: Pool, pool_name: str, run: Run) -> None:
    def hold_and_die(_: object) -> None:
        with Pool.attach(pool_name + ".held") as other:
            for _ in range(3):
                other.intern(b"held")
            other.intern(b"theirs")
            os.kill(os.getpid(), signal.SIGKILL)

    with Pool.create(pool_name + ".held", policy=Policy.refcount(), stripe_count=1) as held:
        held.intern(b"held")
        with Forked(hold_and_die) as child:
            assert child.wait() == -signal.SIGKILL

        page = Outline(run("inspect", held.name, "--html", "-").out)
        without = Outline(run("inspect", pool.name, "--html", "-").out)

        column = page.rows["processes"][0].index("holds")
        told = {row[1]: (row[2], row[column]) for row in page.rows["processes"][1:]}
        assert told[str(child.pid)] == ("dead", "4")
        assert told[str(os.getpid())] == ("running", "1")
        assert page.rows["processes"][-1][column] == "5"
        most = [(row[1], row[3]) for row in page.rows["top-topics-by-holds"]]
        assert most == [("holds", "topic"), ("4", "held"), ("1", "theirs")]
        assert ["holds", "5, and 0 topics that nobody holds", ""] in [row[:3] for row in page.rows["fill"]]
        assert any(text.startswith("Dead processes still hold 4 times") for text in page.texts)
        assert "holds" not in without.rows["processes"][0] + without.rows["top-topics"][0]


def test_an_empty_pool_is_a_page_that_says_so(pool_name: str, run: Run) -> None:
    with Pool.create(pool_name):
        ran = run("inspect", pool_name, "--html", "-")

    assert (ran.code, ran.err) == (0, "")
    page = Outline(ran.out)
    assert page.texts.count("No topic yet.") == 2
    assert any(text.startswith("0 of 5,257 chunks") for text in page.texts)


def test_of_a_damaged_pool_the_rest_is_shown_and_the_damage_named(pool: Pool, resting: str, run: Run) -> None:
    geometry = pool.constants.geometry
    flip(resting, geometry.arena_offset + 20)
    damage(resting, geometry.stripes_offset, b"\xff" * 8)  # a stripe's table
    damage(resting, geometry.chunks_offset + 8, b"\xff\xff")  # a chunk's owner
    before = footprint(resting)

    ran = run("inspect", resting, "--html", "-")

    page = Outline(ran.out)
    problems = report.inspect(resting).problems
    assert ran.code == 1
    assert len(problems) >= 2
    assert set(problems) <= set(page.texts)
    assert all(problem in ran.err for problem in problems)
    assert any(text.startswith("chunk 1: nobody's") for text in page.texts)
    assert [row[0] for row in page.rows["stripes"][1:]] == ["0", "1", "2", "3"]
    assert footprint(resting) == before


@pytest.mark.parametrize("kind", ["other version", "no pool"])
def test_of_what_cannot_be_read_the_header_is_shown_and_each_section_says_that(
    resting: str, run: Run, kind: str, tmp_path: Path
) -> None:
    if kind == "other version":
        damage(resting, field("version"), (99).to_bytes(8, "little"))
    else:
        Path(segments.path_of(resting)).write_bytes(b"<b>notes</b>")

    ran = run("inspect", resting, "--html", str(tmp_path / "page.html"))

    page = Outline((tmp_path / "page.html").read_text())
    assert ran.code == 1
    assert kind in page.texts
    assert page.texts.count("This could not be read; see the problems above.") == 6
    assert any(segments.path_of(resting) in text for text in page.texts)


def test_the_stripe_that_sticks_out_is_tinted(seen: Report) -> None:
    even = [replace(each, topics=100, load=0.0, probe_mean=1.0, probe_max=1, growths=2) for each in seen.stripes]
    odd = [even[0], replace(even[1], topics=300, growths=4, rollbacks=1), *even[2:]]

    calm, hot = (tints(Outline(draw_page(replace(seen, stripes=stripes)))) for stripes in (even, odd))

    assert not any(map(any, calm))
    assert [bool(any(row)) for row in hot] == [False, True, False, False]
    assert hot[1] == [0, 10, 0, 0, 0, 0, 6, 0, 0, 10, 0, 0, 0]


def tints(page: Outline) -> list[list[int]]:
    """How hot each cell of the stripes' table is."""
    first = page.tags.index(("section", (("id", "stripes"), ("aria-labelledby", "stripes-title"))))
    last = page.tags.index(("section", (("id", "processes"), ("aria-labelledby", "processes-title"))))
    classes = [dict(attributes)["class"] or "" for tag, attributes in page.tags[first:last] if tag == "td"]
    heats = [int(each.partition("heat-")[2] or 0) for each in classes]
    width = sum(not column.if_any for column in STRIPE_COLUMNS)
    return [heats[start : start + width] for start in range(0, len(heats), width)]


def test_a_long_topic_is_there_to_its_end_and_folded(seen: Report) -> None:
    value = b"<" * 499 + b">"
    seen.top = [TopicCount(TopicRef(1), value, 1)]

    page = Outline(draw_page(seen))

    assert value.decode() in page.texts
    assert "<" * 120 + "… (all of it)" in page.texts


# ---- text is text


def test_no_text_of_others_is_ever_markup(seen: Report) -> None:
    """Pages that differ in nothing but such texts have the same tags and attributes, and show each text as a terminal would."""
    told = st.one_of(st.binary(max_size=100), st.text(max_size=100), st.lists(st.sampled_from(MARKUP), max_size=4).map("".join))
    plain = Outline(draw_page(with_text(seen, "plain"))).tags

    @given(told)
    def is_text(text: str | bytes) -> None:
        page = Outline(draw_page(with_text(seen, text)))

        assert page.tags == plain
        assert page.rows["top-topics"][1][2] == page.rows["topics"][1][2] == printable(text)
        assert page.rows["processes"][1][-1] == printable(as_text(text))
        assert page.texts[:2] == ["\n", f"pool {printable(as_text(text))}: in use"]
        assert not text or printable(as_text(text)) in page.texts  # as a problem

    is_text()


def with_text(seen: Report, text: str | bytes) -> Report:
    value = text if isinstance(text, bytes) else text.encode(errors="surrogatepass")
    topic = TopicCount(TopicRef(1), value, 5)
    shown = as_text(text)
    process = replace(seen.processes[0], command=shown)
    return replace(
        seen, header=replace(seen.header, name=shown, path=shown), problems=[shown], processes=[process], top=[topic],
        topics=[topic], stripes=seen.stripes[:1], chunks=seen.chunks[:1],
    )


def as_text(text: str | bytes) -> str:
    return text if isinstance(text, str) else text.decode(errors="backslashreplace")


def test_what_a_terminal_would_act_on_is_escaped_on_the_page_too(pool: Pool, run: Run) -> None:
    pool.intern_many(HOSTILE)

    page = run("inspect", pool.name, "--html", "-", "--topics").out

    assert is_safe(page.replace("\n", ""))
    assert {row[2] for row in Outline(page).rows["topics"]} >= {printable(value) for value in HOSTILE}


def test_the_page_allows_its_own_style_and_nothing_else(seen: Report) -> None:
    page = Outline(draw_page(seen))

    policy = next(dict(each)["content"] for _, each in page.tags if ("http-equiv", "Content-Security-Policy") in each)
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    assert all(link.startswith("#") or link == "data:," for link in page.values_of("href"))
    assert "@import" not in page.style
    assert "url(" not in page.style
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "img", "iframe", "object", "embed", "form", "base", "font"})
    names = {name for _, attributes in page.tags for name, _ in attributes}
    assert not {name for name in names if name in ("style", "src", "srcset", "action") or name.startswith("on")}


def test_every_link_of_the_page_leads_to_a_place_on_it(seen: Report) -> None:
    page = Outline(draw_page(seen))

    links = [link for link in page.values_of("href") if link.startswith("#")]
    assert len(links) == 8
    assert {link.removeprefix("#") for link in links} <= set(page.values_of("id"))
    assert set(page.values_of("aria-labelledby")) <= set(page.values_of("id"))
    assert len(page.values_of("id")) == len(set(page.values_of("id")))
