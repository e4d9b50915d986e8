from typing import Final

CODES: Final[dict[str, int]]

class Engine:
    epoch: int
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
    def hash(self, value: bytes, /) -> int: ...
    def stripe(self, value: bytes, /) -> int: ...
    def find(self, value: bytes, /) -> int | None: ...
    def find_many(self, items: list[tuple[int, bytes]], /) -> list[int]: ...
    def insert(self, value: bytes, /) -> int | None: ...
    def insert_many(self, items: list[tuple[int, bytes, int]], room: int, /) -> list[int]: ...
