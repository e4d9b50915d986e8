"""Pictures for a page, as SVG of a bounded size. What they show is told in a table beside each."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

from shmpool.arena import Chunk
from shmpool.markup import Element, element
from shmpool.text import show_size

_MOST_CELLS: Final = 1024
_MOST_WITH_NUMBERS: Final = 20  # cells across; more are too small to be read
_CELL: Final = 10
_GAP: Final = 1


class Cell(NamedTuple):
    """Chunks that lie side by side, drawn as one: the first and last, the stripes that own them, most used first, and which part
    of them is used."""

    first: int
    last: int
    owners: tuple[int, ...]
    share: float


def bar(share: float, *, is_part_of_limit: bool = False) -> Element:
    """A bar as long as a share, whose number stands beside it. One of a limit is red where little is left."""
    width = round(100 * min(max(share, 0.0), 1.0), 2)
    return _svg(
        100, 6, "bar",
        element("rect", class_="trough", width=100, height=6, rx=2),
        element("rect", class_="level high" if is_part_of_limit and share > 0.9 else "level", width=width, height=6, rx=2),
        preserveAspectRatio="none",
    )


def swatch(stripe: int) -> Element:
    """The colour that a stripe has in the arena's map."""
    return _svg(_CELL, _CELL, "swatch", element("rect", width=_CELL, height=_CELL, rx=2, fill=_colour(stripe)))


def arena_map(chunks: list[Chunk], chunk_size: int, stripe_count: int) -> Element:
    """The chunks that were taken, in the arena's order: the colour is the stripe's, the height how much is used."""
    cells = list(cells_of(chunks, chunk_size))
    across = max(math.ceil(math.sqrt(2 * len(cells))), 8)  # twice as wide as high
    with_number = across <= _MOST_WITH_NUMBERS
    step = _CELL + _GAP
    drawn = [
        _cell(cell, number % across * step, number // across * step, chunk_size, stripe_count, with_number=with_number)
        for number, cell in enumerate(cells)
    ]
    return _svg(
        across * step - _GAP, -(-len(cells) // across) * step - _GAP, "map", *drawn,
        role="img", aria_label=f"Map of {len(chunks):,} chunks. The table beside it tells how many each stripe owns.",
    )


def cells_of(chunks: list[Chunk], chunk_size: int) -> Iterator[Cell]:
    """At most so many cells that a picture of them stays small: from some number of chunks on, several make one."""
    together = -(-len(chunks) // _MOST_CELLS) or 1
    for first in range(0, len(chunks), together):
        some = chunks[first : first + together]
        used: Counter[int] = Counter()
        for chunk in some:
            used[chunk.owner] += chunk.used
        owners = tuple(owner for owner, _ in used.most_common())
        yield Cell(first, first + len(some) - 1, owners, sum(chunk.used for chunk in some) / (len(some) * chunk_size))


def _cell(cell: Cell, x: int, y: int, chunk_size: int, stripe_count: int, *, with_number: bool) -> Element:
    owner = cell.owners[0]
    is_owned = 0 <= owner < stripe_count
    level = round(_CELL * cell.share, 1) if is_owned else _CELL
    return element(
        "g",
        element("title", _describe(cell, chunk_size, stripe_count)),
        element("rect", class_="trough", x=x, y=y, width=_CELL, height=_CELL),
        element("rect", class_=None if is_owned else "nobodys", fill=_colour(owner) if is_owned else None, x=x,
                y=round(y + _CELL - level, 1), width=_CELL, height=level),
        element("text", str(owner) if is_owned else "?", x=x + _CELL / 2, y=y + _CELL * 0.68) if with_number else None,
    )


def _describe(cell: Cell, chunk_size: int, stripe_count: int) -> str:
    owners = [str(owner) for owner in cell.owners if 0 <= owner < stripe_count]
    whose = f"stripe{'s' * (len(owners) > 1)} {', '.join(owners)}" if owners else "nobody's"
    if cell.first == cell.last:
        used = f"{show_size(cell.share * chunk_size)} of {show_size(chunk_size)} used"
        return f"chunk {cell.first}: {whose}, {used} ({cell.share:.0%})"
    return f"chunks {cell.first} to {cell.last}: {whose}, {cell.share:.0%} used"


def _colour(stripe: int) -> str:
    """Neighbours in number differ most: each is a golden angle further on the wheel, as bright as all others."""
    return f"oklch(0.58 0.13 {stripe * 137.508 % 360:.0f})"


def _svg(width: float, height: float, class_: str, *children: Element, **attributes: str) -> Element:
    """A drawing of so many units. One without a role is not told to who cannot see it."""
    hidden = {} if "role" in attributes else {"aria_hidden": "true"}
    return element("svg", *children, class_=class_, viewBox=f"0 0 {width:g} {height:g}", **hidden, **attributes)
