from mmap import mmap
from typing import Final

from shmpool.layout import TopicRef

CODES: Final[dict[str, int]]

class Engine:
    def __new__(
        cls,
        words: memoryview,
        key: bytes,
        *,
        stripe_bits: int,
        stripes_word: int,
        tables_word: int,
        stripe_tables_words: int,
        min_table_bits: int,
        max_table_bits: int,
        stripe_capacity: int,
        chunks_word: int,
        arena_word: int,
        arena_size: int,
        chunk_size: int,
    ) -> Engine: ...
    def start_epoch(self, epoch: int, /) -> None: ...
    def know_table(self, stripe: int, state: int, /) -> None: ...
    def hash(self, value: bytes, /) -> int: ...
    def stripe(self, value: bytes, /) -> int: ...
    def find(self, value: bytes, /) -> int | None: ...
    def find_many(self, items: list[tuple[int, bytes]], /) -> list[int]: ...
    def insert(self, value: bytes, /) -> int | None: ...
    def insert_many(self, items: list[tuple[int, bytes, int]], room: int, /) -> list[int]: ...

class Hot:
    def __new__(
        cls,
        words: memoryview,
        by_value: dict[bytes, tuple[TopicRef, int, int, bytes]],
        by_ref: dict[TopicRef, tuple[TopicRef, int, int, bytes]],
        mark: mmap,
    ) -> Hot: ...
    def take(self, value: bytes, /) -> TopicRef | None: ...
    def give(self, ref: TopicRef, /) -> bool: ...
    def use(self, value: bytes, /) -> TopicRef | None: ...

class Turnover:
    def __new__(
        cls, engine: Engine, *, shelves_word: int, rows_word: int, holds_word: int, ledger_words: int, process_count: int
    ) -> Turnover: ...
    def find(self, value: bytes, oldest: int, /) -> int | None: ...
    def hold(
        self,
        value: bytes,
        holds_word: int,
        holds_count: int,
        uses_word: int,
        uses_count: int,
        oldest: int,
        may_insert: bool,
        taken: list[int],
        /,
    ) -> tuple[int, int, int, bool] | None: ...
    def drop(self, stripe: int, offset: int, holds_word: int, now: int, keeps_unheld: bool, /) -> bool | None: ...
    def evict(self, stripe: int, offset: int, stamp: int, /) -> bool: ...
