"""What a rival is: how it is started, opened and asked."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Protocol

SHM: Final = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rival's data is for one measurement: a folder in /dev/shm, and what its server, if any, is reached by."""

    folder: Path
    capacity: int
    reached_by: Any = None
    pids: tuple[int, ...] = ()  # of its servers

    @property
    def name(self) -> str:
        return self.folder.name


@dataclass(frozen=True, slots=True)
class Operations:
    """What a process does with a rival. The callables are the rival's own where they fit: no wrapper is measured with them.

    insert: the reference of a value, given now if it is new. lookup: the reference, or None. The `_many` are what the rival has
    for batches, None where it has nothing of the kind.
    """

    insert: Callable[[Any], Any]
    lookup: Callable[[Any], Any] | None
    insert_many: Callable[[list[Any]], object] | None = None
    lookup_many: Callable[[list[Any]], Sequence[Any]] | None = None
    close: Callable[[], object] = lambda: None
    from_bytes: Callable[[bytes], Any] | None = None  # makes a fresh value, outside of what is timed


class Open(Protocol):
    """Opens a rival in one process; who is `creating` comes first and leaves last."""

    def __call__(self, place: Place, /, *, creating: bool) -> Operations: ...


@dataclass(frozen=True, slots=True)
class Rival:
    """is_shared: processes see each other's values. tells_absent: it can be asked without inserting. left_out: rows that it has
    nothing for, each with the reason. note: how it is used, and what else a reader should know.
    """

    name: str
    open: Open
    version: Callable[[], str]
    imports: tuple[str, ...] = ()  # of the extra `bench`
    program: str = ""  # its server
    serve: Callable[[Place], AbstractContextManager[Place]] = nullcontext
    is_shared: bool = True
    files: Callable[[Place], list[Path]] = lambda place: [path for path in place.folder.rglob("*") if path.is_file()]
    tells_absent: bool = True
    left_out: dict[str, str] = field(default_factory=dict)
    note: str = ""

    def missing(self) -> str | None:
        """Why it cannot be measured here; None if it can."""
        absent = [module for module in self.imports if find_spec(module) is None]
        if absent:
            return f"{' and '.join(absent)} not installed (pip install 'shmpool[bench]')"
        if self.program and not shutil.which(self.program):
            return f"{self.program} not installed (apt-get install {self.program})"
        return None


@contextmanager
def placed(rival: Rival, capacity: int) -> Iterator[Place]:
    """A place for so many values, with the rival's server running; all of it gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix=f"shmpool-bench-{os.getpid()}-", dir=SHM))
    try:
        with rival.serve(Place(folder, capacity)) as place:
            yield place
    finally:
        shutil.rmtree(folder)
