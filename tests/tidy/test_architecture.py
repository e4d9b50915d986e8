"""The source keeps the architecture's rules, and each rule is seen to fail on a small tree that breaks it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tidy.architecture import declared_order, layer_violations, owner_violations, package_violations

ROOT = Path(__file__).resolve().parents[2]

SHMPOOL_INIT = """\
'The summary.

General layout:

    errors       the exceptions, for pool too
    lock         turnstiles

    segment.py   the memory
    pool         Pool
    cli          not there yet
'
from shmpool.pool import Pool
__all__ = ["Pool"]
""".replace("'", '"' * 3)

WriteTree = Callable[[dict[str, str]], Path]


@pytest.fixture
def tree(tmp_path: Path) -> WriteTree:
    """Write a sound tree of both packages, changed by `files`, and return its root."""
    sound = {
        "shmpool/__init__.py": SHMPOOL_INIT,
        "shmpool/errors.py": "",
        "shmpool/lock.py": "import posix_ipc\nfrom shmpool.errors import PoolError\n",
        "shmpool/segment.py": "from multiprocessing.shared_memory import SharedMemory\n",
        "shmpool/pool.py": "from shmpool import segment\nfrom .lock import Lock\n",
        "worker/__init__.py": '"""Doc.\n\nGeneral layout: `topics` are facts, then `router`, then `host`.\n"""\n',
        "worker/topics.py": "import shmpool\nfrom shmpool import Pool\nshmpool.Pool\n",
        "worker/router.py": "from worker.topics import K\n",
        "worker/host.py": "import libp2p\nfrom libp2p.pubsub import pubsub\nfrom worker.router import RouterShard\n",
    }

    def write(files: dict[str, str]) -> Path:
        for name, text in (sound | files).items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return write


def all_violations(root: Path) -> list[str]:
    return [
        *layer_violations(root, "shmpool"),
        *layer_violations(root, "worker"),
        *package_violations(root),
        *owner_violations(root, "posix_ipc", "shmpool/lock.py"),
        *owner_violations(root, "multiprocessing.shared_memory", "shmpool/segment.py"),
        *owner_violations(root, "libp2p", "worker/host.py"),
    ]


def test_shmpool_imports_follow_its_general_layout() -> None:
    assert "\n".join(layer_violations(ROOT, "shmpool")) == ""


def test_worker_imports_follow_its_general_layout() -> None:
    assert "\n".join(layer_violations(ROOT, "worker")) == ""


def test_shmpool_stands_alone_and_worker_uses_only_what_it_exports() -> None:
    assert "\n".join(package_violations(ROOT)) == ""


@pytest.mark.parametrize(
    ("library", "owner"),
    [
        ("posix_ipc", "shmpool/lock.py"),
        ("multiprocessing.shared_memory", "shmpool/segment.py"),
        ("libp2p", "worker/host.py"),
        ("xml", "shmpool/markup.py"),
    ],
)
def test_library_has_a_single_owner(library: str, owner: str) -> None:
    assert "\n".join(owner_violations(ROOT, library, owner)) == ""


def test_sound_tree_passes(tree: WriteTree) -> None:
    root = tree({})

    assert declared_order(root, "shmpool") == ["errors", "lock", "segment", "pool"]
    assert declared_order(root, "worker") == ["topics", "router", "host"]
    assert not all_violations(root)


@pytest.mark.parametrize(
    ("file", "text", "violation"),
    [
        ("shmpool/errors.py", "import shmpool.pool", "shmpool/errors.py:1 imports shmpool.pool, which is not above it"),
        ("shmpool/lock.py", "from shmpool import segment", "lock.py:1 imports shmpool.segment, which is not above it"),
        ("shmpool/lock.py", "def f():\n    from .pool import Pool", "lock.py:2 imports shmpool.pool, which is not"),
        ("shmpool/pool.py", "from shmpool import Pool", "pool.py:1 imports shmpool.__init__, which is not above it"),
        ("shmpool/cache.py", "", "shmpool/cache.py is not in the General layout"),
        ("shmpool/pool.py", "import worker.router", "pool.py:1 imports worker"),
        ("worker/router.py", "from worker.host import dial", "router.py:1 imports worker.host, which is not above it"),
        ("worker/router.py", "from shmpool.pool import Pool", "router.py:1 reaches past shmpool's exports"),
        ("worker/router.py", "from shmpool import errors", "router.py:1 reaches past shmpool's exports"),
        ("worker/router.py", "import shmpool\nshmpool.lock.Lock", "router.py:2 uses shmpool.lock, not exported"),
        ("worker/router.py", "from tests import model", "router.py:1 imports tests"),
        ("worker/router.py", "import libp2p.pubsub", "router.py:1 imports libp2p, which belongs to worker/host.py"),
        ("shmpool/pool.py", "import posix_ipc", "pool.py:1 imports posix_ipc, which belongs to shmpool/lock.py"),
        ("worker/host.py", "from posix_ipc import Semaphore", "host.py:1 imports posix_ipc"),
        ("shmpool/pool.py", "from multiprocessing import shared_memory", "pool.py:1 imports multiprocessing.shared_"),
        ("shmpool/pool.py", "import multiprocessing.shared_memory", "pool.py:1 imports multiprocessing.shared_memory"),
    ],
)
def test_violation_is_found(tree: WriteTree, file: str, text: str, violation: str) -> None:
    root = tree({file: text})

    violations = all_violations(root)

    assert len(violations) == 1
    assert violation in violations[0]
