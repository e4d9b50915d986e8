"""The compiled engine: what is plain sailing of `stripe`, `reuse` and `held`, in C over the same bytes (_engine.c, _reuse.c).

Installing builds it where there is a C compiler. Where there is none all is done in plain Python, which is also what it is tested
against, and what does everything but the plain case. Processes with and without it share a pool.

SHMPOOL_ENGINE=python in the environment keeps to plain Python; SHMPOOL_ENGINE=compiled refuses to start without the engine.
"""

import os
import warnings
from mmap import mmap
from typing import Final

from shmpool import layout
from shmpool.header import Constants
from shmpool.layout import MIN_TABLE_BITS, PROCESS_WORDS, WORD_SIZE, Geometry, TopicRef

Entry = tuple[TopicRef, int, int, bytes]  # a ref, the words of this process's holds and uses of it, and the value

_WANTED: Final = os.environ.get("SHMPOOL_ENGINE", "")

if _WANTED not in ("", "python", "compiled"):
    raise ImportError(f"SHMPOOL_ENGINE is {_WANTED!r}, and may be 'python', 'compiled' or not set. Nothing was changed.")

ENGINE = "compiled"  # or "python": what this process's pools are searched with
try:
    if _WANTED == "python":
        raise ImportError("not wanted")
    from shmpool import _engine
except ImportError:
    if _WANTED == "compiled":
        raise
    ENGINE = "python"
else:
    if any(getattr(layout, name, None) != code for name, code in _engine.CODES.items()):
        _OTHER = "shmpool's compiled engine is of another version and is not used; install shmpool again"
        if _WANTED == "compiled":
            raise ImportError(_OTHER)
        ENGINE = "python"
        warnings.warn(_OTHER, stacklevel=2)


def make_engine(words: memoryview, constants: Constants) -> "_engine.Engine | None":
    """An engine over a segment's words, its epoch still to be started; or None."""
    geometry = constants.geometry
    if ENGINE == "python":
        return None
    return _engine.Engine(
        words,
        constants.hash_key,
        stripe_bits=geometry.stripe_count.bit_length() - 1,
        stripes_word=geometry.stripes_offset // WORD_SIZE,
        tables_word=geometry.tables_offset // WORD_SIZE,
        stripe_tables_words=geometry.stripe_tables_size // WORD_SIZE,
        min_table_bits=MIN_TABLE_BITS,
        max_table_bits=geometry.max_table_bits,
        stripe_capacity=geometry.stripe_capacity,
        chunks_word=geometry.chunks_offset // WORD_SIZE,
        arena_word=geometry.arena_offset // WORD_SIZE,
        arena_size=geometry.arena_size,
        chunk_size=geometry.chunk_size,
    )


def make_turnover(engine: "_engine.Engine | None", geometry: Geometry) -> "_engine.Turnover | None":
    """What the engine does beside where topics go; None without an engine."""
    if engine is None:
        return None
    return _engine.Turnover(
        engine,
        shelves_word=geometry.shelves_offset // WORD_SIZE,
        rows_word=geometry.totals_offset // WORD_SIZE + PROCESS_WORDS,
        holds_word=geometry.holds_offset // WORD_SIZE,
        ledger_words=geometry.ledger_size // WORD_SIZE,
        process_count=geometry.process_count,
    )


def make_hot(
    words: memoryview, by_value: dict[bytes, Entry], by_ref: dict[TopicRef, Entry], mark: mmap
) -> "_engine.Hot | None":
    """What counts holds of these entries, or None; see held.py."""
    return None if ENGINE == "python" else _engine.Hot(words, by_value, by_ref, mark)
